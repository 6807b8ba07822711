/**
 * Making images. Everything but the header goes to the disk first, and is flushed: a crash on the way leaves no file
 * that opens as half an image.
 */
import type { AioContext } from '../../aio/context.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { alignUp, type Bytes, MiB, type Offset } from '../../base/units.ts';
import { type Child, type CreateContext, RequestFlags } from '../../block/driver.ts';
import { createLuks } from '../../codec/luks.ts';
import { setU64 } from '../../proto/nbd/words.ts';
import { Autoclear, Compatible, Crypt, EntryLow, ExtensionType, Incompatible } from '../../proto/qcow2/constants.ts';
import { defaultFeatureNames } from '../../proto/qcow2/features.ts';
import { encodeHeader, type Qcow2Header } from '../../proto/qcow2/header.ts';
import { setExtension } from '../../proto/qcow2/header-extensions.ts';
import { setRefcount } from '../../proto/qcow2/refcount-block.ts';
import { encodeName } from '../../proto/qcow2/text.ts';
import { type CreatePlan, type Preallocation, planOf, type Qcow2CreateOptions } from './create-options.ts';
import { encodeTableEntry } from './image.ts';
import { type ImageLayout, imageLayout } from './layout.ts';
import { kernelBytes, MetadataIo } from './metadata-io.ts';

/** Tables are written in pieces of this: memory does not grow with the image. */
const PIECE = MiB;
/** Names of features are for messages only: a smaller cluster is left to the names of files. */
const FEATURE_NAMES_CLUSTER_MIN = 4096;
const ALL_SUBCLUSTERS = 0xffff_ffff;

/** Options as `createOptions` has them, checked against it. */
export async function createImage(context: CreateContext, options: Readonly<Record<string, unknown>>): Promise<void> {
  const plan = planOf(options as unknown as Qcow2CreateOptions);
  if ((plan.dataFile === undefined) !== (context.dataFile === undefined)) {
    throw new BlockError(
      Errno.EINVAL,
      "Could not create the image: an open data file and 'data-file', its name, need each other",
    );
  }
  const keys = await keysOf(plan, options as unknown as Qcow2CreateOptions);
  const layout = imageLayout({
    ...plan,
    keyBytes: keys.length,
    preallocated: plan.preallocation !== 'off',
    externalData: plan.dataFile !== undefined,
  });
  const header = encodeHeader(headerOf(plan, layout, keys.length));
  await writeFiles(context, plan, layout, keys);
  await new MetadataIo(context.aio, context.file).write(0, header);
  await context.file.flush();
}

/** The LUKS header with its key material; empty where nothing is encrypted. */
async function keysOf(plan: CreatePlan, options: Qcow2CreateOptions): Promise<Uint8Array> {
  if (plan.passphrase === undefined) return new Uint8Array(0);
  const luks = await createLuks(
    {
      cipher: options['encrypt.cipher-alg'],
      mode: options['encrypt.cipher-mode'],
      ivgen: options['encrypt.ivgen-alg'],
      ivgenHash: options['encrypt.ivgen-hash-alg'],
      hash: options['encrypt.hash-alg'],
      iterTime: options['encrypt.iter-time'],
    },
    new TextEncoder().encode(plan.passphrase),
  );
  return luks.bytes;
}

function headerOf(plan: CreatePlan, layout: ImageLayout, keyBytes: Bytes): Qcow2Header {
  const header: Qcow2Header = {
    version: plan.version,
    clusterBits: Math.log2(plan.clusterSize),
    size: plan.size,
    cryptMethod: keyBytes > 0 ? Crypt.LUKS : Crypt.NONE,
    l1Size: layout.l1Size,
    l1Offset: layout.l1Size > 0 ? layout.l1At : 0,
    refcountTableOffset: layout.tableAt,
    refcountTableClusters: layout.tableClusters,
    snapshotCount: 0,
    snapshotsOffset: 0,
    incompatible:
      (plan.dataFile === undefined ? 0 : Incompatible.DATA_FILE) |
      (plan.compressionType === 0 ? 0 : Incompatible.COMPRESSION) |
      (plan.extendedL2 ? Incompatible.EXTENDED_L2 : 0),
    // The header keeps all 64 bits of these fields, as bigints.
    compatible: BigInt(plan.lazyRefcounts ? Compatible.LAZY_REFCOUNTS : 0),
    autoclear: BigInt(plan.dataFileRaw ? Autoclear.DATA_FILE_RAW : 0),
    refcountOrder: Math.log2(plan.refcountBits),
    compressionType: plan.compressionType,
    unknown: new Uint8Array(0),
    extensions: [],
    backingFile: plan.backingFile,
  };
  if (plan.backingFormat !== undefined) {
    setExtension(header, ExtensionType.BACKING_FORMAT, encodeName(plan.backingFormat));
  }
  if (plan.dataFile !== undefined) setExtension(header, ExtensionType.DATA_FILE, encodeName(plan.dataFile));
  if (keyBytes > 0) {
    const place = new Uint8Array(16);
    const view = new DataView(place.buffer);
    setU64(view, 0, layout.keysAt);
    setU64(view, 8, keyBytes);
    setExtension(header, ExtensionType.ENCRYPTION, place);
  }
  if (plan.version === 3 && plan.clusterSize >= FEATURE_NAMES_CLUSTER_MIN) {
    setExtension(header, ExtensionType.FEATURE_NAMES, defaultFeatureNames());
  }
  return header;
}

/** All but the header, on stable storage. */
async function writeFiles(
  context: CreateContext,
  plan: CreatePlan,
  layout: ImageLayout,
  keys: Uint8Array,
): Promise<void> {
  const { file, dataFile } = context;
  if (dataFile) {
    await provide(dataFile, await empty(dataFile, plan.size), 0, plan.size, plan.preallocation);
    await dataFile.flush();
  }
  const unit = file.limits.alignment;
  const end = alignUp(layout.end, unit);
  const emptied = await empty(file, end);
  if (emptied) await file.truncate(alignUp(layout.dataAt, unit));
  else {
    // What was there before must not open once its tables are gone.
    await file.writeZeroes(0, plan.clusterSize);
    await file.flush();
  }
  await writeTables(context, plan, layout);
  const io = new MetadataIo(context.aio, file);
  for (let at = 0; at < keys.length; at += PIECE) await io.write(layout.keysAt + at, keys.subarray(at, at + PIECE));
  await provide(file, emptied, layout.dataAt, end, plan.preallocation);
  await file.flush();
}

/** Takes everything out of a child; false for one that cannot be resized, such as a device. ENOSPC where such a one
 *  does not have the bytes needed. */
async function empty(child: Child, needed: Bytes): Promise<boolean> {
  try {
    const used = child.length > 0;
    await child.truncate(0);
    // What was there before must not open once the new tables are written over it.
    if (used) await child.flush();
    return true;
  } catch (error) {
    if (!(error instanceof BlockError) || error.errno !== Errno.ENOTSUP) throw error;
  }
  if (child.length >= needed) return false;
  const has = `node '${child.nodeName}' has ${child.length} and cannot be resized`;
  throw new BlockError(Errno.ENOSPC, `Could not create the image: it needs ${needed} bytes, and ${has}`);
}

/** Makes a child as long as `end`, and `from`..`end` of it zeroes. */
async function provide(child: Child, emptied: boolean, from: Offset, end: Offset, mode: Preallocation): Promise<void> {
  const backed = mode === 'falloc' || mode === 'full';
  if (emptied) await child.truncate(end, backed ? mode : 'off');
  else if (end > from) await child.writeZeroes(from, end - from, backed ? 0 : RequestFlags.MAY_UNMAP);
}

async function writeTables(context: CreateContext, plan: CreatePlan, layout: ImageLayout): Promise<void> {
  const { aio, file } = context;
  const { clusterSize, refcountBits } = plan;
  const order = Math.log2(refcountBits);
  const { tableAt, tableClusters, blocksAt, blocks, l1At, l1Clusters, l2At, l2Tables } = layout;
  const table = { at: tableAt, length: tableClusters * clusterSize, entryBits: 64, entries: blocks };
  await writeTable(aio, file, table, (view, slot, index) => {
    encodeTableEntry(view, slot * 8, blocksAt + index * clusterSize, 0);
  });
  const counts = { at: blocksAt, length: blocks * clusterSize, entryBits: refcountBits, entries: layout.clusters };
  await writeTable(aio, file, counts, (view, slot) => setRefcount(view, slot, order, 1));
  if (l2Tables > 0) {
    const l1 = { at: l1At, length: l1Clusters * clusterSize, entryBits: 64, entries: l2Tables };
    await writeTable(aio, file, l1, (view, slot, index) => {
      encodeTableEntry(view, slot * 8, l2At + index * clusterSize, 1);
    });
    await writeL2(aio, file, plan, layout);
  } else if (l1Clusters > 0) await file.writeZeroes(l1At, l1Clusters * clusterSize, RequestFlags.MAY_UNMAP);
}

/** L2 tables lie one behind the other: entry n of all of them is cluster n of the disk. */
async function writeL2(aio: AioContext, file: Child, plan: CreatePlan, layout: ImageLayout): Promise<void> {
  const { clusterSize, extendedL2 } = plan;
  const entryBytes = extendedL2 ? 16 : 8;
  const encrypted = plan.passphrase !== undefined;
  // New clusters read as what is below, or as zeroes; and the zeroes of a file do not decrypt to zeroes.
  const allocated = encrypted || plan.backingFile !== undefined ? 0 : ALL_SUBCLUSTERS;
  const flags = encrypted && !extendedL2 ? EntryLow.ZERO : 0;
  const first = (plan.dataFile === undefined ? layout.dataAt : 0) + flags;
  const entries = Math.ceil(plan.size / clusterSize);
  const tables = { at: layout.l2At, length: layout.l2Tables * clusterSize, entryBits: entryBytes * 8, entries };
  await writeTable(aio, file, tables, (view, slot, index) => {
    const at = slot * entryBytes;
    encodeTableEntry(view, at, first + index * clusterSize, 1);
    if (extendedL2) view.setUint32(at + 12, allocated);
  });
}

interface TablePlace {
  readonly at: Offset;
  readonly length: Bytes;
  readonly entryBits: number;
  /** Those that are set; zeroes follow. */
  readonly entries: number;
}

/** Writes a table piece by piece. `set` fills entry `index` of the table, which is number `slot` of the piece. */
async function writeTable(
  aio: AioContext,
  child: Child,
  table: TablePlace,
  set: (view: DataView, slot: number, index: number) => void,
): Promise<void> {
  const memory = aio.backend.memory(kernelBytes(Math.min(PIECE, table.length)));
  for (let done = 0; done < table.length; done += PIECE) {
    const length = Math.min(PIECE, table.length - done);
    const first = (done * 8) / table.entryBits;
    const count = Math.min((length * 8) / table.entryBits, table.entries - first);
    memory.bytes.fill(0);
    for (let slot = 0; slot < count; slot++) set(memory.view, slot, first + slot);
    await child.write(table.at + done, Iov.of(memory, 0, length));
  }
}
