/**
 * What a disk was at one moment, kept while it is written to: a cluster that is about to change is copied to the target
 * first. Used by the filter (before each write), by a backup (all that is left), and by whoever reads the snapshot.
 *
 * A cluster is `pending` (the disk still holds it), or is being copied, or is done (the target holds it), or was never
 * to be kept. Invariants:
 * - Nothing is written to the disk while a cluster in it is pending or being copied, or is being read for the snapshot.
 * - A cluster is copied by one at a time; a copy that fails leaves it pending.
 * - Once the snapshot is broken nothing is copied, and nobody reads it.
 *
 * Bounds: copies that a guest waits for share 16 clusters; a backup's have memory of their own.
 */

import { CoQueue } from '../../aio/co-queue.ts';
import type { AioContext } from '../../aio/context.ts';
import { Gate } from '../../aio/op.ts';
import { BlockError, Errno, ioError } from '../../base/errors.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { PagedBits } from '../../base/paged-bits.ts';
import { alignDown, alignUp, type Bytes, KiB, MiB, type Offset } from '../../base/units.ts';
import {
  type BlockStatus,
  type Child,
  type CopyFailure,
  type MaybePromise,
  type PointInTime,
  RequestFlags,
} from '../../block/driver.ts';

/** Extents that are shorter are not told apart: of a disk that was written to at random there are too many. */
const FRAGMENT_BYTES: Bytes = 256 * KiB;
/** A page of the system's cache: less costs as much. */
const BLOCK: Bytes = 4 * KiB;
/** As many as a queue is long as a rule, in so many bytes; where clusters are large, at least the fewer. */
const SLOTS_MAX = 64;
const SLOTS_BYTES: Bytes = 4 * MiB;
const SLOTS_MIN = 16;
/** Zeroes need no memory. */
const ZERO_BYTES: Bytes = 64 * MiB;

interface Range {
  readonly at: Offset;
  readonly end: Offset;
}

/** A cluster that somebody copies, the slot for its bytes, and whether the target has nothing but zeroes there. */
export interface Claim {
  readonly range: Range;
  readonly place: Offset;
  readonly blank: boolean;
}

/** Slots of one size; who finds none waits in order. */
class Slots {
  readonly bytes: Bytes;
  readonly #memory: Memory;
  readonly #words: Int32Array;
  readonly #free: Offset[] = [];
  readonly #waiting: Gate<Offset>[] = [];

  constructor(aio: AioContext, bytes: Bytes, count: number) {
    this.bytes = bytes;
    const memory = new Uint8Array(new SharedArrayBuffer(bytes * count));
    this.#memory = aio.backend.memory(memory);
    this.#words = new Int32Array(memory.buffer);
    for (let i = 0; i < count; i++) this.#free.push(i * bytes);
  }

  async take(): Promise<Offset> {
    const place = this.#free.pop();
    if (place !== undefined) return place;
    const gate = new Gate<Offset>();
    this.#waiting.push(gate);
    return gate.promise;
  }

  takeNow(): Offset | undefined {
    return this.#free.pop();
  }

  fill(iov: Iov, place: Offset, length: Bytes): Iov {
    return iov.reset().push(this.#memory, place, length);
  }

  /** Has `iov` leave out the zeroes at both ends of what is there, in whole blocks; answers where it begins now. */
  trim(iov: Iov, place: Offset, length: Bytes, block: Bytes): Bytes {
    const words = this.#words;
    const end = Math.ceil((place + length) / 4);
    let first = place / 4;
    // Sixteen bytes at a time: mostly it is a hole that is passed over.
    while (first + 4 <= end && (words[first]! | words[first + 1]! | words[first + 2]! | words[first + 3]!) === 0)
      first += 4;
    while (first < end && words[first] === 0) first++;
    let last = end;
    while (last - 4 >= first && (words[last - 1]! | words[last - 2]! | words[last - 3]! | words[last - 4]!) === 0)
      last -= 4;
    while (last > first && words[last - 1] === 0) last--;
    const from = first === end ? length : alignDown(first * 4 - place, block);
    const to = Math.min(alignUp(last * 4 - place, block), length);
    this.fill(iov, place + from, Math.max(to - from, 0));
    return from;
  }

  give(place: Offset): void {
    const next = this.#waiting.shift();
    if (next) next.open(place);
    else this.#free.push(place);
  }
}

export class Snapshot implements PointInTime {
  readonly unit: Bytes;
  readonly overDisk: boolean;
  writeFlags = 0;
  readonly #file: Child;
  readonly #target: Child;
  /** Of the disk as it was. */
  readonly #length: Bytes;
  readonly #pending: PagedBits;
  /** What is kept, whether or not it has been copied. */
  readonly #kept: PagedBits;
  /** Where the target has nothing but zeroes, and nobody has begun to write. */
  readonly #blank: PagedBits;
  /** Of parts of a cluster. */
  readonly #block: Bytes;
  readonly #copying = new Set<Range>();
  readonly #reading = new Set<Range>();
  readonly #quiet: () => void;
  readonly #slots: Slots;
  #copyingBytes = 0;
  #broken: BlockError | undefined;
  readonly #changed = new CoQueue();

  /** `quiet`: called when nothing is being copied any more. */
  constructor(aio: AioContext, file: Child, target: Child, unit: Bytes, quiet: () => void) {
    this.#file = file;
    this.#target = target;
    this.unit = unit;
    this.#quiet = quiet;
    this.#length = file.length;
    this.overDisk = target.isOver(file);
    // Who reads the target, and falls back on the disk, has it as it was: the copy waits for him, and the write for it.
    if (this.overDisk) this.writeFlags = RequestFlags.SERIALISING | RequestFlags.OWN;
    const count = Math.ceil(this.#length / unit);
    this.#pending = new PagedBits(count);
    this.#kept = new PagedBits(count);
    this.#blank = new PagedBits(count);
    if (count > 0) {
      this.#pending.set(0, count - 1);
      this.#kept.set(0, count - 1);
    }
    this.#block = Math.max(BLOCK, file.limits.alignment, target.limits.alignment);
    this.#slots = new Slots(aio, unit, Math.min(Math.max(SLOTS_BYTES / unit, SLOTS_MIN), SLOTS_MAX));
  }

  get remaining(): Bytes {
    return this.#pending.count * this.unit + this.#copyingBytes;
  }

  get broken(): BlockError | undefined {
    return this.#broken;
  }

  get busy(): boolean {
    return this.#copying.size > 0;
  }

  get bits(): PagedBits {
    return this.#pending;
  }

  break(error: BlockError): void {
    this.#broken ??= error;
    this.#pending.clear();
    this.#changed.wakeAll();
  }

  keepOnly(each: (visit: (at: Offset, length: Bytes) => void) => void): void {
    this.#kept.clear();
    this.#pending.clear();
    each((at, length) => {
      const end = Math.min(at + length, this.#length);
      if (end <= at) return;
      const [first, last] = [Math.floor(at / this.unit), Math.ceil(end / this.unit) - 1];
      this.#kept.set(first, last);
      this.#pending.set(first, last);
    });
  }

  forget(at: Offset, length: Bytes): void {
    const first = Math.ceil(at / this.unit);
    const end = this.#wholeEnd(at + length);
    if (end > first) this.#kept.unset(first, end - 1);
    this.settle(at, length);
  }

  /** The target has nothing but zeroes here; said before anything is copied. */
  isBlank(at: Offset, length: Bytes): void {
    const first = Math.ceil(at / this.unit);
    const end = this.#wholeEnd(at + length);
    if (end > first) this.#blank.set(first, end - 1);
  }

  settle(at: Offset, length: Bytes): void {
    const first = Math.ceil(at / this.unit);
    const end = this.#wholeEnd(at + length);
    if (end > first) this.#pending.unset(first, end - 1);
  }

  /** Number of the first cluster that is not as a whole before `end`. */
  #wholeEnd(end: Offset): number {
    return end >= this.#length ? this.#kept.length : Math.floor(end / this.unit);
  }

  next(from: Offset, most: Bytes): { readonly at: Offset; readonly length: Bytes } {
    const { unit } = this;
    const count = this.#pending.length;
    // The last cluster may be a short one: its end is not in the next.
    const first = from < this.#length ? this.#pending.next(Math.floor(from / unit), count, true) : count;
    if (first >= count) return { at: this.#length, length: 0 };
    const last = this.#pending.next(first, Math.min(count, first + Math.max(1, Math.floor(most / unit))), false);
    return { at: first * unit, length: Math.min(last * unit, this.#length) - first * unit };
  }

  begin(at: Offset, length: Bytes): (copied: boolean) => void {
    const range = this.#claim(at, length);
    return (copied) => this.#release(range, copied ? length : 0);
  }

  async settled(): Promise<void> {
    while (this.busy) await this.#changed.wait();
  }

  /** True where a write has to wait for nothing. */
  isFree(at: Offset, length: Bytes): boolean {
    if (this.#copying.size > 0 && overlapping(this.#copying, at, at + length)) return false;
    if (this.#reading.size > 0 && overlapping(this.#reading, at, at + length)) return false;
    return this.#pending.count === 0 || !this.#isPending(at, length);
  }

  /** A range is about to be written to. */
  async beforeWrite(at: Offset, length: Bytes): Promise<CopyFailure | undefined> {
    const failure = await this.#copy(at, length);
    if (failure !== undefined) return failure;
    // What is read of the disk for the snapshot was pending when it began, so nobody begins any more.
    while (overlapping(this.#reading, at, at + length)) await this.#changed.wait();
    return undefined;
  }

  /** {@link beforeWrite} of a range in one cluster that nobody has to be waited for: from here on, and until
   *  {@link releaseNow}, it is the caller's to copy. Undefined where that is not so. */
  claimNow(at: Offset, length: Bytes): Claim | undefined {
    const { unit } = this;
    const first = alignDown(at, unit);
    const end = Math.min(first + unit, this.#length);
    // What goes compressed, or has to wait for readers, is slow anyway.
    if (at + length > end || this.writeFlags !== 0 || this.#broken !== undefined) return undefined;
    if (!this.#isPending(at, length) || overlapping(this.#reading, first, end)) return undefined;
    const place = this.#slots.takeNow();
    if (place === undefined) return undefined;
    const index = first / unit;
    const blank = this.#blank.next(index, index + 1, true) === index;
    return { range: this.#claim(first, end - first), place, blank };
  }

  /** All of the cluster. */
  fill(iov: Iov, { range, place }: Claim): void {
    this.#slots.fill(iov, place, range.end - range.at);
  }

  /** Has `iov` be what of the cluster has to be written to the target, after it was read: of a disk that was written to
   *  at random that is far less. Answers where; it is empty where the cluster has nothing but zeroes. The disk is not
   *  asked where it has data: that would be a system call for each, which waits for whoever writes to the file. */
  fillKept(iov: Iov, { range, place, blank }: Claim): Offset {
    const length = range.end - range.at;
    const from = this.#slots.trim(iov, place, length, this.#block);
    if (blank || iov.length === 0) return range.at + from;
    this.#slots.fill(iov, place, length);
    return range.at;
  }

  releaseNow({ range, place }: Claim, copied: boolean): void {
    this.#slots.give(place);
    this.#release(range, copied ? range.end - range.at : 0);
  }

  #isPending(at: Offset, length: Bytes): boolean {
    const end = Math.min(Math.ceil((at + length) / this.unit), this.#pending.length);
    return this.#pending.next(Math.floor(at / this.unit), end, true) < end;
  }

  async #copy(at: Offset, length: Bytes): Promise<CopyFailure | undefined> {
    const end = Math.min(at + length, this.#length);
    while (this.#broken === undefined) {
      const next = this.next(at, end - at + this.unit);
      if (next.length > 0 && next.at < end) {
        const failure = await this.#copyRun(next.at, Math.min(next.length, alignUp(end, this.unit) - next.at));
        if (failure !== undefined) return failure;
      } else if (overlapping(this.#copying, alignDown(at, this.unit), end)) await this.#changed.wait();
      else return undefined;
    }
    return undefined;
  }

  /** Copies the beginning of a pending run, as much as is done at once. */
  async #copyRun(at: Offset, most: Bytes): Promise<CopyFailure | undefined> {
    const place = await this.#slots.take();
    try {
      // May interleave: others can have begun with it, or the snapshot is broken.
      const { at: from, length } = this.next(at, most);
      if (this.#broken !== undefined || from !== at || length === 0) return undefined;
      return await this.#copyNow(at, Math.min(length, most), place);
    } finally {
      this.#slots.give(place);
    }
  }

  async #copyNow(at: Offset, most: Bytes, place: Offset): Promise<CopyFailure | undefined> {
    const { unit } = this;
    const range = this.#claim(at, Math.min(most, ZERO_BYTES));
    let done = 0;
    let operation: CopyFailure['operation'] = 'read';
    try {
      const zeroes = await this.#file.zeroes(at, range.end - at);
      const whole = at + zeroes >= range.end ? range.end - at : alignDown(Math.max(zeroes, 0), unit);
      if (whole >= Math.min(FRAGMENT_BYTES, range.end - at)) {
        operation = 'write';
        await this.#zero(at, whole);
        done = whole;
        return undefined;
      }
      const length = Math.min(
        this.#slots.bytes,
        range.end - at,
        alignUp(Math.max(Math.abs(zeroes), FRAGMENT_BYTES), unit),
      );
      const iov = this.#slots.fill(new Iov(), place, length);
      await this.#file.read(at, iov);
      operation = 'write';
      await this.#target.write(at, iov, this.writeFlags);
      done = length;
      return undefined;
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      return { operation, error };
    } finally {
      this.#release(range, done);
    }
  }

  /** Of the target, what does not read as zeroes already. */
  async #zero(from: Offset, length: Bytes): Promise<void> {
    if (this.overDisk) return this.#target.writeZeroes(from, length, RequestFlags.MAY_UNMAP | this.writeFlags);
    for (let at = from; at < from + length; ) {
      const zeroes = await this.#target.zeroes(at, from + length - at);
      if (zeroes < 0) await this.#target.writeZeroes(at, -zeroes, RequestFlags.MAY_UNMAP);
      at += Math.abs(zeroes);
    }
    return undefined;
  }

  #claim(at: Offset, length: Bytes): Range {
    const range = { at, end: Math.min(at + length, this.#length) };
    const [first, last] = [at / this.unit, Math.ceil(range.end / this.unit) - 1];
    this.#pending.unset(first, last);
    this.#blank.unset(first, last);
    this.#copying.add(range);
    this.#copyingBytes += range.end - range.at;
    return range;
  }

  /** What was not copied is pending again. */
  #release(range: Range, done: Bytes): void {
    this.#copying.delete(range);
    this.#copyingBytes -= range.end - range.at;
    const from = range.at + done;
    if (from < range.end && this.#broken === undefined) {
      this.#pending.set(from / this.unit, Math.ceil(range.end / this.unit) - 1);
    }
    this.#changed.wakeAll();
    if (!this.busy) this.#quiet();
  }

  async read(at: Offset, iov: Iov): Promise<void> {
    for (let done = 0; done < iov.length; ) {
      const length = await this.#readPart(at + done, iov.slice(done, iov.length - done));
      done += length;
    }
  }

  /** Reads the beginning; answers how much that was. */
  async #readPart(at: Offset, iov: Iov): Promise<Bytes> {
    for (;;) {
      const { pending, length } = this.#place(at, iov.length);
      const part = iov.slice(0, length);
      if (pending) {
        const range = { at, end: at + length };
        this.#reading.add(range);
        try {
          await this.#file.read(at, part);
        } finally {
          this.#reading.delete(range);
          this.#changed.wakeAll();
        }
        return length;
      }
      if (!overlapping(this.#copying, at, at + length)) {
        await this.#target.read(at, part);
        return length;
      }
      await this.#changed.wait();
    }
  }

  /** Where the beginning of a range is: still on the disk, or not; and for how many bytes that is so. */
  #place(at: Offset, want: Bytes): { readonly pending: boolean; readonly length: Bytes } {
    const { unit } = this;
    const bit = Math.floor(at / unit);
    const end = Math.min(Math.ceil((at + want) / unit), this.#kept.length);
    const kept = this.#kept.next(bit, end, false);
    if (this.#broken !== undefined || kept === bit) {
      const why = this.#broken ? `the snapshot is lost: ${this.#broken.message}` : 'it is not kept';
      throw ioError(Errno.EACCES, `Could not read ${want} bytes at ${at} of the snapshot, ${why}`, { at });
    }
    const pending = this.#pending.next(bit, end, true) === bit;
    const same = Math.min(kept, this.#pending.next(bit, end, !pending));
    return { pending, length: Math.min(same * unit - at, want) };
  }

  status(at: Offset, want: Bytes, out: BlockStatus): MaybePromise<void> {
    const { pending, length } = this.#place(at, want);
    return (pending ? this.#file : this.#target).status(at, length, out);
  }
}

function overlapping(ranges: Iterable<Range>, from: Offset, to: Offset): boolean {
  for (const { at, end } of ranges) if (at < to && from < end) return true;
  return false;
}
