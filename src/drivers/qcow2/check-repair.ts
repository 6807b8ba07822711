/**
 * Repairs of an image. Whatever is written anew goes to clusters behind everything that is in use, and becomes part of
 * the image by one write of the header, after a flush: a crash before or after it leaves an image that can be repaired
 * again. Nothing is written to an L2 table that shares a cluster with other metadata.
 */
import { BlockError, Errno } from '../../base/errors.ts';
import { MiB, type Offset } from '../../base/units.ts';
import type { CheckFix } from '../../block/driver.ts';
import { EntryHigh, Incompatible, REFCOUNT_TABLE_BYTES_MAX } from '../../proto/qcow2/constants.ts';
import { encodeHeader } from '../../proto/qcow2/header.ts';
import { getRefcount, setRefcount } from '../../proto/qcow2/refcount-block.ts';
import { encodeSnapshotTable } from '../../proto/qcow2/snapshot-table.ts';
import type { CheckTarget } from './check.ts';
import { offsetsOf, Scan } from './check-scan.ts';
import type { ClusterCounts } from './cluster-counts.ts';
import { eachCluster } from './cluster-reader.ts';
import { hostOf } from './entries.ts';
import { encodeTableEntry } from './image.ts';
import { MetadataIo } from './metadata-io.ts';

/** Refcount blocks are written in pieces of this. */
const PIECE = MiB;

/** Calls `edit` for each entry of the L2 tables in `tables`; where it answers true, it has changed it. Returns how many
 *  it has changed. */
async function editEntries(
  scan: Scan,
  tables: ClusterCounts,
  edit: (view: DataView, position: number) => boolean,
): Promise<number> {
  const { io, form, ledger } = scan;
  const offsets = offsetsOf(tables, form.clusterSize);
  let changes = 0;
  await eachCluster(
    io,
    offsets,
    form.clusterSize,
    ({ index, memory, position }) => {
      const at = offsets[index]!;
      if (ledger.metadata.has(at)) return undefined;
      let changed = 0;
      const end = position + form.clusterSize;
      for (let entry = position; entry < end; entry += form.entryBytes) if (edit(memory.view, entry)) changed++;
      if (changed === 0) return undefined;
      changes += changed;
      return io.write(at, memory.bytes.subarray(position, end));
    },
    (_index, error) => {
      throw error;
    },
  );
  return changes;
}

/** Takes their misaligned places away from clusters without data. Returns how many there were. */
export async function mendEntries(scan: Scan): Promise<number> {
  const { form, io, tables } = scan;
  const changes = await editEntries(scan, tables, (view, position) => {
    if (!form.isMendable(view, position)) return false;
    form.mend(view, position);
    return true;
  });
  await io.child.flush();
  return changes;
}

/** Makes refcounts say what a scan has found; with 'leaks' only those that are too high. Each has its place. */
export async function fixRefcounts(target: CheckTarget, scan: Scan, fix: CheckFix): Promise<void> {
  const { refcounts, ledger, io } = scan;
  const { found, fileClusters } = ledger;
  const order = target.header.refcountOrder;
  await refcounts.eachBlock((block, view, position) => {
    const first = block * refcounts.perBlock;
    const count = Math.min(refcounts.perBlock, fileClusters - first);
    const base = (position * 8) / 2 ** order;
    let changed = false;
    for (let i = 0; i < count; i++) {
      const has = getRefcount(view, base + i, order);
      const wants = found.get(first + i);
      if (has === wants || (has < wants && fix === 'leaks')) continue;
      setRefcount(view, base + i, order, wants);
      changed = true;
    }
    return changed;
  });
  await io.child.flush();
}

/** Makes the COPIED flags of the active tables say what a scan has found, which the refcounts say too by now. Returns
 *  how many were wrong. */
export async function fixCopied(target: CheckTarget, scan: Scan): Promise<number> {
  const { l1Offset, l1Size } = target.header;
  const { io, ledger, form, activeTables } = scan;
  const edit = (view: DataView, position: number): boolean => {
    const high = view.getUint32(position);
    const host = hostOf(high, view.getUint32(position + 4));
    if (host === 0) return false;
    const copied = ledger.found.get(Math.floor(host / form.clusterSize)) === 1;
    if (copied === high >= EntryHigh.COPIED) return false;
    view.setUint32(position, copied ? (high | EntryHigh.COPIED) >>> 0 : high & ~EntryHigh.COPIED);
    return true;
  };
  const l1 = await io.read(l1Offset, l1Size * 8);
  const view = new DataView(l1.buffer);
  let changes = 0;
  for (let i = 0; i < l1Size; i++) if (edit(view, i * 8)) changes++;
  if (changes > 0) await io.write(l1Offset, l1);
  if (!form.flat) {
    changes += await editEntries(scan, activeTables, (table, position) => {
      return (table.getUint32(position) & EntryHigh.COMPRESSED) === 0 && edit(table, position);
    });
  }
  await io.child.flush();
  return changes;
}

/** Where what is written anew goes. Numbers of clusters. */
interface Room {
  readonly first: number;
  readonly snapshotClusters: number;
  /** Which blocks there are: those of clusters in use, ascending. */
  readonly blocks: readonly number[];
  readonly tableClusters: number;
}

/**
 * Writes the refcount table and its blocks anew, and the snapshot table where `withSnapshots` says so. `end` is behind
 * all clusters in use. Returns a scan whose counts are those of the image afterwards.
 */
export async function rebuild(target: CheckTarget, end: Offset, withSnapshots: boolean): Promise<Scan> {
  const { header, file } = target;
  const scan = await new Scan(target, { refcounts: false, snapshotTable: !withSnapshots }).run();
  if (scan.report.unread > 0) {
    throw new BlockError(Errno.EIO, `Could not repair the image: ${scan.report.messages[0]}`);
  }
  const { clusterSize, found } = scan.ledger;
  const snapshots = withSnapshots ? encodeSnapshotTable(scan.snapshots, header.size) : new Uint8Array(0);
  const room = plan(scan, end / clusterSize, Math.ceil(snapshots.length / clusterSize));
  const blocksAt = room.first + room.snapshotClusters;
  const tableAt = blocksAt + room.blocks.length;
  for (let cluster = room.first; cluster < tableAt + room.tableClusters; cluster++) found.add(cluster, 1);
  await scan.io.write(room.first * clusterSize, padded(snapshots, room.snapshotClusters * clusterSize));
  await writeBlocks(target, scan, room.blocks, blocksAt * clusterSize);
  const table = new Uint8Array(room.tableClusters * clusterSize);
  const view = new DataView(table.buffer);
  for (const [i, block] of room.blocks.entries()) encodeTableEntry(view, block * 8, (blocksAt + i) * clusterSize, 0);
  await scan.io.write(tableAt * clusterSize, table);
  await file.flush();
  await changeHeader(target, {
    refcountTableOffset: tableAt * clusterSize,
    refcountTableClusters: room.tableClusters,
    ...(withSnapshots
      ? {
          snapshotCount: scan.snapshots.length,
          snapshotsOffset: scan.snapshots.length > 0 ? room.first * clusterSize : 0,
        }
      : {}),
  });
  return scan;
}

/** The image is as it should be: whoever opens it may write. */
export async function markClean(target: CheckTarget): Promise<void> {
  const { incompatible } = target.header;
  const clean = incompatible & ~(Incompatible.DIRTY | Incompatible.CORRUPT);
  if (clean !== incompatible) await changeHeader(target, { incompatible: clean });
}

async function changeHeader(target: CheckTarget, changes: Partial<CheckTarget['header']>): Promise<void> {
  const { aio, file, header } = target;
  const before = { ...header };
  Object.assign(header, changes);
  try {
    await new MetadataIo(aio, file).write(0, encodeHeader(header));
    await file.flush();
  } catch (error) {
    Object.assign(header, before);
    throw error;
  }
}

function padded(bytes: Uint8Array, length: number): Uint8Array {
  const whole = new Uint8Array(length);
  whole.set(bytes);
  return whole;
}

/** EFBIG where the refcount table would be larger than the format's limit. */
function plan(scan: Scan, first: number, snapshotClusters: number): Room {
  const { perBlock } = scan.refcounts;
  const { clusterSize, found } = scan.ledger;
  const blocks: number[] = [];
  const cover = (cluster: number): void => {
    const block = Math.floor(cluster / perBlock);
    if (blocks.length === 0 || blocks.at(-1)! < block) blocks.push(block);
  };
  found.forEach(cover);
  let tableClusters = 1;
  let covered = first;
  for (;;) {
    const end = first + snapshotClusters + blocks.length + tableClusters;
    const needed = Math.ceil(((blocks.at(-1)! + 1) * 8) / clusterSize);
    if (needed * clusterSize > REFCOUNT_TABLE_BYTES_MAX) {
      const why = `its refcount table would have more than ${REFCOUNT_TABLE_BYTES_MAX} bytes`;
      throw new BlockError(Errno.EFBIG, `Could not repair the image: ${why}`);
    }
    if (covered === end && needed <= tableClusters) return { first, snapshotClusters, blocks, tableClusters };
    while (covered < end) cover(covered++);
    tableClusters = Math.max(tableClusters, needed);
  }
}

/** Blocks lie one behind the other from `at` on. */
async function writeBlocks(target: CheckTarget, scan: Scan, blocks: readonly number[], at: Offset): Promise<void> {
  const order = target.header.refcountOrder;
  const { perBlock } = scan.refcounts;
  const { clusterSize, found } = scan.ledger;
  const perPiece = Math.max(1, PIECE / clusterSize);
  for (let done = 0; done < blocks.length; done += perPiece) {
    const piece = blocks.slice(done, done + perPiece);
    const bytes = new Uint8Array(piece.length * clusterSize);
    const view = new DataView(bytes.buffer);
    for (const [i, block] of piece.entries()) {
      for (let entry = 0; entry < perBlock; entry++) {
        const count = found.get(block * perBlock + entry);
        if (count !== 0) setRefcount(view, i * perBlock + entry, order, count);
      }
    }
    await scan.io.write(at + done * clusterSize, bytes);
  }
}
