/**
 * Copying from one BlockBackend to another of the same context: several pieces at a time, each a request of its own
 * that reads, then writes what it has read. What is known to read as zeroes is not read, and what is found to is not
 * written as data.
 *
 * Bounds: `PIECES` pieces of `PIECE_BYTES`, in one region of memory. A piece that fails ends the copy: those under way
 * end, no other begins, and the first error is thrown.
 */
import { Gate, type MaybePromise } from '../aio/op.ts';
import { BlockError, Errno, ioError } from '../base/errors.ts';
import { isZero, type Memory } from '../base/memory.ts';
import { type Bytes, GiB, KiB, MiB, type Offset } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { RequestFlags } from '../block/driver.ts';
import { BlockRequest, RequestKind } from '../block/request.ts';
import { BlockStatus } from '../block/status.ts';

/** Bytes of a piece, and pieces at a time: 32 MiB on their way fill a line of 800 MiB/s where reading and writing take
 *  20 ms each. Smaller pieces take more time of ours than larger ones of the caches. */
const PIECE_BYTES: Bytes = MiB;
const PIECES = 32;
/** Zeroes need no memory, so a piece of them is larger: small enough to be cancelled soon, and to show progress. */
const ZERO_BYTES: Bytes = GiB;
const STATUS_BYTES: Bytes = 2 * GiB;

export interface BlockCopyOptions {
  /** Zeroes that the source holds as data are looked for in units of this; a power of two, 0 for not at all. */
  readonly sparse: Bytes;
  /** The target reads as zeroes everywhere: nothing is done for what does in the source. */
  readonly targetIsZero: boolean;
  /** `length` bytes are about to be begun. A promise: wait for it before; throws to end the copy. */
  readonly before: (length: Bytes) => MaybePromise<void>;
  /** So many bytes more are done. */
  readonly onDone: (length: Bytes) => void;
}

/** Of SharedArrayBuffer: the kernel reads and writes it. */
function regionOf(source: BlockBackend, bytes: Bytes): Memory {
  return source.context.backend.memory(new Uint8Array(new SharedArrayBuffer(bytes)));
}

/** A piece on its way: read, written part after part, back in the list of free ones. */
class Piece extends BlockRequest {
  readonly #copy: BlockCopy;
  /** Where its memory begins in the region. */
  readonly place: number;
  /** The whole of it; `at` and `length` are those of the step that is under way. */
  from: Offset = 0;
  bytes: Bytes = 0;
  /** Bytes that the target has. */
  written: Bytes = 0;

  constructor(copy: BlockCopy, place: number) {
    super();
    this.#copy = copy;
    this.place = place;
  }

  done(error: number): void {
    this.#copy.stepEnded(this, error);
  }
}

export class BlockCopy {
  readonly #source: BlockBackend;
  readonly #target: BlockBackend;
  readonly #options: BlockCopyOptions;
  readonly #memory: Memory;
  readonly #free: Piece[] = [];
  /** What of the extent that is being copied has not begun. */
  #next: Offset = 0;
  #end: Offset = 0;
  #zero = false;
  /** What the next piece waits for, or has waited for. */
  #rest: Promise<void> | undefined;
  #rested = false;
  /** Opened when the coroutine has something to do. */
  #waiting: Gate | undefined;
  #failure: unknown;

  /** Both in the same context. */
  constructor(source: BlockBackend, target: BlockBackend, options: BlockCopyOptions) {
    this.#source = source;
    this.#target = target;
    this.#options = options;
    this.#memory = regionOf(source, PIECES * PIECE_BYTES);
    for (let i = PIECES - 1; i >= 0; i--) this.#free.push(new Piece(this, i * PIECE_BYTES));
  }

  /** Copies `from`..`to`, which both have. Nothing is under way when it ends, well or not. */
  async run(from: Offset, to: Offset): Promise<void> {
    try {
      const status = new BlockStatus();
      for (let at = from; at < to && this.#failure === undefined; at += status.length) {
        const pending = this.#source.blockStatus(at, Math.min(to - at, STATUS_BYTES), status);
        if (pending !== undefined) await pending;
        await this.#extent(at, status);
      }
    } catch (error) {
      this.#failure ??= error;
    }
    this.#end = this.#next;
    while (this.#free.length < PIECES) await this.#changed();
    if (this.#failure !== undefined) throw this.#failure;
  }

  async #extent(from: Offset, { length, zero }: BlockStatus): Promise<void> {
    if (zero && this.#options.targetIsZero) {
      await this.#options.before(0);
      this.#options.onDone(length);
      return;
    }
    this.#next = from;
    this.#end = from + length;
    this.#zero = zero;
    this.#beginMore();
    while (this.#next < this.#end && this.#failure === undefined) {
      if (this.#rest === undefined) await this.#changed();
      else {
        await this.#rest;
        this.#rest = undefined;
        this.#rested = true;
        this.#beginMore();
      }
    }
  }

  /** Begins pieces of the extent until one has to wait. Also called where a piece has ended: a promise for each would
   *  cost as much as the piece. */
  #beginMore(): void {
    while (this.#next < this.#end && this.#free.length > 0 && this.#rest === undefined) {
      // Later pieces begin at whole units of their size, and so at whole clusters.
      const most = this.#zero ? ZERO_BYTES : PIECE_BYTES - (this.#next % PIECE_BYTES);
      const bytes = Math.min(this.#end - this.#next, most);
      if (!this.#rested) this.#rest = this.#options.before(this.#zero ? 0 : bytes) ?? undefined;
      if (this.#rest !== undefined) return;
      this.#rested = false;
      const at = this.#next;
      this.#next += bytes;
      this.#begin(this.#free.pop()!, at, bytes, this.#zero);
    }
  }

  #begin(piece: Piece, at: Offset, bytes: Bytes, zero: boolean): void {
    piece.from = at;
    piece.bytes = bytes;
    piece.written = 0;
    if (zero) this.#submit(piece, this.#target, RequestKind.ZERO, at, bytes);
    else this.#submit(piece, this.#source, RequestKind.READ, at, bytes);
  }

  #submit(piece: Piece, blk: BlockBackend, kind: number, at: Offset, length: Bytes): void {
    piece.kind = kind;
    piece.at = at;
    piece.length = length;
    piece.flags = kind === RequestKind.ZERO ? RequestFlags.MAY_UNMAP : 0;
    piece.iov.reset();
    if (kind !== RequestKind.ZERO) piece.iov.push(this.#memory, piece.place + at - piece.from, length);
    blk.submit(piece);
  }

  /** @internal */
  stepEnded(piece: Piece, error: number): void {
    if (error !== 0) this.#failure ??= this.#errorOf(piece, error);
    else if (piece.kind !== RequestKind.READ) {
      piece.written += piece.length;
      this.#options.onDone(piece.length);
    }
    if (this.#failure === undefined && piece.written < piece.bytes) this.#writeNext(piece);
    else this.#ended(piece);
  }

  #ended(piece: Piece): void {
    this.#free.push(piece);
    try {
      if (this.#failure === undefined) this.#beginMore();
    } catch (error) {
      this.#failure = error;
    }
    const idle = this.#free.length === PIECES;
    if (this.#next === this.#end || this.#rest !== undefined || this.#failure !== undefined || idle) {
      this.#waiting?.open();
    }
  }

  /** Writes the next part of what was read: as much as is of one kind. Zeroes that the target has are skipped. */
  #writeNext(piece: Piece): void {
    const { sparse, targetIsZero } = this.#options;
    const { from, bytes } = piece;
    while (piece.written < bytes) {
      const start = piece.written;
      const zero = this.#isZero(piece, start);
      let end = this.#unitEnd(piece, start);
      while (sparse !== 0 && end < bytes && this.#isZero(piece, end) === zero) end = this.#unitEnd(piece, end);
      if (!zero || !targetIsZero) {
        this.#submit(piece, this.#target, zero ? RequestKind.ZERO : RequestKind.WRITE, from + start, end - start);
        return;
      }
      piece.written = end;
      this.#options.onDone(end - start);
    }
    this.#ended(piece);
  }

  /** Where the unit ends in which `at` lies; both counted from the beginning of the piece. */
  #unitEnd({ from, bytes }: Piece, at: Bytes): Bytes {
    const { sparse } = this.#options;
    return sparse === 0 ? bytes : Math.min(bytes, at + sparse - ((from + at) % sparse));
  }

  #isZero(piece: Piece, at: Bytes): boolean {
    if (this.#options.sparse === 0) return false;
    const { bytes } = this.#memory;
    const begin = piece.place + at;
    // Of data, one look is enough as a rule.
    return bytes[begin] === 0 && isZero(bytes.subarray(begin, piece.place + this.#unitEnd(piece, at)));
  }

  async #changed(): Promise<void> {
    this.#waiting = new Gate();
    await this.#waiting.promise;
    this.#waiting = undefined;
  }

  #errorOf({ kind, at, length, failure }: Piece, error: number): BlockError {
    if (failure instanceof BlockError) return failure;
    const what = kind === RequestKind.READ ? 'read' : 'write';
    return ioError(error, `Could not ${what} ${length} bytes at ${at}`, { op: what, at, length });
  }
}

/** Largest unit in which zeroes are looked for; pieces are multiples of it. */
export const SPARSE_MAX: Bytes = 256 * KiB;
/** As the usual block of a file system. */
export const SPARSE_DEFAULT: Bytes = 4 * KiB;

/** EINVAL for what is no unit. */
export function checkedSparse(sparse: Bytes): Bytes {
  if (sparse === 0 || (Number.isInteger(Math.log2(sparse)) && sparse >= 512 && sparse <= SPARSE_MAX)) return sparse;
  const range = `0 or a power of two from 512 to ${SPARSE_MAX}`;
  throw new BlockError(Errno.EINVAL, `Could not copy: zeroes are looked for in units of ${range}, not ${sparse}`);
}
