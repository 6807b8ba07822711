/**
 * mirror: the target becomes what the source is, and stays so while the source is written to, until it takes the
 * source's place (complete) or is left as it is at that moment (cancel once it is ready). The active layer is committed
 * in the same way, to a layer below it (active-commit.ts). See docs/JOBS.md.
 *
 * - A filter lies over the source as long as the job lasts. `background`: what is written to the source is noted, and
 *   copied later. `write-blocking`: the filter writes it to both. The first becomes the second where more is written
 *   than is copied, so that it ends.
 * - The last step is taken with the source drained: what is left is copied, the target is flushed, then the users move.
 */
import { BlockError, Errno } from '../base/errors.ts';
import { BITS_MAX } from '../base/paged-bits.ts';
import { type Bytes, isPowerOfTwo, KiB, MiB, type Offset } from '../base/units.ts';
import type { BlockBackend, BlockBackendOptions } from '../block/backend.ts';
import { assertNoOverlay, layerNumber, layerOf } from '../block/copy-up.ts';
import { type Drained, drain } from '../block/drain.ts';
import { type Driver, PERM_ALL, Perm } from '../block/driver.ts';
import { flushNode } from '../block/flush.ts';
import { openNodeOf } from '../block/graph.ts';
import { withdrawLeases } from '../block/lease.ts';
import type { BlockNode, DirtyHook } from '../block/node.ts';
import { graphSection, PermChange, usesDisk } from '../block/permissions.ts';
import { replaceNode } from '../block/replace-node.ts';
import { BlockStatus } from '../block/status.ts';
import { BlockJob, type BlockJobOptions, type ErrorPolicy } from './block-job.ts';
import { BUFFER_DEFAULT, DirtyCopy } from './dirty-copy.ts';
import { MirrorSide, mirrorFilter } from './mirror-filter.ts';

const GRANULARITY_MAX: Bytes = 64 * MiB;
const BUFFER_MAX: Bytes = 256 * MiB;
/** Between two rounds once it is ready: what is written again and again is copied once in it. */
const ROUND_NS = 100_000_000;
/** So many buffers are copied between two looks at whether what is written outruns that. */
const LOOK_BUFFERS = 2;
/** Rounds that do not get nearer to the end before the rest is copied while the guest waits. */
const ROUNDS = 3;

export type CopyMode = 'background' | 'write-blocking';

export interface MirrorJobOptions extends BlockJobOptions {
  /** All of the disk, what its active layer holds, or only what is written from now on. */
  readonly sync: 'full' | 'top' | 'none';
  /** Default background. */
  readonly copyMode?: CopyMode | undefined;
  /** Bytes that are copied again where one of them was written: a power of two, 512 bytes to 64 MiB. Default: a cluster
   *  of the target, from 4 to 64 KiB. */
  readonly granularity?: Bytes | undefined;
  /** Memory for the copies. Default 16 MiB. */
  readonly bufSize?: Bytes | undefined;
  /** Default report. */
  readonly onSourceError?: ErrorPolicy | undefined;
  readonly onTargetError?: ErrorPolicy | undefined;
  /** The node in whose place the target comes at the end. Default: the source. */
  readonly replaces?: BlockNode | undefined;
  /** Node-name of the filter. Default: one is made up. */
  readonly filterName?: string | undefined;
  /** Zeroes may deallocate in the target. Default true. */
  readonly unmap?: boolean | undefined;
  /** The target reads as zeroes everywhere: nobody has to look. */
  readonly targetIsZero?: boolean | undefined;
  /** Runs the last step when nothing else changes the disk as a whole. */
  readonly alone?: ((step: () => Promise<void>) => Promise<void>) | undefined;
}

function refusal(why: string, errno: number = Errno.EINVAL): BlockError {
  return new BlockError(errno, `Could not mirror: ${why}`);
}

/** EINVAL names what cannot be. */
export function checkedGranularity(granularity: Bytes): Bytes {
  if (isPowerOfTwo(granularity) && granularity >= 512 && granularity <= GRANULARITY_MAX) return granularity;
  throw refusal(`'granularity' is ${granularity}, not a power of two from 512 bytes to 64 MiB`);
}

function checkedBuffer(bytes: Bytes): Bytes {
  if (Number.isSafeInteger(bytes) && bytes >= 0 && bytes <= BUFFER_MAX) return bytes === 0 ? BUFFER_DEFAULT : bytes;
  throw refusal(`'buf-size' is ${bytes}, not a number of bytes up to ${BUFFER_MAX}`);
}

export class MirrorJob extends BlockJob {
  readonly type: string = 'mirror';
  readonly #source: BlockNode;
  readonly #target: BlockNode;
  readonly #options: MirrorJobOptions;
  readonly #bufferBytes: Bytes;
  readonly #hook: DirtyHook = (at, length) => this.#copy.mark(at, length);
  protected from!: BlockBackend;
  protected to!: BlockBackend;
  #copy!: DirtyCopy;
  #copyMode: CopyMode;
  #filter: BlockNode | undefined;
  readonly #side: MirrorSide;
  /** While the guest waits for the end. */
  #drained: Drained | undefined;
  /** An error that did not end it has ended the last round. */
  #again = false;
  /** What was done, and what there was to do, when it was last looked at whether what is written outruns the copy. */
  #looked = { current: 0, total: 0 };

  protected constructor(source: BlockNode, target: BlockNode, options: MirrorJobOptions) {
    super(source.aio, options);
    this.#source = source;
    this.#target = target;
    this.#options = options;
    this.#copyMode = options.copyMode ?? 'background';
    this.#bufferBytes = checkedBuffer(options.bufSize ?? 0);
    this.#side = new MirrorSide((error) => {
      if (!this.failed(options.onTargetError ?? 'report', 'write', error)) this.#copy.fail(error);
    });
  }

  /** Throws what stands against it, before anything happens: EINVAL, EPERM, EBUSY. */
  static async create(source: BlockNode, target: BlockNode, options: MirrorJobOptions): Promise<MirrorJob> {
    if (source === target) throw refusal(`node '${source.name}' is source and target`);
    if (source.length !== target.length) {
      throw refusal(`the source has ${source.length} bytes, the target ${target.length}`);
    }
    assertNoOverlay(target);
    return MirrorJob.opened(
      new MirrorJob(source, target, options),
      [source, target].flatMap((node) => [node, layerOf(node)]),
    );
  }

  protected static async opened<J extends MirrorJob>(job: J, nodes: Iterable<BlockNode>): Promise<J> {
    try {
      job.claim(nodes);
      await job.open();
      return job;
    } catch (error) {
      await job.undo();
      throw error;
    }
  }

  get copyMode(): CopyMode {
    return this.#copyMode;
  }

  /** From background to write-blocking, at its next step. EINVAL for the way back. */
  setCopyMode(mode: CopyMode): void {
    if (mode === 'background' && this.#copyMode !== 'background')
      throw refusal(`the copy-mode is '${this.#copyMode}', which cannot become '${mode}'`);
    this.#copyMode = mode;
    this.wake();
  }

  protected async open(): Promise<void> {
    this.from = await this.use(this.#source, { readOnly: true, perm: 0, shared: PERM_ALL });
    this.#filter = await this.#openFilter();
    this.to = await this.use(this.#target, { readOnly: false, ...this.targetPermissions(this.#filter) });
    this.beFairTo(this.#source);
    this.total = this.from.length;
    const granularity = checkedGranularity(this.#options.granularity ?? this.defaultGranularity());
    if (this.from.length / granularity > BITS_MAX) {
      throw refusal(
        `a disk of ${this.from.length} bytes has more than ${BITS_MAX} granules of ${granularity}`,
        Errno.EFBIG,
      );
    }
    this.#copy = new DirtyCopy(this.from, this.to, this.from.length, {
      granularity,
      bufferBytes: Math.max(this.#bufferBytes, granularity),
      unmap: this.#options.unmap ?? true,
      before: (bytes) => this.#before(bytes),
      // While the guest waits there is nobody to be fair to.
      gently: () => this.guestsAreThere && this.#drained === undefined,
      onDone: (bytes) => {
        this.current += bytes;
        this.#follow();
      },
      onFailure: (error, operation) => this.#onFailure(error, operation),
    });
    this.#side.copy = this.#copy;
    await this.putOver(this.#source, this.#filter);
  }

  /** Nobody but the filter sees the target meanwhile, which is nothing yet, or writes to it. */
  protected targetPermissions(filter: BlockNode): Pick<BlockBackendOptions, 'perm' | 'shared' | 'allies'> {
    const allies = new Set(filter.children);
    // What lies over the source lets that be written to, and so must its users.
    const isOver = layerNumber(this.#target, (node) => node === this.#source) > 0;
    const shared = isOver ? PERM_ALL & ~Perm.CONSISTENT_READ : Perm.WRITE_UNCHANGED;
    return { perm: Perm.WRITE | Perm.CONSISTENT_READ, shared, allies };
  }

  /** What lies over the source; its children are `backing`, the source, and `target`, where it needs that. */
  protected filterDriver(side: MirrorSide): Driver {
    return mirrorFilter(side);
  }

  protected defaultGranularity(): Bytes {
    const cluster = this.#target.limits.zeroAlignment || 64 * KiB;
    return Math.min(Math.max(cluster, 4 * KiB), 64 * KiB);
  }

  protected override canComplete(): boolean {
    return true;
  }

  protected override endsGently(): boolean {
    return true;
  }

  protected async run(): Promise<void> {
    await this.prepareTarget();
    await this.#watch();
    await this.#markFirst();
    await this.#rounds(() => false);
    await this.to.flush();
    this.becomeReady();
    while (!this.completing && !this.endingGently) {
      await this.#round();
      await this.idle(ROUND_NS);
    }
    do await this.#rounds(() => this.cancelled);
    while (!(await this.#finish()));
  }

  /** It may become write-blocking by itself. */
  protected get followsWrites(): boolean {
    return true;
  }

  /** Before anything is copied. */
  protected async prepareTarget(): Promise<void> {}

  /** From here on nothing is written to the source that is not seen. */
  async #watch(): Promise<void> {
    if (this.#copyMode === 'write-blocking') return this.#writeBoth();
    this.#source.dirtyHooks.push(this.#hook);
    await withdrawLeases(this.#source);
    return undefined;
  }

  #unwatch(): void {
    const { dirtyHooks } = this.#source;
    const index = dirtyHooks.indexOf(this.#hook);
    if (index >= 0) dirtyHooks.splice(index, 1);
  }

  async #openFilter(): Promise<BlockNode> {
    const { filterName: name } = this.#options;
    const driver = this.filterDriver(this.#side);
    const places: Readonly<Record<string, BlockNode>> = { backing: this.#source, target: this.#target };
    const children = Object.keys(driver.children!).map((child) => [child, places[child]!.name]);
    return openNodeOf(this.context, driver, {
      ...(name === undefined ? {} : { 'node-name': name }),
      ...Object.fromEntries(children),
      'read-only': this.#source.readOnly,
    });
  }

  /** From here on what is written goes to the target, too. EPERM where somebody writes past the filter. */
  async #writeBoth(): Promise<void> {
    const filter = this.#filter!;
    using _drained = await drain(this.#source);
    this.#side.writesBoth = true;
    try {
      // Those that have come since are on the source itself.
      await replaceNode(this.#source, filter, (parent) => parent !== this.from && usesDisk(parent));
      using _section = await graphSection();
      await new PermChange().refresh(filter).apply();
    } catch (error) {
      this.#side.writesBoth = false;
      throw error;
    }
    this.#unwatch();
  }

  async #removeFilter(): Promise<void> {
    const filter = this.#filter;
    if (filter === undefined) return;
    await this.takeAway(filter, this.#source);
    this.#filter = undefined;
  }

  /** What has to be copied whether or not it is written to. */
  async #markFirst(): Promise<void> {
    if (this.#options.sync === 'none') return;
    const layers = this.layers();
    const wanted = ({ depth, zero, length }: BlockStatus, at: Offset): boolean | Promise<boolean> => {
      if (layers !== undefined) return depth >= 1 && depth <= layers;
      return zero ? this.#markZero(at, length).then(() => false) : true;
    };
    const before = async (): Promise<void> => {
      this.#follow();
      await this.lookPoint();
    };
    // What lower layers hold is not copied, however little it is.
    await this.#copy.markWhere(wanted, before, layers !== undefined);
  }

  /** How many layers from the source down are copied; undefined for all. */
  protected layers(): number | undefined {
    return this.#options.sync === 'full' ? undefined : 1;
  }

  /** What reads as zeroes in the target, too, is done. */
  async #markZero(from: number, length: Bytes): Promise<void> {
    if (this.#options.targetIsZero) return;
    const status = new BlockStatus();
    for (let at = from; at < from + length; at += status.length) {
      const pending = this.to.blockStatus(at, from + length - at, status);
      if (pending !== undefined) await pending;
      if (!status.zero) this.#copy.mark(at, status.length);
    }
  }

  /** Rounds until all is copied, or what is left is so little, or so much is written meanwhile, that it can be copied
   *  while the guest waits. */
  async #rounds(enough: () => boolean): Promise<void> {
    let least = Number.POSITIVE_INFINITY;
    for (let stuck = 0; !enough(); ) {
      const before = this.#copy.dirtyBytes;
      await this.#round();
      const left = this.#copy.remaining;
      if (left === 0 || (left <= this.#bufferBytes && stuck > 0)) return;
      stuck = left < least * 0.9 ? stuck : stuck + 1;
      if (stuck >= ROUNDS && left <= 4 * this.#bufferBytes) return;
      if (left > before / 2) this.#followWrites();
      least = Math.min(least, left);
    }
  }

  /** About as much is written as is copied: from here on only what is dirty now has to be. */
  #followWrites(): void {
    if (this.#copy.remaining > 4 * this.#bufferBytes && this.followsWrites) this.#copyMode = 'write-blocking';
  }

  /** In the middle of a round: what is written where it was copied already makes the total grow. */
  #lookAtWrites(): void {
    const { current, total } = this;
    const copied = current - this.#looked.current;
    if (copied < LOOK_BUFFERS * this.#bufferBytes) return;
    const written = total - this.#looked.total;
    this.#looked = { current, total };
    if (this.#copyMode === 'write-blocking' || written <= copied / 2) return;
    this.#followWrites();
    if (this.#bothIsDue) this.#copy.endSoon();
  }

  get #bothIsDue(): boolean {
    return this.#copyMode === 'write-blocking' && !this.#side.writesBoth;
  }

  /** Copies once what is dirty now. */
  async #round(): Promise<void> {
    if (this.#bothIsDue) await this.#writeBoth();
    await this.pausePoint(0);
    this.#follow();
    this.#looked = { current: this.current, total: this.total };
    await this.#copy.run(this.#copy.dirtyBytes);
    this.#follow();
  }

  #follow(): void {
    this.total = this.current + this.#copy.remaining;
  }

  async #before(bytes: Bytes): Promise<void> {
    // While the guest waits there is no resting.
    if (this.#drained !== undefined) return;
    this.#lookAtWrites();
    await this.paced(bytes);
  }

  #onFailure(error: BlockError, operation: 'read' | 'write'): boolean {
    const { onSourceError = 'report', onTargetError = 'report' } = this.#options;
    const goesOn = this.failed(operation === 'read' ? onSourceError : onTargetError, operation, error);
    this.#again = goesOn;
    return goesOn && this.#drained === undefined;
  }

  /** The rest, while the guest waits. False where an error has to be waited for first. */
  async #finish(): Promise<boolean> {
    await this.pausePoint(0);
    this.#again = false;
    const ends = [this.from, this.to];
    this.#drained = await drain(this.#source);
    for (const blk of ends) blk.disableQueuing = true;
    try {
      await this.#copy.run();
      await flushNode(this.#target);
      this.#follow();
      if (this.cancelled || this.#source.length !== this.#copy.length) throw this.#cut();
      return true;
    } catch (error) {
      for (const blk of ends) blk.disableQueuing = false;
      this.#drained.end();
      this.#drained = undefined;
      if (!this.#again) throw error;
      return false;
    }
  }

  #cut(): BlockError {
    if (this.cancelled) return refusal('it was cancelled', Errno.ECANCELED);
    return refusal(`the source has ${this.#source.length} bytes now, and had ${this.#copy.length}`);
  }

  protected override async prepare(): Promise<void> {
    const step = async (): Promise<void> => {
      await this.#removeFilter();
      if (this.endingGently) return;
      await this.to.setPermissions(0, PERM_ALL);
      const replaced = this.#options.replaces ?? this.#source;
      await replaceNode(replaced, this.#target, (parent) => parent !== this.from && parent !== this.to);
    };
    await (this.#options.alone ?? ((run) => run()))(step);
  }

  protected override async clean(): Promise<void> {
    this.#unwatch();
    await this.#removeFilter();
    this.#drained?.end();
    this.#drained = undefined;
    await this.letGo();
  }
}
