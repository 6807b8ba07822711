/**
 * For tests: which images, and what is done to them. All short workloads of one to three steps (after ACE, the
 * generator of CrashMonkey), numbered; and long random ones with several requests in flight.
 */
import { Prng } from '../../base/prng.ts';
import { alignDown, type Bytes, GiB, KiB, MiB, type Offset, SECTOR } from '../../base/units.ts';
import type { Qcow2CreateOptions } from './create-options.ts';
import type { Region } from './testing-crash-model.ts';
import type { CrashFormat, Step } from './testing-crash-work.ts';

export interface Plan {
  readonly seed: number;
  readonly format: CrashFormat;
  readonly setup: readonly Step[];
  readonly steps: readonly Step[];
  readonly atOnce: number;
}

/** A kind of image with what the steps need to know of it. */
interface Kind extends CrashFormat {
  /** One of its internal snapshots is there when it begins. */
  readonly snapshot: boolean;
  /** Bytes that are written beforehand, behind the regions. */
  readonly filled: Bytes;
  /** The longest write. */
  readonly bulk: Bytes;
}

/** What one L2 table maps. */
function spanOf(create: Qcow2CreateOptions): Bytes {
  const cluster = create['cluster-size']!;
  return (cluster / (create['extended-l2'] ? 16 : 8)) * cluster;
}

/** Bytes of a large cluster that are looked at in one place. */
const LOOK = 16 * KiB;

function kind(
  name: string,
  create: Qcow2CreateOptions,
  more: Partial<Omit<Kind, 'name' | 'create' | 'regions'>> = {},
): Kind {
  const cluster = create['cluster-size']!;
  const span = spanOf(create);
  const regions: Region[] = [{ at: 0, length: cluster < MiB ? 14 * cluster : LOOK }];
  const add = (from: Offset, to: Offset): void => {
    const at = Math.max(from, regions.at(-1)!.at + regions.at(-1)!.length);
    if (to > at) regions.push({ at, length: to - at });
  };
  // Of large clusters the beginnings and the middles are enough.
  if (cluster >= MiB) {
    for (let n = 1; n < 28; n++) add((n * cluster) / 2 - (n % 2) * LOOK, (n * cluster) / 2 + LOOK);
    add(span - cluster / 2 - LOOK, span - cluster / 2 + LOOK);
    add(span - LOOK, span + LOOK);
  } else add(span - 2 * cluster, span + 4 * cluster);
  if (create.size < 64 * MiB) add(alignDown(create.size, cluster) - 2 * cluster, create.size + 4 * cluster);
  return { snapshot: false, filled: 0, bulk: 3 * cluster, name, create, regions, ...more };
}

const TINY = { 'l2-cache-size': 2 * KiB, 'refcount-cache-size': 8 * KiB };
const small = { size: 256 * KiB, 'cluster-size': 512 } as const;
const middle = { size: 2 * MiB + 40 * KiB, 'cluster-size': 4 * KiB } as const;

const KINDS: readonly Kind[] = [
  kind('v3 512', { ...small }, { node: TINY }),
  kind('v3 512 snapshot', { ...small }, { node: TINY, snapshot: true }),
  kind('v2 512', { ...small, compat: '0.10' }, { node: TINY }),
  kind('v2 512 snapshot', { ...small, compat: '0.10' }, { snapshot: true }),
  kind('v3 4k', { ...middle }, { node: { 'pass-discard-other': true } }),
  kind('v3 4k snapshot', { ...middle }, { node: { 'pass-discard-other': true }, snapshot: true }),
  kind('v3 64k', { size: GiB, 'cluster-size': 64 * KiB }),
  kind('v3 64k snapshot', { size: GiB, 'cluster-size': 64 * KiB }, { snapshot: true }),
  kind('v3 2M', { size: 600 * GiB, 'cluster-size': 2 * MiB }, { bulk: 256 * KiB }),
  kind('subclusters', { size: 17 * MiB, 'cluster-size': 16 * KiB, 'extended-l2': true }),
  kind('subclusters snapshot', { size: 17 * MiB, 'cluster-size': 16 * KiB, 'extended-l2': true }, { snapshot: true }),
  kind('lazy', { ...small, 'lazy-refcounts': true }, { node: TINY }),
  kind('lazy 4k snapshot', { ...middle, 'lazy-refcounts': true }, { snapshot: true }),
  kind('refcounts of 1 bit', { ...small, 'refcount-bits': 1 }),
  // Just before its refcount table has to grow: 64 blocks that count 64 clusters each are 2 MiB.
  kind(
    'refcount table',
    { size: 3 * MiB, 'cluster-size': 512, 'refcount-bits': 64 },
    { node: TINY, filled: 1900 * KiB, bulk: 60 * KiB },
  ),
  kind('data file', { ...middle, 'data-file': 'data.raw' }),
  kind('raw data file', { ...middle, 'data-file': 'data.raw', 'data-file-raw': true }),
  kind('backing', { ...middle, 'backing-file': 'base.raw', 'backing-fmt': 'raw' }, { backing: 40 * KiB }),
  kind(
    'v2 backing',
    { ...small, compat: '0.10', 'backing-file': 'base.raw', 'backing-fmt': 'raw' },
    { backing: 5 * KiB },
  ),
  kind('keeps discarded', { ...small }, { node: { ...TINY, 'discard-no-unref': true } }),
];

export const KIND_COUNT = KINDS.length;

/** One step of the short workloads; a letter each. */
function aceStep(letter: string, of: Kind): Step {
  const cluster = of.create['cluster-size']!;
  const span = spanOf(of.create);
  const half = Math.max(SECTOR, cluster / 2);
  const steps: Readonly<Record<string, Step>> = {
    // New: a part of a cluster, and many.
    p: { do: 'write', at: 8 * cluster + (half % cluster), length: SECTOR },
    w: { do: 'write', at: 9 * cluster, length: Math.min(of.bulk, span - 9 * cluster) },
    // Over a part of an allocated cluster, of a zero cluster, of a compressed one.
    o: { do: 'write', at: cluster, length: half },
    e: { do: 'write', at: 4 * cluster, length: half },
    k: { do: 'write', at: 5 * cluster, length: half },
    // Over the border of two L2 tables.
    x: { do: 'write', at: span - half, length: 2 * half },
    z: { do: 'zero', at: 2 * cluster, length: 2 * cluster },
    u: { do: 'zero', at: cluster, length: 2 * cluster + half, unmap: true },
    d: { do: 'discard', at: cluster, length: 5 * cluster },
    // A new one, and over others.
    c: { do: 'compress', at: 10 * cluster, length: cluster },
    C: { do: 'compress', at: 3 * cluster, length: 3 * cluster },
    s: { do: 'create' },
    a: { do: 'apply' },
    r: { do: 'delete' },
    g: { do: 'resize', size: of.create.size + 2 * span + 3 * cluster },
    h: { do: 'resize', size: 3 * cluster },
    // In the middle of a cluster, where clusters are larger than a sector.
    i: { do: 'resize', size: cluster + half },
    m: { do: 'amend', changes: { 'refcount-bits': of.create['refcount-bits'] === 64 ? 16 : 64 } },
    f: { do: 'flush' },
    b: { do: 'reopen' },
  };
  return steps[letter]!;
}

const LETTERS = [...'pwoekxzudcCsarghimfb'];

/** What a step needs of the kind of image. */
function possible(step: Step, of: Kind): boolean {
  const { create } = of;
  if (step.do === 'compress') return create['data-file'] === undefined;
  if (step.do === 'apply' || step.do === 'delete') return of.snapshot;
  if (step.do === 'create') return create['data-file'] === undefined && create['refcount-bits'] !== 1;
  if (step.do === 'amend') return create.compat !== '0.10';
  if (step.do === 'resize') return !(of.snapshot && create.compat === '0.10');
  return true;
}

function setupOf(of: Kind): Step[] {
  const cluster = of.create['cluster-size']!;
  const size = Math.min(of.bulk, 2 * cluster);
  const steps: Step[] = [];
  for (const at of [0, 2, 4]) steps.push({ do: 'write', at: at * cluster, length: size });
  if (possible({ do: 'compress', at: 0, length: 0 }, of))
    steps.push(
      { do: 'compress', at: 5 * cluster, length: cluster },
      { do: 'compress', at: 6 * cluster, length: cluster },
    );
  steps.push({ do: 'zero', at: 4 * cluster, length: cluster });
  for (let done = 0; done < of.filled; done += 64 * KiB) {
    steps.push({ do: 'write', at: MiB + done, length: Math.min(64 * KiB, of.filled - done) });
  }
  if (!of.snapshot) return steps;
  return [
    ...steps,
    { do: 'create' },
    { do: 'write', at: cluster, length: size },
    { do: 'discard', at: 2 * cluster, length: cluster },
  ];
}

/** Every step of a short workload, for one kind of image: for all of one step, then all of two, then of three. */
export function acePlan(number: number): Plan {
  const of = KINDS[number % KINDS.length]!;
  const letters = LETTERS.filter((letter) => possible(aceStep(letter, of), of));
  let rest = Math.floor(number / KINDS.length);
  let length = 1;
  for (let count = letters.length; rest >= count && length < 3; count *= letters.length) {
    rest -= count;
    length++;
  }
  const flushBetween = rest % 2 === 1;
  const steps: Step[] = [];
  for (let i = 0; i < length; i++) {
    steps.push(aceStep(letters[rest % letters.length]!, of));
    if (flushBetween) steps.push({ do: 'flush' });
    rest = Math.floor(rest / letters.length);
  }
  if (steps.at(-1)!.do !== 'flush') steps.push({ do: 'flush' });
  return { seed: number, format: of, setup: setupOf(of), steps, atOnce: 1 };
}

/** A workload of the steps of the short ones, by their letters. */
export function aceSteps(name: string, letters: string): Plan {
  const of = KINDS.find((one) => one.name === name)!;
  const steps = [...letters].map((letter) => aceStep(letter, of));
  return { seed: 1, format: of, setup: setupOf(of), steps, atOnce: 1 };
}

/** Short workloads of exactly so many steps start here, for all kinds of image. */
export const ACE_TRIPLES = (LETTERS.length + LETTERS.length ** 2) * KINDS.length;
/** Seeds from here on are of random workloads. */
export const RANDOM = 1_000_000;

export function randomPlan(seed: number): Plan {
  const prng = new Prng(seed);
  const of = KINDS[seed % KINDS.length]!;
  const count = prng.between(12, 30);
  const steps: Step[] = [];
  while (steps.length < count) {
    const step = prng.chance(0.07) ? aceStep(prng.pick([...'sarghb']), of) : randomStep(prng, of);
    if (possible(step, of)) steps.push(step);
  }
  return { seed, format: of, setup: setupOf(of), steps, atOnce: prng.pick([1, 2, 4, 6]) };
}

function randomStep(prng: Prng, of: Kind): Step {
  const cluster = of.create['cluster-size']!;
  const region = prng.pick(of.regions);
  const end = Math.min(region.at + region.length, of.create.size);
  const at = region.at + SECTOR * prng.below((end - region.at) / SECTOR);
  const most = Math.min(prng.chance(0.2) ? of.bulk : prng.pick([cluster, 2 * cluster, 3 * cluster]), end - at);
  const length = SECTOR * prng.between(1, Math.max(1, most / SECTOR));
  const roll = prng.below(20);
  if (roll < 9) return { do: 'write', at, length: Math.min(length, of.bulk) };
  const whole = alignDown(at, cluster);
  if (roll < 11) return { do: 'compress', at: whole, length: Math.min(cluster, of.create.size - whole) };
  if (roll < 13) return { do: 'zero', at, length, unmap: prng.chance(0.5) };
  if (roll < 16) return { do: 'discard', at, length: Math.min(end - at, 3 * length) };
  return { do: 'flush' };
}

/** The workload of a seed. */
export function planOfSeed(seed: number): Plan {
  return seed < RANDOM ? acePlan(seed) : randomPlan(seed);
}
