/**
 * A long row of bits, of which few are of interest: pages of them are made when a bit in them is set, and given up when
 * all are. Setting a bit that is set allocates nothing.
 */

/** Bits of those who know of no other bound: 512 MiB of memory when every page of them is in use. */
export const BITS_MAX = 2 ** 32;

/** Bits of a page: 4 KiB. */
const PAGE_BITS = 32_768;

/** How many bits are set in a byte. */
const SET_IN = Uint8Array.from({ length: 256 }, (_, byte) => {
  let count = 0;
  for (let rest = byte; rest > 0; rest >>= 1) count += rest & 1;
  return count;
});

class Page {
  readonly bytes = new Uint8Array(PAGE_BITS / 8);
  /** The same memory, to pass over what is all 0 or all 1. */
  readonly words = new Int32Array(this.bytes.buffer);
  count = 0;

  /** Sets bits, both included; returns how many were clear. */
  set(first: number, last: number): number {
    const from = first >>> 3;
    const to = last >>> 3;
    const head = (0xff << (first & 7)) & 0xff;
    const tail = 0xff >>> (7 - (last & 7));
    let added = 0;
    if (from === to) added = this.#or(from, head & tail);
    else {
      added = this.#or(from, head) + this.#or(to, tail);
      for (let i = from + 1; i < to; i++) added += 8 - SET_IN[this.bytes[i]!]!;
      this.bytes.fill(0xff, from + 1, to);
    }
    this.count += added;
    return added;
  }

  /** Clears bits, both included; returns how many were set. */
  unset(first: number, last: number): number {
    const from = first >>> 3;
    const to = last >>> 3;
    const head = (0xff << (first & 7)) & 0xff;
    const tail = 0xff >>> (7 - (last & 7));
    let gone = 0;
    if (from === to) gone = this.#without(from, head & tail);
    else {
      gone = this.#without(from, head) + this.#without(to, tail);
      for (let i = from + 1; i < to; i++) gone += SET_IN[this.bytes[i]!]!;
      this.bytes.fill(0, from + 1, to);
    }
    this.count -= gone;
    return gone;
  }

  #without(index: number, mask: number): number {
    const before = this.bytes[index]!;
    this.bytes[index] = before & ~mask;
    return SET_IN[before & mask]!;
  }

  #or(index: number, mask: number): number {
    const before = this.bytes[index]!;
    const after = before | mask;
    this.bytes[index] = after;
    return SET_IN[before ^ after]!;
  }

  /** The first bit of a kind from `from` on; PAGE_BITS where there is none. */
  next(from: number, wanted: boolean): number {
    const passed = wanted ? 0 : -1;
    const invert = wanted ? 0 : 0xff;
    for (let at = from; at < PAGE_BITS; ) {
      if ((at & 31) === 0 && this.words[at >>> 5] === passed) {
        at += 32;
        continue;
      }
      const rest = (this.bytes[at >>> 3]! ^ invert) >>> (at & 7);
      if (rest !== 0) return at + 31 - Math.clz32(rest & -rest);
      at = (at | 7) + 1;
    }
    return PAGE_BITS;
  }

  /** Sets the bits that are set in `other`; returns how many were clear. */
  or(other: Page): number {
    const before = this.count;
    for (let i = 0; i < this.words.length; i++) this.words[i] = this.words[i]! | other.words[i]!;
    this.recount();
    return this.count - before;
  }

  recount(): void {
    let count = 0;
    for (const byte of this.bytes) count += SET_IN[byte]!;
    this.count = count;
  }
}

/** Stands for every page that is all set; not to be changed. */
const FULL = new Page();
FULL.set(0, PAGE_BITS - 1);

export class PagedBits {
  /** By number; none where all bits are clear. */
  readonly #pages = new Map<number, Page>();
  #length: number;
  #count = 0;
  #generation = 0;

  constructor(length: number) {
    this.#length = length;
  }

  get length(): number {
    return this.#length;
  }

  /** How many are set. */
  get count(): number {
    return this.#count;
  }

  /** Another number after every change. */
  get generation(): number {
    return this.#generation;
  }

  /** Bytes of memory that the bits take. */
  get memory(): number {
    let pages = 0;
    for (const page of this.#pages.values()) if (page !== FULL) pages++;
    return pages * (PAGE_BITS / 8);
  }

  /** Sets bits, both included and both inside. */
  set(first: number, last: number): void {
    for (let at = first; at <= last; ) {
      const index = Math.floor(at / PAGE_BITS);
      const base = index * PAGE_BITS;
      this.#setIn(index, at - base, Math.min(last - base, PAGE_BITS - 1));
      at = base + PAGE_BITS;
    }
  }

  #setIn(index: number, first: number, last: number): void {
    const known = this.#pages.get(index);
    if (known === FULL) return;
    if (first === 0 && last === PAGE_BITS - 1) {
      this.#put(index, FULL, PAGE_BITS - (known?.count ?? 0));
      return;
    }
    const page = known ?? new Page();
    const added = page.set(first, last);
    if (added > 0) this.#put(index, page, added);
  }

  /** Clears bits, both included and both inside. */
  unset(first: number, last: number): void {
    for (let at = first; at <= last; ) {
      const index = Math.floor(at / PAGE_BITS);
      const base = index * PAGE_BITS;
      this.#unsetIn(index, at - base, Math.min(last - base, PAGE_BITS - 1));
      at = base + PAGE_BITS;
    }
  }

  #unsetIn(index: number, first: number, last: number): void {
    const known = this.#pages.get(index);
    if (known === undefined) return;
    if (first === 0 && last === PAGE_BITS - 1) {
      this.#put(index, new Page(), -known.count);
      return;
    }
    let page = known;
    if (known === FULL) {
      page = new Page();
      page.set(0, PAGE_BITS - 1);
    }
    const gone = page.unset(first, last);
    if (gone > 0) this.#put(index, page, -gone);
  }

  /** `page` has `added` more set bits than what was there. */
  #put(index: number, page: Page, added: number): void {
    this.#count += added;
    this.#generation++;
    if (page.count === 0) this.#pages.delete(index);
    else this.#pages.set(index, page.count === PAGE_BITS ? FULL : page);
  }

  clear(): void {
    this.#pages.clear();
    this.#count = 0;
    this.#generation++;
  }

  /** The first bit of a kind (set, or clear) in `from`..`end`; `end` where there is none. */
  next(from: number, end: number, wanted: boolean): number {
    for (let at = from; at < end; ) {
      const index = Math.floor(at / PAGE_BITS);
      const base = index * PAGE_BITS;
      const page = this.#pages.get(index);
      if (page === undefined || page === FULL) {
        if (wanted === (page === FULL)) return at;
      } else {
        const found = page.next(at - base, wanted);
        if (found < PAGE_BITS) return Math.min(base + found, end);
      }
      at = base + PAGE_BITS;
    }
    return end;
  }

  /** Bits that come are clear; bits that go are forgotten. */
  resize(length: number): void {
    if (length === this.#length) return;
    this.#generation++;
    const last = Math.floor(length / PAGE_BITS);
    const kept = length - last * PAGE_BITS;
    for (const [index, page] of this.#pages) {
      if (index < last) continue;
      if (index === last && kept > 0) this.#cut(index, page, kept);
      else this.#put(index, new Page(), -page.count);
    }
    this.#length = length;
  }

  /** Clears what is behind the first `kept` bits of a page. */
  #cut(index: number, page: Page, kept: number): void {
    const cut = new Page();
    cut.bytes.set(page.bytes.subarray(0, Math.ceil(kept / 8)));
    if (kept % 8 !== 0) cut.bytes[kept >>> 3] = cut.bytes[kept >>> 3]! & (0xff >>> (8 - (kept & 7)));
    cut.recount();
    this.#put(index, cut, cut.count - page.count);
  }

  /** Sets all bits that are set in `other`, which is as long. */
  or(other: PagedBits): void {
    for (const [index, page] of other.#pages) {
      const mine = this.#pages.get(index);
      if (mine === FULL) continue;
      if (page === FULL) this.#put(index, FULL, PAGE_BITS - (mine?.count ?? 0));
      else {
        const target = mine ?? new Page();
        this.#put(index, target, target.or(page));
      }
    }
  }

  /** Copies bits out, from byte `at` on: bit i is bit i % 8 of byte i / 8. */
  readBytes(at: number, into: Uint8Array): void {
    this.#eachPart(at, into.length, (index, from, done, length) => {
      const page = this.#pages.get(index);
      if (page === undefined) into.fill(0, done, done + length);
      else into.set(page.bytes.subarray(from, from + length), done);
    });
  }

  /** The other way round; into bits that are clear. What is behind the end is left out. */
  writeBytes(at: number, bytes: Uint8Array): void {
    const end = Math.min(bytes.length, Math.ceil(this.#length / 8) - at);
    this.#eachPart(at, end, (index, from, done, length) => {
      const page = this.#pages.get(index) ?? new Page();
      const before = page.count;
      page.bytes.set(bytes.subarray(done, done + length), from);
      page.recount();
      this.#put(index, page, page.count - before);
    });
    const last = Math.floor(this.#length / PAGE_BITS);
    const page = this.#pages.get(last);
    if (page !== undefined) this.#cut(last, page, this.#length - last * PAGE_BITS);
  }

  /** Calls `visit` with each page that a range of bytes is in, where in it, how much of the range came before, and how
   *  much is in it. */
  #eachPart(
    at: number,
    length: number,
    visit: (index: number, from: number, done: number, length: number) => void,
  ): void {
    const pageBytes = PAGE_BITS / 8;
    for (let done = 0; done < length; ) {
      const index = Math.floor((at + done) / pageBytes);
      const from = at + done - index * pageBytes;
      const part = Math.min(length - done, pageBytes - from);
      visit(index, from, done, part);
      done += part;
    }
  }
}
