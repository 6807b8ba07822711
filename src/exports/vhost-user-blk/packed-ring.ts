/**
 * The device's side of a packed virtqueue; to be used as SplitRing is, and with the same care. A chain is taken at the
 * place where it begins; its element is written over the descriptors that were taken first, with the flags of a batch's
 * first element last.
 */
import type { Memory } from '../../base/memory.ts';
import { memoryOf } from '../../native/memory.ts';
import {
  EVENT_BYTES,
  EventFlag,
  isAvailable,
  isUsed,
  PACKED_FLAGS_AT,
  PackedFlag,
  packedParts,
  withWrap,
} from '../../proto/virtio-blk/packed-ring.ts';
import { DESCRIPTOR_BYTES, DescriptorFlag, passedEvent } from '../../proto/virtio-blk/split-ring.ts';
import { pull, push } from './guest-memory.ts';
import type { RingSpans } from './split-ring.ts';

export class PackedRing {
  readonly packed = true;
  readonly size: number;
  readonly table: DataView;
  readonly tableAt: number;
  readonly spans: RingSpans;
  lastAvail: number;
  #availWrap: number;
  usedIndex: number;
  #usedWrap: number;
  staged = 0;
  lost = false;
  readonly #eventIdx: boolean;
  readonly #local: Memory | null;
  /** The descriptors as words of 16 bits. */
  readonly #words: Uint16Array;
  readonly #driverEvent: Uint16Array;
  readonly #deviceEvent: Uint16Array;
  // Where the next element goes, and the one that is shown last.
  #fill: number;
  #fillWrap: number;
  #firstAt = 0;
  #firstFlags = 0;
  #signalled = false;
  #suppressed = false;

  constructor(spans: RingSpans, size: number, base: number, eventIdx: boolean, guarded: boolean) {
    this.size = size;
    this.spans = spans;
    this.#eventIdx = eventIdx;
    this.lastAvail = (base & 0x7fff) % size;
    this.#availWrap = (base >>> 15) & 1;
    this.usedIndex = ((base >>> 16) & 0x7fff) % size;
    this.#usedWrap = base >>> 31;
    this.#fill = this.usedIndex;
    this.#fillWrap = this.#usedWrap;
    const { driver, device, bytes } = packedParts(size);
    const local = guarded ? memoryOf(new Uint8Array(new SharedArrayBuffer(bytes))) : null;
    this.#local = local;
    const descriptors = local ? { memory: local, at: 0 } : spans.descriptors;
    const avail = local ? { memory: local, at: driver } : spans.avail;
    const used = local ? { memory: local, at: device } : spans.used;
    this.table = descriptors.memory.view;
    this.tableAt = descriptors.at;
    this.#words = new Uint16Array(descriptors.memory.bytes.buffer, descriptors.at, size * 8);
    this.#driverEvent = new Uint16Array(avail.memory.bytes.buffer, avail.at, 2);
    this.#deviceEvent = new Uint16Array(used.memory.bytes.buffer, used.at, 2);
  }

  static aligned({ descriptors, avail, used }: RingSpans): boolean {
    return descriptors.at % 16 === 0 && avail.at % 4 === 0 && used.at % 4 === 0;
  }

  get usedWrap(): number {
    return this.#usedWrap;
  }

  /** True when the driver was shown an element at `index` in the round of `wrap`. */
  shows(index: number, wrap: number): boolean {
    const local = this.#local;
    if (local) this.#check(pull(this.spans.descriptors, local, 0, this.size * DESCRIPTOR_BYTES));
    return isUsed(Atomics.load(this.#words, index * 8 + 7), wrap);
  }

  /** Goes on where another back-end was: what it has shown, and how many descriptors it had taken beyond that. */
  resume(usedIndex: number, usedWrap: number, taken: number): void {
    this.usedIndex = usedIndex;
    this.#usedWrap = usedWrap;
    this.#fill = usedIndex;
    this.#fillWrap = usedWrap;
    this.lastAvail = usedIndex;
    this.#availWrap = usedWrap;
    this.take(taken);
  }

  /** Where it is, for the next start. */
  get base(): number {
    const used = withWrap(this.usedIndex, this.#usedWrap);
    return (withWrap(this.lastAvail, this.#availWrap) | (used << 16)) >>> 0;
  }

  #check(result: number): void {
    if (result < 0) this.lost = true;
  }

  waiting(): number {
    const { size } = this;
    const local = this.#local;
    if (local) this.#check(pull(this.spans.descriptors, local, 0, size * DESCRIPTOR_BYTES));
    if (this.lost) return -1;
    let chains = 0;
    let index = this.lastAvail;
    let wrap = this.#availWrap;
    for (let count = 0; count < size; count++) {
      const flags = Atomics.load(this.#words, index * 8 + 7);
      if (!isAvailable(flags, wrap)) break;
      if ((flags & DescriptorFlag.NEXT) === 0) chains++;
      if (++index < size) continue;
      index = 0;
      wrap ^= 1;
    }
    return chains;
  }

  begin(): void {
    if (this.#eventIdx || this.#suppressed) return;
    this.#suppressed = true;
    this.#setEvent(0, EventFlag.DISABLE);
  }

  #setEvent(at: number, flags: number): void {
    this.#deviceEvent[0] = at;
    Atomics.store(this.#deviceEvent, 1, flags);
    const local = this.#local;
    if (local) this.#check(push(this.spans.used, local, packedParts(this.size).device, EVENT_BYTES));
  }

  get head(): number {
    return this.lastAvail;
  }

  take(slots: number): void {
    this.lastAvail += slots;
    if (this.lastAvail < this.size) return;
    this.lastAvail -= this.size;
    this.#availWrap ^= 1;
  }

  stage(id: number, length: number, slots: number): void {
    const at = this.#fill * DESCRIPTOR_BYTES;
    const flags = (this.#fillWrap === 1 ? PackedFlag.AVAIL | PackedFlag.USED : 0) | DescriptorFlag.WRITE;
    this.table.setUint32(this.tableAt + at + 8, length, true);
    this.table.setUint16(this.tableAt + at + 12, id, true);
    const first = this.staged === 0;
    if (first) {
      this.#firstAt = this.#fill;
      this.#firstFlags = flags;
    } else this.#words[this.#fill * 8 + 7] = flags;
    const local = this.#local;
    if (local) this.#check(push(this.spans.descriptors, local, at + 8, first ? 6 : 8, at + 8));
    this.staged++;
    this.#fill += slots;
    if (this.#fill < this.size) return;
    this.#fill -= this.size;
    this.#fillWrap ^= 1;
  }

  publish(): boolean {
    Atomics.store(this.#words, this.#firstAt * 8 + 7, this.#firstFlags);
    const local = this.#local;
    if (local) {
      const at = this.#firstAt * DESCRIPTOR_BYTES + PACKED_FLAGS_AT;
      this.#check(push(this.spans.descriptors, local, at, 2, at));
      this.#check(pull(this.spans.avail, local, packedParts(this.size).driver, EVENT_BYTES));
    }
    const before = this.usedIndex - (this.#usedWrap === this.#fillWrap ? 0 : this.size);
    this.usedIndex = this.#fill;
    this.#usedWrap = this.#fillWrap;
    this.staged = 0;
    const first = !this.#signalled;
    this.#signalled = true;
    const flags = Atomics.load(this.#driverEvent, 1) & EventFlag.MASK;
    if (flags !== EventFlag.DESC) return first || flags === EventFlag.ENABLE;
    const event = Atomics.load(this.#driverEvent, 0);
    const at = (event & 0x7fff) - (event >>> 15 === this.#usedWrap ? 0 : this.size);
    return first || passedEvent(at, this.usedIndex, before);
  }

  arm(): boolean {
    if (this.#eventIdx) this.#setEvent(withWrap(this.lastAvail, this.#availWrap), EventFlag.DESC);
    else if (this.#suppressed) {
      this.#suppressed = false;
      this.#setEvent(0, EventFlag.ENABLE);
    }
    return this.waiting() !== 0;
  }
}
