/**
 * The clusters of the file that hold metadata. A last look before anything is written: a damaged image (refcounts too
 * low, an entry that points into a table) must not be damaged further. What takes more than one cluster is kept as a
 * range: an image may name 65,536 tables of 32 MiB, and that must cost no more than their names.
 */
import { alignDown, alignUp, type Bytes, type Offset } from '../../base/units.ts';

const GOLDEN = 0x9e3779b1;

interface Range {
  readonly at: Offset;
  readonly end: Offset;
  /** Where the range ends that goes furthest, of this one and those before it. */
  reach: Offset;
}

/** A set of cluster offsets: open addressing in typed arrays, since a large image has many tables. */
export class MetadataMap {
  /** False: overlap-check=none. */
  readonly enabled: boolean;
  readonly #clusterSize: Bytes;
  /** Cluster offsets; -1 for none, -2 where there was one. At most 5/8 full: with the most tables that an image can
   *  have (4 Mi of L2, 1 Mi of refcounts) these are 64 MiB. */
  #keys = new Float64Array(1024).fill(-1);
  #shift = 22;
  #count = 0;
  #stones = 0;
  /** By their beginnings, unless `#sorted` is false. */
  #ranges: Range[] = [];
  #sorted = true;

  constructor(clusterSize: Bytes, enabled: boolean) {
    this.#clusterSize = clusterSize;
    this.enabled = enabled;
  }

  /** True when the cluster at `at` (a cluster's beginning) is metadata. */
  has(at: Offset): boolean {
    return this.#hasKey(at) || (this.#ranges.length > 0 && this.#inRange(at, at + 1));
  }

  /** True when any cluster of a range is. */
  hasAny(at: Offset, length: Bytes): boolean {
    const first = alignDown(at, this.#clusterSize);
    for (let cluster = first; cluster < at + length; cluster += this.#clusterSize) if (this.has(cluster)) return true;
    return false;
  }

  /** Where two of the ranges overlap; -1 where none do. */
  overlap(): Offset {
    this.#sort();
    const second = this.#ranges.find(({ at }, i) => i > 0 && at < this.#ranges[i - 1]!.reach);
    return second?.at ?? -1;
  }

  clear(): void {
    this.#keys.fill(-1);
    this.#count = 0;
    this.#stones = 0;
    this.#ranges = [];
  }

  add(at: Offset, length: Bytes = this.#clusterSize): void {
    if (!this.enabled) return;
    const { first, end } = this.#clusters(at, length);
    if (end - first === this.#clusterSize) this.#addKey(first);
    else if (end > first) {
      this.#ranges.push({ at: first, end, reach: end });
      this.#sorted = false;
    }
  }

  /** Takes out what was added as one. */
  delete(at: Offset, length: Bytes = this.#clusterSize): void {
    const { first, end } = this.#clusters(at, length);
    if (end - first === this.#clusterSize) this.#deleteKey(first);
    else {
      const index = this.#ranges.findIndex((range) => range.at === first && range.end === end);
      if (index < 0) return;
      this.#ranges.splice(index, 1);
      this.#sorted = false;
    }
  }

  #clusters(at: Offset, length: Bytes): { readonly first: Offset; readonly end: Offset } {
    return { first: alignDown(at, this.#clusterSize), end: alignUp(at + length, this.#clusterSize) };
  }

  #sort(): void {
    if (this.#sorted) return;
    this.#sorted = true;
    this.#ranges.sort((a, b) => a.at - b.at);
    let reach = 0;
    for (const range of this.#ranges) {
      reach = Math.max(reach, range.end);
      range.reach = reach;
    }
  }

  #inRange(at: Offset, end: Offset): boolean {
    this.#sort();
    // The last one that begins before `end`.
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#ranges[middle]!.at < end) low = middle + 1;
      else high = middle;
    }
    return low > 0 && this.#ranges[low - 1]!.reach > at;
  }

  #hasKey(at: Offset): boolean {
    const keys = this.#keys;
    const mask = keys.length - 1;
    for (let i = this.#home(at); ; i = (i + 1) & mask) {
      const key = keys[i]!;
      if (key === at) return true;
      if (key === -1) return false;
    }
  }

  #addKey(cluster: Offset): void {
    if (this.#hasKey(cluster)) return;
    if ((this.#count + this.#stones + 1) * 8 > this.#keys.length * 5) this.#rebuild();
    const mask = this.#keys.length - 1;
    let i = this.#home(cluster);
    while (this.#keys[i]! !== -1) i = (i + 1) & mask;
    this.#keys[i] = cluster;
    this.#count++;
  }

  #deleteKey(cluster: Offset): void {
    if (!this.#hasKey(cluster)) return;
    const mask = this.#keys.length - 1;
    let i = this.#home(cluster);
    while (this.#keys[i] !== cluster) i = (i + 1) & mask;
    this.#keys[i] = -2;
    this.#count--;
    this.#stones++;
  }

  #rebuild(): void {
    const old = this.#keys;
    const size = this.#count > this.#stones ? old.length * 2 : old.length;
    this.#keys = new Float64Array(size).fill(-1);
    this.#shift = 32 - Math.log2(size);
    this.#count = 0;
    this.#stones = 0;
    for (const key of old) if (key >= 0) this.#addKey(key);
  }

  // `| 0` takes the low bits of a number that may have more than 32: all that a hash needs. The best ones are the high.
  #home(at: Offset): number {
    return Math.imul((at / this.#clusterSize) | 0, GOLDEN) >>> this.#shift;
  }
}
