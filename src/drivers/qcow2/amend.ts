/** Changing what can be changed of an image that is there. Control function, on a drained node. */
import { BlockError, Errno } from '../../base/errors.ts';
import { alignUp, type Bytes, type Offset } from '../../base/units.ts';
import { Compatible, ExtensionType, Incompatible, REFCOUNT_TABLE_BYTES_MAX } from '../../proto/qcow2/constants.ts';
import { defaultFeatureNames } from '../../proto/qcow2/features.ts';
import { setExtension } from '../../proto/qcow2/header-extensions.ts';
import { refcountMax, setRefcount } from '../../proto/qcow2/refcount-block.ts';
import { Kind, kindOf } from './entries.ts';
import { encodeTableEntry, type Image } from './image.ts';
import { refcountClusters } from './layout.ts';
import { noteMetadata } from './open.ts';
import { Refcounts } from './refcounts.ts';
import { freeEntry } from './tables.ts';
import type { Writer } from './write.ts';

export const AMENDABLE = ['compat', 'lazy-refcounts', 'refcount-bits', 'backing-file', 'backing-fmt'] as const;
const V2_REFCOUNT_ORDER = 4;

/** The new values, by the names of the creation options. EINVAL for what cannot be, before anything has changed. */
export async function amend(image: Image, writer: Writer, changes: Readonly<Record<string, unknown>>): Promise<void> {
  image.assertUndamaged();
  if (image.readOnly) throw refusal('it is open read-only', Errno.EPERM);
  const unknown = Object.keys(changes).find((name) => !(AMENDABLE as readonly string[]).includes(name));
  if (unknown !== undefined) throw refusal(`'${unknown}' cannot be changed (only ${AMENDABLE.join(', ')})`);
  await image.sync.completeRefcounts();
  await image.mark(Incompatible.DIRTY, false);
  const version = versionOf(changes.compat, image.header.version);
  const order = orderOf(changes['refcount-bits'], image.header.refcountOrder);
  // Version 2 has no bit for them.
  const lazy = (changes['lazy-refcounts'] as boolean | undefined) ?? (version === 3 && isLazy(image));
  assertPossible(image, version, order, lazy);
  if (version === 3 && image.header.version === 2) await upgrade(image);
  if (order !== image.header.refcountOrder) await changeRefcounts(image, order);
  if (lazy !== isLazy(image)) await image.changeHeader(() => setLazy(image, lazy));
  if ('backing-file' in changes || 'backing-fmt' in changes) await image.changeHeader(() => setBacking(image, changes));
  if (version === 2 && image.header.version === 3) await downgrade(image, writer);
}

function versionOf(compat: unknown, now: 2 | 3): 2 | 3 {
  if (compat === undefined) return now;
  if (compat === '0.10' || compat === 'v2') return 2;
  if (compat === '1.1' || compat === 'v3') return 3;
  throw refusal(`compat is '${compat}', not 0.10 or 1.1`);
}

function orderOf(bits: unknown, now: number): number {
  if (bits === undefined) return now;
  const order = Math.log2(bits as number);
  if (!Number.isInteger(order) || order < 0 || order > 6)
    throw refusal(`refcount-bits is ${bits}, not a power of two up to 64`);
  return order;
}

function isLazy(image: Image): boolean {
  return (image.header.compatible & BigInt(Compatible.LAZY_REFCOUNTS)) !== 0n;
}

function assertPossible(image: Image, version: 2 | 3, order: number, lazy: boolean): void {
  const { header } = image;
  if (order === 0 && image.snapshots.length > 0) throw refusal('snapshots need refcounts of more than 1 bit');
  if (version === 3) return;
  if (lazy) throw refusal('lazy refcounts need compat 1.1');
  if (order !== V2_REFCOUNT_ORDER) throw refusal('compat 0.10 has refcounts of 16 bits');
  if (header.incompatible !== 0) {
    const features = `incompatible_features is 0x${header.incompatible.toString(16)}`;
    throw refusal(`it uses features that compat 0.10 does not have (${features})`);
  }
  if (header.autoclear !== 0n) throw refusal('it has persistent bitmaps, which compat 0.10 does not have');
  if (image.snapshots.length > 0 && header.version === 3) {
    throw refusal('it has snapshots, which may use zero clusters; delete them first', Errno.ENOTSUP);
  }
}

async function upgrade(image: Image): Promise<void> {
  await image.changeHeader(() => {
    image.header.version = 3;
    setExtension(image.header, ExtensionType.FEATURE_NAMES, defaultFeatureNames());
  });
}

function setLazy(image: Image, lazy: boolean): void {
  const bit = BigInt(Compatible.LAZY_REFCOUNTS);
  image.header.compatible = lazy ? image.header.compatible | bit : image.header.compatible & ~bit;
  image.settings.lazyRefcounts = lazy;
}

/** What the image names; nothing is opened. */
function setBacking(image: Image, changes: Readonly<Record<string, unknown>>): void {
  const { header } = image;
  if ('backing-file' in changes) header.backingFile = (changes['backing-file'] as string | null) || undefined;
  const format = (changes['backing-fmt'] as string | null | undefined) || undefined;
  if ('backing-fmt' in changes || header.backingFile === undefined) {
    const bytes = format === undefined ? undefined : new TextEncoder().encode(format);
    setExtension(header, ExtensionType.BACKING_FORMAT, header.backingFile === undefined ? undefined : bytes);
  }
}

/** Zero clusters become what version 2 can say: nothing where nothing is below, zeroes in the file elsewhere. */
async function downgrade(image: Image, writer: Writer): Promise<void> {
  const { clusterSize, tableSpan } = image.geometry;
  for (let index = 0; index < image.tables.length; index++) {
    for (let at = index * tableSpan; at < Math.min((index + 1) * tableSpan, image.size); at += clusterSize) {
      if (image.tables[index] === 0) break;
      await expandZero(image, writer, at);
    }
  }
  await image.sync.completeRefcounts();
  await image.changeHeader(() => {
    image.header.version = 2;
    image.header.compatible = 0n;
    setExtension(image.header, ExtensionType.FEATURE_NAMES, undefined);
  });
}

async function expandZero(image: Image, writer: Writer, at: Offset): Promise<void> {
  const { clusterSize } = image.geometry;
  let place = writer.ready(at / clusterSize);
  while (place === undefined) {
    await writer.prepare(at / clusterSize);
    place = writer.ready(at / clusterSize);
  }
  const { slot, position } = place;
  const { view } = image.l2;
  const high = view.getUint32(position);
  const low = view.getUint32(position + 4);
  if (kindOf(high, low, clusterSize - 1, true, false) !== Kind.ZERO) return;
  if (image.backing === null || at >= image.backing.length) {
    image.l2.modify(slot);
    freeEntry(image, high, low, 'other');
    view.setUint32(position, 0);
    view.setUint32(position + 4, 0);
    return;
  }
  const length: Bytes = Math.min(clusterSize, image.size - at);
  await using room = await writer.reserve(at, length);
  const whole = room.length + room.tail;
  await room.child.writeZeroes(room.at, whole);
  await room.commit();
}

/** Refcounts of another width: a new table and new blocks behind everything else, named by one write of the header. */
async function changeRefcounts(image: Image, order: number): Promise<void> {
  const { header, geometry, refcounts, io } = image;
  const { clusterSize } = geometry;
  const first = Math.ceil(refcounts.end / clusterSize);
  const { blocks, tableClusters } = refcountClusters(first, clusterSize, 2 ** order);
  if (tableClusters * clusterSize > REFCOUNT_TABLE_BYTES_MAX)
    throw refusal('the refcount table would be too large', Errno.EFBIG);
  const perBlock = (clusterSize * 8) / 2 ** order;
  const end = first + blocks + tableClusters;
  const table = new Float64Array((tableClusters * clusterSize) / 8);
  refcounts.use(end);
  for (let block = 0; block < blocks; block++) {
    const bytes = new Uint8Array(clusterSize);
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < perBlock && block * perBlock + i < end; i++) {
      const cluster = block * perBlock + i;
      const count = cluster >= first ? 1 : await refcounts.countOrZero(cluster * clusterSize);
      if (count > refcountMax(order)) {
        throw refusal(
          `the cluster at ${cluster * clusterSize} has a refcount of ${count}: too much for ${2 ** order} bits`,
          Errno.ERANGE,
        );
      }
      setRefcount(view, i, order, count);
    }
    table[block] = (first + block) * clusterSize;
    await io.write(table[block]!, bytes);
  }
  const bytes = new Uint8Array(tableClusters * clusterSize);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < blocks; i++) encodeTableEntry(view, i * 8, table[i]!, 0);
  await io.write((first + blocks) * clusterSize, bytes);
  await image.file.truncate(alignUp(Math.max(end * clusterSize, image.file.length), clusterSize));
  await image.file.flush();
  const old = { at: header.refcountTableOffset, clusters: header.refcountTableClusters, blocks: refcounts.table };
  await image.changeHeader(() => {
    header.refcountOrder = order;
    header.refcountTableOffset = (first + blocks) * clusterSize;
    header.refcountTableClusters = tableClusters;
  });
  image.refcounts = new Refcounts(image, table, refcounts.cache.slots);
  noteMetadata(image);
  image.refcounts.free(old.at, old.clusters, 'other');
  for (const at of old.blocks) if (at !== 0) image.refcounts.free(at, 1, 'other');
  await image.sync.completeRefcounts();
}

function refusal(why: string, errno: number = Errno.EINVAL): BlockError {
  return new BlockError(errno, `Could not amend the image: ${why}`);
}
