/** Opening an image: header, children, tables, keys; in this order, and nothing is written before all of it is read. */
import { BlockError, Errno } from '../../base/errors.ts';
import type { Bytes, Offset } from '../../base/units.ts';
import type { Child, OpenContext } from '../../block/driver.ts';
import { legacyAesCipher } from '../../codec/aes-legacy.ts';
import { luksCipher } from '../../codec/luks.ts';
import { BitmapFlags } from '../../proto/qcow2/bitmap-directory.ts';
import { Crypt, Incompatible } from '../../proto/qcow2/constants.ts';
import type { Qcow2Header } from '../../proto/qcow2/header.ts';
import { encryptionExtension } from '../../proto/qcow2/header-extensions.ts';
import { checkSnapshotL1, snapshotL1Fault } from '../../proto/qcow2/snapshot-table.ts';
import { type BitmapInFile, isDamage, readBitmaps } from './bitmap-read.ts';
import { Bitmaps } from './bitmaps.ts';
import { checkImage } from './check.ts';
import { CompressedClusters } from './compressed.ts';
import { Geometry, Image } from './image.ts';
import { MetadataIo, readHeader, readSnapshotTable } from './metadata-io.ts';
import { cacheSlots, type Qcow2Options, settingsOf, sliceSizeOf } from './options.ts';
import { MetadataMap } from './overlap.ts';
import { decodeRefcountTable } from './refcount-table.ts';
import { Refcounts } from './refcounts.ts';
import { Sync } from './sync.ts';
import { TableCache } from './table-cache.ts';

export async function openImage(context: OpenContext, options: Qcow2Options): Promise<Image> {
  const file = await context.openChild('file', 'primary');
  if (!file) throw refusal("option 'file' is missing");
  const header = await readHeader(new MetadataIo(context.aio, file));
  if ((header.incompatible & Incompatible.CORRUPT) !== 0 && !context.readOnly && !context.inactive) {
    throw refusal('it is marked corrupt: open it read-only, or repair it with a check', Errno.EACCES);
  }
  const dataFile = await openDataFile(context, header);
  const backing = await openBacking(context, header);
  const geometry = new Geometry(header, sliceSizeOf(options, 2 ** header.clusterBits));
  const settings = settingsOf(options, header, context.common.discard === 'unmap');
  const image = new Image(context, { file, dataFile, backing }, header, geometry, settings);
  await readTables(image, options);
  await unlock(image, options);
  if (context.inactive) return image;
  // Last: an image that is refused was not written to.
  if (image.has(Incompatible.DIRTY) && !context.readOnly) await repair(image);
  await image.bitmaps?.writable();
  return image;
}

async function openDataFile(context: OpenContext, header: Qcow2Header): Promise<Child | null> {
  const wanted = (header.incompatible & Incompatible.DATA_FILE) !== 0;
  const dataFile = await context.openChild('data-file', 'data');
  if (wanted && !dataFile) throw refusal("its data is in another file: option 'data-file' is missing");
  if (!wanted && dataFile) throw refusal("option 'data-file' is given, and the image has no external data file");
  return dataFile ?? null;
}

/** Only what the options name is opened. null says that nothing is to be. */
async function openBacking(context: OpenContext, header: Qcow2Header): Promise<Child | null> {
  const backing = await context.openChild('backing', 'cow');
  const given = (context.common as unknown as Readonly<Record<string, unknown>>).backing;
  if (header.backingFile !== undefined && given === undefined) {
    throw refusal(`it has a backing file ('${header.backingFile}'): option 'backing' is missing (null: without it)`);
  }
  return backing ?? null;
}

/** Refcounts may be wrong: whoever wrote the image last did not get to its end. */
async function repair(image: Image): Promise<void> {
  const result = await checkImage(image, 'all');
  const left = result.corruptions + result.checkErrors;
  if (left > 0) throw refusal(`it was not closed cleanly, and ${left} errors could not be repaired`, Errno.EIO);
  await image.mark(Incompatible.DIRTY, false);
  await reread(image);
}

/** Reads L1, refcount table and snapshot table, and sets up what works on them. */
async function readTables(image: Image, options: Qcow2Options): Promise<void> {
  const { header, geometry, aio, file } = image;
  const { clusterSize } = geometry;
  image.snapshots = await readSnapshots(image);
  const shown = await chooseL1(image, options.snapshot);
  const slots = cacheSlots(options, shown.size, geometry);
  const slice = { aio, file, sliceSize: geometry.sliceSize, sync: () => image.sync.run() };
  const points = { load: 'l2_load', write: 'l2_update' } as const;
  image.l2 = new TableCache({ ...slice, slots: slots.l2, points });
  image.sync = new Sync(image);
  image.metadata = new MetadataMap(clusterSize, !image.readOnly && options['overlap-check'] !== 'none');
  image.compressed = new CompressedClusters({ aio, file, clusterSize, type: header.compressionType });
  // Those of a snapshot's disk are not kept.
  if (options.snapshot === undefined) image.bitmaps = await openBitmaps(image);
  await readRefcounts(image, slots.refcounts);
}

/** Who only reads the disk can do without bitmaps: where they are damaged there are none, and whoever asks is told. */
async function openBitmaps(image: Image): Promise<Bitmaps> {
  try {
    return new Bitmaps(image, await readBitmaps(image.io, image.header));
  } catch (error) {
    if (!image.readOnly || !isDamage(error)) throw error;
    return new Bitmaps(image, [], error.message);
  }
}

/** Reads the refcount table, and notes all metadata. `slots`: of the cache. */
async function readRefcounts(image: Image, slots: number): Promise<void> {
  image.refcounts = new Refcounts(image, await readRefcountTable(image), slots);
  noteMetadata(image);
}

/** Forgets what is cached, and takes everything from the disk again: it was repaired. No request may be in flight. */
export async function reread(image: Image): Promise<void> {
  const { header, io } = image;
  image.l2.reset();
  image.compressed.forget(0, Number.POSITIVE_INFINITY);
  image.sync = new Sync(image);
  image.snapshots = await readSnapshots(image);
  const bytes = await io.read(header.l1Offset, header.l1Size * 8);
  image.setL1(new DataView(bytes.buffer), header.l1Size);
  await readRefcounts(image, image.refcounts.cache.slots);
}

/**
 * {@link reread}, and the header and bitmaps too: the image was open for a while in another thread, which has given it
 * back. What that one wrote last may never have reached the disk, and then nobody tells of it again (L6): what it can
 * have changed, which is the header and the marks of bitmaps in use, is written once more. `anew`: the other one was
 * another process, and it is as if the image were opened now.
 */
export async function reopen(image: Image, anew: boolean): Promise<void> {
  const { header, io, file } = image;
  // What a header need not have must go as well.
  const gone = Object.fromEntries(Object.keys(header).map((name) => [name, undefined]));
  Object.assign(header, gone, await readHeader(io));
  if (image.bitmaps !== null) {
    const known = anew ? [] : image.bitmaps.stored;
    const ours = new Set(known.filter(({ inconsistent }) => !inconsistent).map(({ name }) => name));
    const found = await readBitmaps(io, header);
    image.bitmaps = new Bitmaps(
      image,
      found.map((bitmap) => (ours.has(bitmap.entry.name) ? unmarked(bitmap) : bitmap)),
    );
  }
  image.size = header.size;
  await reread(image);
  const { snapshot } = image.context.common as { readonly snapshot?: string };
  // It is of the snapshot again, as it is by now.
  if (snapshot !== undefined) await chooseL1(image, snapshot);
  if (image.readOnly) return;
  if (anew) {
    if (image.has(Incompatible.CORRUPT)) throw refusal('it is marked corrupt: repair it with a check', Errno.EACCES);
    if (image.has(Incompatible.DIRTY)) await repair(image);
    return;
  }
  image.headerUnsure = true;
  await image.rewriteHeader();
  await file.flush();
}

/** One whose mark is of our own other half: it holds what it should. */
function unmarked(bitmap: BitmapInFile): BitmapInFile {
  bitmap.entry.flags &= ~BitmapFlags.IN_USE;
  return { ...bitmap, unusable: false };
}

/** Who only reads does not count: for such a one the table is empty. */
async function readRefcountTable(image: Image): Promise<Float64Array> {
  const { header, geometry, io } = image;
  if (image.readOnly) return new Float64Array(0);
  await image.file.point('reftable_load');
  const bytes = await io.read(header.refcountTableOffset, header.refcountTableClusters * geometry.clusterSize);
  const { table, invalid } = decodeRefcountTable(new DataView(bytes.buffer), geometry.clusterSize);
  if (invalid) image.suspect(`refcount table entry ${invalid.index} is invalid: ${invalid.value}`, 0);
  return table;
}

/** Everything that guest data must never be written over. Where two structures are in one place, nothing is safe. */
export function noteMetadata(image: Image): void {
  const { metadata } = image;
  if (!metadata.enabled) return;
  metadata.clear();
  // Tables of many clusters first: then each cluster that is added needs one look only.
  eachStructure(image, (_what, at, length) => {
    if (length > image.geometry.clusterSize) metadata.add(at, length);
  });
  const twice = metadata.overlap();
  if (twice >= 0) image.suspect(`two tables of metadata overlap at ${twice}`, twice);
  eachStructure(image, (what, at, length, which) => {
    if (length > image.geometry.clusterSize) return;
    if (metadata.has(at)) {
      const name = which === undefined ? what : `${what} ${which}`;
      image.suspect(`${name} is at ${at}, where other metadata is`, at);
    }
    metadata.add(at);
  });
}

/** `which`: of several. No text is made of them before it is needed: there may be millions. */
type VisitStructure = (what: string, at: Offset, length: Bytes, which?: number | string) => void;

function eachStructure(image: Image, visit: VisitStructure): void {
  const { header, geometry, tables, snapshots } = image;
  const { clusterSize } = geometry;
  const { table } = image.refcounts;
  visit('the header', 0, clusterSize);
  visit('the refcount table', header.refcountTableOffset, header.refcountTableClusters * clusterSize);
  if (header.snapshotCount > 0) visit('the snapshot table', header.snapshotsOffset, image.snapshotTableBytes);
  if (header.l1Size > 0) visit('the L1 table', header.l1Offset, header.l1Size * 8);
  const keys = encryptionExtension(header);
  if (keys) visit('the encryption header', keys.offset, keys.length);
  for (const entry of snapshots) {
    // One that cannot be used is no table.
    if (entry.l1Size === 0 || snapshotL1Fault(entry, clusterSize) !== undefined) continue;
    visit('the L1 table of snapshot', entry.l1Offset, entry.l1Size * 8, entry.id);
  }
  for (let i = 0; i < table.length; i++) if (table[i]! > 0) visit('refcount block', table[i]!, clusterSize, i);
  for (let i = 0; i < tables.length; i++) if (tables[i]! > 0) visit('L2 table', tables[i]!, clusterSize, i);
  image.bitmaps?.each(visit);
}

export async function readSnapshots(image: Image): Promise<Image['snapshots']> {
  const { header, io } = image;
  if (header.snapshotCount === 0) return [];
  const table = await readSnapshotTable(io, header);
  image.snapshotTableBytes = table.length;
  return table.entries;
}

/** The L1 table of the disk, or of the snapshot that is to be shown; the size of that disk. */
async function chooseL1(image: Image, snapshot: string | undefined): Promise<{ readonly size: Bytes }> {
  const { header, io, context } = image;
  let [at, entries, size] = [header.l1Offset, header.l1Size, header.size];
  if (snapshot !== undefined) {
    if (!context.readOnly) throw refusal('a snapshot can be opened read-only only');
    const entry =
      image.snapshots.find(({ id }) => id === snapshot) ?? image.snapshots.find(({ name }) => name === snapshot);
    if (!entry) throw refusal(`it has no snapshot '${snapshot}'`, Errno.ENOENT);
    checkSnapshotL1(entry, image.geometry.clusterSize);
    [at, entries, size] = [entry.l1Offset, entry.l1Size, entry.diskSize ?? header.size];
    if (entries * image.geometry.tableSpan < size) {
      throw refusal(`the L1 table of snapshot '${snapshot}' is too small for its disk`, Errno.EIO);
    }
    image.size = size;
  }
  const bytes = await io.read(at, entries * 8);
  image.setL1(new DataView(bytes.buffer), entries);
  return { size };
}

async function unlock(image: Image, options: Qcow2Options): Promise<void> {
  const { header, io } = image;
  const is = header.cryptMethod === Crypt.NONE ? 'none' : header.cryptMethod === Crypt.AES ? 'aes' : 'luks';
  const wanted = options['encrypt.format'];
  if (wanted !== undefined && wanted !== is) throw refusal(`'encrypt.format' is ${wanted}, and its encryption ${is}`);
  if (is === 'none') return;
  const key = options['encrypt.key'];
  if (key === undefined) throw refusal("it is encrypted: option 'encrypt.key' is missing", Errno.EACCES);
  const passphrase = new TextEncoder().encode(key);
  if (is === 'aes') {
    if (!image.readOnly)
      throw refusal('its encryption is of the old AES kind, which is for reading only', Errno.ENOTSUP);
    image.cipher = legacyAesCipher(passphrase);
    return;
  }
  const place = encryptionExtension(header);
  if (!place) throw refusal('it is encrypted, and the header extension that says where the keys are is missing');
  const read = (at: number, length: Bytes): Promise<Uint8Array> => io.read(place.offset + at, length);
  image.cipher = await luksCipher(read, place.length, passphrase);
}

function refusal(why: string, errno: number = Errno.EINVAL): BlockError {
  return new BlockError(errno, `Could not open the image: ${why}`);
}
