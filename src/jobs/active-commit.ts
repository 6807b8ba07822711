/**
 * commit of the active layer: a mirror to a layer below it, of what the layers above that one hold. Once it is ready
 * nothing is lost by going on; `complete` has the users go on with the base.
 */
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import type { BlockBackendOptions } from '../block/backend.ts';
import { assertNoOverlay, layerOf } from '../block/copy-up.ts';
import { type Driver, PERM_ALL, Perm } from '../block/driver.ts';
import type { BlockNode } from '../block/node.ts';
import { setReadOnly } from '../block/reopen.ts';
import type { BlockJobOptions, ErrorPolicy } from './block-job.ts';
import { type CommitChain, commitChain, commitGranularity } from './commit-job.ts';
import { MirrorJob } from './mirror-job.ts';
import { passFilter } from './pass-filter.ts';

export interface ActiveCommitOptions extends BlockJobOptions {
  readonly onImageError?: ErrorPolicy | undefined;
  /** Node-name of the filter over `root`. Default: one is made up. */
  readonly filterName?: string | undefined;
  /** See MirrorJobOptions. */
  readonly alone?: ((step: () => Promise<void>) => Promise<void>) | undefined;
}

export class ActiveCommitJob extends MirrorJob {
  override readonly type = 'commit';
  readonly #base: BlockNode;
  readonly #chain: CommitChain;
  readonly #wasReadOnly: boolean;
  #completed = false;

  private constructor(root: BlockNode, base: BlockNode, chain: CommitChain, options: ActiveCommitOptions) {
    const { onImageError } = options;
    super(root, base, { ...options, sync: 'top', onSourceError: onImageError, onTargetError: onImageError });
    this.#base = base;
    this.#chain = chain;
    this.#wasReadOnly = base.readOnly;
  }

  /** `root`: what is used, and shows the chain. EINVAL, EBUSY, EPERM, before anything happens. */
  static async commit(root: BlockNode, base: BlockNode, options: ActiveCommitOptions): Promise<ActiveCommitJob> {
    const chain = commitChain(root, root, base);
    assertNoOverlay(base, chain.edges);
    if (root.readOnly) throw new BlockError(Errno.EPERM, `Could not commit: node '${root.name}' is read-only`);
    const job = new ActiveCommitJob(root, base, chain, options);
    return MirrorJob.opened(job, [root, ...chain.layers, base, layerOf(base)]);
  }

  protected override async open(): Promise<void> {
    await setReadOnly(this.#base, false);
    await super.open();
    await this.keepFromReaders(this.#chain.layers.slice(1));
  }

  protected override targetPermissions(): Pick<BlockBackendOptions, 'perm' | 'shared' | 'allies'> {
    const perm = Perm.CONSISTENT_READ | Perm.WRITE | (this.#grows ? Perm.RESIZE : 0);
    return { perm, shared: PERM_ALL, allies: this.#chain.edges };
  }

  protected override filterDriver(): Driver {
    return passFilter('mirror_top', 'backing', Perm.CONSISTENT_READ);
  }

  protected override defaultGranularity(): Bytes {
    return commitGranularity(this.#chain.layers);
  }

  /** The filter does not know of the base, which the layers need for themselves. */
  protected override get followsWrites(): boolean {
    return false;
  }

  protected override layers(): number {
    return this.#chain.layers.length;
  }

  get #grows(): boolean {
    return this.#base.length < this.from.length;
  }

  /** A base that is longer stays so. */
  protected override async prepareTarget(): Promise<void> {
    if (this.#grows) await this.to.truncate(this.from.length);
  }

  protected override async prepare(): Promise<void> {
    await super.prepare();
    this.#completed = this.completing;
  }

  protected override async clean(): Promise<void> {
    await super.clean();
    if (this.#wasReadOnly && !this.#completed && !this.#base.closed) await setReadOnly(this.#base, true);
  }
}
