/** Options of a qcow2 node, and what follows from them. */
import { BlockError, Errno } from '../../base/errors.ts';
import { type Bytes, isPowerOfTwo, KiB, MiB } from '../../base/units.ts';
import type { OptionSpec } from '../../block/driver.ts';
import type { Qcow2Header } from '../../proto/qcow2/header.ts';
import type { Geometry, Qcow2Settings } from './image.ts';

export interface Qcow2Options {
  readonly 'lazy-refcounts'?: boolean;
  readonly 'cache-size'?: Bytes;
  readonly 'l2-cache-size'?: Bytes;
  readonly 'l2-cache-entry-size'?: Bytes;
  readonly 'refcount-cache-size'?: Bytes;
  readonly 'cache-clean-interval'?: number;
  readonly 'bitmap-checkpoint'?: number;
  readonly 'pass-discard-request'?: boolean;
  readonly 'pass-discard-snapshot'?: boolean;
  readonly 'pass-discard-other'?: boolean;
  readonly 'discard-no-unref'?: boolean;
  readonly 'overlap-check'?: 'none' | 'constant' | 'cached' | 'all';
  readonly 'encrypt.format'?: 'luks' | 'aes';
  readonly 'encrypt.key'?: string;
  readonly snapshot?: string;
}

export const optionSpecs: Readonly<Record<keyof Qcow2Options, OptionSpec>> = {
  'lazy-refcounts': { type: 'boolean', help: 'write refcounts late, under the dirty bit (default: as the image says)' },
  'cache-size': { type: 'size', help: 'bytes of both metadata caches together' },
  'l2-cache-size': { type: 'size', help: 'bytes of the L2 table cache (default: all tables, at most 32 MiB)' },
  'l2-cache-entry-size': { type: 'size', help: 'bytes of a cache entry: a power of two, 512 to the cluster size' },
  'refcount-cache-size': { type: 'size', help: 'bytes of the refcount cache (default: a quarter of the L2 cache)' },
  'cache-clean-interval': { type: 'number', help: 'seconds after which unused cache memory is given back (600)' },
  'bitmap-checkpoint': {
    type: 'number',
    help: 'seconds between checkpoints of the dirty bitmaps, which then outlive a crash (default 0: none)',
  },
  'pass-discard-request': {
    type: 'boolean',
    help: "guest's discards free space of the file (default: with discard=unmap)",
  },
  'pass-discard-snapshot': { type: 'boolean', help: 'deleted snapshots free space of the file (default on)' },
  'pass-discard-other': {
    type: 'boolean',
    help: 'anything else that frees clusters frees space of the file (default off)',
  },
  'discard-no-unref': { type: 'boolean', help: 'discards keep clusters allocated, against fragmentation' },
  'overlap-check': {
    type: 'enum',
    values: ['none', 'constant', 'cached', 'all'],
    help: 'which metadata is looked at before anything is written (default cached)',
  },
  'encrypt.format': { type: 'enum', values: ['luks', 'aes'], help: 'what the encryption has to be' },
  'encrypt.key': { type: 'secret', help: 'passphrase of an encrypted image' },
  snapshot: { type: 'string', help: 'id or name of the internal snapshot to open, read-only' },
};

/** All but what the image is, or shows. */
export const reopenOptions = Object.keys(optionSpecs).filter(
  (name) => !name.startsWith('encrypt.') && name !== 'snapshot',
);

/** Nanoseconds of a second. */
const NS = 1e9;
/** A day. */
const CHECKPOINT_MAX = 86_400;
const L2_CACHE_MAX = 32 * MiB;
const SLICE = 4 * KiB;
const L2_SLOTS_MIN = 4;
const REFCOUNT_SLOTS_MIN = 16;
const CACHE_MAX = 2048 * MiB;

export function settingsOf(options: Qcow2Options, header: Qcow2Header, discardUnmap: boolean): Qcow2Settings {
  const lazy = options['lazy-refcounts'] ?? (header.compatible & 1n) !== 0n;
  if (lazy && header.version < 3) throw refusal("'lazy-refcounts' needs an image of version 3 (compat 1.1)");
  return {
    lazyRefcounts: lazy,
    passDiscard: {
      request: options['pass-discard-request'] ?? discardUnmap,
      snapshot: options['pass-discard-snapshot'] ?? true,
      other: options['pass-discard-other'] ?? false,
    },
    discardNoUnref: options['discard-no-unref'] ?? false,
    bitmapCheckpoint: checkpointOf(options) * NS,
  };
}

/** Seconds. EINVAL. */
function checkpointOf({ 'bitmap-checkpoint': seconds = 0 }: Qcow2Options): number {
  if (seconds >= 0 && seconds <= CHECKPOINT_MAX) return seconds;
  throw refusal(`'bitmap-checkpoint' is ${seconds}, not a number of seconds up to ${CHECKPOINT_MAX}`);
}

/** Bytes of a cached slice. EINVAL. */
export function sliceSizeOf(options: Qcow2Options, clusterSize: Bytes): Bytes {
  const size = options['l2-cache-entry-size'];
  if (size === undefined) return Math.min(SLICE, clusterSize);
  if (!isPowerOfTwo(size) || size < 512 || size > clusterSize) {
    throw refusal(`'l2-cache-entry-size' is ${size}, not a power of two between 512 and ${clusterSize}`);
  }
  return size;
}

/** How many slices each cache has. EINVAL. */
export function cacheSlots(
  options: Qcow2Options,
  size: Bytes,
  geometry: Geometry,
): { readonly l2: number; readonly refcounts: number } {
  const total = options['cache-size'];
  let l2 = options['l2-cache-size'];
  let refcounts = options['refcount-cache-size'];
  for (const bytes of [total, l2, refcounts]) {
    if (bytes !== undefined && bytes > CACHE_MAX) throw refusal('a metadata cache cannot be larger than 2 GiB');
  }
  if (total !== undefined && (l2 ?? 0) + (refcounts ?? 0) > total) {
    throw refusal("'l2-cache-size' and 'refcount-cache-size' are more than 'cache-size'");
  }
  const { sliceSize, tableSpan, clusterSize } = geometry;
  // More than all tables have would never be used.
  const all = Math.ceil(size / tableSpan) * clusterSize;
  const least = REFCOUNT_SLOTS_MIN * sliceSize;
  if (total !== undefined) {
    refcounts ??= l2 === undefined ? Math.min(least, total / 2) : total - l2;
    l2 ??= total - refcounts;
  }
  l2 = Math.min(all, l2 ?? L2_CACHE_MAX);
  refcounts ??= Math.max(least, l2 / 4);
  return {
    l2: Math.max(L2_SLOTS_MIN, Math.ceil(l2 / sliceSize)),
    refcounts: Math.max(REFCOUNT_SLOTS_MIN, Math.ceil(refcounts / sliceSize)),
  };
}

function refusal(why: string): BlockError {
  return new BlockError(Errno.EINVAL, `Could not open a 'qcow2' node: ${why}`);
}
