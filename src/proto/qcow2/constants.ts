/**
 * Numbers of the qcow2 format, version 2 and 3 (specification: docs/interop/qcow2), and the limits that keep a hostile
 * image from using unbounded memory.
 */
import { KiB, MiB } from '../../base/units.ts';

export const QCOW2_MAGIC = 0x514649fb;
export const V2_HEADER_LENGTH = 72;
/** Least of version 3. */
export const V3_HEADER_LENGTH = 104;
/** As we write it: with the compression type, padded to a multiple of 8. */
export const FULL_HEADER_LENGTH = 112;

export const CLUSTER_BITS_MIN = 9;
export const CLUSTER_BITS_MAX = 21;
/** Subclusters of an extended L2 entry, and the smallest cluster that may have them (a subcluster is 512 bytes). */
export const SUBCLUSTERS = 32;
export const EXTENDED_CLUSTER_BITS_MIN = 14;
export const REFCOUNT_ORDER_MAX = 6;

export const L1_BYTES_MAX = 32 * MiB;
export const REFCOUNT_TABLE_BYTES_MAX = 8 * MiB;
export const SNAPSHOTS_MAX = 65_536;
export const SNAPSHOT_TABLE_BYTES_MAX = 64 * MiB;
export const SNAPSHOT_EXTRA_MAX = KiB;
export const BITMAPS_MAX = 65_535;
export const BITMAP_DIRECTORY_BYTES_MAX = 1024 * BITMAPS_MAX;
export const BITMAP_NAME_MAX = 1023;
/** Bytes of one bitmap's data: a table never has more entries than that many clusters. */
export const BITMAP_BYTES_MAX = 512 * MiB;
export const BITMAP_GRANULARITY_BITS_MIN = 9;
export const BITMAP_GRANULARITY_BITS_MAX = 31;
export const BACKING_NAME_MAX = 1023;
export const BACKING_FORMAT_MAX = 15;
/** No path that Linux takes is longer. */
export const DATA_FILE_NAME_MAX = 4095;
/** Of a LUKS header with its key material; with eight slots of AES-256 in XTS mode that is 2 MiB. */
export const ENCRYPTION_HEADER_BYTES_MAX = 16 * MiB;

export const Crypt = { NONE: 0, AES: 1, LUKS: 2 } as const;

/** Bits of incompatible_features. Any other must not be opened. */
export const Incompatible = { DIRTY: 1, CORRUPT: 2, DATA_FILE: 4, COMPRESSION: 8, EXTENDED_L2: 16 } as const;
export const Compatible = { LAZY_REFCOUNTS: 1 } as const;
/** Cleared by whoever does not maintain what they stand for. */
export const Autoclear = { BITMAPS: 1, DATA_FILE_RAW: 2 } as const;

export const ExtensionType = {
  END: 0,
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  BITMAPS: 0x23852875,
  ENCRYPTION: 0x0537be77,
  DATA_FILE: 0x44415441,
} as const;

/** Bits of the upper half of an L1 or L2 entry. The offset is bits 9..55: the low 24 of this half, and the other.
 *  BEYOND: the offset is 2^53 or more, and refused. */
export const EntryHigh = {
  COPIED: 0x8000_0000,
  COMPRESSED: 0x4000_0000,
  OFFSET: 0x00ff_ffff,
  BEYOND: 0x00e0_0000,
} as const;
/** Bits of the lower half of a standard L2 entry. */
export const EntryLow = { ZERO: 1, OFFSET: 0xffff_fe00 } as const;
