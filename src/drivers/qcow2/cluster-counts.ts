/**
 * A count for each of many things with a number (clusters of a file). Memory follows from how many are counted, not
 * from how far their numbers reach: pages of neighbours, found by a hash in typed arrays. A chunk of pages has a byte
 * for each count, and more once a count needs them.
 */
import { BlockError, Errno } from '../../base/errors.ts';
import { MAX_OFFSET } from '../../base/units.ts';

type Counters = Uint8Array | Uint16Array | Float64Array;

/** Counts in a page, and pages in a chunk (64 KiB of bytes). */
const PAGE = 64;
const CHUNK = 1024;
/**
 * 2^23 pages are 2^29 counts: a file of 32 TiB in clusters of 64 KiB, all in use. They take 512 MiB, and keys and hash
 * 128 more. A hostile image gets there with an entry of 8 bytes for each page, 64 MiB of them.
 */
const PAGES_MAX = 2 ** 23;
const EMPTY_PAGE: Counters = new Uint8Array(PAGE);
/** Fibonacci hashing: 2^32 divided by the golden ratio. */
const GOLDEN = 0x9e3779b1;

export class ClusterCounts {
  /** What page `n`, in the order of their making, is for: the number of its first count divided by PAGE. */
  #keys = new Float64Array(CHUNK);
  #pages = 0;
  /** The keys are sorted as they are: files are used from the beginning on, as a rule. */
  #ascending = true;
  readonly #chunks: Counters[] = [];
  /** Page + 1, or 0. At most half full. */
  #hash = new Int32Array(2 * CHUNK);
  #shift = 32 - Math.log2(2 * CHUNK);
  /** The page that was used last: neighbours are counted one after the other. */
  #key = -1;
  #page = 0;
  #chunk: Counters = new Uint8Array(0);
  #base = 0;

  /** 0 for what was never counted. */
  get(index: number): number {
    const key = Math.floor(index / PAGE);
    if (key !== this.#key && !this.#select(key)) return 0;
    return this.#chunk[this.#base + index - key * PAGE]!;
  }

  /** Adds to a count, and returns what it comes to. EFBIG beyond what can be kept in memory. */
  add(index: number, times: number): number {
    const key = Math.floor(index / PAGE);
    if (key !== this.#key && !this.#select(key)) this.#make(key);
    const at = this.#base + index - key * PAGE;
    const count = this.#chunk[at]! + times;
    this.#chunk[at] = count;
    // It does not fit: cut off, or rounded.
    if (this.#chunk[at] !== count) this.#widen(at, count);
    return count;
  }

  set(index: number, count: number): void {
    this.add(index, count - this.get(index));
  }

  /** The highest number whose count is not 0; -1 for none. */
  get last(): number {
    for (const key of this.#sortedKeys().reverse()) {
      this.#select(key);
      for (let i = PAGE - 1; i >= 0; i--) if (this.#chunk[this.#base + i] !== 0) return key * PAGE + i;
    }
    return -1;
  }

  /** Visits what is not 0, ascending. Nothing may be counted meanwhile that was not before. */
  forEach(visit: (index: number, count: number) => void): void {
    for (const key of this.#sortedKeys()) {
      this.#select(key);
      const chunk = this.#chunk;
      const base = this.#base;
      for (let i = 0; i < PAGE; i++) {
        const count = chunk[base + i]!;
        if (count !== 0) visit(key * PAGE + i, count);
      }
    }
  }

  /** Visits the numbers for which `other` has another count, ascending. Nothing may be counted meanwhile. */
  differences(other: ClusterCounts, visit: (index: number, count: number, otherCount: number) => void): void {
    const mine = this.#sortedKeys();
    const theirs = other.#sortedKeys();
    let i = 0;
    let j = 0;
    while (i < mine.length || j < theirs.length) {
      const key = Math.min(mine[i] ?? MAX_OFFSET, theirs[j] ?? MAX_OFFSET);
      if (mine[i] === key) i++;
      if (theirs[j] === key) j++;
      this.#comparePage(other, key, visit);
    }
  }

  #comparePage(
    other: ClusterCounts,
    key: number,
    visit: (index: number, count: number, otherCount: number) => void,
  ): void {
    const chunk = this.#select(key) ? this.#chunk : EMPTY_PAGE;
    const base = chunk === EMPTY_PAGE ? 0 : this.#base;
    const otherChunk = other.#select(key) ? other.#chunk : EMPTY_PAGE;
    const otherBase = otherChunk === EMPTY_PAGE ? 0 : other.#base;
    for (let i = 0; i < PAGE; i++) {
      const count = chunk[base + i]!;
      const otherCount = otherChunk[otherBase + i]!;
      if (count !== otherCount) visit(key * PAGE + i, count, otherCount);
    }
  }

  #sortedKeys(): Float64Array {
    const keys = this.#keys.slice(0, this.#pages);
    return this.#ascending ? keys : keys.sort();
  }

  #select(key: number): boolean {
    const keys = this.#keys;
    // Neighbours come one after the other, as a rule, and were made so.
    const next = this.#page + 1;
    if (next < this.#pages && keys[next] === key) {
      this.#use(key, next);
      return true;
    }
    if (this.#ascending && (this.#pages === 0 || key > keys[this.#pages - 1]!)) return false;
    const hash = this.#hash;
    const mask = hash.length - 1;
    for (let i = this.#home(key); ; i = (i + 1) & mask) {
      const page = hash[i]! - 1;
      if (page < 0) return false;
      if (keys[page] !== key) continue;
      this.#use(key, page);
      return true;
    }
  }

  #use(key: number, page: number): void {
    this.#key = key;
    this.#page = page;
    this.#chunk = this.#chunks[Math.floor(page / CHUNK)]!;
    this.#base = (page % CHUNK) * PAGE;
  }

  #make(key: number): void {
    const page = this.#pages++;
    if (page === PAGES_MAX) {
      throw new BlockError(Errno.EFBIG, 'Could not check the image: its clusters are too many, in too many places');
    }
    if (page === this.#keys.length) this.#grow();
    if (page % CHUNK === 0) this.#chunks.push(new Uint8Array(CHUNK * PAGE));
    this.#keys[page] = key;
    if (page > 0 && key < this.#keys[page - 1]!) this.#ascending = false;
    this.#insert(key, page);
    this.#use(key, page);
  }

  #insert(key: number, page: number): void {
    const mask = this.#hash.length - 1;
    let i = this.#home(key);
    while (this.#hash[i] !== 0) i = (i + 1) & mask;
    this.#hash[i] = page + 1;
  }

  #grow(): void {
    const keys = this.#keys;
    this.#keys = new Float64Array(keys.length * 2);
    this.#keys.set(keys);
    this.#hash = new Int32Array(this.#hash.length * 2);
    this.#shift--;
    for (let page = 0; page < keys.length; page++) this.#insert(keys[page]!, page);
  }

  #widen(at: number, count: number): void {
    const old = this.#chunk;
    const wide = count > 0xffff || old instanceof Uint16Array ? Float64Array.from(old) : Uint16Array.from(old);
    wide[at] = Math.min(count, MAX_OFFSET);
    this.#chunks[Math.floor(this.#page / CHUNK)] = wide;
    this.#chunk = wide;
  }

  // The low bits of a number that may have more than 32 are all that a hash needs; the best of the product are high.
  #home(key: number): number {
    return Math.imul(key | 0, GOLDEN) >>> this.#shift;
  }
}
