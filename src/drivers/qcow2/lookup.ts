/**
 * Where bytes are: `map`. The hit path of every read and overwrite, so it allocates nothing and its usual case (a plain
 * data cluster) is one straight line. Specification: "Cluster mapping", "Extended L2 Entries".
 */
import type { Bytes, Offset } from '../../base/units.ts';
import type { Child, Mapping, MapReason, MaybePromise } from '../../block/driver.ts';
import { EntryHigh } from '../../proto/qcow2/constants.ts';
import { hostOf, Kind, kindOf, subclusterKind } from './entries.ts';
import { hexEntry, type Image } from './image.ts';
import { MISS, type TableCache } from './table-cache.ts';

/** Anything in the upper half of an entry that makes it more than plain data, but for COPIED. */
const HIGH_SPECIAL = 0x7f00_0000 | EntryHigh.BEYOND;

export class Lookup {
  readonly #image: Image;
  readonly #cache: TableCache;
  readonly #view: DataView;
  readonly #clusterSize: Bytes;
  readonly #perCluster: number;
  readonly #perTable: number;
  readonly #tableEntries: number;
  readonly #sliceEntries: number;
  readonly #sliceSize: Bytes;
  readonly #entryBytes: number;
  readonly #offsetLow: number;
  readonly #extended: boolean;
  readonly #data: Child;
  /** An entry's offset must be its cluster's in the guest. */
  readonly #flat: boolean;
  readonly #encrypted: boolean;

  /** `encrypted`: data is told as opaque, since it takes a cipher to read and write it. */
  constructor(image: Image, encrypted: boolean) {
    const { geometry } = image;
    this.#image = image;
    this.#cache = image.l2;
    this.#view = image.l2.view;
    this.#clusterSize = geometry.clusterSize;
    // Powers of two: multiplying by the reciprocal is exact.
    this.#perCluster = 1 / geometry.clusterSize;
    this.#perTable = 1 / geometry.tableEntries;
    this.#tableEntries = geometry.tableEntries;
    this.#sliceEntries = geometry.sliceEntries;
    this.#sliceSize = geometry.sliceSize;
    this.#entryBytes = geometry.entryBytes;
    this.#offsetLow = geometry.clusterSize - 1;
    this.#extended = geometry.extended;
    this.#data = image.data;
    this.#flat = image.dataFile !== null;
    this.#encrypted = encrypted;
  }

  /** See NodeIo.map. EIO for an entry that cannot be one. */
  map(at: Offset, want: Bytes, why: MapReason, out: Mapping): MaybePromise<void> {
    const cluster = Math.floor(at * this.#perCluster);
    const table = Math.floor(cluster * this.#perTable);
    const tableAt = this.#image.tables[table]!;
    const index = cluster - table * this.#tableEntries;
    const inside = at - cluster * this.#clusterSize;
    if (tableAt <= 0) {
      if (tableAt < 0) throw this.#image.corrupted(`L1 entry ${table} is invalid`, at);
      const kind = this.#encrypted && why === 'write' ? 'opaque' : 'absent';
      out.other(kind, Math.min(want, (this.#tableEntries - index) * this.#clusterSize - inside));
      return undefined;
    }
    const inSlice = index % this.#sliceEntries;
    const key = tableAt + (index - inSlice) * this.#entryBytes;
    let slot = this.#cache.find(key);
    if (slot === MISS) {
      slot = this.#cache.loadNow(key);
      if (slot === MISS) return this.#mapLater(key, at, want, why, out);
    }
    const position = slot * this.#sliceSize + inSlice * this.#entryBytes;
    if (this.#extended || this.#flat || this.#encrypted) {
      this.#mapRun(position, inSlice, cluster, inside, want, why, out);
      return undefined;
    }
    const high = this.#view.getUint32(position);
    const low = this.#view.getUint32(position + 4);
    const host = (high & EntryHigh.OFFSET) * 2 ** 32 + low;
    const left = this.#clusterSize - inside;
    if ((high & HIGH_SPECIAL) !== 0 || (low & this.#offsetLow) !== 0 || host === 0 || want > left) {
      this.#mapRun(position, inSlice, cluster, inside, want, why, out);
      return undefined;
    }
    if (why === 'write') {
      if (high < EntryHigh.COPIED || this.#refusesWrite(host)) {
        this.#mapRun(position, inSlice, cluster, inside, want, why, out);
        return undefined;
      }
    }
    out.data(want, this.#data, host + inside);
    return undefined;
  }

  async #mapLater(key: Offset, at: Offset, want: Bytes, why: MapReason, out: Mapping): Promise<void> {
    await this.#cache.load(key);
    await this.map(at, want, why, out);
  }

  /** True where an overwrite needs a closer look. */
  #refusesWrite(host: Offset): boolean {
    return this.#image.damage !== null || this.#image.metadata.has(host);
  }

  /** The general case: from one entry on, as far as the slice goes and the kind is the same. */
  #mapRun(
    position: number,
    inSlice: number,
    cluster: number,
    inside: Bytes,
    want: Bytes,
    why: MapReason,
    out: Mapping,
  ): void {
    const unit = this.#extended ? this.#clusterSize / 32 : this.#clusterSize;
    const kind = this.#kindAt(position, inside / unit);
    if (kind === Kind.INVALID) throw this.#invalid(position, cluster);
    const host = kind === Kind.DATA ? this.#hostOf(position) : 0;
    const first = inside - (inside % unit);
    let length = unit - (inside % unit);
    // Where the next (sub)cluster begins, counted from the beginning of this cluster.
    for (let next = first + unit; length < want; next += unit) {
      const entry = Math.floor(next / this.#clusterSize);
      if (inSlice + entry >= this.#sliceEntries) break;
      const there = position + entry * this.#entryBytes;
      if (this.#kindAt(there, (next % this.#clusterSize) / unit) !== kind) break;
      if (kind === Kind.DATA) {
        const follows = this.#hostOf(there) === host + entry * this.#clusterSize;
        if (!follows || this.#copied(there) !== this.#copied(position)) break;
      }
      length += unit;
    }
    this.#answer(kind, position, cluster, host + inside, Math.min(length, want), why, out);
  }

  #answer(
    kind: number,
    position: number,
    cluster: number,
    at: Offset,
    length: Bytes,
    why: MapReason,
    out: Mapping,
  ): void {
    const image = this.#image;
    if (this.#flat && kind === Kind.DATA && at - (at % this.#clusterSize) !== cluster * this.#clusterSize) {
      throw this.#invalid(position, cluster);
    }
    if (why === 'write') {
      image.assertUndamaged();
      if (this.#encrypted) out.other('opaque', length);
      else if (kind !== Kind.DATA || !this.#copied(position)) out.other('absent', length);
      else {
        if (!this.#flat && image.metadata.hasAny(at, length)) {
          throw image.corrupted(`data cluster ${cluster} of the disk is at ${at}, where metadata is`, at);
        }
        out.data(length, this.#data, at);
      }
    } else if (kind === Kind.DATA && !this.#encrypted) out.data(length, this.#data, at);
    else if (kind === Kind.DATA || kind === Kind.COMPRESSED) out.other('opaque', length);
    else out.other(kind === Kind.ZERO ? 'zero' : 'absent', length);
  }

  /** Kind of subcluster `sub` of the entry at `position`; without subclusters, of the entry. */
  #kindAt(position: number, sub: number): number {
    const high = this.#view.getUint32(position);
    const low = this.#view.getUint32(position + 4);
    // An open image may get another version: amend.ts.
    if (!this.#extended) return kindOf(high, low, this.#offsetLow, this.#image.header.version >= 3, this.#flat);
    const zeroes = this.#view.getUint32(position + 8);
    const allocated = this.#view.getUint32(position + 12);
    return subclusterKind(high, low, zeroes, allocated, Math.floor(sub), this.#offsetLow, this.#flat);
  }

  #copied(position: number): boolean {
    return this.#view.getUint32(position) >= EntryHigh.COPIED;
  }

  #hostOf(position: number): Offset {
    return hostOf(this.#view.getUint32(position), this.#view.getUint32(position + 4));
  }

  #invalid(position: number, cluster: number): Error {
    const entry = hexEntry(this.#view.getUint32(position), this.#view.getUint32(position + 4));
    const at = cluster * this.#clusterSize;
    return this.#image.corrupted(`the L2 entry ${entry} of the disk's cluster at ${at} is invalid`, at);
  }
}
