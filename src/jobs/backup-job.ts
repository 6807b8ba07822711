/**
 * backup: the target becomes what the source was when the job was made, while the source is written to. A
 * copy-before-write filter over the source copies what is about to change; the job copies the rest. See docs/JOBS.md.
 *
 * The filter, and with it the moment that the backup is of, comes with {@link BackupJob.create}, and goes when the job
 * concludes: jobs of one transaction that are made within one drained section are of one moment.
 */
import { BlockError, Errno } from '../base/errors.ts';
import { everyStep } from '../base/every-step.ts';
import { type Bytes, GiB, type Offset } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { layerOf } from '../block/copy-up.ts';
import type { DirtyBitmap, Thaw } from '../block/dirty-bitmap.ts';
import { drain } from '../block/drain.ts';
import { PERM_ALL, Perm, type PointInTime, RequestFlags } from '../block/driver.ts';
import { flushNode } from '../block/flush.ts';
import { openNode } from '../block/graph.ts';
import type { BlockNode } from '../block/node.ts';
import { usesDisk } from '../block/permissions.ts';
import { BlockStatus } from '../block/status.ts';
import { BlockJob, type BlockJobOptions, type ErrorPolicy } from './block-job.ts';
import { BUFFER_DEFAULT, DirtyCopy, statusOrData } from './dirty-copy.ts';
import { Glances } from './glances.ts';

const STATUS_BYTES: Bytes = GiB;
const WORKERS_DEFAULT = 64;
const WORKERS_MAX = 1024;

export interface BackupJobOptions extends BlockJobOptions {
  /** All of the disk; what its active layer holds; only what is about to be written over, until it is cancelled; what
   *  is dirty in `bitmap`. */
  readonly sync: 'full' | 'top' | 'none' | 'bitmap';
  /** Name of a bitmap of the source, and what it is afterwards: what was written since (`on-success`: only where the
   *  job has ended well; `always`: and what could not be copied), or as if there had been no backup. */
  readonly bitmap?: string | undefined;
  readonly bitmapMode?: 'on-success' | 'never' | 'always' | undefined;
  /** Stored compressed, where the target's format can. */
  readonly compress?: boolean | undefined;
  /** Default report. */
  readonly onSourceError?: ErrorPolicy | undefined;
  readonly onTargetError?: ErrorPolicy | undefined;
  /** What a guest's write comes to where its copy fails; see copy-before-write. Default break-guest-write. */
  readonly onCbwError?: 'break-guest-write' | 'break-snapshot' | undefined;
  readonly cbwTimeoutSeconds?: number | undefined;
  /** Pieces at a time (never more than 16), and bytes of each at most (0: 1 MiB). Default 64 and 0. */
  readonly maxWorkers?: number | undefined;
  readonly maxChunk?: Bytes | undefined;
  /** Node-name of the filter. */
  readonly filterName?: string | undefined;
}

function refusal(why: string, errno: number = Errno.EINVAL): BlockError {
  return new BlockError(errno, `Could not back up: ${why}`);
}

export class BackupJob extends BlockJob {
  readonly type = 'backup';
  readonly #source: BlockNode;
  readonly #target: BlockNode;
  readonly #options: BackupJobOptions;
  #filter: BlockNode | undefined;
  #kept!: PointInTime;
  #from!: BlockBackend;
  #to!: BlockBackend;
  #bitmap: { readonly bitmap: DirtyBitmap; readonly thaw: Thaw } | undefined;
  /** Of the disk when the job was made. */
  #length: Bytes = 0;
  /** What there was to copy when the job was made. */
  #whole: Bytes = 0;

  private constructor(source: BlockNode, target: BlockNode, options: BackupJobOptions) {
    super(source.aio, options);
    this.#source = source;
    this.#target = target;
    this.#options = options;
  }

  /** Throws what stands against it: EINVAL, EPERM, EBUSY, ENOENT, ENOTSUP. The backup is of the moment it resolves. */
  static async create(source: BlockNode, target: BlockNode, options: BackupJobOptions): Promise<BackupJob> {
    checkOptions(source, target, options);
    const job = new BackupJob(source, target, options);
    try {
      job.claim([source, target].flatMap((node) => [node, layerOf(node)]));
      await job.#open();
      return job;
    } catch (error) {
      await job.undo();
      throw error;
    }
  }

  async #open(): Promise<void> {
    const { onCbwError = 'break-guest-write', cbwTimeoutSeconds = 0, filterName, bitmap } = this.#options;
    this.#from = await this.use(this.#source, { readOnly: true, perm: Perm.CONSISTENT_READ, shared: PERM_ALL });
    // Nobody but the filter writes to the target.
    this.#to = await this.use(this.#target, {
      readOnly: false,
      perm: Perm.WRITE | Perm.CONSISTENT_READ,
      shared: PERM_ALL,
    });
    this.#filter = await openNode(this.context, {
      driver: 'copy-before-write',
      ...(filterName === undefined ? {} : { 'node-name': filterName }),
      ...{ file: this.#source.name, target: this.#target.name },
      ...{ 'on-cbw-error': onCbwError, 'cbw-timeout': cbwTimeoutSeconds },
    });
    this.#kept = this.#filter.impl.pointInTime!;
    if (this.#options.compress) this.#kept.writeFlags |= RequestFlags.COMPRESSED;
    using _drained = await drain(this.#source);
    if (bitmap !== undefined) {
      this.#bitmap = await this.#source.bitmaps.freeze(bitmap);
      const dirty = this.#bitmap.bitmap;
      if (this.#options.sync === 'bitmap') this.#kept.keepOnly((visit) => dirty.eachRange(visit));
    }
    this.beFairTo(this.#source);
    await this.putOver(this.#source, this.#filter);
    this.#length = this.#source.length;
    this.#whole = this.#kept.remaining;
    this.#follow();
  }

  #follow(): void {
    this.total = this.#whole;
    this.current = Math.max(0, this.#whole - this.#kept.remaining);
  }

  protected async run(): Promise<void> {
    if (this.#options.sync === 'none') return this.#keepOn();
    if (this.#options.sync === 'top') await this.#leaveOutBelow();
    if (!this.#kept.overDisk) await this.#leaveOutZeroes();
    const copy = this.#newCopy();
    while (this.#kept.remaining > 0) {
      await copy.run();
      // What is left is copied because the guest waits for it, and may fail.
      await this.#kept.settled();
    }
    await this.pausePoint(0);
    this.#assertKept();
    await flushNode(this.#target);
    this.#follow();
    return undefined;
  }

  /** Until it is cancelled, or what it keeps is lost. */
  async #keepOn(): Promise<void> {
    for (;;) {
      await this.idle(1e9);
      this.#assertKept();
      this.#follow();
    }
  }

  #assertKept(): void {
    const { broken } = this.#kept;
    if (broken) throw new BlockError(broken.errno, `Could not back up: what the disk was is lost: ${broken.message}`);
  }

  /** What the active layer did not hold need not be copied. It can only come to hold more, and that is copied first. */
  async #leaveOutBelow(): Promise<void> {
    const status = new BlockStatus();
    const { length } = this.#from;
    // Neighbours go together: a cluster is left out as a whole.
    let from = 0;
    for (let at = 0; at < length; at += status.length) {
      await this.lookPoint();
      const pending = this.#from.blockStatus(at, Math.min(length - at, STATUS_BYTES), status);
      if (pending !== undefined) await pending;
      if (status.depth !== 1) continue;
      if (at > from) this.#kept.forget(from, at - from);
      from = at + status.length;
    }
    if (length > from) this.#kept.forget(from, length - from);
    this.#whole = this.#kept.remaining;
    this.#follow();
  }

  /** What reads as zeroes on both sides is done, and no write to it has to wait. Nothing is written to the disk where
   *  it is pending, so what was seen there holds. */
  async #leaveOutZeroes(): Promise<void> {
    const status = new BlockStatus();
    const glances = new Glances();
    for (let next = this.#kept.next(0, STATUS_BYTES); next.length > 0; ) {
      const end = next.at + next.length;
      for (let at = next.at; at < end; at += glances.over(status.length, end - at)) {
        await this.lookPoint();
        await statusOrData(this.#from, at, end - at, status);
        if (status.zero && status.length >= this.#kept.unit) await this.#settleZeroes(at, status.length);
      }
      this.#follow();
      next = this.#kept.next(end, STATUS_BYTES);
    }
  }

  async #settleZeroes(from: Offset, length: Bytes): Promise<void> {
    const status = new BlockStatus();
    for (let at = from; at < from + length; at += status.length) {
      await this.lookPoint();
      await statusOrData(this.#to, at, from + length - at, status);
      if (status.zero) this.#kept.settle(at, status.length);
    }
  }

  #newCopy(): DirtyCopy {
    const { maxWorkers = WORKERS_DEFAULT, maxChunk = 0 } = this.#options;
    const { unit } = this.#kept;
    return new DirtyCopy(this.#from, this.#to, this.#length, {
      work: this.#kept,
      granularity: unit,
      bufferBytes: Math.max(BUFFER_DEFAULT, unit),
      pieces: maxWorkers,
      pieceBytes: maxChunk || undefined,
      writeFlags: this.#kept.writeFlags,
      unmap: true,
      before: (length) => this.#before(length),
      gently: () => this.guestsAreThere,
      onDone: () => this.#follow(),
      onFailure: (error, operation) => {
        const { onSourceError = 'report', onTargetError = 'report' } = this.#options;
        return this.failed(operation === 'read' ? onSourceError : onTargetError, operation, error);
      },
    });
  }

  async #before(length: Bytes): Promise<void> {
    await this.paced(length);
    this.#assertKept();
  }

  protected override async clean(): Promise<void> {
    await everyStep(
      () => this.#removeFilter(),
      () => this.letGo(),
    );
  }

  async #removeFilter(): Promise<void> {
    const filter = this.#filter;
    this.#filter = undefined;
    if (filter === undefined) return this.#settleBitmap();
    // The bitmap and the filter change at one moment.
    using _drained = await drain(this.#source);
    await everyStep(
      () => this.#settleBitmap(),
      () => {
        if (this.#kept.remaining > 0) this.#kept.break(refusal('it has ended before all was copied', Errno.ECANCELED));
      },
      // Who reads the snapshot stays: what has been copied is in the target.
      () => this.takeAway(filter, this.#source, usesDisk),
    );
  }

  async #settleBitmap(): Promise<void> {
    const bitmap = this.#bitmap;
    this.#bitmap = undefined;
    const { bitmapMode = 'on-success' } = this.#options;
    const well = this.error === undefined;
    if (bitmapMode === 'never' || (bitmapMode === 'on-success' && !well)) await bitmap?.thaw();
    else {
      await bitmap?.thaw((visit) => {
        const end = this.#from.length;
        let next = this.#kept.next(0, end);
        for (; next.length > 0; next = this.#kept.next(next.at + next.length, end)) visit(next.at, next.length);
      });
    }
  }
}

function checkOptions(source: BlockNode, target: BlockNode, options: BackupJobOptions): void {
  const { sync, bitmap, bitmapMode, compress, maxWorkers = WORKERS_DEFAULT, maxChunk = 0 } = options;
  if (source === target) throw refusal(`node '${source.name}' is source and target`);
  if (source.length !== target.length) {
    throw refusal(`the source has ${source.length} bytes, the target ${target.length}`);
  }
  if (sync === 'bitmap' && bitmap === undefined) throw refusal("'sync' is 'bitmap', and 'bitmap' is missing");
  if (sync !== 'bitmap' && bitmap !== undefined && (bitmapMode === undefined || sync === 'none')) {
    throw refusal(`'bitmap' cannot be given with 'sync' '${sync}'${sync === 'none' ? '' : " and no 'bitmap-mode'"}`);
  }
  if (!Number.isInteger(maxWorkers) || maxWorkers < 1 || maxWorkers > WORKERS_MAX) {
    throw refusal(`'max-workers' is ${maxWorkers}, not a number from 1 to ${WORKERS_MAX}`);
  }
  if (!Number.isSafeInteger(maxChunk) || maxChunk < 0)
    throw refusal(`'max-chunk' is ${maxChunk}, not a number of bytes`);
  if (compress && !target.impl.writeCompressed) {
    throw refusal(`the format '${target.driver.name}' does not compress`, Errno.ENOTSUP);
  }
}
