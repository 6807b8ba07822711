/**
 * Copying from BlockBackends to another of the same context: several pieces at a time, each a request of its own that
 * reads, then writes what it has read. What is known to read as zeroes is not read, and what is found to is not written
 * as data.
 *
 * Bounds: `requests` pieces of `pieceBytes`, in one region of memory. A piece that fails ends the copy: those under way
 * end, no other begins, and the first error is thrown; its `where` says at which byte of the target, and whether it was
 * read or written.
 */
import { Gate, type MaybePromise, spawn } from '../aio/op.ts';
import { BlockError, Errno, ioError } from '../base/errors.ts';
import { Fifo } from '../base/fifo.ts';
import { isZero, type Memory } from '../base/memory.ts';
import { alignDown, alignUp, type Bytes, GiB, KiB, MiB, type Nanoseconds, type Offset, SECTOR } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { RequestFlags } from '../block/driver.ts';
import { BlockRequest, RequestKind } from '../block/request.ts';
import { BlockStatus } from '../block/status.ts';

/** Smaller pieces take more time of ours than larger ones of the caches. */
const PIECE_BYTES: Bytes = MiB;
/** Pieces at a time between disks that are near: what is on its way stays in the processor's cache. From one NBD server
 *  to another, 32 took all three programs together a tenth more of processor time. */
const REQUESTS_NEAR = 8;
/** Where one is far: 32 MiB on their way fill a line of 800 MiB/s where reading and writing take 20 ms each. */
const REQUESTS_MAX = 32;
/** A disk is far when each of the first steps has taken longer than this, which fills 2 GiB/s with the fewer pieces. */
const FAR_NS: Nanoseconds = 4e6;
/** Zeroes need no memory, so a piece of them is larger: small enough to be cancelled soon, and to show progress. */
const ZERO_BYTES: Bytes = GiB;
const STATUS_BYTES: Bytes = 2 * GiB;

/** What is copied of a disk. */
export interface CopySource {
  readonly blk: BlockBackend;
  readonly from: Offset;
  readonly length: Bytes;
  /** Where its first byte goes in the target. */
  readonly at: Offset;
}

/** How bytes are copied; what a copy reports to is in {@link BlockCopyOptions}. */
export interface CopyTuning {
  /** Zeroes that the source holds as data are looked for in units of this, or of the target's clusters where these are
   *  larger; a power of two, 0 for not at all. */
  readonly sparse: Bytes;
  /** The target reads as zeroes everywhere: nothing is done for what does in the source. */
  readonly targetIsZero: boolean;
  /** Pieces at a time, 1 to 32; default 8, and 32 where source or target is far. */
  readonly requests?: number | undefined;
  /** Writes begin in the order of their offsets. */
  readonly ordered?: boolean | undefined;
  /** Whole clusters of this size are stored compressed. */
  readonly compressed?: Bytes | undefined;
  /** What no layer down to this one holds of the first `below` bytes is left as it is in the target. Default 1: the
   *  active layer, over an overlay whose backing file shows what those below it do. */
  readonly layers?: number | undefined;
  readonly below?: Bytes | undefined;
  /** What cannot be read is taken for zeroes, sector by sector, and told of. Default: it ends the copy. */
  readonly salvage?: ((at: Offset, error: BlockError) => void) | undefined;
  /** Copies a range without reading it; resolves to false where that cannot be done. For sources that begin at 0. */
  readonly offload?: ((at: Offset, length: Bytes) => Promise<boolean>) | undefined;
}

export interface BlockCopyOptions extends CopyTuning {
  /** `length` bytes are about to be begun. A promise: wait for it before; throws to end the copy. */
  readonly before: (length: Bytes) => MaybePromise<void>;
  /** So many bytes more are done. */
  readonly onDone: (length: Bytes) => void;
}

/** A piece on its way: read, written part after part, back in the list of free ones. */
class Piece extends BlockRequest {
  readonly #copy: BlockCopy;
  /** Where its memory begins in the region. */
  readonly place: number;
  /** Number of the source that its next read is from. */
  source = 0;
  /** The whole of it, in the target; `at` and `length` are those of the step that is under way. */
  from: Offset = 0;
  bytes: Bytes = 0;
  zero = false;
  reading = false;
  /** Read one sector at a time from here to here: something there cannot be read. */
  singlyTo: Bytes = 0;
  /** When its step began. */
  began: Nanoseconds = 0;
  /** Bytes that were read, and bytes that the target has. */
  filled: Bytes = 0;
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

/** How long the steps of one kind take. */
class Distance {
  #quickest: Nanoseconds = Number.POSITIVE_INFINITY;
  #steps = 0;

  tell(time: Nanoseconds): void {
    this.#steps++;
    if (time < this.#quickest) this.#quickest = time;
  }

  get far(): boolean {
    return this.#steps >= REQUESTS_NEAR && this.#quickest > FAR_NS;
  }
}

export class BlockCopy {
  readonly #sources: readonly CopySource[];
  readonly #target: BlockBackend;
  readonly #options: BlockCopyOptions;
  readonly #pieceBytes: Bytes;
  /** Unit of looking for zeroes; 0 for not at all. */
  readonly #unit: Bytes;
  /** Pieces there may be, and those that there are. */
  readonly #requests: number;
  #made = 0;
  readonly #reads = new Distance();
  readonly #writes = new Distance();
  readonly #memory: Memory;
  readonly #words: Int32Array;
  readonly #free: Piece[] = [];
  /** Of an ordered copy: pieces that have not begun to write, in the order of their offsets. */
  readonly #line = new Fifo<Piece>();
  /** What of the extent that is being copied has not begun. */
  #next: Offset = 0;
  #stop: Offset = 0;
  #zero = false;
  /** Number of the source that it is in. */
  #source = 0;
  /** What the next piece waits for, or has waited for. */
  #rest: Promise<void> | undefined;
  #rested = false;
  /** Opened when the coroutine has something to do. */
  #waiting: Gate | undefined;
  #offloads: boolean;
  #failure: unknown;

  /** All in the same context; `sources` one behind the other, the first at 0. */
  constructor(sources: readonly CopySource[], target: BlockBackend, options: BlockCopyOptions) {
    const { sparse, compressed = 0, requests = REQUESTS_MAX } = options;
    this.#sources = sources;
    this.#target = target;
    this.#options = options;
    this.#pieceBytes = Math.max(PIECE_BYTES, compressed);
    this.#requests = Math.max(1, Math.min(requests, (REQUESTS_MAX * PIECE_BYTES) / this.#pieceBytes));
    const { optimal } = target.limits;
    this.#unit = compressed || (sparse === 0 ? 0 : Math.min(this.#pieceBytes, Math.max(sparse, optimal)));
    this.#offloads = options.offload !== undefined;
    const bytes = new Uint8Array(new SharedArrayBuffer(this.#requests * this.#pieceBytes));
    // The kernel reads and writes it.
    this.#memory = target.context.backend.memory(bytes);
    this.#words = new Int32Array(bytes.buffer);
    this.#make(options.requests ?? REQUESTS_NEAR);
  }

  /** Makes more pieces, until there are so many. */
  #make(count: number): void {
    const end = Math.min(count, this.#requests);
    while (this.#made < end) this.#free.push(new Piece(this, this.#made++ * this.#pieceBytes));
  }

  /** Copies all sources. Nothing is under way when it ends, well or not. */
  async run(): Promise<void> {
    try {
      const status = new BlockStatus();
      let at = 0;
      for (let i = 0; i < this.#sources.length; i++) {
        const { blk, at: begin, from, length } = this.#sources[i]!;
        const end = begin + length;
        while (at < end && this.#failure === undefined) {
          await this.#look(blk, from + at - begin, Math.min(end - at, STATUS_BYTES), status);
          this.#source = i;
          at = await this.#extent(at, status);
        }
      }
    } catch (error) {
      this.#failure ??= error;
    }
    this.#stop = this.#next;
    while (this.#free.length < this.#made) await this.#changed();
    if (this.#failure !== undefined) throw this.#failure;
  }

  async #look(blk: BlockBackend, at: Offset, length: Bytes, status: BlockStatus): Promise<void> {
    try {
      const pending = blk.blockStatus(at, length, status);
      if (pending !== undefined) await pending;
    } catch (error) {
      if (this.#options.salvage === undefined || !(error instanceof BlockError)) throw error;
      // Whatever it is will show when it is read.
      status.set(Math.min(length, this.#pieceBytes), true, false, 1);
    }
  }

  /** Begins what is to be done for an extent; answers where the next one is looked for. */
  async #extent(from: Offset, { length, zero, depth }: BlockStatus): Promise<Offset> {
    const { targetIsZero, layers = 1, below = 0, compressed = 0 } = this.#options;
    const inherited = (depth === 0 || depth > layers) && from < below;
    let end = inherited ? Math.min(from + length, below) : from + length;
    if (compressed !== 0) {
      // The last source may end within a cluster.
      const whole = end === this.#end ? end : alignDown(end, compressed);
      if (whole === from || !(zero || inherited)) return await this.#pieces(from, this.#wholeEnd(end), false);
      end = whole;
    }
    if (inherited || (zero && targetIsZero && from >= below)) {
      await this.#options.before(0);
      this.#options.onDone(end - from);
      return end;
    }
    return await this.#pieces(from, end, zero);
  }

  get #end(): Offset {
    const { at, length } = this.#sources.at(-1)!;
    return at + length;
  }

  #wholeEnd(end: Offset): Offset {
    return Math.min(this.#end, alignUp(end, this.#options.compressed!));
  }

  async #pieces(from: Offset, end: Offset, zero: boolean): Promise<Offset> {
    this.#next = from;
    this.#stop = end;
    this.#zero = zero;
    this.#beginMore();
    while (this.#next < this.#stop && this.#failure === undefined) {
      if (this.#rest === undefined) await this.#changed();
      else {
        await this.#rest;
        this.#rest = undefined;
        this.#rested = true;
        this.#beginMore();
      }
    }
    return end;
  }

  /** Begins pieces of the extent until one has to wait. Also called where a piece has ended: a promise for each would
   *  cost as much as the piece. */
  #beginMore(): void {
    while (this.#next < this.#stop && this.#free.length > 0 && this.#rest === undefined) {
      // Later pieces begin at whole units of their size, and so at whole clusters.
      const most = this.#zero ? ZERO_BYTES : this.#pieceBytes - (this.#next % this.#pieceBytes);
      const bytes = Math.min(this.#stop - this.#next, most);
      if (!this.#rested) this.#rest = this.#options.before(this.#zero ? 0 : bytes) ?? undefined;
      if (this.#rest !== undefined) return;
      this.#rested = false;
      const at = this.#next;
      this.#next += bytes;
      this.#begin(this.#free.pop()!, at, bytes, this.#zero);
    }
  }

  #begin(piece: Piece, from: Offset, bytes: Bytes, zero: boolean): void {
    piece.source = this.#source;
    piece.from = from;
    piece.bytes = bytes;
    piece.zero = zero;
    piece.filled = zero ? bytes : 0;
    piece.written = 0;
    piece.singlyTo = 0;
    piece.reading = true;
    if (this.#options.ordered) this.#line.push(piece);
    if (zero) this.#filled(piece);
    else if (this.#offloads) spawn(this.#offload(piece));
    else this.#readNext(piece);
  }

  async #offload(piece: Piece): Promise<void> {
    if (await this.#options.offload!(piece.from, piece.bytes)) {
      piece.filled = piece.bytes;
      piece.written = piece.bytes;
      this.#options.onDone(piece.bytes);
      this.#filled(piece);
      return;
    }
    this.#offloads = false;
    this.#readNext(piece);
  }

  /** Reads on: as far as the source goes, and there may be a next one. */
  #readNext(piece: Piece): void {
    const at = piece.from + piece.filled;
    let source = this.#sources[piece.source]!;
    while (at >= source.at + source.length) source = this.#sources[++piece.source]!;
    const left = Math.min(piece.bytes - piece.filled, source.at + source.length - at);
    const length = piece.filled < piece.singlyTo ? Math.min(left, SECTOR) : left;
    piece.kind = RequestKind.READ;
    piece.at = source.from + at - source.at;
    piece.length = length;
    piece.flags = 0;
    piece.iov.reset().push(this.#memory, piece.place + piece.filled, length);
    piece.began = this.#target.context.now();
    source.blk.submit(piece);
  }

  /** @internal */
  stepEnded(piece: Piece, error: number): void {
    if (this.#made < this.#requests) this.#time(piece);
    if (piece.kind === RequestKind.READ) this.#readEnded(piece, error);
    else {
      if (error !== 0) this.#failure ??= this.#errorOf(piece, 'write', error);
      piece.written += piece.length;
      this.#options.onDone(piece.length);
      this.#write(piece);
    }
  }

  #time({ kind, began }: Piece): void {
    if (kind === RequestKind.ZERO) return;
    const distance = kind === RequestKind.READ ? this.#reads : this.#writes;
    distance.tell(this.#target.context.now() - began);
    if (distance.far) this.#make(this.#requests);
  }

  #readEnded(piece: Piece, error: number): void {
    if (error !== 0 && !this.#salvages(piece, error)) this.#failure ??= this.#errorOf(piece, 'read', error);
    else piece.filled += piece.length;
    if (this.#failure !== undefined || piece.filled >= piece.bytes) this.#filled(piece);
    else this.#readNext(piece);
  }

  /** True where the copy goes on: with single sectors, or zeroes for this one. */
  #salvages(piece: Piece, error: number): boolean {
    const { salvage } = this.#options;
    if (salvage === undefined) return false;
    if (piece.length > SECTOR) {
      piece.singlyTo = piece.filled + piece.length;
      piece.length = 0;
      return true;
    }
    salvage(piece.from + piece.filled, this.#errorOf(piece, 'read', error));
    piece.iov.fill(0);
    return true;
  }

  /** It is written once those before it are, or given up where the copy has failed. */
  #filled(piece: Piece): void {
    piece.reading = false;
    if (!this.#options.ordered) {
      this.#write(piece);
      return;
    }
    for (let first = this.#line.peek(); first && !first.reading; first = this.#line.peek()) {
      this.#line.shift();
      this.#write(first);
    }
  }

  /** Writes the next part of what was read: as much as is of one kind. Zeroes that the target has are skipped. */
  #write(piece: Piece): void {
    const { targetIsZero, below = 0 } = this.#options;
    while (piece.written < piece.bytes && this.#failure === undefined) {
      const start = piece.written;
      const zero = piece.zero || this.#isZero(piece, start);
      const end = piece.zero ? piece.bytes : this.#alikeEnd(piece, start, zero);
      if (!zero || !targetIsZero || piece.from + start < below) {
        this.#submit(piece, zero ? RequestKind.ZERO : RequestKind.WRITE, start, end);
        return;
      }
      piece.written = end;
      this.#options.onDone(end - start);
    }
    this.#ended(piece);
  }

  #ended(piece: Piece): void {
    this.#free.push(piece);
    try {
      if (this.#failure === undefined) this.#beginMore();
    } catch (error) {
      this.#failure = error;
    }
    const idle = this.#free.length === this.#made;
    if (this.#next === this.#stop || this.#rest !== undefined || this.#failure !== undefined || idle) {
      this.#waiting?.open();
    }
  }

  /** Of a piece, from `start` to `end` in it. */
  #submit(piece: Piece, kind: number, start: Bytes, end: Bytes): void {
    const { compressed = 0 } = this.#options;
    piece.kind = kind;
    piece.at = piece.from + start;
    piece.length = end - start;
    piece.flags = 0;
    piece.iov.reset();
    if (kind === RequestKind.ZERO) piece.flags = RequestFlags.MAY_UNMAP;
    else {
      piece.iov.push(this.#memory, piece.place + start, end - start);
      const stop = piece.from + end;
      const whole = stop % compressed === 0 || stop === this.#target.length;
      if (compressed !== 0 && whole) piece.flags = RequestFlags.COMPRESSED;
    }
    piece.began = this.#target.context.now();
    this.#target.submit(piece);
  }

  /** Where the unit ends in which `at` lies; both counted from the beginning of the piece. */
  #unitEnd({ from, bytes }: Piece, at: Bytes): Bytes {
    const unit = this.#unit;
    return unit === 0 ? bytes : Math.min(bytes, at + unit - ((from + at) % unit));
  }

  /** Where the units end that are of one kind, zeroes or not, from `at` on. */
  #alikeEnd(piece: Piece, at: Bytes, zero: boolean): Bytes {
    let end = this.#unitEnd(piece, at);
    if (this.#unit === 0) return end;
    const { place, bytes } = piece;
    const memory = this.#memory.bytes;
    if (zero) while (end < bytes && this.#isZero(piece, end)) end = Math.min(bytes, end + this.#unit);
    // The first byte of most units shows that they are data.
    else
      while (end < bytes && (memory[place + end] !== 0 || !this.#isZero(piece, end)))
        end = Math.min(bytes, end + this.#unit);
    return end;
  }

  /** Of the unit at `at`. */
  #isZero(piece: Piece, at: Bytes): boolean {
    if (this.#unit === 0) return false;
    const begin = piece.place + at;
    const end = piece.place + this.#unitEnd(piece, at);
    if (begin % 4 !== 0 || end % 4 !== 0) return isZero(this.#memory.bytes.subarray(begin, end));
    const words = this.#words;
    for (let i = begin / 4; i < end / 4; i++) if (words[i] !== 0) return false;
    return true;
  }

  async #changed(): Promise<void> {
    this.#waiting = new Gate();
    await this.#waiting.promise;
    this.#waiting = undefined;
  }

  #errorOf(piece: Piece, op: 'read' | 'write', error: number): BlockError {
    const at = op === 'read' ? piece.from + piece.filled : piece.at;
    const where = { op, at, length: piece.length };
    const { failure } = piece;
    if (!(failure instanceof BlockError))
      return ioError(error, `Could not ${op} ${piece.length} bytes at ${at}`, where);
    return new BlockError(failure.errno, failure.message, { where, cause: failure });
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
