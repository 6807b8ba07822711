/** L2 tables: making sure that the one for a place exists and is the active disk's own, and finding entries in it. */
import type { Bytes, Offset } from '../../base/units.ts';
import { decodeCompressed } from '../../proto/qcow2/compressed-entry.ts';
import { EntryHigh } from '../../proto/qcow2/constants.ts';
import { hostOf, kindOf, subclusterKind } from './entries.ts';
import type { Image } from './image.ts';
import type { FreeReason } from './refcounts.ts';
import { MISS } from './table-cache.ts';

/** Where the entry of a cluster of the disk is: see {@link findEntry}. Valid until the next await. */
export class EntryPlace {
  /** In the L2 cache's memory; MISS when the slice is not there: `key` is what to load. */
  position = MISS;
  slot = MISS;
  key: Offset = 0;
  /** Entries from this one to the end of its slice. */
  left = 0;
}

/** True when the L2 table for a cluster may be changed. */
export function ownsTable(image: Image, cluster: number): boolean {
  const index = Math.floor(cluster / image.geometry.tableEntries);
  return image.tables[index] !== 0 && image.owned[index] === 1;
}

/** Fills `out` for a cluster whose L2 table exists. */
export function findEntry(image: Image, cluster: number, out: EntryPlace): EntryPlace {
  const { tableEntries, sliceEntries, sliceSize, entryBytes } = image.geometry;
  const index = cluster % tableEntries;
  const inSlice = index % sliceEntries;
  out.key = image.tables[Math.floor(cluster / tableEntries)]! + (index - inSlice) * entryBytes;
  out.left = sliceEntries - inSlice;
  out.slot = image.l2.find(out.key);
  out.position = out.slot === MISS ? MISS : out.slot * sliceSize + inSlice * entryBytes;
  return out;
}

/** What the entry at `position` of the L2 cache says of the byte `inside` its cluster; see entries.ts. */
export function kindAt(image: Image, position: number, inside: Bytes): number {
  const { extended, clusterSize, subclusterSize } = image.geometry;
  const { view } = image.l2;
  const high = view.getUint32(position);
  const low = view.getUint32(position + 4);
  const flat = image.dataFile !== null;
  if (!extended) return kindOf(high, low, clusterSize - 1, image.header.version >= 3, flat);
  const zeroes = view.getUint32(position + 8);
  const allocated = view.getUint32(position + 12);
  return subclusterKind(high, low, zeroes, allocated, Math.floor(inside / subclusterSize), clusterSize - 1, flat);
}

/** Where the cluster of the entry at `position` is in the file; not of a compressed one. */
export function hostAt(image: Image, position: number): Offset {
  return hostOf(image.l2.view.getUint32(position), image.l2.view.getUint32(position + 4));
}

/** Gives the active disk an L2 table of its own for a cluster: a new one, or a copy of one shared with a snapshot. */
export async function ownTable(image: Image, cluster: number): Promise<void> {
  using _held = await image.tableMutex.lock();
  if (ownsTable(image, cluster)) return;
  image.assertUndamaged();
  const { clusterSize, tableEntries } = image.geometry;
  const index = Math.floor(cluster / tableEntries);
  const { at, fresh } = await image.refcounts.takeOne();
  const old = image.tables[index]!;
  try {
    // A shared table was synced when it became shared, and has not been changed since: the disk has all of it.
    if (old !== 0) await image.file.point('l2_alloc_cow_read');
    const bytes = old === 0 ? undefined : await image.io.read(old, clusterSize);
    await image.file.point('l2_alloc_write');
    if (bytes !== undefined) await image.io.write(at, bytes);
    else if (!fresh) await image.file.writeZeroes(at, clusterSize);
  } catch (error) {
    image.refcounts.free(at, 1, 'other');
    throw error;
  }
  image.sync.l1Changes(index);
  image.tables[index] = at;
  image.owned[index] = 1;
  image.metadata.add(at);
  if (old === 0) return;
  image.metadata.delete(old);
  image.refcounts.free(old, 1, 'snapshot');
}

/** The cluster that an entry refers to has one reference less: to be called when the entry is overwritten. */
export function freeEntry(image: Image, high: number, low: number, reason: FreeReason): void {
  const { clusterSize } = image.geometry;
  if ((high & EntryHigh.COMPRESSED) !== 0) {
    const { offset, length } = decodeCompressed(high, low, image.header.clusterBits);
    const first = offset - (offset % clusterSize);
    image.refcounts.free(first, Math.ceil((offset + length - first) / clusterSize), reason);
    return;
  }
  const host = hostOf(high, low);
  if (host !== 0 && image.dataFile === null) image.refcounts.free(host, 1, reason);
}
