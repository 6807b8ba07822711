/**
 * The job that makes an image independent of what is below it, while it is used: see docs/JOBS.md. It finds what only
 * the layers below hold, copies that up (block/copy-up.ts), and has the image name what is left below.
 *
 * Bounds: `PIECES` pieces of `PIECE_BYTES` at a time; their memory is the block layer's.
 */
import { BlockError, Errno } from '../base/errors.ts';
import { everyStep } from '../base/every-step.ts';
import { type Bytes, GiB, MiB, type Offset } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { layerNumber, layerOf } from '../block/copy-up.ts';
import { openNodeOf } from '../block/graph.ts';
import { Joiner } from '../block/joiner.ts';
import type { BlockNode } from '../block/node.ts';
import { assertRebasable, type NewBacking, rebase } from '../block/rebase.ts';
import { BlockStatus } from '../block/status.ts';
import { BlockJob, type BlockJobOptions, type ErrorPolicy } from './block-job.ts';
import { passFilter } from './pass-filter.ts';

const PIECE_BYTES: Bytes = MiB;
const PIECES = 8;
const STATUS_BYTES: Bytes = GiB;

export interface StreamJobOptions extends BlockJobOptions {
  /** Default report. With `ignore` the rest is copied, and the job fails at its end. */
  readonly onImageError?: ErrorPolicy | undefined;
  /** The layer that stays below, and what the image says of it then. Default: none stays. */
  readonly base?: NewBacking | undefined;
  /** The disk is the job's own, and goes with it. Default: it stays open until the job has ended. */
  readonly owned?: boolean | undefined;
  /** A filter lies over the image as long as the job lasts, by that node-name or one that is made up. Default: none,
   *  nothing needs it. Only for {@link StreamJob.create}. */
  readonly filter?: { readonly name: string | undefined } | undefined;
  /** Runs the last step when nothing else changes the image as a whole. */
  readonly alone: (step: () => Promise<void>) => Promise<void>;
  /** Comes at its end, once it does not need the disk any more. */
  readonly release?: (() => Promise<void>) | undefined;
}

/** It rests while the disk is drained. */
export class StreamJob extends BlockJob {
  readonly type = 'stream';
  readonly #blk: BlockBackend;
  readonly #root: BlockNode;
  readonly #base: NewBacking | undefined;
  readonly #alone: StreamJobOptions['alone'];
  readonly #release: StreamJobOptions['release'];
  readonly #policy: ErrorPolicy;
  #ignored: BlockError | undefined;
  /** What has failed, and stopped the job: at most the pieces that were under way. */
  readonly #missed: { readonly at: Offset; readonly length: Bytes }[] = [];
  /** Number of the base among the layers; all those before it are copied from. */
  readonly #end: number;
  readonly #leave: () => void;
  #filter: BlockNode | undefined;

  /** Throws what stands against it before anything happens: EINVAL, ENOTSUP, EPERM, EBUSY, ENOMEDIUM. */
  constructor(blk: BlockBackend, options: StreamJobOptions) {
    super(blk.context, options);
    const { root } = blk;
    if (!root) throw new BlockError(Errno.ENOMEDIUM, `Could not stream ${blk.describe}: it has no medium`);
    assertRebasable(root);
    const { base } = options;
    this.#blk = blk;
    this.#root = root;
    this.#base = base;
    this.#alone = options.alone;
    this.#release = options.release;
    this.#policy = options.onImageError ?? 'report';
    this.#end = base === undefined ? Number.POSITIVE_INFINITY : layerNumber(root, (node) => node === base.node);
    if (this.#end < 2) {
      throw new BlockError(Errno.EINVAL, `Could not stream: '${base!.name}' is not below the image`);
    }
    this.#assertNothingHidden();
    this.total = blk.length;
    this.claim(this.#chain());
    if (options.owned) this.own(blk);
    this.#leave = this.restWith(blk, {
      cannotMove: () => `job '${this.id}' copies into it`,
      // Another state of the disk would need what is below once more.
      cannotRevert: () => `job '${this.id}' takes away what snapshots need`,
    });
  }

  /** For a BlockBackend of the job's own. Throws as the constructor does, and what stands against a filter. */
  static async create(blk: BlockBackend, options: StreamJobOptions): Promise<StreamJob> {
    const job = new StreamJob(blk, options);
    try {
      if (options.filter) await job.#putFilter(options.filter.name);
      return job;
    } catch (error) {
      await job.undo();
      throw error;
    }
  }

  async #putFilter(name: string | undefined): Promise<void> {
    const given = name === undefined ? {} : { 'node-name': name };
    const filter = passFilter('copy-on-read', 'file');
    this.#filter = await openNodeOf(this.context, filter, { ...given, file: this.#root.name });
    await this.putOver(this.#root, this.#filter, this.#blk);
  }

  /** The layers from the active one to the base. */
  #chain(): BlockNode[] {
    const nodes = [this.#root];
    let layer: BlockNode | undefined = layerOf(this.#root);
    for (let number = 1; layer !== undefined && number <= this.#end; number++) {
      nodes.push(layer);
      layer = layer.cow && layerOf(layer.cow.node);
    }
    return nodes;
  }

  protected async run(): Promise<void> {
    for (let at = 0; at < this.#blk.length; at = await this.#copy(at, this.#blk.length)) this.total = this.#blk.length;
    await this.pausePoint(0);
    if (this.#ignored !== undefined) throw this.#ignored;
  }

  protected override async prepare(): Promise<void> {
    await this.#alone(async () => {
      // A disk that was closed has no length, either.
      if (this.#blk.root !== this.#root) {
        throw new BlockError(Errno.ENOMEDIUM, `Could not stream ${this.#blk.describe} to its end: it was closed`);
      }
      this.#assertNothingHidden();
      await rebase(this.#root, this.#base ?? null);
    });
    this.total = this.#blk.length;
    this.current = this.total;
  }

  protected override async clean(): Promise<void> {
    const filter = this.#filter;
    this.#filter = undefined;
    await everyStep(
      () => filter && this.takeAway(filter, this.#root),
      () => this.#leave(),
      () => this.letGo(),
      () => this.#release?.(),
    );
  }

  /** Copies what has to be from `from` to `to`, and answers `to`. */
  async #copy(from: Offset, to: Offset): Promise<Offset> {
    const status = new BlockStatus();
    const parts = new Joiner(PIECES);
    try {
      for (let at = from; at < to && !parts.failed; at += status.length) {
        const pending = this.#blk.blockStatus(at, Math.min(to - at, STATUS_BYTES), status);
        if (pending !== undefined) await pending;
        if (this.#isWanted(at, status)) {
          status.length = Math.min(status.length, PIECE_BYTES - (at % PIECE_BYTES));
          await this.#begin(parts, at, status.length);
        } else {
          await this.pausePoint(0);
          this.current += status.length;
        }
      }
    } catch (error) {
      await parts.settle();
      throw error;
    }
    await parts.join();
    while (this.#missed.length > 0) await this.#again();
    return to;
  }

  /** Once the job was stopped for an error it first tries again what has failed. */
  async #begin(parts: Joiner, at: Offset, length: Bytes): Promise<void> {
    await this.pausePoint(length);
    while (this.#missed.length > 0) await this.#again();
    await parts.add(this.#piece(at, length));
  }

  async #again(): Promise<void> {
    await this.pausePoint(0);
    const missed = this.#missed.pop();
    if (missed) await this.#piece(missed.at, missed.length);
  }

  /** Where nothing stays below, what reads as zeroes there will do so without it. */
  #isWanted(at: Offset, { depth, zero }: BlockStatus): boolean {
    return depth > 1 && depth < this.#end && !(zero && at >= (this.#base?.node.length ?? 0));
  }

  /** Bytes of the base behind the end of a layer above it are hidden by nothing but that end, which would be gone. */
  #assertNothingHidden(): void {
    if (this.#base === undefined) return;
    const { node, name } = this.#base;
    const seen = Math.min(node.length, this.#blk.length);
    for (let layer = layerOf(this.#root).cow?.node; layer && layer !== node; layer = layerOf(layer).cow?.node) {
      if (layer.length >= seen) continue;
      throw new BlockError(Errno.EINVAL, `Could not stream: '${name}' is longer than node '${layer.name}' above it`);
    }
  }

  async #piece(at: Offset, length: Bytes): Promise<void> {
    try {
      await this.#blk.copyUp(at, length);
    } catch (error) {
      // Which side has failed is not known: both are the disk's.
      if (!(error instanceof BlockError) || !this.failed(this.#policy, 'read', error)) throw error;
      if (this.#policy !== 'ignore') {
        this.#missed.push({ at, length });
        return;
      }
      this.#ignored ??= error;
    }
    this.current += length;
  }
}
