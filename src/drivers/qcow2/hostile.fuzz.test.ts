/**
 * Images with broken fields, opened and used. Whatever is in an image, there is no crash and no mistake of ours, no
 * work without bound, and nothing but the image is touched. BLOCKPLANE_FUZZ_RUNS sets how many, BLOCKPLANE_FUZZ_SEED
 * which one is the first.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { BlockError } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { Prng } from '../../base/prng.ts';
import { KiB, MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { RequestFlags } from '../../block/driver.ts';
import { BlockStatus } from '../../block/status.ts';
import type { Qcow2Node } from './driver.ts';
import { type CountedFile, countedFile, mistakes, registerCounted } from './testing-counted.ts';
import { type BaseImage, baseImages, mutate, nodeOf } from './testing-mutants.ts';

const RUNS = Number(process.env.BLOCKPLANE_FUZZ_RUNS ?? 1500);
const FIRST = Number(process.env.BLOCKPLANE_FUZZ_SEED ?? 1);
/** What one mutant may cost: all of a small image many times over. */
const OPS_MAX = 20_000;
const BYTES_MAX = 256 * MiB;
/** What is there between two collections of garbage: a cache or an L1 table of the largest size has 32 MiB. */
const MEMORY_MAX = 256 * MiB;
/** What stays: the largest caches are 40 MiB, and some may not have been collected yet. */
const KEPT_MAX = 64 * MiB;
const COLLECTIONS = 20;
/** Where the header has its dirty bit. */
const DIRTY_AT = 79;
/** Not a measure, only an end: for what waits forever. */
const HANG_MS = 60_000;

type Act = (blk: BlockBackend, prng: Prng) => Promise<unknown> | unknown;

function iov(blk: BlockBackend, length: number, value: number): Iov {
  return Iov.of(blk.context.backend.memory(new Uint8Array(new SharedArrayBuffer(length)).fill(value)));
}

/** A range of the disk: mostly where the small image has its data, now and then at the end of what it claims to be. */
function range(blk: BlockBackend, prng: Prng, most: number): { at: number; length: number } {
  const length = Math.min(blk.length, prng.between(1, most));
  const span = prng.chance(0.8) ? Math.min(blk.length, 160 * KiB) : blk.length;
  return { at: Math.max(0, prng.chance(0.1) ? blk.length - length : prng.below(span - length + 1)), length };
}

const node = (blk: BlockBackend): Qcow2Node => blk.root!.impl as Qcow2Node;

const READS: readonly Act[] = [
  (blk, prng) => {
    const { at, length } = range(blk, prng, 64 * KiB);
    return blk.read(at, iov(blk, length, 0));
  },
  async (blk, prng) => {
    const { at, length } = range(blk, prng, 160 * KiB);
    const status = new BlockStatus();
    for (let done = 0; done < length; done += status.length) await blk.blockStatus(at + done, length - done, status);
  },
  (blk) => node(blk).snapshots.list(),
  (blk) => (node(blk) as { check?: (fix: string) => unknown }).check?.('none'),
];

const WRITES: readonly Act[] = [
  (blk, prng) => {
    const { at, length } = range(blk, prng, 16 * KiB);
    return blk.write(at, iov(blk, length, prng.below(256)));
  },
  (blk, prng) => {
    const { clusterSize } = node(blk).image.geometry;
    const clusters = Math.floor(Math.min(blk.length, 160 * KiB) / clusterSize);
    if (clusters === 0 || clusterSize > 64 * KiB) return undefined;
    return blk.write(prng.below(clusters) * clusterSize, iov(blk, clusterSize, 7), RequestFlags.COMPRESSED);
  },
  (blk, prng) => {
    const { at, length } = range(blk, prng, 64 * KiB);
    return blk.writeZeroes(at, length, prng.pick([0, RequestFlags.MAY_UNMAP]));
  },
  (blk, prng) => {
    const { at, length } = range(blk, prng, 64 * KiB);
    return blk.discard(at, length);
  },
  (blk) => blk.flush(),
];

const CONTROL: readonly Act[] = [
  (blk, prng) => blk.truncate(prng.below(400) * 512),
  (blk, prng) => exclusive(blk, () => node(blk).snapshots.create(`new ${prng.below(100)}`)),
  (blk, prng) => exclusive(blk, () => node(blk).snapshots.apply(prng.pick(['1', '2', 'snapshot 0']))),
  (blk, prng) => exclusive(blk, () => node(blk).snapshots.delete(prng.pick(['1', '2', 'snapshot 1']))),
  (blk, prng) =>
    exclusive(blk, () =>
      node(blk).amend(
        prng.pick([
          { 'lazy-refcounts': prng.chance(0.5) },
          { 'refcount-bits': 2 ** prng.below(7) },
          { compat: prng.pick(['0.10', '1.1']) },
          { 'backing-file': null },
        ]),
      ),
    ),
];

async function exclusive(blk: BlockBackend, work: () => Promise<unknown>): Promise<void> {
  using _drained = await blk.drain();
  await work();
}

/** Runs one thing; a refusal is fine, anything but that is not. */
async function attempt(work: () => Promise<unknown> | unknown): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    if (!(error instanceof BlockError)) mistakes.push(error);
    return false;
  }
}

async function use(blk: BlockBackend, prng: Prng, readOnly: boolean): Promise<void> {
  for (let step = prng.between(2, 8); step > 0; step--) {
    if (!readOnly && prng.chance(0.2)) {
      await attempt(() => prng.pick(CONTROL)(blk, prng));
      continue;
    }
    const acts = readOnly ? READS : [...READS, ...WRITES, ...WRITES];
    const together = prng.between(1, 4);
    await Promise.all(Array.from({ length: together }, () => attempt(() => prng.pick(acts)(blk, prng))));
  }
}

interface Files {
  readonly image: CountedFile;
  readonly others: readonly CountedFile[];
}

function files(base: BaseImage, bytes: Uint8Array): Files {
  const others: CountedFile[] = [];
  if (base.data) others.push(countedFile('data', base.data));
  if (base.backing) others.push(countedFile('backing', base.backing));
  return { image: countedFile('image', bytes), others };
}

/** One mutant, opened read-only and then for writing. */
async function mutant(context: AioContext, base: BaseImage, prng: Prng): Promise<string> {
  const { bytes, what } = mutate(base, prng);
  for (const readOnly of [true, false]) {
    const { image, others } = files(base, bytes);
    const before = image.content();
    for (const file of [image, ...others]) {
      file.opsMax = OPS_MAX;
      file.bytesMax = BYTES_MAX;
      if (prng.chance(0.3)) file.prng = prng.fork();
    }
    let blk: BlockBackend | undefined;
    await attempt(async () => {
      blk = await BlockBackend.open(context, nodeOf(base, 'qcow2-watched', readOnly));
    });
    const opened = blk !== undefined;
    if (blk) {
      const open = blk;
      await use(open, prng, readOnly);
      await attempt(() => open.close());
    }
    // One that says it was not closed cleanly is repaired, as far as that goes.
    const dirty = (before[DIRTY_AT]! & 1) !== 0;
    if (readOnly || !(opened || dirty)) assert.deepEqual(image.content(), before, `${what}: nothing is written`);
    assert.equal(image.opens, 1, `${what}: opened once`);
    assert.ok(!image.spent, `${what}: ${image.ops} operations, ${image.bytes} bytes`);
    if (mistakes.length > 0) throw new Error(`${what}: ${(mistakes[0] as Error).stack}`);
  }
  return what;
}

/** Collects garbage, and answers what is left. Buffers go a while after their last user: see memoryKept(). */
function memoryInUse(): number {
  setFlagsFromString('--expose-gc');
  (runInNewContext('gc') as () => void)();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

/** What is in use beyond `before`, once nothing more goes. */
async function memoryKept(before: number): Promise<number> {
  let kept = memoryInUse() - before;
  for (let tries = 0; kept >= KEPT_MAX && tries < COLLECTIONS; tries++) {
    await new Promise((resolve) => setImmediate(resolve));
    kept = memoryInUse() - before;
  }
  return kept;
}

test('broken images are refused or used without a mistake, within bounds', { timeout: 3_600_000 }, async (t) => {
  registerCounted();
  const context = new AioContext(new PoolBackend());
  const images = await baseImages(context);
  const before = memoryInUse();
  const baseline = process.memoryUsage.rss();
  let peak = 0;
  let kept = 0;
  for (let seed = FIRST; seed < FIRST + RUNS; seed++) {
    mistakes.length = 0;
    const prng = new Prng(seed);
    const alarm = setTimeout(() => {
      throw new Error(`seed ${seed}: waits forever`);
    }, HANG_MS);
    const report = (error: unknown): void => t.diagnostic(`seed ${seed}: ${(error as Error).stack}`);
    process.once('uncaughtExceptionMonitor', report);
    try {
      await mutant(context, prng.pick(images), prng);
    } catch (error) {
      throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error });
    } finally {
      clearTimeout(alarm);
      process.removeListener('uncaughtExceptionMonitor', report);
    }
    if (seed % 500 === 0) kept = await memoryKept(before);
    assert.ok(kept < KEPT_MAX, `seed ${seed}: ${kept} bytes of memory stay`);
    if (seed % 10 === 0) {
      // What is only waiting for its collection does not count.
      if (process.memoryUsage.rss() - baseline > MEMORY_MAX / 2) memoryInUse();
      peak = Math.max(peak, process.memoryUsage.rss() - baseline);
    }
    assert.ok(peak < MEMORY_MAX, `seed ${seed}: ${peak} bytes of memory more than at the beginning`);
  }
  t.diagnostic(`${RUNS} mutants from seed ${FIRST}, at most ${Math.round(peak / MiB)} MiB more memory`);
  await context.stop();
});
