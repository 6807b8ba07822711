/** What an open image says of itself, by the names of QAPI's ImageInfo. */
import type { StoredBitmap } from '../../block/driver.ts';
import { Autoclear, Compatible, Crypt, Incompatible } from '../../proto/qcow2/constants.ts';
import { backingFormat, dataFileName } from '../../proto/qcow2/header-extensions.ts';
import type { Image } from './image.ts';

export function imageInfo({ header, geometry, bitmaps, readOnly }: Image): Record<string, unknown> {
  const has = (bit: number): boolean => (header.incompatible & bit) !== 0;
  const { backingFile } = header;
  const format = backingFormat(header);
  return {
    'cluster-size': geometry.clusterSize,
    ...(header.cryptMethod === Crypt.NONE ? {} : { encrypted: true }),
    ...(backingFile === undefined ? {} : { 'backing-filename': backingFile }),
    ...(format === undefined ? {} : { 'backing-filename-format': format }),
    'dirty-flag': has(Incompatible.DIRTY),
    'format-specific': {
      type: 'qcow2',
      data: {
        compat: header.version === 3 ? '1.1' : '0.10',
        'compression-type': header.compressionType === 1 ? 'zstd' : 'zlib',
        'refcount-bits': 2 ** header.refcountOrder,
        ...(header.version === 3 ? version3(header, has) : {}),
        ...(header.cryptMethod === Crypt.NONE
          ? {}
          : { encrypt: { format: header.cryptMethod === Crypt.LUKS ? 'luks' : 'aes' } }),
        ...bitmapInfo(bitmaps?.stored ?? [], !readOnly),
      },
    },
  };
}

function version3(header: Image['header'], has: (bit: number) => boolean): Record<string, unknown> {
  const dataFile = dataFileName(header);
  return {
    'lazy-refcounts': (Number(header.compatible) & Compatible.LAZY_REFCOUNTS) !== 0,
    corrupt: has(Incompatible.CORRUPT),
    'extended-l2': has(Incompatible.EXTENDED_L2),
    ...(dataFile === undefined
      ? {}
      : { 'data-file': dataFile, 'data-file-raw': (Number(header.autoclear) & Autoclear.DATA_FILE_RAW) !== 0 }),
  };
}

/** Those that record are in use as long as the image is open for writing. */
function bitmapInfo(stored: readonly StoredBitmap[], inUse: boolean): Record<string, unknown> {
  if (stored.length === 0) return {};
  const bitmaps = stored.map(({ name, granularity, enabled, inconsistent }) => ({
    flags: [...(inconsistent || (enabled && inUse) ? ['in-use'] : []), ...(enabled ? ['auto'] : [])],
    name,
    granularity,
  }));
  return { bitmaps };
}
