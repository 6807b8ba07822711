/**
 * Windows: slots of address space that memory of others (a guest's) is mapped into and taken out of, again and again.
 *
 * An ArrayBuffer over an address can never be taken back, so each slot has one for good, and a mapping that has ended
 * leaves the slot without access until the next. Thousands of memory tables therefore need no more address space, no
 * more mappings and no more ArrayBuffers than the largest did.
 */
import { assert } from '../base/assert.ts';
import type { Memory } from '../base/memory.ts';
import { alignDown, alignUp, type Bytes, GiB, MiB, type Offset } from '../base/units.ts';
import { viewOf } from './lib.ts';
import { mapSharedAt, reserveAddresses, unmapUnderView } from './mmap.ts';

/** What one window is for, and how much more it shows: what begins in a window and is no longer than that, is whole. */
export const WINDOW_BYTES: Bytes = GiB;
export const WINDOW_OVERLAP: Bytes = 2 * MiB;
/** Mappings of huge pages have to begin at a multiple of their size. */
const HUGE_PAGE: Bytes = 2 * MiB;
const SLOT_BYTES = WINDOW_BYTES + WINDOW_OVERLAP + HUGE_PAGE;
const PAGE = 4096;

const free: Slot[] = [];

interface Slot {
  /** A multiple of the size of a huge page. */
  readonly address: number;
  readonly buffer: ArrayBuffer;
}

function takeSlot(): Slot | number {
  const used = free.pop();
  if (used) return used;
  const start = reserveAddresses(SLOT_BYTES + HUGE_PAGE);
  if (start < 0) return start;
  const address = alignUp(start, HUGE_PAGE);
  return { address, buffer: viewOf(address, SLOT_BYTES) };
}

/** `bytes` and `view` begin at the address of the slot, where the mapping begins; {@link skip} is where in it the
 *  wanted offset is. */
export class Window implements Memory {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly address: number;
  /** Of the wanted offset in this memory: less than a page. */
  readonly skip: Bytes;
  readonly #mapped: Bytes;
  #slot: Slot | undefined;

  private constructor(slot: Slot, skip: Bytes, mapped: Bytes) {
    this.#slot = slot;
    this.bytes = new Uint8Array(slot.buffer);
    this.view = new DataView(slot.buffer);
    this.address = slot.address;
    this.skip = skip;
    this.#mapped = mapped;
  }

  /** Maps `length` bytes (at most a window and its overlap) of `fd` from `offset`. A negative errno when that cannot be
   *  done. */
  static of(fd: number, offset: Offset, length: Bytes): Window | number {
    assert(length > 0 && length <= WINDOW_BYTES + WINDOW_OVERLAP, `bad window length ${length}`);
    const slot = takeSlot();
    if (typeof slot === 'number') return slot;
    const start = alignDown(offset, PAGE);
    const skip = offset - start;
    const mapped = alignUp(skip + length, PAGE);
    const result = mapSharedAt(slot.address, fd, mapped, start);
    if (result === 0) return new Window(slot, skip, mapped);
    free.push(slot);
    return result;
  }

  /** Nobody, the kernel included, may use it afterwards. Idempotent. */
  release(): void {
    const slot = this.#slot;
    if (!slot) return;
    this.#slot = undefined;
    const result = unmapUnderView(slot.address, Math.min(alignUp(this.#mapped, HUGE_PAGE), SLOT_BYTES));
    assert(result === 0, `a mapping could not be ended: errno ${-result}`);
    free.push(slot);
  }
}
