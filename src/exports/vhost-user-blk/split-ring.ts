/**
 * The device's side of a split virtqueue, in memory that the guest writes to at the same time. Every field is read once
 * and then believed or refused; indices go through Atomics, which are also the barriers that the standard asks for.
 *
 * Where the memory may vanish (see GuestMemory), `local` is a copy of the ring: `pull` and `push` keep the two
 * together, and everything else works on the copy.
 */
import type { Memory } from '../../base/memory.ts';
import { memoryOf } from '../../native/memory.ts';
import {
  AVAIL_HEADS,
  AVAIL_INDEX,
  AVAIL_NO_INTERRUPT,
  availBytes,
  DESCRIPTOR_BYTES,
  passedEvent,
  USED_ELEMENTS,
  USED_NO_NOTIFY,
  usedBytes,
} from '../../proto/virtio-blk/split-ring.ts';
import { pull, push, type Span } from './guest-memory.ts';

export interface RingSpans {
  readonly descriptors: Span;
  readonly avail: Span;
  readonly used: Span;
}

/** Copies of the parts of a ring in memory that may vanish. */
interface Local {
  readonly memory: Memory;
  readonly availAt: number;
  readonly usedAt: number;
}

function localCopy(size: number): Local {
  const availAt = size * DESCRIPTOR_BYTES;
  const usedAt = Math.ceil((availAt + availBytes(size)) / 16) * 16;
  const bytes = Math.ceil((usedAt + usedBytes(size)) / 16) * 16;
  return { memory: memoryOf(new Uint8Array(new SharedArrayBuffer(bytes))), availAt, usedAt };
}

export class SplitRing {
  readonly packed = false;
  readonly size: number;
  /** Where the table of descriptors is read. */
  readonly table: DataView;
  readonly tableAt: number;
  readonly spans: RingSpans;
  /** The next to take, and the next to show. */
  lastAvail: number;
  usedIndex = 0;
  /** Elements filled and not published. */
  staged = 0;
  /** The memory has gone. */
  lost = false;
  readonly #local: Local | null;
  readonly #avail: Uint16Array;
  readonly #used: Uint16Array;
  readonly #usedWords: Uint32Array;
  readonly #eventIdx: boolean;
  readonly #mask: number;
  /** The first interrupt goes out in any case: what the driver knew before it began is not known. */
  #signalled = false;
  #suppressed = false;

  constructor(spans: RingSpans, size: number, base: number, eventIdx: boolean, guarded: boolean) {
    this.size = size;
    this.spans = spans;
    this.#mask = size - 1;
    this.#eventIdx = eventIdx;
    this.lastAvail = base;
    const local = guarded ? localCopy(size) : null;
    this.#local = local;
    const descriptors = local ? { memory: local.memory, at: 0 } : spans.descriptors;
    const avail = local ? { memory: local.memory, at: local.availAt } : spans.avail;
    const used = local ? { memory: local.memory, at: local.usedAt } : spans.used;
    this.table = descriptors.memory.view;
    this.tableAt = descriptors.at;
    this.#avail = new Uint16Array(avail.memory.bytes.buffer, avail.at, availBytes(size) / 2);
    this.#used = new Uint16Array(used.memory.bytes.buffer, used.at, usedBytes(size) / 2);
    this.#usedWords = new Uint32Array(used.memory.bytes.buffer, used.at, USED_ELEMENTS + 2 * size);
    if (local) this.#check(pull(spans.used, local.memory, local.usedAt, usedBytes(size)));
    this.usedIndex = Atomics.load(this.#used, 1);
  }

  /** True when the elements and the index lie where a ring may lie. */
  static aligned({ descriptors, avail, used }: RingSpans): boolean {
    return descriptors.at % 16 === 0 && avail.at % 2 === 0 && used.at % 4 === 0;
  }

  /** Where it is, for the next start. */
  get base(): number {
    return this.lastAvail;
  }

  #check(result: number): void {
    if (result < 0) this.lost = true;
  }

  #pullAvail(): void {
    const local = this.#local;
    if (local) this.#check(pull(this.spans.avail, local.memory, local.availAt, availBytes(this.size)));
  }

  /** Chains that were made available and not taken; -1 when more than there can be, or the memory has gone. */
  waiting(): number {
    if (this.#local) this.#pullAvail();
    const count = (Atomics.load(this.#avail, AVAIL_INDEX) - this.lastAvail) & 0xffff;
    return count > this.size || this.lost ? -1 : count;
  }

  /** To be called once before the {@link waiting} chains are looked at. */
  begin(): void {
    const local = this.#local;
    if (local) {
      this.#check(pull(this.spans.descriptors, local.memory, 0, this.size * DESCRIPTOR_BYTES));
    }
    if (this.#eventIdx || this.#suppressed) return;
    this.#suppressed = true;
    this.#setFlags(USED_NO_NOTIFY);
  }

  #setFlags(flags: number): void {
    Atomics.store(this.#used, 0, flags);
    const local = this.#local;
    if (local) this.#check(push(this.spans.used, local.memory, local.usedAt, 2));
  }

  /** The head of the next chain; {@link take} goes on to the one after. */
  get head(): number {
    return this.#avail[AVAIL_HEADS + (this.lastAvail & this.#mask)]!;
  }

  take(_slots: number): void {
    this.lastAvail = (this.lastAvail + 1) & 0xffff;
  }

  /** Fills in the element of a chain that is done. */
  stage(head: number, length: number, _slots: number): void {
    const at = USED_ELEMENTS + 2 * ((this.usedIndex + this.staged) & this.#mask);
    this.#usedWords[at] = head;
    this.#usedWords[at + 1] = length;
    this.staged++;
  }

  /** Shows what is staged; true when the driver wants to be interrupted. */
  publish(): boolean {
    const before = this.usedIndex;
    const now = (before + this.staged) & 0xffff;
    const local = this.#local;
    // The elements have to be there before the index says so.
    if (local) {
      this.#check(push(this.spans.used, local.memory, local.usedAt + 4, 8 * this.size, 4));
    }
    this.usedIndex = now;
    this.staged = 0;
    Atomics.store(this.#used, 1, now);
    if (local) {
      this.#check(push(this.spans.used, local.memory, local.usedAt + 2, 2, 2));
      this.#pullAvail();
    }
    const first = !this.#signalled;
    this.#signalled = true;
    if (!this.#eventIdx) return first || (Atomics.load(this.#avail, 0) & AVAIL_NO_INTERRUPT) === 0;
    return first || passedEvent(Atomics.load(this.#avail, AVAIL_HEADS + this.size), now, before);
  }

  /** Asks to be notified of the next chain; true when there is one already. */
  arm(): boolean {
    if (this.#eventIdx) {
      const at = 2 + 4 * this.size;
      Atomics.store(this.#used, at, this.lastAvail);
      const local = this.#local;
      if (local) this.#check(push(this.spans.used, local.memory, local.usedAt + 2 * at, 2, 2 * at));
    } else if (this.#suppressed) {
      this.#suppressed = false;
      this.#setFlags(0);
    }
    return this.waiting() !== 0;
  }
}
