/** What two images hold, compared: what is known to be zeroes is not read, and several pieces are read at a time. */
import type { AioContext } from '../aio/context.ts';
import { BlockError } from '../base/errors.ts';
import { firstDifference, Iov, isZero, type Memory } from '../base/memory.ts';
import { type Bytes, GiB, MiB, type Offset, SECTOR } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { BlockStatus } from '../block/status.ts';
import type { Abortable } from '../lib/abort.ts';
import type { ImageSpec, OpenHow } from './open.ts';
import { OpenImages } from './open-set.ts';

const PIECE_BYTES: Bytes = MiB;
/** Pieces at a time, of both images: 8 MiB. */
const PIECES = 4;
const STATUS_BYTES: Bytes = GiB;

export interface CompareOptions extends Abortable {
  readonly images: readonly [ImageSpec, ImageSpec];
  readonly how?: OpenHow | undefined;
  /** Sizes must be the same, and what is allocated. */
  readonly strict?: boolean | undefined;
  readonly onProgress?: ((current: Bytes, total: Bytes) => void) | undefined;
  /** All that both have is the same, and one is longer: what it has beyond the other's end must be zeroes. */
  readonly onOtherSize?: (() => void) | undefined;
}

/** - `size`: strict, and the sizes differ; `content`: the sector at `at` differs; `status`: strict, and from `at` on it
 *  is allocated in another way. */
export type Comparison =
  | { readonly kind: 'same' | 'size' }
  | { readonly kind: 'content' | 'status'; readonly at: Offset };

interface Side {
  readonly blk: BlockBackend;
  readonly status: BlockStatus;
}

/** Up to the first difference. What cannot be read is thrown with `where.op` read, or status. */
export async function compare(context: AioContext, options: CompareOptions): Promise<Comparison> {
  await using images = new OpenImages(context);
  const sides: Side[] = [];
  for (const spec of options.images) {
    sides.push({ blk: await images.open(spec, options.how), status: new BlockStatus() });
  }
  const [first, second] = sides as [Side, Side];
  if (options.strict && first.blk.length !== second.blk.length) return { kind: 'size' };
  return await new Comparer(context, first, second, options).run();
}

/** A piece that is being compared: its outcome is where it differs, or -1. */
type Pending = Promise<Offset>;

class Comparer {
  readonly #first: Side;
  readonly #second: Side;
  readonly #options: CompareOptions;
  readonly #memory: Memory;
  /** In the order of the disk; each uses the memory of its turn. */
  readonly #pending: Pending[] = [];
  #turn = 0;
  #done: Bytes = 0;
  readonly #total: Bytes;

  constructor(context: AioContext, first: Side, second: Side, options: CompareOptions) {
    this.#first = first;
    this.#second = second;
    this.#options = options;
    this.#total = Math.max(first.blk.length, second.blk.length);
    const bytes = new Uint8Array(new SharedArrayBuffer(2 * PIECES * PIECE_BYTES));
    this.#memory = context.backend.memory(bytes);
  }

  async run(): Promise<Comparison> {
    try {
      const common = Math.min(this.#first.blk.length, this.#second.blk.length);
      for (let at = 0; at < this.#total; ) {
        this.#options.signal?.throwIfAborted();
        if (at === common) {
          const differs = await this.#settle(0);
          if (differs !== undefined) return differs;
          this.#options.onOtherSize?.();
        }
        const length = await this.#look(at);
        const differs = await this.#extent(at, length);
        if (differs !== undefined) return differs;
        at += length;
      }
      return (await this.#settle(0)) ?? { kind: 'same' };
    } finally {
      await Promise.allSettled(this.#pending);
    }
  }

  /** The status of both sides at `at`; answers how far both stay as they are. */
  async #look(at: Offset): Promise<Bytes> {
    let length = this.#total - at;
    for (const { blk, status } of [this.#first, this.#second]) {
      if (at >= blk.length) status.set(length, false, true, 0);
      else await statusOf(blk, at, Math.min(blk.length - at, STATUS_BYTES), status);
      length = Math.min(length, status.length);
    }
    return length;
  }

  async #extent(at: Offset, length: Bytes): Promise<Comparison | undefined> {
    const [first, second] = [this.#first.status, this.#second.status];
    const inBoth = at < Math.min(this.#first.blk.length, this.#second.blk.length);
    if (this.#options.strict && inBoth && !sameStatus(first, second)) {
      return (await this.#settle(0)) ?? { kind: 'status', at };
    }
    if (first.zero && second.zero) {
      this.#advance(length);
      return undefined;
    }
    for (let done = 0; done < length; ) {
      const bytes = Math.min(length - done, PIECE_BYTES - ((at + done) % PIECE_BYTES));
      const differs = await this.#settle(PIECES - 1);
      if (differs !== undefined) return differs;
      this.#begin(this.#piece(at + done, bytes, first.zero, second.zero));
      done += bytes;
    }
    return undefined;
  }

  #begin(piece: Pending): void {
    // It is waited for in its turn.
    piece.catch(() => undefined);
    this.#pending.push(piece);
  }

  /** Waits for the oldest pieces until so many are left. */
  async #settle(left: number): Promise<Comparison | undefined> {
    while (this.#pending.length > left) {
      const at = await this.#pending[0]!;
      this.#pending.shift();
      if (at >= 0) return { kind: 'content', at };
    }
    return undefined;
  }

  async #piece(at: Offset, length: Bytes, firstZero: boolean, secondZero: boolean): Pending {
    const place = (this.#turn++ % PIECES) * 2 * PIECE_BYTES;
    const reads: Promise<void>[] = [];
    if (!firstZero) reads.push(readInto(this.#first.blk, at, Iov.of(this.#memory, place, length)));
    if (!secondZero) reads.push(readInto(this.#second.blk, at, Iov.of(this.#memory, place + PIECE_BYTES, length)));
    const outcomes = await Promise.allSettled(reads);
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
    const differs =
      firstZero || secondZero
        ? this.#firstNonZero(firstZero ? place + PIECE_BYTES : place, length)
        : this.#firstDifference(place, length);
    this.#advance(length);
    return differs < 0 ? -1 : at + differs;
  }

  /** The first sector that is not zeroes, from `place` on; -1 where there is none. */
  #firstNonZero(place: number, length: Bytes): number {
    const { bytes } = this.#memory;
    if (isZero(bytes.subarray(place, place + length))) return -1;
    for (let at = 0; ; at += SECTOR) {
      if (!isZero(bytes.subarray(place + at, place + Math.min(at + SECTOR, length)))) return at;
    }
  }

  /** The first sector that is not the same in both halves of the memory at `place`; -1 where there is none. */
  #firstDifference(place: number, length: Bytes): number {
    const half = (from: number): Uint8Array => this.#memory.bytes.subarray(from, from + length);
    const at = firstDifference(half(place), half(place + PIECE_BYTES));
    return at < 0 ? -1 : at - (at % SECTOR);
  }

  #advance(length: Bytes): void {
    this.#done += length;
    this.#options.onProgress?.(this.#done, this.#total);
  }
}

function sameStatus(a: BlockStatus, b: BlockStatus): boolean {
  return a.data === b.data && a.zero === b.zero && a.allocated === b.allocated;
}

async function statusOf(blk: BlockBackend, at: Offset, length: Bytes, status: BlockStatus): Promise<void> {
  try {
    await blk.blockStatus(at, length, status);
  } catch (error) {
    throw said(error, blk, 'status', at);
  }
}

async function readInto(blk: BlockBackend, at: Offset, iov: Iov): Promise<void> {
  try {
    await blk.read(at, iov);
  } catch (error) {
    throw said(error, blk, 'read', at);
  }
}

/** What went wrong, and with which image. */
function said(error: unknown, { name }: BlockBackend, op: string, at: Offset): unknown {
  if (!(error instanceof BlockError)) return error;
  return new BlockError(error.errno, error.message, { where: { op, at, path: name }, cause: error });
}
