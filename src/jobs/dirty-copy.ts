/**
 * Copying what is dirty from one BlockBackend to another of the same context, until nothing is, while the source may be
 * written to: what mirror, commit and backup copy with. Several pieces at a time, each a request of its own that reads,
 * then writes what it has read; what is known to read as zeroes is not read.
 *
 * Invariants:
 * - A granule is clean from the moment before its piece is read. Who writes to the source marks it after that write has
 *   ended: whatever the piece has read, the newer data comes after it.
 * - No two pieces that overlap are in flight; and none that overlaps what somebody else writes to the target
 *   ({@link DirtyCopy.exclude}).
 * - A piece that fails is dirty again.
 * - What was written is flushed as it goes, in parts of {@link FLUSH_BYTES}, one flush at a time: the disk works while
 *   more is copied, and the flush at the end, which a guest may have to wait for, is a short one. One that fails ends
 *   the copy: what has been lost nobody can say.
 * - A drained section of either side waits for pieces that have begun, and none begins in it: who waits for a piece
 *   does not wait for the end of a drained section that waits for him.
 *
 * Bounds: as many pieces as fit into `bufferBytes`, 16 at most; their memory is one region.
 */
import { CoQueue } from '../aio/co-queue.ts';
import type { MaybePromise } from '../aio/op.ts';
import { BlockError, ioError } from '../base/errors.ts';
import type { Memory } from '../base/memory.ts';
import { PagedBits } from '../base/paged-bits.ts';
import { alignDown, alignUp, type Bytes, GiB, KiB, MiB, type Offset } from '../base/units.ts';
import type { BackendUser, BlockBackend } from '../block/backend.ts';
import { kickDrain } from '../block/drain.ts';
import { RequestFlags } from '../block/driver.ts';
import { BlockRequest, RequestKind } from '../block/request.ts';
import { BlockStatus } from '../block/status.ts';
import { FRAGMENT_BYTES, Glances } from './glances.ts';

const PIECES = 16;
const PIECE_BYTES: Bytes = MiB;
/** For guests that are there: few pieces at a time, and small, so that they do not wait long for them. What is written
 *  at once, newer kernels keep in their cache as one, and where that is a file of ext4, each small write into it later
 *  costs as much as it is large: with pieces of 256 KiB a guest whose writes go to both sides had half of what it has
 *  with these. */
const GENTLE_PIECES = 4;
const GENTLE_BYTES: Bytes = 64 * KiB;
/** Zeroes need no memory. Small enough to be cancelled soon, and to show progress. */
const ZERO_BYTES: Bytes = 64 * MiB;
/** Looked at at once, before there is a look at whether to go on. */
const STATUS_BYTES: Bytes = GiB;
/** What is copied rather than passed over: one request more costs as much. */
const GAP_BYTES: Bytes = 64 * KiB;
/** Some tens of milliseconds of a disk's time: a drained section waits for a flush that has begun. */
const FLUSH_BYTES: Bytes = 32 * MiB;
export const BUFFER_DEFAULT: Bytes = PIECES * PIECE_BYTES;

/** What is to be copied, where others copy of it as well. */
export interface CopyWork {
  /** A bit for each granule that is still to be copied, and that nobody has begun with. */
  readonly bits: PagedBits;
  /** These granules are copied from here on. Answers what is to be called once, at the end: not copied, they are to be
   *  copied again. */
  begin(at: Offset, length: Bytes): (copied: boolean) => void;
}

export interface DirtyCopyOptions {
  /** Bytes that a bit stands for; a power of two. */
  readonly granularity: Bytes;
  /** Memory that it uses, at least one granule. */
  readonly bufferBytes: Bytes;
  /** Zeroes may deallocate in the target. */
  readonly unmap: boolean;
  /** Default: what is marked. With this nothing but what is dirty is copied. */
  readonly work?: CopyWork | undefined;
  /** Pieces at a time, and bytes of each, at most. Default 16, and 1 MiB. */
  readonly pieces?: number | undefined;
  readonly pieceBytes?: Bytes | undefined;
  /** RequestFlags of writes. COMPRESSED is for data. */
  readonly writeFlags?: number | undefined;
  /** A few small pieces at a time, for now. Default: as many as there is memory for. */
  readonly gently?: (() => boolean) | undefined;
  /** `length` bytes are about to be begun. May wait; throws to end the copy. */
  readonly before: (length: Bytes) => MaybePromise<void>;
  /** So many bytes more are done. */
  readonly onDone: (length: Bytes) => void;
  /** A piece has failed, and is dirty again. True: go on. */
  readonly onFailure: (error: BlockError, operation: 'read' | 'write') => boolean;
}

class Piece extends BlockRequest {
  readonly #copy: DirtyCopy;
  readonly place: number;
  /** `at` and `length` of the whole piece do not change from its beginning to its end. */
  busy = false;
  /** Bytes of it that were dirty. */
  owed: Bytes = 0;
  end: ((copied: boolean) => void) | undefined;

  constructor(copy: DirtyCopy, place: number) {
    super();
    this.#copy = copy;
    this.place = place;
  }

  done(error: number): void {
    this.#copy.stepEnded(this, error);
  }
}

/** A flush of the target while more is copied. */
class Flush extends BlockRequest {
  readonly #copy: DirtyCopy;
  busy = false;

  constructor(copy: DirtyCopy) {
    super();
    this.#copy = copy;
    this.kind = RequestKind.FLUSH;
  }

  done(error: number): void {
    this.#copy.flushEnded(error);
  }
}

/** What somebody else writes to the target. */
export interface Exclusion {
  readonly at: Offset;
  readonly end: Offset;
}

type Range = Exclusion;

export class DirtyCopy implements BackendUser {
  readonly granularity: Bytes;
  readonly #source: BlockBackend;
  readonly #target: BlockBackend;
  readonly #options: DirtyCopyOptions;
  readonly #bits: PagedBits;
  /** Bytes that it copies. */
  readonly length: Bytes;
  readonly #memory: Memory;
  readonly #pieceBytes: Bytes;
  readonly #gap: number;
  readonly #pieces: Piece[] = [];
  readonly #status = new BlockStatus();
  readonly #glances = new Glances();
  /** What is taken for data as the last look has it. */
  #dataFrom: Offset = 0;
  #dataTo: Offset = 0;
  /** What others write to the target. */
  readonly #excluded = new Set<Range>();
  #busy = 0;
  #busyBytes = 0;
  readonly #flush = new Flush(this);
  /** Written since the last flush began. */
  #unflushed: Bytes = 0;
  #cursor: Offset = 0;
  /** Bytes that may still be begun. */
  #left: Bytes = 0;
  #failure: BlockError | undefined;
  /** A piece has ended, or an exclusion. */
  readonly #changed = new CoQueue();

  /** Copies the first `length` bytes, which both have. */
  constructor(source: BlockBackend, target: BlockBackend, length: Bytes, options: DirtyCopyOptions) {
    const { granularity, bufferBytes, work, pieces = PIECES, pieceBytes = PIECE_BYTES } = options;
    this.granularity = granularity;
    this.#source = source;
    this.#target = target;
    this.length = length;
    this.#options = options;
    this.#bits = work?.bits ?? new PagedBits(Math.ceil(length / granularity));
    this.#gap = work ? 0 : GAP_BYTES / granularity;
    const share = alignDown(Math.min(PIECE_BYTES, pieceBytes, Math.floor(bufferBytes / PIECES)), granularity);
    this.#pieceBytes = Math.max(share, granularity);
    const count = Math.min(PIECES, pieces, Math.max(1, Math.floor(bufferBytes / this.#pieceBytes)));
    const bytes = new Uint8Array(new SharedArrayBuffer(count * this.#pieceBytes));
    this.#memory = source.context.backend.memory(bytes);
    for (let i = 0; i < count; i++) this.#pieces.push(new Piece(this, i * this.#pieceBytes));
  }

  drainBusy(): boolean {
    return this.#busy > 0;
  }

  /** Bytes that are still to be copied, in whole granules. */
  get dirtyBytes(): Bytes {
    return this.#bits.count * this.granularity;
  }

  /** Bytes that are to be copied, or on their way. */
  get remaining(): Bytes {
    return this.dirtyBytes + this.#busyBytes;
  }

  /** A range has to be copied (again). */
  mark(at: Offset, length: Bytes): void {
    const end = Math.min(at + length, this.length);
    // It may be zeroes now.
    if (at < this.#dataTo && this.#dataFrom < end) this.#dataTo = this.#dataFrom;
    if (end > at) this.#bits.set(Math.floor(at / this.granularity), Math.ceil(end / this.granularity) - 1);
  }

  /** All of a range is still to be copied: who writes there to the source need not write to the target, if he marks it
   *  afterwards. */
  owes(at: Offset, length: Bytes): boolean {
    const end = Math.min(Math.ceil((at + length) / this.granularity), this.#bits.length);
    return this.#bits.next(Math.floor(at / this.granularity), end, false) >= end;
  }

  /** Marks the extents of the source that `isWanted`; `before` each of them may wait. `exactly`: short ones, too; else
   *  they are taken for data. */
  async markWhere(
    isWanted: (status: BlockStatus, at: Offset) => MaybePromise<boolean>,
    before: () => MaybePromise<void>,
    exactly: boolean,
  ): Promise<void> {
    const status = new BlockStatus();
    const glances = new Glances();
    for (let at = 0; at < this.length; ) {
      await before();
      const want = Math.min(this.length - at, STATUS_BYTES);
      const pending = this.#source.blockStatus(at, want, status);
      if (pending !== undefined) await pending;
      const length = exactly ? status.length : glances.over(status.length, want);
      if (length !== status.length || (await isWanted(status, at))) this.mark(at, length);
      at += length;
    }
  }

  /** The target has failed for somebody else: the copy ends with that. */
  fail(error: BlockError): void {
    this.#failure ??= error;
    this.#changed.wakeAll();
  }

  /** No more is begun: what runs ends once what is under way has. */
  endSoon(): void {
    this.#left = 0;
  }

  /** Copies until nothing is dirty, or about `most` bytes have been begun. Nothing is under way when it ends, well or
   *  not. */
  async run(most: Bytes = Number.POSITIVE_INFINITY): Promise<void> {
    this.#left = most;
    for (const blk of [this.#source, this.#target]) blk.users.add(this);
    try {
      while (this.#failure === undefined) {
        const goesOn = this.#left > 0 && this.#bits.count > 0;
        if (!goesOn && this.#busy === 0) break;
        const range = goesOn ? this.#next() : undefined;
        if (range === undefined) await this.#changed.wait();
        else {
          await this.#options.before(Math.min(range.end - range.at, this.#most));
          await this.#begin();
        }
      }
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.#failure ??= error;
    }
    while (this.#busy > 0 || this.#flush.busy) await this.#changed.wait();
    for (const blk of [this.#source, this.#target]) blk.users.delete(this);
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure !== undefined) throw failure;
  }

  /** From here on, and until it is disposed, the range is somebody's to write to the target: no piece that overlaps it
   *  is in flight, and nobody else's. First come, first served. */
  async exclude(at: Offset, length: Bytes): Promise<Disposable> {
    const range = { at, end: at + length };
    this.#excluded.add(range);
    while (this.#hasToWait(range)) await this.#changed.wait();
    return { [Symbol.dispose]: () => this.include(range) };
  }

  /** {@link exclude} where nobody has to be waited for: false where somebody has. */
  excludeNow(range: Exclusion): boolean {
    if (this.#hasToWait(range)) return false;
    this.#excluded.add(range);
    return true;
  }

  /** Ends an {@link excludeNow}. */
  include(range: Exclusion): void {
    this.#excluded.delete(range);
    this.#changed.wakeAll();
  }

  #hasToWait(range: Range): boolean {
    for (const { busy, at, length } of this.#pieces) if (busy && overlaps(range, at, length)) return true;
    for (const other of this.#excluded) {
      if (other === range) return false;
      if (overlaps(range, other.at, other.end - other.at)) return true;
    }
    return false;
  }

  /** Bytes of the next piece, at most. */
  get #most(): Bytes {
    if (!this.#options.gently?.()) return this.#pieceBytes;
    return Math.max(Math.min(GENTLE_BYTES, this.#pieceBytes), this.granularity);
  }

  /** One of them is drained. */
  get #isHeld(): boolean {
    return [this.#source, this.#target].some(({ quiesce, disableQueuing }) => quiesce > 0 && !disableQueuing);
  }

  /** The next dirty range that nothing stands against; undefined where something has to end first. */
  #next(): Range | undefined {
    const most = this.#options.gently?.() ? GENTLE_PIECES : this.#pieces.length;
    if (this.#busy >= Math.min(most, this.#pieces.length)) return undefined;
    return this.#find(this.#cursor, this.length) ?? this.#find(0, this.#cursor);
  }

  #find(from: Offset, to: Offset): Range | undefined {
    const { granularity } = this;
    const last = Math.ceil(to / granularity);
    for (let bit = Math.floor(from / granularity); bit < last; bit++) {
      bit = this.#bits.next(bit, last, true);
      if (bit >= last) return undefined;
      const at = bit * granularity;
      if (!this.#taken(at, granularity)) {
        return { at, end: Math.min(this.#endOfRun(bit, last) * granularity, this.length) };
      }
    }
    return undefined;
  }

  /** Where the dirty run ends that begins with `bit`. Little that is clean in between is copied along. */
  #endOfRun(bit: number, last: number): number {
    const { granularity } = this;
    const most = Math.min(last, bit + ZERO_BYTES / granularity);
    let end = this.#bits.next(bit, most, false);
    for (;;) {
      const near = Math.min(most, end + this.#gap + 1);
      const next = this.#bits.next(end, near, true);
      if (next >= near) return end;
      end = this.#bits.next(next, most, false);
    }
  }

  /** Somebody is at it. */
  #taken(at: Offset, length: Bytes): boolean {
    for (const range of this.#excluded) if (overlaps(range, at, length)) return true;
    return this.#pieces.some((piece) => piece.busy && at < piece.at + piece.length && piece.at < at + length);
  }

  /** Begins the next piece, as it is now. */
  async #begin(): Promise<void> {
    const range = this.#next();
    if (range === undefined) return;
    const { granularity } = this;
    const zeroes = await this.#look(range.at, range.end - range.at);
    // May interleave: others can have taken a part of it meanwhile, or cut the end off.
    if (this.#failure !== undefined || this.#isHeld) return;
    const first = range.at / granularity;
    const end = Math.min(this.#endOfRun(first, Math.ceil(range.end / granularity)) * granularity, range.end);
    if (end === range.at) return;
    const zero = zeroes > 0;
    let length = Math.min(zero ? zeroes : Math.min(-zeroes, this.#most), end - range.at);
    while (length > granularity && this.#taken(range.at, length)) length -= granularity;
    if (this.#taken(range.at, length)) return;
    const piece = this.#pieces.find(({ busy }) => !busy);
    if (piece !== undefined) this.#start(piece, range.at, length, zero);
  }

  /** How many bytes are zeroes, in whole granules; as a negative number, how many are data, or taken for it. */
  async #look(at: Offset, want: Bytes): Promise<number> {
    if (at >= this.#dataFrom && at < this.#dataTo) return at - this.#dataTo;
    const status = this.#status;
    await statusOrData(this.#source, at, want, status);
    const { granularity } = this;
    const { length, zero } = status;
    const reach = this.#glances.over(length, want);
    if (zero && length >= Math.min(FRAGMENT_BYTES, want)) return alignDown(length, granularity) || granularity;
    this.#dataFrom = at;
    this.#dataTo = at + alignUp(reach, granularity);
    return at - this.#dataTo;
  }

  #start(piece: Piece, at: Offset, length: Bytes, zero: boolean): void {
    const before = this.#bits.count;
    piece.end = this.#options.work?.begin(at, length);
    this.#bits.unset(Math.floor(at / this.granularity), Math.ceil((at + length) / this.granularity) - 1);
    this.#cursor = at + length;
    this.#left -= length;
    this.#busy++;
    piece.owed = Math.min(length, (before - this.#bits.count) * this.granularity);
    this.#busyBytes += piece.owed;
    piece.busy = true;
    piece.at = at;
    piece.length = length;
    if (zero) this.#submit(piece, this.#target, RequestKind.ZERO);
    else this.#submit(piece, this.#source, RequestKind.READ);
  }

  #submit(piece: Piece, blk: BlockBackend, kind: number): void {
    piece.kind = kind;
    const { unmap, writeFlags = 0 } = this.#options;
    piece.flags = 0;
    if (kind === RequestKind.WRITE) piece.flags = writeFlags;
    else if (kind === RequestKind.ZERO) {
      piece.flags = (writeFlags & ~RequestFlags.COMPRESSED) | (unmap ? RequestFlags.MAY_UNMAP : 0);
    }
    piece.iov.reset();
    if (kind !== RequestKind.ZERO) piece.iov.push(this.#memory, piece.place, piece.length);
    blk.submit(piece, true);
  }

  /** @internal */
  stepEnded(piece: Piece, error: number): void {
    if (error === 0 && piece.kind === RequestKind.READ) {
      this.#submit(piece, this.#target, RequestKind.WRITE);
      return;
    }
    piece.busy = false;
    this.#busy--;
    this.#busyBytes -= piece.owed;
    piece.end?.(error === 0);
    if (this.#busy === 0) kickDrain();
    if (error === 0) {
      this.#options.onDone(piece.owed);
      if (piece.kind === RequestKind.WRITE) this.#written(piece.length);
    } else {
      if (piece.end === undefined) this.mark(piece.at, piece.length);
      const failure = errorOf(piece, error);
      const operation = piece.kind === RequestKind.READ ? 'read' : 'write';
      if (!this.#options.onFailure(failure, operation)) this.#failure ??= failure;
    }
    this.#changed.wakeAll();
  }

  #written(length: Bytes): void {
    this.#unflushed += length;
    // While the guest waits for the end there is a flush to come.
    if (this.#unflushed < FLUSH_BYTES || this.#flush.busy || this.#target.quiesce > 0) return;
    this.#unflushed = 0;
    this.#flush.busy = true;
    this.#target.submit(this.#flush);
  }

  /** @internal */
  flushEnded(error: number): void {
    const { failure } = this.#flush;
    this.#flush.busy = false;
    if (error !== 0) {
      this.#failure ??=
        failure instanceof BlockError ? failure : ioError(error, 'Could not flush what was copied', { op: 'flush' });
    }
    this.#changed.wakeAll();
  }
}

/** The status of the beginning of a range; data where that fails, and what is wrong will show when it is read. */
export async function statusOrData(blk: BlockBackend, at: Offset, length: Bytes, status: BlockStatus): Promise<void> {
  try {
    const pending = blk.blockStatus(at, length, status);
    if (pending !== undefined) await pending;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    status.set(Math.min(length, PIECE_BYTES), true, false, 1);
  }
}

function overlaps({ at, end }: Range, from: Offset, length: Bytes): boolean {
  return at < from + length && from < end;
}

function errorOf({ kind, at, length, failure }: Piece, error: number): BlockError {
  if (failure instanceof BlockError) return failure;
  const what = kind === RequestKind.READ ? 'read' : 'write';
  return ioError(error, `Could not ${what} ${length} bytes at ${at}`, { op: what, at, length });
}
