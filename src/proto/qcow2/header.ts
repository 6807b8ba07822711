/** The header of an image (specification: "Header"). Its extensions are in header-extensions.ts. */
import { BlockError, Errno } from '../../base/errors.ts';
import { alignUp, type Bytes, type Offset, SECTOR } from '../../base/units.ts';
import { getU64, setU64 } from '../nbd/words.ts';
import {
  Autoclear,
  BACKING_NAME_MAX,
  CLUSTER_BITS_MAX,
  CLUSTER_BITS_MIN,
  Crypt,
  EXTENDED_CLUSTER_BITS_MIN,
  FULL_HEADER_LENGTH,
  Incompatible,
  L1_BYTES_MAX,
  QCOW2_MAGIC,
  REFCOUNT_ORDER_MAX,
  REFCOUNT_TABLE_BYTES_MAX,
  SNAPSHOT_TABLE_BYTES_MAX,
  SNAPSHOTS_MAX,
  V2_HEADER_LENGTH,
  V3_HEADER_LENGTH,
} from './constants.ts';
import { featureName } from './features.ts';
import { checkExtensions, extensionsLength, joinExtensions, splitExtensions } from './header-extensions.ts';
import { decodeName, encodeName } from './text.ts';

/** An extension as it is on the disk; data without padding. Unknown ones are preserved. */
export interface HeaderExtension {
  readonly type: number;
  readonly data: Uint8Array;
}

/** Changed in place by who holds the image, and written back whole. */
export interface Qcow2Header {
  version: 2 | 3;
  clusterBits: number;
  /** Of the guest's disk. */
  size: Bytes;
  /** Crypt. */
  cryptMethod: number;
  l1Size: number;
  l1Offset: Offset;
  refcountTableOffset: Offset;
  refcountTableClusters: number;
  snapshotCount: number;
  snapshotsOffset: Offset;
  /** Incompatible bits; 0 in version 2. */
  incompatible: number;
  /** 64 bits each; unknown ones are preserved here, and 0 in version 2. */
  compatible: bigint;
  autoclear: bigint;
  /** Log2 of the bits of a refcount; 4 in version 2. */
  refcountOrder: number;
  /** 0 deflate, 1 zstd. */
  compressionType: 0 | 1;
  /** Bytes of the header beyond those that we know: preserved. */
  readonly unknown: Uint8Array;
  /** In the order of the disk, without the end. */
  extensions: HeaderExtension[];
  backingFile: string | undefined;
  /** Where its name is, if that is further on than right behind the extensions; it stays there while it fits. */
  backingFileAt?: Offset | undefined;
}

/** Where fields are. */
const At = {
  MAGIC: 0,
  VERSION: 4,
  BACKING_OFFSET: 8,
  BACKING_SIZE: 16,
  CLUSTER_BITS: 20,
  SIZE: 24,
  CRYPT: 32,
  L1_SIZE: 36,
  L1_OFFSET: 40,
  REFCOUNT_TABLE_OFFSET: 48,
  REFCOUNT_TABLE_CLUSTERS: 56,
  SNAPSHOT_COUNT: 60,
  SNAPSHOTS_OFFSET: 64,
  INCOMPATIBLE: 72,
  COMPATIBLE: 80,
  AUTOCLEAR: 88,
  REFCOUNT_ORDER: 96,
  HEADER_LENGTH: 100,
  COMPRESSION_TYPE: 104,
} as const;

/** All that `clusterSizeOf` looks at. */
const HEAD_LENGTH = 24;
const V2_REFCOUNT_ORDER = 4;

function refuse(why: string, errno: number = Errno.EINVAL): never {
  throw new BlockError(errno, `Could not open the image: ${why}`);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** The cluster size, from the first 24 bytes of a file or more. EINVAL where it is no qcow2 image, ENOTSUP for a
 *  version other than 2 and 3. */
export function clusterSizeOf(head: Uint8Array): Bytes {
  const view = viewOf(head);
  if (head.length < HEAD_LENGTH || view.getUint32(At.MAGIC) !== QCOW2_MAGIC) refuse('it is not in qcow2 format');
  const version = view.getUint32(At.VERSION);
  if (version !== 2 && version !== 3) refuse(`qcow2 version ${version} is not supported`, Errno.ENOTSUP);
  const bits = view.getUint32(At.CLUSTER_BITS);
  if (bits < CLUSTER_BITS_MIN || bits > CLUSTER_BITS_MAX) {
    refuse(`cluster_bits is ${bits}; it must be ${CLUSTER_BITS_MIN} to ${CLUSTER_BITS_MAX}`);
  }
  return 2 ** bits;
}

/** Where extensions begin. `there` is how much of the first cluster the file has. */
function headerLength(view: DataView, clusterSize: Bytes, there: Bytes): Bytes {
  const version = view.getUint32(At.VERSION);
  const least = version === 2 ? V2_HEADER_LENGTH : V3_HEADER_LENGTH;
  if (there < least) refuse(`the header is cut off after ${there} bytes`);
  const length = version === 2 ? least : view.getUint32(At.HEADER_LENGTH);
  if (length < least || length % 8 !== 0 || length > clusterSize) {
    refuse(`header_length is ${length}; it must be a multiple of 8 from ${least} to the cluster size`);
  }
  if (there < length) refuse(`the header is cut off after ${there} bytes, and header_length is ${length}`);
  return length;
}

/** Where the backing file's name is; its length is 0 where there is none. `there` as above. */
function backingName(view: DataView, afterHeader: Offset, there: Bytes): { at: Offset; length: Bytes } {
  const at = getU64(view, At.BACKING_OFFSET);
  if (at === 0) return { at: 0, length: 0 };
  if (at < afterHeader || at > there) {
    refuse(`backing_file_offset${at < 0 ? '' : ` ${at}`} is not between the header and the end of the first cluster`);
  }
  const length = view.getUint32(At.BACKING_SIZE);
  if (length > BACKING_NAME_MAX || length > there - at) {
    refuse(`backing_file_size is ${length}; ${Math.min(BACKING_NAME_MAX, there - at)} is the most that it can be`);
  }
  return { at, length };
}

/** Refuses incompatible features that we do not know, by their names. */
function checkIncompatible(view: DataView, extensions: HeaderExtension[]): void {
  const known = Object.values(Incompatible).reduce((all, bit) => all | bit, 0);
  // A field of 64 bits, of which any may be set: a bigint, here only.
  const unknown = view.getBigUint64(At.INCOMPATIBLE) & ~BigInt(known);
  if (unknown === 0n) return;
  const names: string[] = [];
  let nameless = 0n;
  for (let bit = 0; bit < 64; bit++) {
    const mask = 1n << BigInt(bit);
    if ((unknown & mask) === 0n) continue;
    const name = featureName({ extensions }, 'incompatible', bit);
    if (name === undefined) nameless |= mask;
    else names.push(name);
  }
  if (nameless !== 0n) names.push(`Unknown incompatible feature: 0x${nameless.toString(16)}`);
  refuse(`it needs features that are not supported (incompatible_features): ${names.join(', ')}`, Errno.ENOTSUP);
}

function u64(view: DataView, at: number, field: string, errno: number = Errno.EINVAL): number {
  const value = getU64(view, at);
  if (value < 0) refuse(`${field} is 2^53 or more`, errno);
  return value;
}

function readFields(view: DataView): Omit<Qcow2Header, 'unknown' | 'extensions' | 'backingFile' | 'backingFileAt'> {
  const version = view.getUint32(At.VERSION) === 2 ? 2 : 3;
  const hasType = version === 3 && view.getUint32(At.HEADER_LENGTH) > At.COMPRESSION_TYPE;
  const compressionType = hasType ? view.getUint8(At.COMPRESSION_TYPE) : 0;
  if (compressionType !== 0 && compressionType !== 1) {
    refuse(`compression_type ${compressionType} is not supported`, Errno.ENOTSUP);
  }
  return {
    version,
    clusterBits: view.getUint32(At.CLUSTER_BITS),
    size: u64(view, At.SIZE, 'size', Errno.EFBIG),
    cryptMethod: view.getUint32(At.CRYPT),
    l1Size: view.getUint32(At.L1_SIZE),
    l1Offset: u64(view, At.L1_OFFSET, 'l1_table_offset'),
    refcountTableOffset: u64(view, At.REFCOUNT_TABLE_OFFSET, 'refcount_table_offset'),
    refcountTableClusters: view.getUint32(At.REFCOUNT_TABLE_CLUSTERS),
    snapshotCount: view.getUint32(At.SNAPSHOT_COUNT),
    snapshotsOffset: u64(view, At.SNAPSHOTS_OFFSET, 'snapshots_offset'),
    // Checked before: the upper half is 0.
    incompatible: version === 2 ? 0 : view.getUint32(At.INCOMPATIBLE + 4),
    compatible: version === 2 ? 0n : view.getBigUint64(At.COMPATIBLE),
    autoclear: version === 2 ? 0n : view.getBigUint64(At.AUTOCLEAR),
    refcountOrder: version === 2 ? V2_REFCOUNT_ORDER : view.getUint32(At.REFCOUNT_ORDER),
    compressionType,
  };
}

/** A table is at the beginning of a cluster other than the first, and ends below 2^53. */
function checkTable(header: Qcow2Header, field: string, at: Offset, length: Bytes): void {
  if (at === 0) refuse(`${field} is 0, where the header is`);
  if (at % 2 ** header.clusterBits !== 0) refuse(`${field} ${at} is not a multiple of the cluster size`);
  if (!Number.isSafeInteger(at + length)) refuse(`${field} ${at} is too large`);
}

/** Bytes of the guest's disk that one entry of the L1 table stands for. */
function spanOf(header: Qcow2Header): Bytes {
  const clusterSize = 2 ** header.clusterBits;
  const extended = (header.incompatible & Incompatible.EXTENDED_L2) !== 0;
  return clusterSize * (clusterSize / (extended ? 16 : 8));
}

function checkTables(header: Qcow2Header, snapshotsMax: number): void {
  const { l1Size, refcountTableClusters: clusters, snapshotCount } = header;
  const needed = Math.ceil(header.size / spanOf(header));
  if (l1Size * 8 > L1_BYTES_MAX) refuse(`l1_size ${l1Size} is too large; ${L1_BYTES_MAX / 8} is the limit`);
  if (l1Size < needed) refuse(`l1_size ${l1Size} is too small; a disk of ${header.size} bytes needs ${needed}`);
  if (l1Size > 0) checkTable(header, 'l1_table_offset', header.l1Offset, l1Size * 8);
  const tableBytes = clusters * 2 ** header.clusterBits;
  if (clusters === 0) refuse('refcount_table_clusters is 0: there are no refcounts');
  if (tableBytes > REFCOUNT_TABLE_BYTES_MAX) {
    refuse(`refcount_table_clusters ${clusters} is too large; ${REFCOUNT_TABLE_BYTES_MAX} bytes are the limit`);
  }
  checkTable(header, 'refcount_table_offset', header.refcountTableOffset, tableBytes);
  if (snapshotCount > snapshotsMax) refuse(`nb_snapshots ${snapshotCount} is too large; ${snapshotsMax} is the limit`);
  if (snapshotCount > 0) checkTable(header, 'snapshots_offset', header.snapshotsOffset, SNAPSHOT_TABLE_BYTES_MAX);
}

/** What features need of each other and of other fields. */
function checkFeatures(header: Qcow2Header): void {
  const has = (bit: number) => (header.incompatible & bit) !== 0;
  if (header.refcountOrder > REFCOUNT_ORDER_MAX) {
    refuse(`refcount_order is ${header.refcountOrder}; ${REFCOUNT_ORDER_MAX} is the limit`);
  }
  if (header.cryptMethod > Crypt.LUKS) refuse(`crypt_method ${header.cryptMethod} is not supported`, Errno.ENOTSUP);
  if (has(Incompatible.COMPRESSION) !== (header.compressionType !== 0)) {
    const state = has(Incompatible.COMPRESSION) ? 'set' : 'not set';
    refuse(`compression_type is ${header.compressionType}, and its bit in incompatible_features is ${state}`);
  }
  if (has(Incompatible.EXTENDED_L2) && header.clusterBits < EXTENDED_CLUSTER_BITS_MIN) {
    refuse(`cluster_bits is ${header.clusterBits}; extended L2 entries need ${EXTENDED_CLUSTER_BITS_MIN} or more`);
  }
  // The feature fields are 64 bits wide, as bigints.
  if ((header.autoclear & BigInt(Autoclear.DATA_FILE_RAW)) === 0n) return;
  if (!has(Incompatible.DATA_FILE)) refuse('autoclear_features says raw external data, and there is no data file');
  if (header.backingFile !== undefined)
    refuse('autoclear_features says raw external data, and there is a backing file');
}

/**
 * The header of an image. `cluster` is its first cluster, or as much of it as there is in a file of `fileLength` bytes.
 * ENOTSUP for features that we do not know, EFBIG for a disk of 2^53 bytes or more, EINVAL for anything that cannot be.
 * A table may be beyond the end of the file: it reads as zeroes, and a repair needs to get that far. The repair of too
 * many snapshots, too: it gives a `snapshotsMax`.
 */
export function parseHeader(cluster: Uint8Array, fileLength: Bytes, snapshotsMax = SNAPSHOTS_MAX): Qcow2Header {
  const clusterSize = clusterSizeOf(cluster.subarray(0, fileLength));
  const bytes = cluster.subarray(0, Math.min(clusterSize, fileLength));
  const view = viewOf(bytes);
  const length = headerLength(view, clusterSize, bytes.length);
  const name = backingName(view, length, bytes.length);
  const extensions = splitExtensions(bytes, length, name.at === 0 ? bytes.length : name.at);
  if (view.getUint32(At.VERSION) > 2) checkIncompatible(view, extensions);
  const nameBytes = bytes.subarray(name.at, name.at + name.length);
  if (nameBytes.includes(0)) refuse('the backing file name has a NUL in it');
  const header: Qcow2Header = {
    ...readFields(view),
    unknown: new Uint8Array(bytes.subarray(Math.min(FULL_HEADER_LENGTH, length), length)),
    extensions,
    backingFile: name.length === 0 ? undefined : decodeName(nameBytes),
  };
  if (name.at > fixedLength(header) + extensionsLength(extensions)) header.backingFileAt = name.at;
  checkFeatures(header);
  checkTables(header, snapshotsMax);
  checkExtensions(header);
  return header;
}

function writeFields(header: Qcow2Header, view: DataView): void {
  view.setUint32(At.MAGIC, QCOW2_MAGIC);
  view.setUint32(At.VERSION, header.version);
  view.setUint32(At.CLUSTER_BITS, header.clusterBits);
  setU64(view, At.SIZE, header.size);
  view.setUint32(At.CRYPT, header.cryptMethod);
  view.setUint32(At.L1_SIZE, header.l1Size);
  setU64(view, At.L1_OFFSET, header.l1Offset);
  setU64(view, At.REFCOUNT_TABLE_OFFSET, header.refcountTableOffset);
  view.setUint32(At.REFCOUNT_TABLE_CLUSTERS, header.refcountTableClusters);
  view.setUint32(At.SNAPSHOT_COUNT, header.snapshotCount);
  setU64(view, At.SNAPSHOTS_OFFSET, header.snapshotsOffset);
  if (header.version === 2) return;
  setU64(view, At.INCOMPATIBLE, header.incompatible);
  view.setBigUint64(At.COMPATIBLE, header.compatible);
  view.setBigUint64(At.AUTOCLEAR, header.autoclear);
  view.setUint32(At.REFCOUNT_ORDER, header.refcountOrder);
  view.setUint32(At.HEADER_LENGTH, FULL_HEADER_LENGTH + header.unknown.length);
  view.setUint8(At.COMPRESSION_TYPE, header.compressionType);
}

/** The incompatible features alone, for a write that leaves all else as it is: where they are, and their bytes. */
export function encodeIncompatible(header: Qcow2Header): { readonly at: Offset; readonly bytes: Uint8Array } {
  const bytes = new Uint8Array(8);
  setU64(viewOf(bytes), 0, header.incompatible);
  return { at: At.INCOMPATIBLE, bytes };
}

/** True when version 2 can say all of it. */
function fitsVersion2(header: Qcow2Header): boolean {
  const bits = header.incompatible === 0 && header.compatible === 0n && header.autoclear === 0n;
  return bits && header.refcountOrder === V2_REFCOUNT_ORDER && header.unknown.length === 0;
}

/** Where the extensions are in what we write. */
function fixedLength(header: Qcow2Header): Bytes {
  return header.version === 2 ? V2_HEADER_LENGTH : FULL_HEADER_LENGTH + header.unknown.length;
}

/** Where the name of the backing file goes. */
export function backingFilePlace(header: Qcow2Header): Offset {
  const end = fixedLength(header) + extensionsLength(header.extensions);
  const { length } = encodeName(header.backingFile ?? '');
  const kept = header.backingFileAt ?? 0;
  return kept > end && kept + length <= 2 ** header.clusterBits ? kept : end;
}

/** The beginning of an image, in whole sectors: header, extensions, name of the backing file. ENOSPC where a cluster
 *  cannot hold it, EINVAL for a name that is too long or has a NUL in it, and for what version 2 does not have. */
export function encodeHeader(header: Qcow2Header): Uint8Array {
  const fail = (errno: number, why: string) => new BlockError(errno, `Could not write the header: ${why}`);
  if (header.version === 2 && !fitsVersion2(header)) throw fail(Errno.EINVAL, 'version 2 does not have its features');
  const name = encodeName(header.backingFile ?? '');
  if (name.length > BACKING_NAME_MAX) {
    throw fail(Errno.EINVAL, `the backing file name has ${name.length} bytes, and ${BACKING_NAME_MAX} is the limit`);
  }
  if (name.includes(0)) throw fail(Errno.EINVAL, 'the backing file name has a NUL in it');
  const fixed = fixedLength(header);
  const nameAt = backingFilePlace(header);
  const end = fixed + extensionsLength(header.extensions);
  const length = name.length > 0 ? nameAt + name.length : end;
  if (length > 2 ** header.clusterBits) {
    throw fail(Errno.ENOSPC, `it has ${length} bytes, and a cluster ${2 ** header.clusterBits}`);
  }
  const bytes = new Uint8Array(alignUp(length, SECTOR));
  const view = viewOf(bytes);
  writeFields(header, view);
  if (header.version === 3) bytes.set(header.unknown, FULL_HEADER_LENGTH);
  joinExtensions(bytes, fixed, header.extensions);
  if (name.length > 0) {
    setU64(view, At.BACKING_OFFSET, nameAt);
    view.setUint32(At.BACKING_SIZE, name.length);
    bytes.set(name, nameAt);
  }
  return bytes;
}
