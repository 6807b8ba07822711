/** Changing the length of the disk. Control function: no request is in flight on what comes or goes. */
import { BlockError, Errno } from '../../base/errors.ts';
import { alignUp, type Bytes, MiB, type Offset, SECTOR } from '../../base/units.ts';
import type { Child } from '../../block/driver.ts';
import { L1_BYTES_MAX } from '../../proto/qcow2/constants.ts';
import type { Eraser } from './erase.ts';
import type { Image } from './image.ts';
import type { Writer } from './write.ts';

/** Preallocation goes in steps of this. */
const STEP = 64 * MiB;

interface Parts {
  readonly writer: Writer;
  readonly eraser: Eraser;
  /** See NodeControl.truncate. */
  readonly settle: () => Promise<void>;
}

export async function resize(
  image: Image,
  parts: Parts,
  length: Bytes,
  preallocation: 'off' | 'falloc' | 'full',
): Promise<void> {
  const { header } = image;
  image.assertUndamaged();
  if (length % SECTOR !== 0) throw refusal(Errno.EINVAL, `its length is a multiple of ${SECTOR} bytes, not ${length}`);
  if (header.version < 3 && image.snapshots.length > 0) {
    throw refusal(Errno.ENOTSUP, 'it is of version 2 and has snapshots, which do not say how long they are');
  }
  if (preallocation !== 'off' && image.cipher !== null && header.version < 3) {
    throw refusal(Errno.ENOTSUP, 'preallocation of an encrypted image needs version 3');
  }
  const old = image.size;
  if (length < old) await shrink(image, parts.eraser, length);
  else await grow(image, parts, length);
  if (length > old && preallocation !== 'off') await preallocate(image, parts, old, length);
}

/** The header has the new length once all that comes with it reads as zeroes, on stable storage: whatever a crash
 *  leaves behind the old end, nobody sees it. */
async function grow(image: Image, { eraser, settle }: Parts, length: Bytes): Promise<void> {
  const { geometry, dataFile, size: old } = image;
  const entries = Math.ceil(length / geometry.tableSpan);
  if (entries > image.header.l1Size) await growL1(image, entries);
  if (dataFile !== null && image.dataIsRaw) await clear(dataFile, old, length);
  if (dataFile !== null && dataFile.length < length) await dataFile.truncate(length);
  image.size = length;
  try {
    // A shrink that did not get to its end has left them.
    await eraser.unmap(alignUp(old, geometry.clusterSize), length);
    await settle();
    await image.sync.complete();
    await setSize(image, length);
  } catch (error) {
    image.size = old;
    throw error;
  }
}

/** Zeroes for whoever reads the data file without us, as a raw image. */
async function clear(dataFile: Child, from: Offset, to: Offset): Promise<void> {
  const there = Math.min(to, dataFile.length) - from;
  if (there > 0) await dataFile.writeZeroes(from, there);
}

/** A longer L1 table in new clusters; the header names it once it is on the disk. */
async function growL1(image: Image, entries: number): Promise<void> {
  const { header, geometry, refcounts, sync } = image;
  if (entries * 8 > L1_BYTES_MAX) {
    throw refusal(Errno.EFBIG, 'with its cluster size the L1 table would be larger than 32 MiB');
  }
  await sync.complete();
  const clusters = Math.ceil((entries * 8) / geometry.clusterSize);
  await image.file.point('l1_grow_alloc_table');
  const at = await refcounts.allocate(clusters);
  const tables = new Float64Array(entries);
  const owned = new Uint8Array(entries);
  tables.set(image.tables);
  owned.set(image.owned);
  const bytes = new Uint8Array(clusters * geometry.clusterSize);
  bytes.set(image.encodeL1(tables, owned));
  await image.file.point('l1_grow_write_table');
  await image.io.write(at, bytes);
  await sync.completeRefcounts();
  await image.file.point('l1_grow_activate_table');
  const old = { at: header.l1Offset, entries: header.l1Size };
  await image.changeHeader(() => {
    header.l1Offset = at;
    header.l1Size = entries;
  });
  image.tables = tables;
  image.owned = owned;
  image.metadata.add(at, clusters * geometry.clusterSize);
  if (old.entries === 0) return;
  const oldClusters = Math.ceil((old.entries * 8) / geometry.clusterSize);
  image.metadata.delete(old.at, oldClusters * geometry.clusterSize);
  refcounts.free(old.at, oldClusters, 'other');
}

/** The disk gets shorter first; what is behind its end then is nobody's. */
async function shrink(image: Image, eraser: Eraser, length: Bytes): Promise<void> {
  const { geometry, sync, refcounts, dataFile, size: old } = image;
  await setSize(image, length);
  await eraser.unmap(alignUp(length, geometry.clusterSize), alignUp(old, geometry.clusterSize));
  await sync.complete();
  const { tableSpan, clusterSize } = geometry;
  await image.file.point('l1_shrink_write_table');
  for (let index = Math.ceil(length / tableSpan); index < image.tables.length; index++) {
    const at = image.tables[index]!;
    if (at === 0) continue;
    sync.l1Changes(index);
    image.tables[index] = 0;
    image.owned[index] = 0;
    image.l2.forget(at, clusterSize);
    image.metadata.delete(at);
    refcounts.free(at, 1, 'other');
  }
  await image.file.point('l1_shrink_free_l2_clusters');
  await sync.completeRefcounts();
  await refcounts.trim();
  await dataFile?.truncate(length);
}

async function setSize(image: Image, length: Bytes): Promise<void> {
  await image.changeHeader(() => {
    image.header.size = length;
  });
  image.size = length;
}

/** Gives every cluster that begins in a range a place in the file that has its space. The one before it is left alone:
 *  it may be only below, and what would fill it up with zeroes would hide that. */
async function preallocate(image: Image, parts: Parts, from: Offset, to: Offset): Promise<void> {
  for (let at = alignUp(from, image.geometry.clusterSize); at < to; ) {
    await using room = await parts.writer.reserve(at, Math.min(STEP, to - at));
    await room.child.writeZeroes(room.at, room.length + room.tail);
    await room.commit();
    // Zeroes in the file do not decrypt to zeroes.
    if (image.cipher !== null) await parts.eraser.zero(at, room.length, 0);
    at += room.length;
  }
}

function refusal(errno: number, why: string): BlockError {
  return new BlockError(errno, `Could not resize the image: ${why}`);
}
