/**
 * Zero writes and discards of whole clusters. Entries are changed in
 * memory; what they refer to is freed after the next sync. An allocation in flight in the range is waited for.
 */
import type { Bytes, Offset } from '../../base/units.ts';
import { RequestFlags, type Supported } from '../../block/driver.ts';
import { EntryHigh, EntryLow } from '../../proto/qcow2/constants.ts';
import { hostOf, Kind, kindOf } from './entries.ts';
import type { Image } from './image.ts';
import { freeEntry } from './tables.ts';
import type { Writer } from './write.ts';

/** What becomes of an entry. */
type Change = (position: number, cluster: number) => void;

export class Eraser {
  readonly #image: Image;
  readonly #writer: Writer;

  constructor(image: Image, writer: Writer) {
    this.#image = image;
    this.#writer = writer;
  }

  /** See NodeIo.zero. Whole clusters, but for the end of the disk. */
  async zero(at: Offset, length: Bytes, flags: number): Promise<Supported> {
    const image = this.#image;
    image.assertUndamaged();
    const own = (flags & RequestFlags.OWN) !== 0;
    // There is no zero flag in version 2: only where nothing is below can a cluster become zeroes.
    if (image.header.version < 3 && (own || this.#below(at))) return 'unsupported';
    // Who reads the data file without us must find the same: the file has the zeroes, the table does not know of them.
    if (image.dataIsRaw) {
      await image.data.writeZeroes(at, length, flags & RequestFlags.MAY_UNMAP);
      return 'done';
    }
    const unmap = (flags & RequestFlags.MAY_UNMAP) !== 0;
    await this.#each(at, at + length, own ? 'none' : 'empty', (position, cluster) =>
      this.#zeroEntry(position, unmap, own || this.#below(cluster * image.geometry.clusterSize)),
    );
    return 'done';
  }

  /** See NodeIo.discard. Whole clusters, but for the end of the disk. */
  async discard(at: Offset, length: Bytes): Promise<Supported> {
    const image = this.#image;
    image.assertUndamaged();
    // There is no zero flag in version 2: what is below would come to light again.
    if (image.header.version < 3 && image.backing !== null) return 'unsupported';
    if (image.dataIsRaw) await image.data.discard(at, length);
    else await this.#each(at, at + length, 'empty', (position, cluster) => this.#discardEntry(position, cluster));
    return 'done';
  }

  /** Takes the mapping of a range away altogether: what is below is seen again. For resizing and emptying. */
  async unmap(at: Offset, end: Offset): Promise<void> {
    await this.#each(at, end, 'all', (entry) => this.#clear(entry, false, 'other'));
  }

  #below(at: Offset): boolean {
    const { backing } = this.#image;
    return backing !== null && at < backing.length;
  }

  /** Runs `change` for every cluster of a range. `skip`: which places without an L2 table are left alone: all, or those
   *  with nothing below. */
  async #each(at: Offset, end: Offset, skip: 'all' | 'empty' | 'none', change: Change): Promise<void> {
    const image = this.#image;
    const { clusterSize, tableEntries, entryBytes } = image.geometry;
    const last = Math.ceil(end / clusterSize) - 1;
    for (let cluster = at / clusterSize; cluster <= last; ) {
      const nothing = image.tables[Math.floor(cluster / tableEntries)] === 0;
      if (nothing && (skip === 'all' || (skip === 'empty' && !this.#below(cluster * clusterSize)))) {
        cluster += tableEntries - (cluster % tableEntries);
        continue;
      }
      const place = this.#writer.ready(cluster);
      if (place === undefined) {
        await this.#writer.prepare(cluster);
        continue;
      }
      const { position, left, slot } = place;
      const count = Math.min(left, last - cluster + 1);
      const other = image.allocations.overlapping(cluster, cluster + count - 1);
      if (other) {
        await other.gate.promise;
        continue;
      }
      for (let i = 0; i < count; i++) this.#writer.assertValid(position + i * entryBytes, cluster + i);
      image.l2.modify(slot);
      for (let i = 0; i < count; i++) change(position + i * entryBytes, cluster + i);
      cluster += count;
    }
  }

  /** `below`: without a flag of its own it would not stay zeroes. */
  #zeroEntry(position: number, unmap: boolean, below: boolean): void {
    const image = this.#image;
    const { clusterSize, extended } = image.geometry;
    const { view } = image.l2;
    const high = view.getUint32(position);
    const low = view.getUint32(position + 4);
    const flat = image.dataFile !== null;
    const kind = kindOf(high, low, clusterSize - 1, !extended && image.header.version >= 3, flat);
    const host = kind === Kind.COMPRESSED ? 0 : hostOf(high, low);
    if (kind === Kind.ABSENT && !below) {
      // Nothing here and nothing below: zeroes already, but for subclusters, whose bits say nothing else.
      return;
    }
    const keep = high >= EntryHigh.COPIED && (host !== 0 || flat) && (!unmap || flat) && image.header.version >= 3;
    if (!keep) this.#clear(position, image.header.version >= 3 && (below || kind !== Kind.ABSENT), 'request');
    else if (extended) {
      view.setUint32(position + 8, 0xffff_ffff);
      view.setUint32(position + 12, 0);
    } else view.setUint32(position + 4, (low | EntryLow.ZERO) >>> 0);
  }

  #discardEntry(position: number, cluster: number): void {
    const image = this.#image;
    const { view } = image.l2;
    const high = view.getUint32(position);
    const low = view.getUint32(position + 4);
    const { extended, clusterSize } = image.geometry;
    const nothing = high === 0 && low === 0 && !(extended && view.getUint32(position + 8) !== 0);
    if (nothing && !this.#below(cluster * clusterSize)) return;
    const modern = image.header.version >= 3;
    const host = (high & EntryHigh.COMPRESSED) !== 0 ? 0 : hostOf(high, low);
    if (image.settings.discardNoUnref && modern && host !== 0 && high >= EntryHigh.COPIED) {
      if (extended) {
        view.setUint32(position + 8, 0xffff_ffff);
        view.setUint32(position + 12, 0);
      } else view.setUint32(position + 4, (low | EntryLow.ZERO) >>> 0);
      return;
    }
    // What is below, or will be once the image has another backing file, must not come to light.
    this.#clear(position, modern, 'request');
  }

  /** Unlinks what an entry refers to. */
  #clear(position: number, zero: boolean, reason: 'request' | 'other'): void {
    const image = this.#image;
    const { view } = image.l2;
    const { extended } = image.geometry;
    freeEntry(image, view.getUint32(position), view.getUint32(position + 4), reason);
    view.setUint32(position, 0);
    view.setUint32(position + 4, zero && !extended ? EntryLow.ZERO : 0);
    if (!extended) return;
    view.setUint32(position + 8, zero ? 0xffff_ffff : 0);
    view.setUint32(position + 12, 0);
  }
}
