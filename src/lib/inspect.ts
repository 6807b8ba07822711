/** What an image says of itself. */
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, KiB } from '../base/units.ts';
import type { SnapshotInfo } from '../block/driver.ts';
import type { LuksInfo } from '../codec/luks-info.ts';
import { isRemoteUrl } from '../drivers/http/location.ts';
import { isDamage, readBitmaps } from '../drivers/qcow2/bitmap-read.ts';
import { snapshotInfo } from '../drivers/qcow2/snapshots.ts';
import { BitmapFlags } from '../proto/qcow2/bitmap-directory.ts';
import { Autoclear, Compatible, Crypt, Incompatible } from '../proto/qcow2/constants.ts';
import { type FeatureKind, featureName } from '../proto/qcow2/features.ts';
import type { Qcow2Header } from '../proto/qcow2/header.ts';
import { backingFormat, dataFileName, encryptionExtension } from '../proto/qcow2/header-extensions.ts';
import { SnapshotTableParser } from '../proto/qcow2/snapshot-table.ts';
import { assertImageFile, type Head, ImageHead } from './image-head.ts';
import { NodeHead } from './node-head.ts';
import { type Format, formatByName, type HttpSettings } from './options.ts';
import { isNbdUri } from './uri.ts';

/** Plain data. */
export interface ImageInfo {
  readonly filename: string;
  /** raw, qcow2, or another one that is known by its first bytes, and nothing else of it. */
  readonly format: string;
  /** Of the guest's disk, in bytes; null where the format is not supported. */
  readonly virtualSize: Bytes | null;
  /** Of the file, or the device. */
  readonly fileSize: Bytes;
  /** Bytes that the file takes on the disk; null for one on a server. */
  readonly allocatedSize: Bytes | null;
  readonly qcow2?: Qcow2Info;
}

export interface Qcow2Info {
  readonly compat: '0.10' | '1.1';
  readonly clusterSize: Bytes;
  readonly refcountBits: number;
  readonly compressionType: 'zlib' | 'zstd';
  readonly lazyRefcounts: boolean;
  readonly extendedL2: boolean;
  /** It was not closed cleanly: refcounts may be wrong. */
  readonly dirty: boolean;
  readonly corrupt: boolean;
  /** What these are called: our name, else the image's, else the number of the bit. */
  readonly features: Readonly<Record<FeatureKind, readonly string[]>>;
  readonly l1: { readonly offset: number; readonly entries: number };
  readonly refcountTable: { readonly offset: number; readonly clusters: number };
  /** As the image has it: not looked up, and not to be trusted. */
  readonly backingFile: string | null;
  readonly backingFormat: string | null;
  readonly dataFile: string | null;
  readonly dataFileRaw: boolean;
  readonly encryption: 'aes' | 'luks' | null;
  /** Of encryption 'luks'. Null also where it says nothing that we could use: then `luksDamage` says why. */
  readonly luks: LuksInfo | null;
  readonly luksDamage: string | null;
  readonly snapshots: readonly SnapshotInfo[];
  readonly bitmaps: readonly StoredBitmap[];
  /** Why `bitmaps` is empty, where those of the image are damaged: it opens read-only only, and without them. */
  readonly bitmapDamage: string | null;
  /** Type in hexadecimal, and bytes. */
  readonly extensions: readonly { readonly type: string; readonly length: Bytes }[];
}

export interface StoredBitmap {
  readonly name: string;
  /** Bytes of the guest's disk that a bit stands for. */
  readonly granularity: Bytes;
  /** It was not saved properly: nobody knows what it should hold. */
  readonly inUse: boolean;
  /** It records writes. */
  readonly auto: boolean;
}

/**
 * What an image in a file, or at a URL (NBD, http), says of itself: its header, features, snapshots, bitmaps and the
 * names of other files in it. Only the image is opened, read-only and without a lock: no name in it is followed.
 * Memory is bounded by what the format allows its tables, 64 MiB each. EINVAL for an image that cannot be, ENOTSUP for
 * features that are not known.
 */
export async function inspect(
  path: string,
  options: { readonly format?: Format | undefined; readonly http?: HttpSettings | undefined } = {},
): Promise<ImageInfo> {
  if (typeof path !== 'string' || path === '' || path.includes('\0')) {
    throw new BlockError(Errno.EINVAL, 'Could not inspect the image: expected a file name');
  }
  await using head = await openHead(path, options.http);
  // Looking does no harm: here the content may say what it is.
  const byName = isNbdUri(path) ? undefined : formatByName(path);
  const format = options.format ?? byName ?? (await head.magic()) ?? 'raw';
  return await inspectHead(head, format);
}

/** The same, of an image that is open for being looked at. */
export async function inspectHead(head: Head, format: string): Promise<ImageInfo> {
  const header = format === 'qcow2' ? await head.qcow2Header() : undefined;
  return {
    ...{ filename: head.path, format },
    virtualSize: header?.size ?? (format === 'raw' ? head.length : null),
    ...{ fileSize: head.length, allocatedSize: head.allocated },
    ...(header ? { qcow2: await qcow2Info(head, header) } : {}),
  };
}

/** The format that the first bytes of an image are of; raw where they are of none. */
export async function imageFormat(path: string, http?: HttpSettings): Promise<string> {
  await using head = await openHead(path, http);
  return (await head.magic()) ?? 'raw';
}

async function openHead(path: string, http: HttpSettings | undefined): Promise<Head> {
  if (isRemoteUrl(path) || isNbdUri(path)) return NodeHead.openUrl(path, http);
  const head = await ImageHead.open(path);
  try {
    assertImageFile(head);
    return head;
  } catch (error) {
    await head[Symbol.asyncDispose]();
    throw error;
  }
}

async function qcow2Info(head: Head, header: Qcow2Header): Promise<Qcow2Info> {
  const has = (bit: number): boolean => (header.incompatible & bit) !== 0;
  return {
    compat: header.version === 2 ? '0.10' : '1.1',
    clusterSize: 2 ** header.clusterBits,
    refcountBits: 2 ** header.refcountOrder,
    compressionType: header.compressionType === 0 ? 'zlib' : 'zstd',
    lazyRefcounts: hasBit(header.compatible, Compatible.LAZY_REFCOUNTS),
    extendedL2: has(Incompatible.EXTENDED_L2),
    dirty: has(Incompatible.DIRTY),
    corrupt: has(Incompatible.CORRUPT),
    features: {
      incompatible: features(header, 'incompatible', BigInt(header.incompatible)),
      compatible: features(header, 'compatible', header.compatible),
      autoclear: features(header, 'autoclear', header.autoclear),
    },
    l1: { offset: header.l1Offset, entries: header.l1Size },
    refcountTable: { offset: header.refcountTableOffset, clusters: header.refcountTableClusters },
    backingFile: header.backingFile ?? null,
    backingFormat: backingFormat(header) ?? null,
    dataFile: dataFileName(header) ?? null,
    dataFileRaw: hasBit(header.autoclear, Autoclear.DATA_FILE_RAW),
    encryption: header.cryptMethod === Crypt.NONE ? null : header.cryptMethod === Crypt.AES ? 'aes' : 'luks',
    ...(await luks(head, header)),
    snapshots: await snapshots(head, header),
    ...(await bitmaps(head, header)),
    extensions: header.extensions.map(({ type, data }) => ({ type: `0x${type.toString(16)}`, length: data.length })),
  };
}

/** The feature fields are 64 bits wide, as bigints. */
function hasBit(bits: bigint, bit: number): boolean {
  return (bits & BigInt(bit)) !== 0n;
}

function features(header: Qcow2Header, kind: FeatureKind, bits: bigint): string[] {
  const names: string[] = [];
  for (let bit = 0; bit < 64; bit++) {
    if (hasBit(bits >> BigInt(bit), 1)) names.push(featureName(header, kind, bit) ?? `bit ${bit}`);
  }
  return names;
}

async function luks(head: Head, header: Qcow2Header): Promise<Pick<Qcow2Info, 'luks' | 'luksDamage'>> {
  const place = encryptionExtension(header);
  if (!place) return { luks: null, luksDamage: null };
  // With them comes all of node's cryptography, which takes longer to load than most images to look at.
  const [{ LUKS_HEADER_BYTES }, { luksInfo }] = await Promise.all([
    import('../codec/luks-header.ts'),
    import('../codec/luks-info.ts'),
  ]);
  const bytes = await head.read(place.offset, Math.min(place.length, LUKS_HEADER_BYTES));
  try {
    return { luks: luksInfo(bytes, Math.min(place.length, head.length - place.offset)), luksDamage: null };
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return { luks: null, luksDamage: error.message };
  }
}

async function snapshots(head: Head, header: Qcow2Header): Promise<SnapshotInfo[]> {
  if (header.snapshotCount === 0) return [];
  const parser = new SnapshotTableParser(header, head.length);
  while (parser.needed > 0) {
    const bytes = await head.read(parser.at, Math.max(parser.needed, 64 * KiB));
    if (bytes.length < parser.needed) {
      throw new BlockError(Errno.EINVAL, `Could not read the snapshots of '${head.path}': the file ends before`);
    }
    parser.take(bytes);
  }
  return parser.entries.map((entry) => snapshotInfo(entry, header.size));
}

async function bitmaps(head: Head, header: Qcow2Header): Promise<Pick<Qcow2Info, 'bitmaps' | 'bitmapDamage'>> {
  try {
    const all = (await readBitmaps(head, header)).map(({ entry: { name, granularityBits, flags } }) => ({
      name,
      granularity: 2 ** granularityBits,
      inUse: (flags & BitmapFlags.IN_USE) !== 0,
      auto: (flags & BitmapFlags.AUTO) !== 0,
    }));
    return { bitmaps: all, bitmapDamage: null };
  } catch (error) {
    if (!isDamage(error)) throw error;
    return { bitmaps: [], bitmapDamage: error.message };
  }
}
