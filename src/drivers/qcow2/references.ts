/** What a tree of tables (an L1 table and all below it) refers to: for snapshots, which share whole trees. */
import type { Offset } from '../../base/units.ts';
import { decodeCompressed } from '../../proto/qcow2/compressed-entry.ts';
import { EntryHigh } from '../../proto/qcow2/constants.ts';
import { hostOf, Kind, kindOf } from './entries.ts';
import { hexEntry, type Image } from './image.ts';

/** Neighbouring clusters of the file. */
export interface ClusterRun {
  at: Offset;
  clusters: number;
}

/** Calls `visit` with the clusters that each L2 table of `tables` refers to, once for every reference, the table's own
 *  first. */
export async function eachTree(
  image: Image,
  tables: Float64Array,
  visit: (runs: readonly ClusterRun[]) => Promise<void>,
): Promise<void> {
  for (const at of tables) {
    if (at === 0) continue;
    const bytes = await image.io.read(at, image.geometry.clusterSize);
    const runs: ClusterRun[] = [{ at, clusters: 1 }];
    collectRuns(image, new DataView(bytes.buffer), runs);
    await visit(runs);
  }
}

function collectRuns(image: Image, view: DataView, runs: ClusterRun[]): void {
  const { clusterSize, entryBytes, extended } = image.geometry;
  const modern = !extended && image.header.version >= 3;
  const add = (at: Offset, clusters: number): void => {
    const last = runs.at(-1)!;
    if (last.at + last.clusters * clusterSize === at) last.clusters += clusters;
    else runs.push({ at, clusters });
  };
  for (let position = 0; position < view.byteLength; position += entryBytes) {
    const high = view.getUint32(position);
    const low = view.getUint32(position + 4);
    if ((high & EntryHigh.COMPRESSED) === 0) {
      if (kindOf(high, low, clusterSize - 1, modern, false) === Kind.INVALID) {
        const at = runs[0]!.at;
        throw image.corrupted(`the L2 entry ${hexEntry(high, low)} in the table at ${at} is invalid`, at);
      }
      const host = hostOf(high, low);
      if (host !== 0) add(host, 1);
      continue;
    }
    const { offset, length } = decodeCompressed(high, low, image.header.clusterBits);
    const first = offset - (offset % clusterSize);
    const clusters = Math.ceil((offset + length - first) / clusterSize);
    // Not merged: its clusters may be shared with the one before.
    runs.push({ at: first, clusters });
  }
}

/** Makes the COPIED flags of the active tables say what the refcounts say. The caches must be clean; the L2 cache is
 *  emptied. */
export async function fixCopied(image: Image): Promise<void> {
  const { tables, owned, refcounts, io, geometry } = image;
  image.l2.clear();
  for (let index = 0; index < tables.length; index++) {
    const at = tables[index]!;
    if (at === 0) continue;
    const bytes = await io.read(at, geometry.clusterSize);
    if (await fixTable(image, new DataView(bytes.buffer))) await io.write(at, bytes);
    const copied = (await refcounts.count(at)) === 1 ? 1 : 0;
    if (owned[index] === copied) continue;
    image.sync.l1Changes(index);
    owned[index] = copied;
  }
  await image.sync.complete();
}

async function fixTable(image: Image, view: DataView): Promise<boolean> {
  let changed = false;
  for (let position = 0; position < view.byteLength; position += image.geometry.entryBytes) {
    const high = view.getUint32(position);
    if ((high & EntryHigh.COMPRESSED) !== 0) continue;
    const host = hostOf(high, view.getUint32(position + 4));
    if (host === 0) continue;
    const copied = (await image.refcounts.count(host)) === 1;
    if (copied === high >= EntryHigh.COPIED) continue;
    view.setUint32(position, copied ? (high | EntryHigh.COPIED) >>> 0 : high & ~EntryHigh.COPIED);
    changed = true;
  }
  return changed;
}

/** Clears the COPIED flags of all active tables, on the disk and in memory. Not flushed. */
export async function clearCopied(image: Image): Promise<void> {
  const { tables, owned, io, geometry } = image;
  image.l2.clear();
  for (let index = 0; index < tables.length; index++) {
    const at = tables[index]!;
    if (at === 0) continue;
    if (owned[index] === 1) image.sync.l1Changes(index);
    owned[index] = 0;
    const bytes = await io.read(at, geometry.clusterSize);
    const view = new DataView(bytes.buffer);
    let changed = false;
    for (let position = 0; position < view.byteLength; position += geometry.entryBytes) {
      const high = view.getUint32(position);
      if (high < EntryHigh.COPIED || (high & EntryHigh.COMPRESSED) !== 0) continue;
      view.setUint32(position, high & ~EntryHigh.COPIED);
      changed = true;
    }
    if (changed) await io.write(at, bytes);
  }
}
