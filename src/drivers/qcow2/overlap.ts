/**
 * The clusters of the file that hold metadata. A last look before anything is written: a damaged image (refcounts too
 * low, an entry that points into a table) must not be damaged further.
 */
import type { Bytes, Offset } from '../../base/units.ts';

const GOLDEN = 0x9e3779b1;

/** A set of cluster offsets: open addressing in typed arrays, since a large image has many tables. */
export class MetadataMap {
  /** False: overlap-check=none. */
  readonly enabled: boolean;
  readonly #clusterSize: Bytes;
  /** Cluster offsets; -1 for none, -2 where there was one. At most half full. */
  #keys = new Float64Array(1024).fill(-1);
  #shift = 22;
  #count = 0;
  #stones = 0;

  constructor(clusterSize: Bytes, enabled: boolean) {
    this.#clusterSize = clusterSize;
    this.enabled = enabled;
  }

  get count(): number {
    return this.#count;
  }

  /** True when the cluster at `at` (a cluster's beginning) is metadata. */
  has(at: Offset): boolean {
    const keys = this.#keys;
    const mask = keys.length - 1;
    for (let i = this.#home(at); ; i = (i + 1) & mask) {
      const key = keys[i]!;
      if (key === at) return true;
      if (key === -1) return false;
    }
  }

  /** True when any cluster of a range is. */
  hasAny(at: Offset, length: Bytes): boolean {
    const first = at - (at % this.#clusterSize);
    for (let cluster = first; cluster < at + length; cluster += this.#clusterSize) if (this.has(cluster)) return true;
    return false;
  }

  clear(): void {
    this.#keys.fill(-1);
    this.#count = 0;
    this.#stones = 0;
  }

  add(at: Offset, length: Bytes = this.#clusterSize): void {
    if (!this.enabled) return;
    const first = at - (at % this.#clusterSize);
    for (let cluster = first; cluster < at + length; cluster += this.#clusterSize) this.#add(cluster);
  }

  delete(at: Offset, length: Bytes = this.#clusterSize): void {
    const mask = this.#keys.length - 1;
    for (let cluster = at; cluster < at + length; cluster += this.#clusterSize) {
      if (!this.has(cluster)) continue;
      let i = this.#home(cluster);
      while (this.#keys[i] !== cluster) i = (i + 1) & mask;
      this.#keys[i] = -2;
      this.#count--;
      this.#stones++;
    }
  }

  #add(cluster: Offset): void {
    if (this.has(cluster)) return;
    if ((this.#count + this.#stones + 1) * 2 > this.#keys.length) this.#rebuild();
    const mask = this.#keys.length - 1;
    let i = this.#home(cluster);
    while (this.#keys[i]! !== -1) i = (i + 1) & mask;
    this.#keys[i] = cluster;
    this.#count++;
  }

  #rebuild(): void {
    const old = this.#keys;
    const size = (this.#count + 1) * 4 > old.length ? old.length * 2 : old.length;
    this.#keys = new Float64Array(size).fill(-1);
    this.#shift = 32 - Math.log2(size);
    this.#count = 0;
    this.#stones = 0;
    for (const key of old) if (key >= 0) this.#add(key);
  }

  // `| 0` takes the low bits of a number that may have more than 32: all that a hash needs. The best ones are the high.
  #home(at: Offset): number {
    return Math.imul((at / this.#clusterSize) | 0, GOLDEN) >>> this.#shift;
  }
}
