/**
 * commit: what the layers from `top` down to the one above `base` hold goes into `base`, and they are not needed any
 * more. Here for layers that something lies over; the active layer is committed by a mirror to its base
 * (active-commit.ts). See docs/JOBS.md.
 *
 * - Nobody writes to these layers. The base changes only where a layer above it holds the range, so that what is read
 *   through them stays the same all the time.
 * - The overlay's header names the base once all is on stable storage there; then the graph changes.
 */
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, KiB } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import type { BlockChild } from '../block/child.ts';
import { assertNoOverlay, layerNumber, layerOf } from '../block/copy-up.ts';
import { PERM_ALL, Perm } from '../block/driver.ts';
import { openNodeOf } from '../block/graph.ts';
import type { BlockNode, NodeParent } from '../block/node.ts';
import { assertRebasable, type NewBacking, rebase } from '../block/rebase.ts';
import { setReadOnly } from '../block/reopen.ts';
import { BlockJob, type BlockJobOptions, type ErrorPolicy } from './block-job.ts';
import { BUFFER_DEFAULT, DirtyCopy } from './dirty-copy.ts';
import { passFilter } from './pass-filter.ts';

/** Smaller ones cost more than they save. */
const GRANULARITY_MIN: Bytes = 4 * KiB;

export interface CommitJobOptions extends BlockJobOptions {
  /** The layer that the overlay shows afterwards, and what the overlay's header is to call it. */
  readonly base: NewBacking;
  /** The layer that goes, with all between it and the base. */
  readonly top: BlockNode;
  /** Default report. */
  readonly onImageError?: ErrorPolicy | undefined;
  /** Node-name of the filter over `top`. Default: one is made up. */
  readonly filterName?: string | undefined;
  /** Runs the last step when nothing else changes the image as a whole. */
  readonly alone?: ((step: () => Promise<void>) => Promise<void>) | undefined;
}

/** The layers of a chain that a commit is about. */
export interface CommitChain {
  /** The layer over `top`; undefined where `top` is the active one. */
  readonly overlay: BlockNode | undefined;
  /** From `top` to the one above the base. */
  readonly layers: readonly BlockNode[];
  /** How each of these holds the one below it. */
  readonly edges: ReadonlySet<NodeParent>;
}

/** Finds the layers below `root`. EINVAL where `top` or `base` is none, or not in this order. */
export function commitChain(root: BlockNode, top: BlockNode, base: BlockNode): CommitChain {
  const refuse = (why: string): BlockError => new BlockError(Errno.EINVAL, `Could not commit: ${why}`);
  const first = layerNumber(root, (node) => node === top);
  const last = layerNumber(root, (node) => node === base);
  if (first === 0) throw refuse(`'${top.name}' is not a layer of '${root.name}'`);
  if (last === 0) throw refuse(`'${base.name}' is not below '${top.name}'`);
  if (last <= first) throw refuse(`'${base.name}' is not below '${top.name}'`);
  const layers: BlockNode[] = [];
  const edges = new Set<NodeParent>();
  let overlay: BlockNode | undefined;
  let node = layerOf(root);
  for (let number = 1; number < last; number++) {
    if (number === first - 1) overlay = node;
    const cow = node.cow!;
    if (number >= first) {
      layers.push(node);
      for (let edge: BlockChild | undefined = cow; edge !== undefined; edge = edge.node.filtered) {
        edges.add(edge);
        if (edge.node === base) break;
      }
    }
    node = layerOf(cow.node);
  }
  return { overlay, layers, edges };
}

/** The smallest cluster of the layers: what is copied at once is in one of them as a whole. */
export function commitGranularity(layers: readonly BlockNode[]): Bytes {
  const units = layers.map(({ limits }) => limits.zeroAlignment || limits.optimal || 64 * KiB);
  return Math.max(GRANULARITY_MIN, Math.min(64 * KiB, ...units));
}

export class CommitJob extends BlockJob {
  readonly type = 'commit';
  readonly #base: NewBacking;
  readonly #chain: CommitChain;
  readonly #overlay: BlockNode;
  readonly #policy: ErrorPolicy;
  readonly #alone: (step: () => Promise<void>) => Promise<void>;
  readonly #wasReadOnly: readonly BlockNode[];
  readonly #filterName: string | undefined;
  #filter: BlockNode | undefined;
  #source!: BlockBackend;
  #target!: BlockBackend;

  private constructor(overlay: BlockNode, chain: CommitChain, options: CommitJobOptions) {
    super(overlay.aio, options);
    this.#base = options.base;
    this.#chain = chain;
    this.#overlay = overlay;
    this.#policy = options.onImageError ?? 'report';
    this.#filterName = options.filterName;
    this.#alone = options.alone ?? ((step) => step());
    this.#wasReadOnly = [overlay, options.base.node].filter(({ readOnly }) => readOnly);
  }

  /** `root`: what shows the chain. EINVAL, EBUSY, EPERM, ENOTSUP, before anything happens; the base and the overlay are
   *  writable afterwards, until the job's end. */
  static async create(root: BlockNode, options: CommitJobOptions): Promise<CommitJob> {
    const { base, top } = options;
    const chain = commitChain(root, top, base.node);
    if (chain.overlay === undefined) {
      throw new BlockError(Errno.EINVAL, `Could not commit: '${top.name}' is the active layer`);
    }
    assertNoOverlay(base.node, chain.edges);
    const job = new CommitJob(chain.overlay, chain, options);
    try {
      job.claim([chain.overlay, ...chain.layers, base.node, layerOf(base.node)]);
      await job.#open();
      return job;
    } catch (error) {
      await job.undo();
      throw error;
    }
  }

  async #open(): Promise<void> {
    const { node } = this.#base;
    await setReadOnly(node, false);
    await setReadOnly(this.#overlay, false);
    assertRebasable(this.#overlay, true);
    const top = this.#chain.layers[0]!;
    this.#source = await this.use(top, { readOnly: true, perm: 0, shared: PERM_ALL });
    const grows = node.length < top.length;
    const perm = Perm.CONSISTENT_READ | Perm.WRITE | (grows ? Perm.RESIZE : 0);
    const shared = Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED;
    this.#target = await this.use(node, { perm, shared, readOnly: false, allies: this.#chain.edges });
    this.total = this.#source.length;
    this.beFairTo(this.#overlay);
    const filter = passFilter('commit_top', 'backing', Perm.CONSISTENT_READ);
    const name = this.#filterName === undefined ? {} : { 'node-name': this.#filterName };
    this.#filter = await openNodeOf(this.context, filter, { ...name, backing: top.name, 'read-only': true });
    await this.putOver(top, this.#filter);
    await this.keepFromReaders(this.#chain.layers);
  }

  protected async run(): Promise<void> {
    const source = this.#source;
    const target = this.#target;
    const { length } = source;
    this.total = length;
    if (target.length < length) await target.truncate(length);
    const { layers } = this.#chain;
    const copy = new DirtyCopy(source, target, length, {
      granularity: commitGranularity(layers),
      bufferBytes: BUFFER_DEFAULT,
      unmap: true,
      before: (bytes) => this.paced(bytes),
      gently: () => this.guestsAreThere,
      onDone: (bytes) => {
        this.current += bytes;
      },
      onFailure: (error, operation) => this.failed(this.#policy, operation, error),
    });
    await copy.markWhere(
      ({ depth }) => depth >= 1 && depth <= layers.length,
      () => this.lookPoint(),
      true,
    );
    this.current = Math.max(0, length - copy.remaining);
    await copy.run();
    await this.#hideTail(length);
    await this.pausePoint(0);
    await target.flush();
    this.current = this.total;
  }

  /** What the base has behind the end of `top` would show in an overlay that is longer: it has read as zeroes there. */
  async #hideTail(length: Bytes): Promise<void> {
    const end = Math.min(this.#overlay.length, this.#target.length);
    if (end > length) await this.#target.writeZeroes(length, end - length);
  }

  protected override async prepare(): Promise<void> {
    await this.#alone(async () => {
      // It lets others write from here on, as those who read through it do.
      await this.#target.setPermissions(0, PERM_ALL);
      await rebase(this.#overlay, this.#base, true);
    });
  }

  protected override async clean(): Promise<void> {
    if (this.#filter !== undefined) await this.takeAway(this.#filter, this.#chain.layers[0]!);
    this.#filter = undefined;
    await this.letGo();
    for (const node of this.#wasReadOnly) if (!node.closed) await setReadOnly(node, true);
  }
}
