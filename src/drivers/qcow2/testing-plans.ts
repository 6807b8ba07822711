/** For tests: the settings of images whose combinations are tried, and plans made of a row of them. */
import { BlockError } from '../../base/errors.ts';
import { GiB, KiB, MiB } from '../../base/units.ts';
import { planOf, type Qcow2CreateOptions } from './create-options.ts';
import { imageLayout } from './layout.ts';
import type { ImagePlan, Layer } from './testing-image.ts';

/** 16 TiB, but for the margin that leaves room to grow: file systems that have no longer files are common. */
const HUGE = 16 * 1024 * GiB - 8 * MiB;

/** The settings of each dimension; the first goes with most others. A row has one index for each dimension. */
const SETTINGS = {
  'cluster-size': [64 * KiB, 512, KiB, 4 * KiB, 2 * MiB],
  size: ['tables', 0, 512, 37 * 512, 4 * GiB + 96 * KiB + 512, HUGE],
  compat: ['1.1', '0.10'],
  'refcount-bits': [16, 1, 2, 4, 8, 32, 64],
  'extended-l2': [false, true],
  'lazy-refcounts': [false, true],
  'compression-type': ['zlib', 'zstd'],
  data: ['inside', 'file', 'raw'],
  layers: ['none', 'same', 'shorter', 'longer', 'three', 'raw'],
  preallocation: ['off', 'metadata', 'falloc', 'full'],
} as const;

type Settings = { [name in keyof typeof SETTINGS]: (typeof SETTINGS)[name][number] };

export const SETTING_COUNTS: readonly number[] = Object.values(SETTINGS).map((values) => values.length);

/** Preallocation costs time, and room on the disk; and QEMU reads what it does not know to be a hole. */
const PLACES_MAX = 8192;
const ROOM_MAX = 8 * MiB;
const READ_MAX = 64 * MiB;
/** L2 tables that the disk could have: somebody walks over all of them for each check, comparison or map. */
const TABLES_MAX = 40_000;

function settingsOf(row: readonly number[]): Settings {
  return Object.fromEntries(
    Object.entries(SETTINGS).map(([name, values], i) => [name, values[row[i]!]]),
  ) as unknown as Settings;
}

export function planOfRow(row: readonly number[]): ImagePlan {
  const { data, layers, size: wanted, ...options } = settingsOf(row);
  const cluster = options['cluster-size'];
  const tableSpan = (cluster / (options['extended-l2'] ? 16 : 8)) * cluster;
  const size = wanted === 'tables' ? 2.5 * tableSpan + 512 : wanted;
  const create: Record<string, unknown> = { size, ...options };
  if (data !== 'inside') create['data-file'] = 'data.raw';
  if (data === 'raw') create['data-file-raw'] = true;
  return { create: create as unknown as Qcow2CreateOptions, layers: layersOf(layers, size, cluster) };
}

function layersOf(layers: Settings['layers'], size: number, cluster: number): Layer[] {
  const shorter = Math.floor(size / 3 / 512) * 512;
  const longer = size + 5 * cluster;
  switch (layers) {
    case 'none':
      return [];
    case 'same':
      return [{ format: 'qcow2', size }];
    case 'shorter':
      return [{ format: 'qcow2', size: shorter }];
    case 'longer':
      return [{ format: 'qcow2', size: longer }];
    case 'three':
      return [
        { format: 'raw', size: shorter },
        { format: 'qcow2', size: longer },
        { format: 'qcow2', size: Math.max(0, size - cluster - (size % 512)) },
      ];
    case 'raw':
      return [{ format: 'raw', size }];
  }
}

/** True where the format allows it, and it is not too large to be tried. */
export function isPossible(row: readonly number[]): boolean {
  const { create, layers = [] } = planOfRow(row);
  if ((create.preallocation === 'falloc' || create.preallocation === 'full') && create.size > ROOM_MAX) return false;
  if (create.size === HUGE) {
    // Where the files are, none may be able to have as much; and a few of these do.
    if (layers.some(({ format }) => format === 'raw') || create['data-file'] !== undefined) return false;
    if (![1, 16, 64].includes(create['refcount-bits']!)) return false;
  }
  try {
    const backing = layers.length > 0 ? { 'backing-file': 'layer', 'backing-fmt': layers.at(-1)!.format } : {};
    const plan = planOf({ ...create, ...backing });
    if (plan.preallocation !== 'off') {
      if (plan.size / plan.clusterSize > PLACES_MAX) return false;
      if (plan.dataFile !== undefined && plan.size > READ_MAX) return false;
    }
    const preallocated = plan.preallocation !== 'off';
    const { l1Size } = imageLayout({ ...plan, keyBytes: 0, preallocated, externalData: plan.dataFile !== undefined });
    return l1Size <= TABLES_MAX;
  } catch (error) {
    if (error instanceof BlockError) return false;
    throw error;
  }
}

/** For titles: what is not the first setting. */
export function describeRow(row: readonly number[]): string {
  const names = Object.entries(SETTINGS).flatMap(([name, values], i) =>
    row[i] === 0 ? [] : [`${name}=${values[row[i]!]}`],
  );
  return names.join(' ') || 'all by default';
}
