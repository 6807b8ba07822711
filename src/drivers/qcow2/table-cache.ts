/**
 * A write-back cache of metadata slices (pieces of L2 tables or refcount blocks) by their offset in the file. A hit is
 * a hash probe in typed arrays; nothing is allocated. Loading, writing out and making room are for coroutines.
 *
 * Whatever is found is valid until the next `await` only: afterwards the slice may be somewhere else, or gone.
 */
import type { AioContext } from '../../aio/context.ts';
import { Gate } from '../../aio/op.ts';
import { TaskPool } from '../../aio/task-pool.ts';
import { assert } from '../../base/assert.ts';
import { BlockError } from '../../base/errors.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { type Bytes, KiB, type Offset } from '../../base/units.ts';
import type { Child, DebugEvent } from '../../block/driver.ts';
import { kernelBytes } from './metadata-io.ts';

export const MISS = -1;
/** Fibonacci hashing: 2^32 divided by the golden ratio. */
const GOLDEN = 0x9e3779b1;
/** Bits of a slot's `used` byte: since the clock's hand came by, and since the last cleaning. */
const USED_CLOCK = 1;
const USED_CLEAN = 2;
/** Loaded, and not found yet by whoever waited for it. Were it evicted now, those who wait for more slices than there
 *  are slots could take them away from each other for ever. */
const AWAITED = 4;
/** Bits of a slot's `state`. */
const DIRTY = 1;
/** Part of a write-out that has begun: its bytes of that moment are to be written. */
const CAPTURED = 2;
/** The kernel has, or will have, something to do with it: not to be evicted. */
const BUSY = 4;

/** A write-out gathers neighbours up to this, and has so many writes in flight. */
const WRITE_MAX = 128 * KiB;
const WRITES = 4;

export interface TableCacheOptions {
  readonly aio: AioContext;
  readonly file: Child;
  readonly sliceSize: Bytes;
  readonly slots: number;
  /** Writes everything that is dirty to the disk, in order: see sync.ts. */
  readonly sync: () => Promise<void>;
  /** Looks at a slice that was just loaded; throws where it must not be used. */
  readonly verify?: (at: Offset, slot: number) => void;
  /** What comes before a slice is read, and before slices are written. */
  readonly points?: { readonly load: DebugEvent; readonly write: DebugEvent };
}

export class TableCache {
  readonly sliceSize: Bytes;
  readonly slots: number;
  /** Slot `n` is at `n * sliceSize`. */
  readonly view: DataView;
  readonly stats = { misses: 0, evictions: 0, written: 0 };
  readonly #options: TableCacheOptions;
  readonly #memory: Memory;
  /** The file offset of a slot's slice; -1 for none. */
  readonly #keys: Float64Array;
  readonly #used: Uint8Array;
  readonly #state: Uint8Array;
  /** Slot + 1, or 0. At most half full. */
  readonly #hash: Int32Array;
  readonly #shift: number;
  readonly #mask: number;
  readonly #perSlice: number;
  readonly #loading = new Map<Offset, Gate>();
  /** What a captured slot held when it was captured, where it has changed since. */
  readonly #saved = new Map<number, Uint8Array>();
  #dirty = 0;
  #hand = 0;

  constructor(options: TableCacheOptions) {
    const { sliceSize, slots } = options;
    this.#options = options;
    this.sliceSize = sliceSize;
    this.slots = slots;
    this.#memory = options.aio.backend.memory(kernelBytes(sliceSize * slots));
    this.view = this.#memory.view;
    this.#keys = new Float64Array(slots).fill(-1);
    this.#used = new Uint8Array(slots);
    this.#state = new Uint8Array(slots);
    const bits = Math.ceil(Math.log2(slots * 2));
    this.#hash = new Int32Array(2 ** bits);
    this.#shift = 32 - bits;
    this.#mask = 2 ** bits - 1;
    this.#perSlice = 1 / sliceSize;
  }

  get dirty(): number {
    return this.#dirty;
  }

  /** The slot that holds the slice at `key` (a multiple of the slice size), or MISS. */
  find(key: Offset): number {
    const hash = this.#hash;
    const mask = this.#mask;
    for (let i = this.#home(key); ; i = (i + 1) & mask) {
      const slot = hash[i]! - 1;
      if (slot < 0) return MISS;
      if (this.#keys[slot] === key) {
        this.#used[slot] = USED_CLOCK | USED_CLEAN;
        return slot;
      }
    }
  }

  /** To be called before the bytes of a slot are changed. */
  modify(slot: number): void {
    const state = this.#state[slot]!;
    if ((state & CAPTURED) !== 0 && !this.#saved.has(slot)) this.#saved.set(slot, this.#bytes(slot).slice());
    if ((state & DIRTY) !== 0) return;
    this.#state[slot] = state | DIRTY;
    this.#dirty++;
    // Not when all is full: then somebody would have to wait for it.
    if (this.#dirty === this.slots - (this.slots >> 2)) this.#syncEarly();
  }

  /** The slot of a slice that was not there, and that needs no waiting; else MISS, and {@link load} is to be called. */
  loadNow(key: Offset): number {
    if (this.#loading.size !== 0 && this.#loading.has(key)) return MISS;
    const slot = this.#claim(0);
    if (slot === MISS) return MISS;
    if (!this.#options.file.readNow(key, this.#memory, slot * this.sliceSize, this.sliceSize)) {
      // Whoever loads it the other way takes the same one.
      this.#hand = slot;
      return MISS;
    }
    this.stats.misses++;
    this.#options.verify?.(key, slot);
    this.#enter(key, slot);
    this.#used[slot] = USED_CLOCK | USED_CLEAN;
    return slot;
  }

  /** Brings a slice in. The caller looks again afterwards: it may be gone already. */
  async load(key: Offset): Promise<void> {
    if (this.find(key) !== MISS) return;
    const slot = this.loadNow(key);
    if (slot !== MISS) {
      this.#used[slot]! |= AWAITED;
      return;
    }
    const other = this.#loading.get(key);
    if (other) return other.promise;
    const gate = new Gate();
    gate.promise.catch(() => undefined);
    this.#loading.set(key, gate);
    try {
      await this.#read(key);
    } catch (error) {
      this.#loading.delete(key);
      gate.fail(error);
      throw error;
    }
    this.#loading.delete(key);
    gate.open();
  }

  /** Takes what is dirty now for a write-out; returns the slots in the order of the disk. Each must be written
   *  ({@link write}) or given back ({@link uncapture}). */
  capture(): number[] {
    const slots: number[] = [];
    if (this.#dirty === 0) return slots;
    for (let slot = 0; slot < this.slots; slot++) {
      if ((this.#state[slot]! & DIRTY) === 0) continue;
      assert((this.#state[slot]! & CAPTURED) === 0, 'one write-out at a time');
      this.#state[slot] = (this.#state[slot]! & ~DIRTY) | CAPTURED | BUSY;
      slots.push(slot);
    }
    this.#dirty = 0;
    return slots.sort((a, b) => this.#keys[a]! - this.#keys[b]!);
  }

  /** What was captured is not going to be written now. */
  uncapture(slots: readonly number[]): void {
    for (const slot of slots) {
      this.#saved.delete(slot);
      this.#state[slot]! &= ~(CAPTURED | BUSY);
      if ((this.#state[slot]! & DIRTY) !== 0) continue;
      this.#state[slot]! |= DIRTY;
      this.#dirty++;
    }
  }

  /** Writes captured slots as they were. On failure those that were not written are dirty again. */
  async write(slots: readonly number[]): Promise<void> {
    const tasks = new TaskPool(WRITES);
    let next = 0;
    while (next < slots.length && tasks.status === 0) {
      const run = this.#neighbours(slots, next);
      next += run.length;
      const pending = tasks.start(() => this.#writeRun(run));
      if (pending !== undefined) await pending;
    }
    const status = await tasks.drain();
    if (status === 0) return;
    this.uncapture(slots.slice(next));
    throw tasks.error ?? new BlockError(-status, 'Could not write metadata');
  }

  /** Forgets the slices of a table, whatever is in them: it is not a table any more. */
  forget(at: Offset, length: Bytes): void {
    for (let key = at; key < at + length; key += this.sliceSize) {
      const slot = this.find(key);
      if (slot !== MISS) this.#drop(slot);
    }
  }

  /** Forgets everything. Nothing may be dirty. */
  clear(): void {
    assert(this.#dirty === 0, 'a cache with changes was cleared');
    this.reset();
  }

  /** Forgets everything, changes too: what is on the disk is right. */
  reset(): void {
    assert(this.#loading.size === 0, 'a cache that is in use was cleared');
    for (let slot = 0; slot < this.slots; slot++) if (this.#keys[slot]! >= 0) this.#drop(slot);
  }

  /** Gives the memory of slices back that nobody has asked for since the last call. */
  clean(): void {
    const { aio } = this.#options;
    for (let slot = 0; slot < this.slots; slot++) {
      const idle = (this.#used[slot]! & USED_CLEAN) === 0;
      this.#used[slot]! &= ~USED_CLEAN;
      if (!idle || this.#keys[slot]! < 0 || this.#state[slot] !== 0) continue;
      this.#drop(slot);
      aio.backend.release(this.#memory, slot * this.sliceSize, this.sliceSize);
    }
  }

  // The product may exceed 32 bits, and `| 0` takes its low ones: all that a hash needs.
  #home(key: Offset): number {
    return Math.imul((key * this.#perSlice) | 0, GOLDEN) >>> this.#shift;
  }

  #bytes(slot: number): Uint8Array {
    return this.#memory.bytes.subarray(slot * this.sliceSize, (slot + 1) * this.sliceSize);
  }

  async #read(key: Offset): Promise<void> {
    if (this.find(key) !== MISS) return;
    this.stats.misses++;
    let slot = this.#claim(0);
    for (let waited = false; slot === MISS; waited = true) {
      await this.#options.sync();
      // Who has not come for a slice in a whole turn does not want it any more.
      slot = this.#claim(waited ? AWAITED : 0);
      // Everything is in use by loads and write-outs that are on their way.
      if (slot === MISS) await this.#options.aio.yield();
    }
    this.#state[slot] = BUSY;
    try {
      const { points } = this.#options;
      const stop = points && this.#options.file.point(points.load);
      if (stop !== undefined) await stop;
      await this.#options.file.read(key, Iov.of(this.#memory, slot * this.sliceSize, this.sliceSize));
      this.#options.verify?.(key, slot);
    } catch (error) {
      this.#state[slot] = 0;
      throw error;
    }
    this.#state[slot] = 0;
    this.#enter(key, slot);
    this.#used[slot] = USED_CLOCK | USED_CLEAN | AWAITED;
  }

  #enter(key: Offset, slot: number): void {
    this.#keys[slot] = key;
    let i = this.#home(key);
    while (this.#hash[i] !== 0) i = (i + 1) & this.#mask;
    this.#hash[i] = slot + 1;
  }

  /** An empty slot; MISS when all are dirty or busy, or waited for by others. `though`: AWAITED to take those, too. */
  #claim(though: number): number {
    for (let looked = 0; looked < 3 * this.slots; looked++) {
      const slot = this.#hand;
      this.#hand = slot + 1 === this.slots ? 0 : slot + 1;
      if (this.#state[slot] !== 0) continue;
      if (this.#keys[slot]! < 0) return slot;
      if ((this.#used[slot]! & AWAITED & ~though) !== 0) continue;
      if ((this.#used[slot]! & USED_CLOCK) !== 0) {
        this.#used[slot]! &= ~USED_CLOCK;
        continue;
      }
      this.stats.evictions++;
      this.#drop(slot);
      return slot;
    }
    return MISS;
  }

  /** Takes a slot out of the hash; those behind it in its probe sequence move up. */
  #drop(slot: number): void {
    assert((this.#state[slot]! & (CAPTURED | BUSY)) === 0, 'a slice in use was dropped');
    if ((this.#state[slot]! & DIRTY) !== 0) this.#dirty--;
    this.#state[slot] = 0;
    const hash = this.#hash;
    const mask = this.#mask;
    let hole = this.#home(this.#keys[slot]!);
    while (hash[hole] !== slot + 1) hole = (hole + 1) & mask;
    for (let i = (hole + 1) & mask; hash[i] !== 0; i = (i + 1) & mask) {
      const home = this.#home(this.#keys[hash[i]! - 1]!);
      if (((i - home) & mask) < ((i - hole) & mask)) continue;
      hash[hole] = hash[i]!;
      hole = i;
    }
    hash[hole] = 0;
    this.#keys[slot] = -1;
  }

  /** The captured slots from `first` that lie next to each other in the file. */
  #neighbours(slots: readonly number[], first: number): number[] {
    const most = Math.max(1, WRITE_MAX / this.sliceSize);
    let end = first + 1;
    while (
      end < slots.length &&
      end - first < most &&
      this.#keys[slots[end]!] === this.#keys[slots[end - 1]!]! + this.sliceSize
    ) {
      end++;
    }
    return slots.slice(first, end);
  }

  async #writeRun(run: readonly number[]): Promise<void> {
    const { aio, file, points } = this.#options;
    // A copy: from here on the slots may change again, and none of that may reach the disk with this write.
    const bytes = kernelBytes(run.length * this.sliceSize);
    for (const [i, slot] of run.entries()) {
      bytes.set(this.#saved.get(slot) ?? this.#bytes(slot), i * this.sliceSize);
      this.#saved.delete(slot);
      this.#state[slot]! &= ~CAPTURED;
    }
    try {
      const stop = points && file.point(points.write);
      if (stop !== undefined) await stop;
      await file.write(this.#keys[run[0]!]!, Iov.of(aio.backend.memory(bytes)));
    } catch (error) {
      this.uncapture(run);
      throw error;
    }
    this.stats.written += run.length;
    for (const slot of run) this.#state[slot]! &= ~BUSY;
  }

  #syncEarly(): void {
    // What goes wrong goes wrong again where somebody is told: in the next flush.
    this.#options.sync().catch((error: unknown) => {
      if (!(error instanceof BlockError)) throw error;
    });
  }
}
