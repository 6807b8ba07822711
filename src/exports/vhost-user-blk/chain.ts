/**
 * One chain of descriptors, as runs of guest memory. What a guest can do wrong in it (loops, tables in tables,
 * addresses outside its memory, lengths beyond reason) is found here.
 */
import { Iov, type Memory } from '../../base/memory.ts';
import { MiB } from '../../base/units.ts';
import { memoryOf } from '../../native/memory.ts';
import { MAX_QUEUE_SIZE } from '../../proto/virtio-blk/constants.ts';
import { DESCRIPTOR_BYTES, DescriptorFlag } from '../../proto/virtio-blk/split-ring.ts';
import { copyRuns, type GuestMemory } from './guest-memory.ts';
import type { SplitRing } from './split-ring.ts';

/** Of one request, all descriptors together: what SIZE_MAX and SEG_MAX allow comes to less. */
export const MAX_CHAIN_BYTES = 32 * MiB;

/** What came of a chain: as it should be; wrong, but it can be told so (its last byte can be written); not to be
 *  answered at all. */
export const ChainResult = { GOOD: 0, WRONG: 1, BROKEN: 2 } as const;

export class Chain {
  /** What the device may read, and what it may write; valid until the next {@link walk}. */
  readonly readable = new Iov();
  readonly writable = new Iov();
  readonly #guest: GuestMemory;
  readonly #tables = new Iov();
  /** A copy of an indirect table that may vanish. */
  #copy: Memory | null = null;
  // The table that is walked now.
  #view!: DataView;
  #at = 0;

  constructor(guest: GuestMemory) {
    this.#guest = guest;
  }

  /** Follows the chain from `head`. A ChainResult. */
  walk(ring: SplitRing, head: number, indirect: boolean): number {
    this.readable.reset();
    this.writable.reset();
    this.#view = ring.table;
    this.#at = ring.tableAt;
    let count = ring.size;
    let index = head;
    let left = count;
    let nested = false;
    let wrong = false;
    let answerable = false;
    for (;;) {
      if (index >= count || left-- === 0) return ChainResult.BROKEN;
      const view = this.#view;
      const at = this.#at + index * DESCRIPTOR_BYTES;
      const low = view.getInt32(at, true);
      const high = view.getInt32(at + 4, true);
      const length = view.getInt32(at + 8, true);
      const word = view.getInt32(at + 12, true);
      if ((word & DescriptorFlag.INDIRECT) !== 0) {
        if (nested || !indirect || (word & DescriptorFlag.NEXT) !== 0) return ChainResult.BROKEN;
        if (!this.#enter(high, low, length)) return ChainResult.BROKEN;
        nested = true;
        count = length / DESCRIPTOR_BYTES;
        left = count;
        index = 0;
        continue;
      }
      const writes = (word & DescriptorFlag.WRITE) !== 0;
      // What is read comes first. [2.7.4.2 Driver Requirements: Message Framing]
      if (!writes && this.writable.count > 0) wrong = true;
      const target = writes ? this.writable : this.readable;
      const fits = length >= 0 && target.length + length <= MAX_CHAIN_BYTES;
      const mapped = fits && this.#guest.translate(high, low, length, target);
      if (!mapped) wrong = true;
      if (writes && length !== 0) answerable = mapped;
      if ((word & DescriptorFlag.NEXT) === 0) break;
      index = word >>> 16;
    }
    if (!answerable) return ChainResult.BROKEN;
    return wrong ? ChainResult.WRONG : ChainResult.GOOD;
  }

  /** Goes on in an indirect table; false for one that cannot be. */
  #enter(high: number, low: number, length: number): boolean {
    if (length <= 0 || length % DESCRIPTOR_BYTES !== 0 || length > MAX_QUEUE_SIZE * DESCRIPTOR_BYTES) return false;
    const tables = this.#tables.reset();
    if (!this.#guest.translate(high, low, length, tables)) return false;
    if (this.#guest.guarded || tables.count > 1) return this.#enterCopy(tables);
    this.#view = tables.memories[0]!.view;
    this.#at = tables.offsets[0]!;
    return true;
  }

  #enterCopy(tables: Iov): boolean {
    this.#copy ??= memoryOf(new Uint8Array(new SharedArrayBuffer(MAX_QUEUE_SIZE * DESCRIPTOR_BYTES)));
    if (copyRuns(tables, this.#copy, false) < 0) return false;
    this.#view = this.#copy.view;
    this.#at = 0;
    return true;
  }
}
