/**
 * One packed queue's chains in flight, in memory that outlives this process. See proto/vhost-user/inflight.ts.
 *
 * The order of the stores is what a restart relies on: a chain is whole before it is marked; the used index is changed
 * before the ring shows it, and what was there is kept until it has. The front-end may write to the area at any time:
 * it is read once, after a restart, and with care; everything else goes by what is remembered here.
 */
import {
  INFLIGHT_VERSION,
  PACKED_ENTRY_BYTES,
  PackedEntryAt,
  PackedInflightAt,
} from '../../proto/vhost-user/inflight.ts';
import { DESCRIPTOR_BYTES } from '../../proto/virtio-blk/split-ring.ts';
import type { PackedRing } from './packed-ring.ts';

const TWO_32 = 0x1_0000_0000;

export class PackedInflight {
  readonly view: DataView;
  readonly #at: number;
  readonly #size: number;
  #counter = 1;
  /** By entry, what the area says too: the next, and, of the first of a chain, its last and how many there are. */
  readonly #next: Uint16Array;
  readonly #last: Uint16Array;
  readonly #count: Uint16Array;
  #free = 0;
  #used = 0;
  #wrap = 0;
  /** Entries that are done and not shown. */
  readonly #staged: number[] = [];

  constructor(view: DataView, at: number, size: number) {
    this.view = view;
    this.#at = at;
    this.#size = size;
    this.#next = new Uint16Array(size);
    this.#last = new Uint16Array(size);
    this.#count = new Uint16Array(size);
  }

  /**
   * The chains that were in flight when the last back-end ended, by their first entries, oldest first; `ring` goes on
   * where that was. The memory is the front-end's: whatever it holds, the chains have no entry in common.
   */
  recover(ring: PackedRing): number[] {
    const { VERSION, COUNT, USED, SHOWN_USED, WRAP, SHOWN_WRAP } = PackedInflightAt;
    this.#staged.length = 0;
    if (this.#get(VERSION) !== INFLIGHT_VERSION || this.#get(COUNT) !== this.#size) return this.#clear(ring);
    const shownUsed = this.#get(SHOWN_USED);
    const shownWrap = this.#byte(SHOWN_WRAP) & 1;
    if (this.#get(USED) !== shownUsed || (this.#byte(WRAP) & 1) !== shownWrap) {
      if (ring.shows(shownUsed % this.#size, shownWrap)) this.#letGo();
      else {
        this.#set(USED, shownUsed);
        this.#setByte(WRAP, shownWrap);
      }
    }
    const chains = this.#chains();
    if (!chains) return this.#clear(ring);
    const taken = chains.reduce((sum, entry) => sum + this.#count[entry]!, 0);
    this.#used = this.#get(USED) % this.#size;
    this.#wrap = this.#byte(WRAP) & 1;
    ring.resume(this.#used, this.#wrap, taken);
    this.#shown();
    return chains;
  }

  /** What had been shown is in flight no more, as far as it was taken off the marks. */
  #letGo(): void {
    const end = this.#get(PackedInflightAt.SHOWN_FREE);
    let entry = this.#get(PackedInflightAt.FREE);
    for (let left = this.#size; left > 0 && entry < this.#size && entry !== end; left--) {
      this.view.setUint8(this.entryAt(entry), 0);
      const last = this.#field(entry, PackedEntryAt.LAST);
      if (last >= this.#size) return;
      entry = this.#field(last, PackedEntryAt.NEXT);
    }
  }

  /** The first entries of all chains, oldest first, and the rest as a list of free ones; undefined when they cannot be
   *  what a back-end has left. */
  #chains(): number[] | undefined {
    const owned = new Uint8Array(this.#size);
    const found: { readonly entry: number; readonly counter: number }[] = [];
    for (let entry = 0; entry < this.#size; entry++) {
      if (this.view.getUint8(this.entryAt(entry)) === 0) continue;
      const count = this.#field(entry, PackedEntryAt.COUNT);
      if (count === 0 || count > this.#size) return undefined;
      this.#count[entry] = count;
      for (let at = entry, left = count; left > 0; left--) {
        if (at >= this.#size || owned[at] === 1) return undefined;
        owned[at] = 1;
        this.#last[entry] = at;
        this.#next[at] = this.#field(at, PackedEntryAt.NEXT);
        at = this.#next[at]!;
      }
      const at = this.entryAt(entry) + PackedEntryAt.COUNTER;
      found.push({ entry, counter: this.view.getUint32(at + 4, true) * TWO_32 + this.view.getUint32(at, true) });
    }
    found.sort((a, b) => a.counter - b.counter);
    const last = found.at(-1)?.counter ?? 0;
    this.#counter = Number.isSafeInteger(last + 1) ? last + 1 : 1;
    this.#free = 0;
    for (let entry = this.#size - 1; entry >= 0; entry--) {
      if (owned[entry] === 1) continue;
      this.#link(entry, this.#free);
      this.#free = entry;
    }
    this.#set(PackedInflightAt.FREE, this.#free);
    return found.map(({ entry }) => entry);
  }

  #clear(ring: PackedRing): number[] {
    for (let entry = 0; entry < this.#size; entry++) this.view.setUint8(this.entryAt(entry), 0);
    this.#chains();
    this.#used = ring.usedIndex;
    this.#wrap = ring.usedWrap;
    this.#shown();
    this.#set(PackedInflightAt.COUNT, this.#size);
    this.#set(PackedInflightAt.VERSION, INFLIGHT_VERSION);
    return [];
  }

  /** The chain that is next in the ring, of `slots` descriptors and called `id`, is taken; its first entry. */
  begin(ring: PackedRing, id: number, slots: number): number {
    const first = this.#free;
    let last = first;
    let index = ring.lastAvail;
    for (let left = slots, entry = first; left > 0; left--, entry = this.#next[entry]!) {
      const at = this.entryAt(entry);
      const from = ring.tableAt + index * DESCRIPTOR_BYTES;
      this.view.setUint32(at + PackedEntryAt.ADDRESS, ring.table.getUint32(from, true), true);
      this.view.setUint32(at + PackedEntryAt.ADDRESS + 4, ring.table.getUint32(from + 4, true), true);
      this.view.setUint32(at + PackedEntryAt.LENGTH, ring.table.getUint32(from + 8, true), true);
      this.view.setUint16(at + PackedEntryAt.FLAGS, ring.table.getUint16(from + 14, true), true);
      index = index + 1 === ring.size ? 0 : index + 1;
      last = entry;
    }
    const at = this.entryAt(first);
    const counter = this.#counter++;
    const high = Math.floor(counter / TWO_32);
    this.#count[first] = slots;
    this.#last[first] = last;
    this.#free = this.#next[last]!;
    this.view.setUint32(at + PackedEntryAt.COUNTER, counter - high * TWO_32, true);
    this.view.setUint32(at + PackedEntryAt.COUNTER + 4, high, true);
    this.view.setUint16(at + PackedEntryAt.ID, id, true);
    this.view.setUint16(at + PackedEntryAt.COUNT, slots, true);
    this.view.setUint16(at + PackedEntryAt.LAST, last, true);
    this.view.setUint8(at, 1);
    this.#set(PackedInflightAt.FREE, this.#free);
    this.#set(PackedInflightAt.SHOWN_FREE, this.#free);
    return first;
  }

  /** It is done, and belongs to the batch that is shown next. */
  stage(entry: number): void {
    this.#staged.push(entry);
  }

  /** The batch is about to be shown. */
  showing(): void {
    for (let i = 0; i < this.#staged.length; i++) {
      const entry = this.#staged[i]!;
      this.#link(this.#last[entry]!, this.#free);
      this.#free = entry;
      this.#used += this.#count[entry]!;
      if (this.#used < this.#size) continue;
      this.#used -= this.#size;
      this.#wrap ^= 1;
    }
    this.#set(PackedInflightAt.FREE, this.#free);
    this.#set(PackedInflightAt.USED, this.#used);
    this.#setByte(PackedInflightAt.WRAP, this.#wrap);
  }

  /** It was. */
  shown(): void {
    for (let i = 0; i < this.#staged.length; i++) this.view.setUint8(this.entryAt(this.#staged[i]!), 0);
    this.#staged.length = 0;
    this.#shown();
  }

  #shown(): void {
    this.#set(PackedInflightAt.USED, this.#used);
    this.#setByte(PackedInflightAt.WRAP, this.#wrap);
    this.#set(PackedInflightAt.SHOWN_FREE, this.#free);
    this.#set(PackedInflightAt.SHOWN_USED, this.#used);
    this.#setByte(PackedInflightAt.SHOWN_WRAP, this.#wrap);
  }

  #link(entry: number, next: number): void {
    this.#next[entry] = next;
    this.view.setUint16(this.entryAt(entry) + PackedEntryAt.NEXT, next, true);
  }

  // What a chain is read from again.

  entryAt(entry: number): number {
    return this.#at + PackedInflightAt.ENTRIES + entry * PACKED_ENTRY_BYTES;
  }

  countOf(entry: number): number {
    return this.#count[entry]!;
  }

  idOf(entry: number): number {
    return this.#field(entry, PackedEntryAt.ID);
  }

  nextOf(entry: number): number {
    return this.#next[entry]!;
  }

  #field(entry: number, at: number): number {
    return this.view.getUint16(this.entryAt(entry) + at, true);
  }

  #get(at: number): number {
    return this.view.getUint16(this.#at + at, true);
  }

  #set(at: number, value: number): void {
    this.view.setUint16(this.#at + at, value, true);
  }

  #byte(at: number): number {
    return this.view.getUint8(this.#at + at);
  }

  #setByte(at: number, value: number): void {
    this.view.setUint8(this.#at + at, value);
  }
}
