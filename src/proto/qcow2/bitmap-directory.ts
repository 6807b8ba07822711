/** The directory of persistent bitmaps and their tables (specification: "Bitmaps"). */
import { BlockError, Errno } from '../../base/errors.ts';
import { alignUp, type Bytes, isAligned, type Offset } from '../../base/units.ts';
import { getU64, setU64 } from '../nbd/words.ts';
import {
  BITMAP_BYTES_MAX,
  BITMAP_DIRECTORY_BYTES_MAX,
  BITMAP_GRANULARITY_BITS_MAX,
  BITMAP_GRANULARITY_BITS_MIN,
  BITMAP_NAME_MAX,
  BITMAPS_MAX,
} from './constants.ts';
import { decodeName, encodeName } from './text.ts';

/** Bits of a directory entry's flags. */
export const BitmapFlags = {
  /** Not saved properly, unless somebody has the image open: it is not known what it should hold. */
  IN_USE: 1,
  /** It records writes. */
  AUTO: 2,
  /** Who does not know the extra data may use the bitmap all the same. */
  EXTRA_DATA_COMPATIBLE: 4,
} as const;
const FLAGS_KNOWN = 7;

/** The only type: bits of granules that were written. */
export const BITMAP_TYPE_DIRTY = 1;

export interface BitmapEntry {
  tableOffset: Offset;
  /** Entries; each stands for a cluster of bits. */
  tableSize: number;
  /** BitmapFlags. */
  flags: number;
  type: number;
  /** Log2 of the bytes of the guest's disk that a bit stands for. */
  granularityBits: number;
  extraData: Uint8Array;
  name: string;
}

/** Where fields of a directory entry are. Extra data and the name follow. */
const At = {
  TABLE_OFFSET: 0,
  TABLE_SIZE: 8,
  FLAGS: 12,
  TYPE: 16,
  GRANULARITY_BITS: 17,
  NAME_SIZE: 18,
  EXTRA_SIZE: 20,
  EXTRA: 24,
} as const;

/** What is wrong with the fixed fields of an entry, if anything. */
function fault(entry: BitmapEntry, clusterSize: Bytes): string | undefined {
  const { tableOffset, tableSize, granularityBits } = entry;
  if (tableOffset <= 0 || !isAligned(tableOffset, clusterSize) || !Number.isSafeInteger(tableOffset + tableSize * 8)) {
    return `has an invalid bitmap_table_offset${tableOffset < 0 ? '' : ` (${tableOffset})`}`;
  }
  if (tableSize < 1 || tableSize * clusterSize > BITMAP_BYTES_MAX)
    return `has an invalid bitmap_table_size (${tableSize})`;
  if (granularityBits < BITMAP_GRANULARITY_BITS_MIN || granularityBits > BITMAP_GRANULARITY_BITS_MAX) {
    const range = `${BITMAP_GRANULARITY_BITS_MIN} to ${BITMAP_GRANULARITY_BITS_MAX}`;
    return `has granularity_bits ${granularityBits}; it must be ${range}`;
  }
  return undefined;
}

/**
 * The entries of a directory: all of its bytes, `count` from the header extension. ENOTSUP for flags and types that we
 * do not know, EINVAL for what cannot be.
 */
export function parseBitmapDirectory(bytes: Uint8Array, count: number, clusterSize: Bytes): BitmapEntry[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const entries: BitmapEntry[] = [];
  const names = new Set<string>();
  const refuse = (why: string, errno: number = Errno.EINVAL): never => {
    const which = `entry ${entries.length} of the bitmap directory`;
    throw new BlockError(errno, `Could not read the bitmaps: ${which} ${why}`);
  };
  let at = 0;
  while (entries.length < count) {
    if (bytes.length - at < At.EXTRA) refuse('is beyond the end of the directory');
    const nameSize = view.getUint16(at + At.NAME_SIZE);
    const extraSize = view.getUint32(at + At.EXTRA_SIZE);
    const nameAt = at + At.EXTRA + extraSize;
    if (nameSize < 1 || nameSize > BITMAP_NAME_MAX)
      refuse(`has name_size ${nameSize}; it must be 1 to ${BITMAP_NAME_MAX}`);
    const end = alignUp(nameAt + nameSize, 8);
    if (end > bytes.length) refuse(`goes beyond the end of the directory: extra_data_size ${extraSize}`);
    const entry = {
      tableOffset: getU64(view, at + At.TABLE_OFFSET),
      tableSize: view.getUint32(at + At.TABLE_SIZE),
      flags: view.getUint32(at + At.FLAGS),
      type: view.getUint8(at + At.TYPE),
      granularityBits: view.getUint8(at + At.GRANULARITY_BITS),
      extraData: new Uint8Array(bytes.subarray(at + At.EXTRA, nameAt)),
      name: decodeName(bytes.subarray(nameAt, nameAt + nameSize)),
    };
    if (entry.type !== BITMAP_TYPE_DIRTY) refuse(`has type ${entry.type}, which is not supported`, Errno.ENOTSUP);
    if ((entry.flags & ~FLAGS_KNOWN) !== 0) {
      refuse(`has flags 0x${entry.flags.toString(16)}, which are not supported`, Errno.ENOTSUP);
    }
    const why = fault(entry, clusterSize);
    if (why !== undefined) refuse(why);
    if (names.has(entry.name)) refuse(`has the name of another, '${entry.name}'`);
    names.add(entry.name);
    entries.push(entry);
    at = end;
  }
  if (at !== bytes.length) refuse(`should not be there: ${bytes.length - at} bytes are left`);
  return entries;
}

/** Bytes that an entry takes in the directory. */
export function bitmapEntryLength(entry: BitmapEntry): Bytes {
  return alignUp(At.EXTRA + entry.extraData.length + encodeName(entry.name).length, 8);
}

/** The bytes of a directory. EINVAL for entries that could not be read back, ENOSPC beyond the limits. */
export function encodeBitmapDirectory(entries: readonly BitmapEntry[], clusterSize: Bytes): Uint8Array {
  const total = entries.reduce((sum, entry) => sum + bitmapEntryLength(entry), 0);
  const fail = (why: string, errno: number = Errno.EINVAL) => {
    return new BlockError(errno, `Could not write the bitmaps: ${why}`);
  };
  if (entries.length > BITMAPS_MAX || total > BITMAP_DIRECTORY_BYTES_MAX) {
    const limits = `${BITMAPS_MAX} in ${BITMAP_DIRECTORY_BYTES_MAX}`;
    throw fail(`${entries.length} bitmaps in ${total} bytes; ${limits} are the limit`, Errno.ENOSPC);
  }
  const bytes = new Uint8Array(total);
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const entry of entries) {
    const name = encodeName(entry.name);
    const range = `1 to ${BITMAP_NAME_MAX} bytes`;
    if (name.length < 1 || name.length > BITMAP_NAME_MAX) throw fail(`a name has ${name.length} bytes, not ${range}`);
    const why = fault(entry, clusterSize);
    if (why !== undefined) throw fail(`bitmap '${entry.name}' ${why}`);
    setU64(view, at + At.TABLE_OFFSET, entry.tableOffset);
    view.setUint32(at + At.TABLE_SIZE, entry.tableSize);
    view.setUint32(at + At.FLAGS, entry.flags);
    view.setUint8(at + At.TYPE, entry.type);
    view.setUint8(at + At.GRANULARITY_BITS, entry.granularityBits);
    view.setUint16(at + At.NAME_SIZE, name.length);
    view.setUint32(at + At.EXTRA_SIZE, entry.extraData.length);
    bytes.set(entry.extraData, at + At.EXTRA);
    bytes.set(name, at + At.EXTRA + entry.extraData.length);
    at += bitmapEntryLength(entry);
  }
  return bytes;
}

/** Entries of a bitmap's table that are no offset: a cluster of bits that are all clear, or all set. */
export const BITMAP_ALL_CLEAR = 0;
export const BITMAP_ALL_SET = 1;

/** Entry `index` of a bitmap's table: BITMAP_ALL_CLEAR, BITMAP_ALL_SET, or where the cluster of bits is. EINVAL. */
export function getBitmapTableEntry(view: DataView, index: number, clusterSize: Bytes): Offset {
  const at = getU64(view, index * 8);
  if (at !== BITMAP_ALL_SET && (at < 0 || !isAligned(at, clusterSize))) {
    const value = `0x${view.getUint32(index * 8).toString(16)}, 0x${view.getUint32(index * 8 + 4).toString(16)}`;
    throw new BlockError(
      Errno.EINVAL,
      `Could not read the bitmaps: entry ${index} of a bitmap table is invalid: ${value}`,
    );
  }
  return at;
}

/** `value` as `getBitmapTableEntry` has it. */
export function setBitmapTableEntry(view: DataView, index: number, value: Offset): void {
  setU64(view, index * 8, value);
}
