/**
 * The driver's side of a split virtqueue: who makes requests available and collects what was used. The memory of the
 * ring is given; whoever uses this brings the notifications.
 */
import type { Memory } from '../../base/memory.ts';
import {
  AVAIL_HEADS,
  AVAIL_INDEX,
  AVAIL_NO_INTERRUPT,
  availBytes,
  DESCRIPTOR_BYTES,
  DescriptorFlag,
  passedEvent,
  USED_ELEMENTS,
  USED_NO_NOTIFY,
  usedBytes,
} from './split-ring.ts';

const TWO_32 = 0x1_0000_0000;

/** Where the parts of a ring are, from its start. */
export function splitParts(size: number): { readonly avail: number; readonly used: number; readonly bytes: number } {
  const avail = size * DESCRIPTOR_BYTES;
  const used = Math.ceil((avail + availBytes(size)) / 4096) * 4096;
  return { avail, used, bytes: used + usedBytes(size) };
}

/** Of `collect`: the used index or an id is none that there can be. The ring is of no more use. */
export const BROKEN = -2;

export class SplitDriver {
  readonly size: number;
  /** Words of the descriptors; the two rings. */
  readonly descriptors: Uint32Array;
  readonly avail: Uint16Array;
  readonly used: Uint16Array;
  readonly usedWords: Uint32Array;
  readonly #eventIdx: boolean;
  readonly #free: Uint16Array;
  #freeCount: number;
  /** What the device cannot change: the descriptor after each, and by head how many the chain has; 0: none is there. */
  readonly #next: Uint16Array;
  readonly #slots: Uint16Array;
  #busy = 0;
  #count = 0;
  /** What the device says it has written to the chain that was collected last. */
  written = 0;
  #availIndex = 0;
  #toldIndex = 0;
  #usedIndex = 0;
  #head = -1;
  #last = -1;

  /** A ring of `size` descriptors (a power of two) at `at`, a multiple of 16; its memory must be zeroes. */
  constructor(memory: Memory, at: number, size: number, eventIdx: boolean) {
    const { avail, used } = splitParts(size);
    const buffer = memory.bytes.buffer;
    const start = memory.bytes.byteOffset + at;
    this.size = size;
    this.descriptors = new Uint32Array(buffer, start, size * 4);
    this.avail = new Uint16Array(buffer, start + avail, availBytes(size) / 2);
    this.used = new Uint16Array(buffer, start + used, usedBytes(size) / 2);
    this.usedWords = new Uint32Array(buffer, start + used, USED_ELEMENTS + 2 * size);
    this.#eventIdx = eventIdx;
    this.#free = new Uint16Array(size).map((_, i) => size - 1 - i);
    this.#freeCount = size;
    this.#next = new Uint16Array(size);
    this.#slots = new Uint16Array(size);
  }

  /** Descriptors that a chain may have now. */
  get room(): number {
    return this.#freeCount;
  }

  /** Adds one descriptor to the chain that is being made; there must be {@link room}. The device may write to it, or
   *  read from it. Returns its index. */
  add(address: number, length: number, writable: boolean): number {
    return this.#put(address, length, writable ? DescriptorFlag.WRITE : 0);
  }

  /** Adds a table of descriptors as the whole of the chain. */
  addTable(address: number, length: number): void {
    this.#put(address, length, DescriptorFlag.INDIRECT);
  }

  #put(address: number, length: number, flags: number): number {
    const index = this.#free[--this.#freeCount]!;
    const words = this.descriptors;
    const at = index * 4;
    const high = Math.floor(address / TWO_32);
    words[at] = address - high * TWO_32;
    words[at + 1] = high;
    words[at + 2] = length;
    words[at + 3] = flags;
    if (this.#last < 0) this.#head = index;
    else {
      words[this.#last * 4 + 3] = words[this.#last * 4 + 3]! | DescriptorFlag.NEXT | (index << 16);
      this.#next[this.#last] = index;
    }
    this.#last = index;
    this.#count++;
    return index;
  }

  /** Makes the chain available, with the next {@link publish}; returns its head. */
  end(): number {
    const head = this.#head;
    this.avail[AVAIL_HEADS + (this.#availIndex & (this.size - 1))] = head;
    this.#availIndex = (this.#availIndex + 1) & 0xffff;
    this.#slots[head] = this.#count;
    this.#busy++;
    this.#count = 0;
    this.#head = -1;
    this.#last = -1;
    return head;
  }

  /** Shows the device what was made available; true when it has to be notified. */
  publish(): boolean {
    const before = this.#toldIndex;
    const now = this.#availIndex;
    if (now === before) return false;
    this.#toldIndex = now;
    Atomics.store(this.avail, AVAIL_INDEX, now);
    if (!this.#eventIdx) return (Atomics.load(this.used, 0) & USED_NO_NOTIFY) === 0;
    return passedEvent(Atomics.load(this.used, 2 + 4 * this.size), now, before);
  }

  /** True when {@link collect} would find a chain. */
  get hasUsed(): boolean {
    return Atomics.load(this.used, 1) !== this.#usedIndex;
  }

  /** The head of a chain that the device has used, whose descriptors are free again; -1 when there is none,
   *  {@link BROKEN} when the device says what cannot be. */
  collect(): number {
    const count = (Atomics.load(this.used, 1) - this.#usedIndex) & 0xffff;
    if (count === 0) return -1;
    const at = USED_ELEMENTS + 2 * (this.#usedIndex & (this.size - 1));
    const head = this.usedWords[at]!;
    if (count > this.#busy || head >= this.size || this.#slots[head] === 0) return BROKEN;
    this.written = this.usedWords[at + 1]!;
    this.#usedIndex = (this.#usedIndex + 1) & 0xffff;
    this.#busy--;
    for (let index = head, left = this.#slots[head]!; left > 0; left--) {
      this.#free[this.#freeCount++] = index;
      index = this.#next[index]!;
    }
    this.#slots[head] = 0;
    return head;
  }

  /** Asks for an interrupt at the next chain that is used; true when one is there already. */
  arm(): boolean {
    if (this.#eventIdx) Atomics.store(this.avail, AVAIL_HEADS + this.size, this.#usedIndex);
    else Atomics.store(this.avail, 0, 0);
    return this.hasUsed;
  }

  /** Wants no interrupts; with event indices they stay away by themselves until {@link arm}. */
  disarm(): void {
    if (!this.#eventIdx) Atomics.store(this.avail, 0, AVAIL_NO_INTERRUPT);
  }
}
