/** What an image says about its bitmaps, read and checked before anything relies on it. */
import { BlockError, Errno } from '../../base/errors.ts';
import { type Bytes, MiB, type Offset } from '../../base/units.ts';
import {
  BITMAP_ALL_SET,
  type BitmapEntry,
  BitmapFlags,
  getBitmapTableEntry,
  parseBitmapDirectory,
} from '../../proto/qcow2/bitmap-directory.ts';
import type { Qcow2Header } from '../../proto/qcow2/header.ts';
import { bitmapsExtension } from '../../proto/qcow2/header-extensions.ts';
import { MetadataMap } from './overlap.ts';

/** Of all tables together: they stay in memory. That is 8192 bitmaps of 16 TiB with 64 KiB granules and clusters. */
const TABLES_BYTES_MAX = 64 * MiB;

/** The file of an image. */
interface ImageBytes {
  readonly length: Bytes;
  read(at: Offset, length: Bytes): Promise<Uint8Array>;
}

export interface BitmapInFile {
  /** Its flags are changed in place. */
  readonly entry: BitmapEntry;
  /** Entries of its table: an offset, BITMAP_ALL_CLEAR or BITMAP_ALL_SET. Empty where the table of a bitmap that is not
   *  usable cannot be right. */
  readonly table: Float64Array;
  /** In use when it was read, or with extra data that we do not know: kept as it is. */
  readonly unusable: boolean;
}

/** Entries of the table of a bitmap. */
export function tableEntries(size: Bytes, granularity: Bytes, clusterSize: Bytes): number {
  return Math.ceil(Math.ceil(size / granularity) / 8 / clusterSize);
}

/** The bitmaps of an image, none where it has none or they mean nothing any more. EINVAL for what cannot be, EFBIG for
 *  more than we take. */
export async function readBitmaps(file: ImageBytes, header: Qcow2Header): Promise<BitmapInFile[]> {
  const place = bitmapsExtension(header);
  if (!place) return [];
  const { directoryOffset, directorySize, count } = place;
  if (directoryOffset + directorySize > file.length) {
    throw refusal(`the bitmap directory (${directorySize} bytes at ${directoryOffset}) is beyond the end of the file`);
  }
  const clusterSize = 2 ** header.clusterBits;
  const entries = parseBitmapDirectory(await file.read(directoryOffset, directorySize), count, clusterSize);
  const tables = entries.reduce((sum, { tableSize }) => sum + tableSize * 8, 0);
  if (tables > TABLES_BYTES_MAX) {
    throw refusal(`the bitmap tables have ${tables} bytes, and ${TABLES_BYTES_MAX} are the limit`, Errno.EFBIG);
  }
  const seen = new MetadataMap(clusterSize, true);
  seen.add(directoryOffset, directorySize);
  const all: BitmapInFile[] = [];
  for (const entry of entries) all.push(await readBitmap(file, header, entry, seen));
  return all;
}

/** True when bitmaps could be read, and cannot be right, or are more than we take. */
export function isDamage(error: unknown): error is BlockError {
  return error instanceof BlockError && (error.errno === Errno.EINVAL || error.errno === Errno.EFBIG);
}

async function readBitmap(
  file: ImageBytes,
  header: Qcow2Header,
  entry: BitmapEntry,
  seen: MetadataMap,
): Promise<BitmapInFile> {
  const foreign = entry.extraData.length > 0 && (entry.flags & BitmapFlags.EXTRA_DATA_COMPATIBLE) === 0;
  const unusable = foreign || (entry.flags & BitmapFlags.IN_USE) !== 0;
  const clusterSize = 2 ** header.clusterBits;
  try {
    const needed = tableEntries(header.size, 2 ** entry.granularityBits, clusterSize);
    if (!unusable && entry.tableSize !== needed) {
      const disk = `a disk of ${header.size} bytes needs ${needed}`;
      throw refusal(`bitmap '${entry.name}' has a bitmap_table_size of ${entry.tableSize}; ${disk}`);
    }
    const bytes = entry.tableSize * 8;
    claim(file, seen, entry, entry.tableOffset, bytes);
    const view = new DataView((await file.read(entry.tableOffset, bytes)).buffer);
    const table = new Float64Array(entry.tableSize);
    for (let i = 0; i < table.length; i++) {
      const at = getBitmapTableEntry(view, i, clusterSize);
      if (at > BITMAP_ALL_SET) claim(file, seen, entry, at, 1);
      table[i] = at;
    }
    return { entry, table, unusable };
  } catch (error) {
    // Nobody reads it any more: all that is lost is its clusters, when it is removed.
    if (unusable && error instanceof BlockError && error.errno === Errno.EINVAL) {
      return { entry, table: new Float64Array(0), unusable };
    }
    throw error;
  }
}

/** Clusters belong to one bitmap only, so that what is read is never more than the file holds. */
function claim(file: ImageBytes, seen: MetadataMap, entry: BitmapEntry, at: Offset, length: Bytes): void {
  if (at + length > file.length) throw refusal(`bitmap '${entry.name}' uses offset ${at}, beyond the end of the file`);
  if (seen.hasAny(at, length)) throw refusal(`bitmap '${entry.name}' uses offset ${at}, which is in use already`);
  seen.add(at, length);
}

function refusal(why: string, errno: number = Errno.EINVAL): BlockError {
  return new BlockError(errno, `Could not open the image: ${why}`);
}
