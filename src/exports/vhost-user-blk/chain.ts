/**
 * One chain of descriptors, as runs of guest memory. What a guest can do wrong in it (loops, tables in tables,
 * addresses outside its memory, lengths beyond reason) is found here.
 */
import { Iov, type Memory } from '../../base/memory.ts';
import { MiB } from '../../base/units.ts';
import { memoryOf } from '../../native/memory.ts';
import { PackedEntryAt } from '../../proto/vhost-user/inflight.ts';
import { MAX_QUEUE_SIZE } from '../../proto/virtio-blk/constants.ts';
import { PACKED_FLAGS_AT } from '../../proto/virtio-blk/packed-ring.ts';
import { DESCRIPTOR_BYTES, DescriptorFlag } from '../../proto/virtio-blk/split-ring.ts';
import { copyRuns, type GuestMemory } from './guest-memory.ts';
import type { PackedInflight } from './packed-inflight.ts';
import type { PackedRing } from './packed-ring.ts';
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
  /** What the driver calls it, and how many places of a packed ring it takes. */
  id = 0;
  slots = 1;
  readonly #guest: GuestMemory;
  readonly #tables = new Iov();
  /** A copy of an indirect table that may vanish. */
  #copy: Memory | null = null;
  // The table that is walked now.
  #view!: DataView;
  #at = 0;
  #wrong = false;
  /** The last byte that may be written is there. */
  #answerable = false;

  constructor(guest: GuestMemory) {
    this.#guest = guest;
  }

  /** Follows the chain from `head` of a split ring. A ChainResult. */
  walk(ring: SplitRing, head: number, indirect: boolean): number {
    this.#reset(ring);
    this.id = head;
    let count = ring.size;
    let index = head;
    let left = count;
    let nested = false;
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
      this.#visit(high, low, length, (word & DescriptorFlag.WRITE) !== 0);
      if ((word & DescriptorFlag.NEXT) === 0) return this.#result();
      index = word >>> 16;
    }
  }

  /** Follows the chain that is next in a packed ring. A ChainResult. */
  walkPacked(ring: PackedRing, indirect: boolean): number {
    this.#reset(ring);
    let index = ring.lastAvail;
    for (this.slots = 1; this.slots <= ring.size; this.slots++) {
      const view = this.#view;
      const at = this.#at + index * DESCRIPTOR_BYTES;
      const low = view.getInt32(at, true);
      const high = view.getInt32(at + 4, true);
      const length = view.getInt32(at + 8, true);
      const word = view.getInt32(at + 12, true);
      const flags = word >>> 16;
      this.id = word & 0xffff;
      if ((flags & DescriptorFlag.INDIRECT) !== 0) {
        if (!indirect || (flags & DescriptorFlag.NEXT) !== 0) return ChainResult.BROKEN;
        return this.#walkTable(high, low, length);
      }
      this.#visit(high, low, length, (flags & DescriptorFlag.WRITE) !== 0);
      if ((flags & DescriptorFlag.NEXT) === 0) return this.#result();
      index = index + 1 === ring.size ? 0 : index + 1;
    }
    return ChainResult.BROKEN;
  }

  /** Follows a chain that a back-end before us had taken from a packed ring. A ChainResult. */
  walkSaved(saved: PackedInflight, entry: number, indirect: boolean): number {
    this.#clear();
    this.id = saved.idOf(entry);
    this.slots = saved.countOf(entry);
    const { view } = saved;
    for (let left = this.slots, next = entry; left > 0; left--, next = saved.nextOf(next)) {
      const at = saved.entryAt(next);
      const low = view.getInt32(at + PackedEntryAt.ADDRESS, true);
      const high = view.getInt32(at + PackedEntryAt.ADDRESS + 4, true);
      const length = view.getInt32(at + PackedEntryAt.LENGTH, true);
      const flags = view.getUint16(at + PackedEntryAt.FLAGS, true);
      if ((flags & DescriptorFlag.INDIRECT) !== 0) {
        if (!indirect || this.slots > 1) return ChainResult.BROKEN;
        return this.#walkTable(high, low, length);
      }
      this.#visit(high, low, length, (flags & DescriptorFlag.WRITE) !== 0);
    }
    return this.#result();
  }

  /** Tables of packed rings are read from end to end. */
  #walkTable(high: number, low: number, length: number): number {
    if (!this.#enter(high, low, length)) return ChainResult.BROKEN;
    for (let at = this.#at; at < this.#at + length; at += DESCRIPTOR_BYTES) {
      const view = this.#view;
      const flags = view.getUint16(at + PACKED_FLAGS_AT, true);
      if ((flags & DescriptorFlag.INDIRECT) !== 0) return ChainResult.BROKEN;
      const writes = (flags & DescriptorFlag.WRITE) !== 0;
      this.#visit(view.getInt32(at + 4, true), view.getInt32(at, true), view.getInt32(at + 8, true), writes);
    }
    return this.#result();
  }

  #reset(ring: SplitRing | PackedRing): void {
    this.#clear();
    this.#view = ring.table;
    this.#at = ring.tableAt;
  }

  #clear(): void {
    this.readable.reset();
    this.writable.reset();
    this.#wrong = false;
    this.#answerable = false;
  }

  #visit(high: number, low: number, length: number, writes: boolean): void {
    // What is read comes first. [2.7.4.2 Driver Requirements: Message Framing]
    if (!writes && this.writable.count > 0) this.#wrong = true;
    const target = writes ? this.writable : this.readable;
    const fits = length >= 0 && target.length + length <= MAX_CHAIN_BYTES;
    const mapped = fits && this.#guest.translate(high, low, length, target);
    if (!mapped) this.#wrong = true;
    if (writes && length !== 0) this.#answerable = mapped;
  }

  #result(): number {
    if (!this.#answerable) return ChainResult.BROKEN;
    return this.#wrong ? ChainResult.WRONG : ChainResult.GOOD;
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
