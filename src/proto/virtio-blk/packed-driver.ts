/** The driver's side of a packed virtqueue; to be used as SplitDriver is. */
import type { Memory } from '../../base/memory.ts';
import { EventFlag, isUsed, PackedFlag, packedParts, withWrap } from './packed-ring.ts';
import { BROKEN } from './split-driver.ts';
import { DescriptorFlag, passedEvent } from './split-ring.ts';

const TWO_32 = 0x1_0000_0000;

export class PackedDriver {
  readonly size: number;
  readonly descriptors: Uint32Array;
  readonly #flags: Uint16Array;
  readonly #driverEvent: Uint16Array;
  readonly #deviceEvent: Uint16Array;
  readonly #eventIdx: boolean;
  readonly #freeIds: Uint16Array;
  #freeIdCount: number;
  /** Descriptors of each chain, by id; 0: none is there. */
  readonly #slots: Uint16Array;
  /** What the device says it has written to the chain that was collected last. */
  written = 0;
  #room: number;
  #next = 0;
  #wrap = 1;
  #usedIndex = 0;
  #usedWrap = 1;
  // The chain that is made, and what was made since the last publish.
  #chain = 0;
  #first = -1;
  #firstFlags = 0;
  #told = 0;
  #toldWrap = 1;
  #lastAt = -1;

  /** A ring of `size` descriptors at `at`, a multiple of 16; its memory must be zeroes. */
  constructor(memory: Memory, at: number, size: number, eventIdx: boolean) {
    const { driver, device } = packedParts(size);
    const { buffer, byteOffset } = memory.bytes;
    const start = byteOffset + at;
    this.size = size;
    this.descriptors = new Uint32Array(buffer, start, size * 4);
    this.#flags = new Uint16Array(buffer, start, size * 8);
    this.#driverEvent = new Uint16Array(buffer, start + driver, 2);
    this.#deviceEvent = new Uint16Array(buffer, start + device, 2);
    this.#eventIdx = eventIdx;
    this.#freeIds = new Uint16Array(size).map((_, i) => size - 1 - i);
    this.#freeIdCount = size;
    this.#slots = new Uint16Array(size);
    this.#room = size;
  }

  get room(): number {
    return this.#room;
  }

  /** Adds one descriptor to the chain that is being made; returns its place. */
  add(address: number, length: number, writable: boolean): number {
    return this.#put(address, length, writable ? DescriptorFlag.WRITE : 0);
  }

  /** Adds a table of descriptors as the whole of the chain. */
  addTable(address: number, length: number): void {
    this.#put(address, length, DescriptorFlag.INDIRECT);
  }

  #put(address: number, length: number, kind: number): number {
    const at = this.#next;
    const high = Math.floor(address / TWO_32);
    const words = this.descriptors;
    words[at * 4] = address - high * TWO_32;
    words[at * 4 + 1] = high;
    words[at * 4 + 2] = length;
    const round = this.#wrap === 1 ? PackedFlag.AVAIL : PackedFlag.USED;
    const flags = round | kind;
    this.setFlags(this.#lastAt, DescriptorFlag.NEXT);
    if (this.#first < 0) {
      this.#first = at;
      this.#firstFlags = flags;
    } else this.#flags[at * 8 + 7] = flags;
    this.#lastAt = at;
    this.#chain++;
    this.#room--;
    this.#next = at + 1 === this.size ? 0 : at + 1;
    if (this.#next === 0) this.#wrap ^= 1;
    return at;
  }

  /** Adds flags to a descriptor that was added and not published. */
  setFlags(at: number, flags: number): void {
    if (at < 0) return;
    if (at === this.#first) this.#firstFlags |= flags;
    else this.#flags[at * 8 + 7] = this.#flags[at * 8 + 7]! | flags;
  }

  /** Makes the chain available, with the next {@link publish}; returns its id. */
  end(): number {
    const id = this.#freeIds[--this.#freeIdCount]!;
    this.#flags[this.#lastAt * 8 + 6] = id;
    this.#slots[id] = this.#chain;
    this.#chain = 0;
    this.#lastAt = -1;
    return id;
  }

  /** Shows the device what was made available; true when it has to be notified. */
  publish(): boolean {
    if (this.#first < 0) return false;
    Atomics.store(this.#flags, this.#first * 8 + 7, this.#firstFlags);
    this.#first = -1;
    const before = this.#told - (this.#toldWrap === this.#wrap ? 0 : this.size);
    this.#told = this.#next;
    this.#toldWrap = this.#wrap;
    const flags = Atomics.load(this.#deviceEvent, 1) & EventFlag.MASK;
    if (flags !== EventFlag.DESC) return flags === EventFlag.ENABLE;
    const event = Atomics.load(this.#deviceEvent, 0);
    const at = (event & 0x7fff) - (event >>> 15 === this.#wrap ? 0 : this.size);
    return passedEvent(at, this.#next, before);
  }

  get hasUsed(): boolean {
    return isUsed(Atomics.load(this.#flags, this.#usedIndex * 8 + 7), this.#usedWrap);
  }

  /** The id of a chain that the device has used, whose descriptors are free again; -1 when there is none,
   *  {@link BROKEN} when the device says what cannot be. */
  collect(): number {
    if (!this.hasUsed) return -1;
    const id = this.#flags[this.#usedIndex * 8 + 6]!;
    if (id >= this.size || this.#slots[id] === 0) return BROKEN;
    const slots = this.#slots[id]!;
    this.#slots[id] = 0;
    this.written = this.descriptors[this.#usedIndex * 4 + 2]!;
    this.#freeIds[this.#freeIdCount++] = id;
    this.#room += slots;
    this.#usedIndex += slots;
    if (this.#usedIndex >= this.size) {
      this.#usedIndex -= this.size;
      this.#usedWrap ^= 1;
    }
    return id;
  }

  /** Asks for an interrupt at the next chain that is used; true when one is there already. */
  arm(): boolean {
    this.#driverEvent[0] = withWrap(this.#usedIndex, this.#usedWrap);
    Atomics.store(this.#driverEvent, 1, this.#eventIdx ? EventFlag.DESC : EventFlag.ENABLE);
    return this.hasUsed;
  }

  /** Wants no interrupts; with event indices they stay away by themselves until {@link arm}. */
  disarm(): void {
    if (!this.#eventIdx) Atomics.store(this.#driverEvent, 1, EventFlag.DISABLE);
  }
}
