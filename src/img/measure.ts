/** How large a file an image would need. */
import type { AioContext } from '../aio/context.ts';
import { alignUp, type Bytes, SECTOR } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import type { BlockNode } from '../block/node.ts';
import { planOf } from '../drivers/qcow2/create-options.ts';
import { withObjects } from '../lib/objects/resolve.ts';
import type { ObjectStore } from '../lib/objects/store.ts';
import type { CreationOptions } from './creation-options.ts';
import { mapImage } from './map.ts';
import { type ImageSpec, type OpenHow, withImage } from './open.ts';

export interface Measurement {
  /** Bytes of the file when it has been made, and when every cluster of the disk has been written. */
  readonly required: Bytes;
  readonly fullyAllocated: Bytes;
  /** Bytes that the source's bitmaps would take; undefined where it cannot have any. */
  readonly bitmaps: Bytes | undefined;
}

/** Of a new, empty image with these options, which say its size. EINVAL for options that cannot be. */
export function measureEmpty(options: CreationOptions, objects?: ObjectStore): Measurement {
  return { ...sizesOf(options, { size: options.size ?? 0, objects }, 0), bitmaps: undefined };
}

/** Of a copy of an image. */
export async function measureImage(
  context: AioContext,
  spec: ImageSpec,
  options: CreationOptions,
  how: Omit<OpenHow, 'write'> = {},
): Promise<Measurement> {
  return await withImage(context, spec, how, async (blk) => {
    const size = alignUp(blk.length, SECTOR);
    const { objects } = how;
    // Checks the options first: to look at an image takes its time.
    sizesOf(options, { size, objects }, 0);
    const cluster = options.format === 'qcow2' ? clusterSizeOf(options) : SECTOR;
    const data = options.get('backing_file') === undefined ? await dataBytes(blk, cluster) : size;
    const sizes = sizesOf(options, { size, objects }, data);
    return { ...sizes, bitmaps: options.format === 'qcow2' ? bitmapBytes(blk) : undefined };
  });
}

/** Bytes of the clusters that have data. */
async function dataBytes(blk: BlockBackend, cluster: Bytes): Promise<Bytes> {
  let bytes = 0;
  let counted = 0;
  for await (const { start, length, data, zero } of mapImage(blk)) {
    if (!data || zero) continue;
    const from = Math.max(counted, start - (start % cluster));
    const to = alignUp(start + length, cluster);
    bytes += Math.max(0, to - from);
    counted = Math.max(counted, to);
  }
  return bytes;
}

function clusterSizeOf(options: CreationOptions): Bytes {
  return options.driverOptions['cluster-size'] as Bytes;
}

interface Disk {
  readonly size: Bytes;
  readonly objects: ObjectStore | undefined;
}

/** `data`: bytes of it that are written at once. */
function sizesOf(options: CreationOptions, { size, objects }: Disk, data: Bytes): Omit<Measurement, 'bitmaps'> {
  const all = alignUp(size, SECTOR);
  if (options.format === 'raw') return { required: all, fullyAllocated: all };
  const given = withObjects({ ...options.driverOptions, size }, objects);
  const plan = planOf(given as unknown as Parameters<typeof planOf>[0]);
  const { clusterSize } = plan;
  const disk = alignUp(all, clusterSize);
  const entryBytes = plan.extendedL2 ? 16 : 8;
  const tables = Math.ceil(disk / ((clusterSize / entryBytes) * clusterSize));
  const l1Clusters = Math.ceil((tables * 8) / clusterSize);
  const own = 1 + l1Clusters + tables;
  const refcounts = refcountClusters(own + disk / clusterSize, clusterSize, plan.refcountBits);
  const crypt = plan.passphrase === undefined ? 0 : alignUp(luksBytes(options), clusterSize);
  const metadata = (own + refcounts) * clusterSize + crypt;
  const preallocated = plan.preallocation === 'full' || plan.preallocation === 'falloc';
  return { required: metadata + (preallocated ? disk : data), fullyAllocated: metadata + disk };
}

/** Of the refcount table and its blocks, which count themselves as well. */
function refcountClusters(counted: number, clusterSize: Bytes, bits: number): number {
  const perBlock = (clusterSize * 8) / bits;
  let found = 0;
  for (;;) {
    const blocks = Math.ceil((counted + found) / perBlock);
    const next = blocks + Math.ceil((blocks * 8) / clusterSize);
    if (next <= found) return found;
    found = next;
  }
}

const LUKS_UNIT = 4096;
const LUKS_SLOTS = 8;
const LUKS_STRIPES = 4000;

/** A LUKS header with its key slots; XTS has a key of twice the length. */
function luksBytes(options: CreationOptions): Bytes {
  const bits = Number(/(\d+)$/.exec(options.get('encrypt.cipher-alg') ?? 'aes-256')?.[1] ?? 256);
  const keys = (options.get('encrypt.cipher-mode') ?? 'xts') === 'xts' ? 2 : 1;
  return LUKS_UNIT + LUKS_SLOTS * alignUp(((bits * keys) / 8) * LUKS_STRIPES, LUKS_UNIT);
}

/** Which has no bitmaps. */
function isVersion2({ impl }: BlockNode): boolean {
  const info = impl.info?.() ?? {};
  const specific =
    info instanceof Promise ? undefined : (info['format-specific'] as { readonly data?: { readonly compat?: string } });
  return specific?.data?.compat === '0.10';
}

const DIRECTORY_ENTRY_BYTES = 24;

/** Of an image that can have bitmaps: their bits, their tables and the directory. */
function bitmapBytes(blk: BlockBackend): Bytes | undefined {
  const root = blk.root!;
  if (root.driver.name !== 'qcow2' || isVersion2(root)) return undefined;
  const cluster = root.limits.zeroAlignment || SECTOR;
  let bytes = 0;
  let directory = 0;
  for (const { name, granularity, persistent, inconsistent } of root.bitmaps.list()) {
    if (!persistent || inconsistent) continue;
    const bits = alignUp(Math.ceil(Math.ceil(blk.length / granularity) / 8), cluster);
    bytes += bits + alignUp((bits / cluster) * 8, cluster);
    directory += alignUp(DIRECTORY_ENTRY_BYTES + new TextEncoder().encode(name).length, 8);
  }
  return bytes + alignUp(directory, cluster);
}
