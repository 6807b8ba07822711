/**
 * A crash at any moment leaves an image that `qemu-img check` finds no corruption in (leaks are allowed), with every
 * byte that was flushed. `npm run crash` does the same for longer, and `npm run crash -- --seed N` repeats one
 * workload.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, pattern, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { DiskJournal } from '../../aio/sim/journal.ts';
import { Sim } from '../../aio/sim/sim.ts';
import { Prng } from '../../base/prng.ts';
import { KiB } from '../../base/units.ts';
import { makeImage, registerQcow2 } from './testing.ts';
import { CrashFailure, type CrashOptions, CrashRunner, writeFile } from './testing-crash.ts';
import { aceSteps, KIND_COUNT, RANDOM } from './testing-crash-plans.ts';
import { CrashReplay, crashPoints } from './testing-crash-states.ts';
import { IMAGE } from './testing-crash-work.ts';
import { PeerFolder } from './testing-peer.ts';

const OPTIONS: CrashOptions = { statesMax: 40, subsets: 1, processes: 2, sample: 20 };
/** Workloads that found something, each a mistake of its own. */
const FOUND = [
  // A flush came back while the metadata was still on its way in a sync of the background.
  1_000_019,
  // Growing the file took away what a write behind the end had put there meanwhile.
  1_000_004, 1_000_013,
];
const STATES = 2000;

const options = { ...needs('qemu-img'), timeout: 110_000 };

async function withRunner(change: Partial<CrashOptions>, body: (runner: CrashRunner) => Promise<void>): Promise<void> {
  const runner = new CrashRunner({ ...OPTIONS, ...change });
  try {
    await body(runner);
  } finally {
    runner.end();
  }
}

test('workloads that lost something once', options, () =>
  withRunner({ statesMax: 1000 }, async (runner) => {
    for (const seed of FOUND) await runner.seed(seed);
  }),
);

test('a disk that grows shows zeroes, whatever was behind its end, and after whatever crash', options, () =>
  withRunner({ statesMax: 80, sample: 2 }, async (runner) => {
    for (const name of ['v3 4k', 'v3 4k snapshot', 'backing', 'v2 backing', 'raw data file', 'subclusters']) {
      for (const letters of ['owfig', 'ofhg']) await runner.run(aceSteps(name, letters));
    }
  }),
);

test('a disk that forgets what it was told to keep is found out', options, () =>
  withRunner({ lying: true }, async (runner) => {
    await assert.rejects(runner.seed(RANDOM + 1), CrashFailure);
  }),
);

test('no crash corrupts an image or loses what was flushed', options, async (t) => {
  await withRunner({}, async (runner) => {
    const { totals } = runner;
    // Short workloads of one and two steps and long ones take turns, over all kinds of image.
    for (let n = 0; totals.states < STATES; n++) {
      await runner.seed(RANDOM + 100 + n);
      await runner.seed(n);
      await runner.seed(KIND_COUNT * (20 + 7 * n) + (n % KIND_COUNT));
    }
    t.diagnostic(
      Object.entries(totals)
        .map(([what, count]) => `${what} ${count}`)
        .join(', '),
    );
    assert.ok(totals.states >= STATES);
    assert.ok(totals.clean + totals.leaks + totals.dirty + totals.copied === totals.states);
  });
});

async function bytesOfImage(sim: Sim, size: number): Promise<Uint8Array> {
  const context = new AioContext(sim.backend());
  const file = { driver: 'file', filename: IMAGE };
  const more = { 'cluster-size': 4 * KiB, preallocation: 'metadata' } as const;
  await sim.complete(makeImage(context, file, { size, ...more }));
  await context.stop();
  return sim.readDisk(IMAGE)!;
}

test('a crash while an image is made leaves no image, or a whole one', options, async (t) => {
  registerQcow2();
  const first = new Sim(1);
  first.writeDisk(IMAGE, new Uint8Array(0));
  const peer = new PeerFolder(join(scratch(t), 'peer'));
  t.after(() => peer.end());
  for (const before of [new Uint8Array(0), pattern(300 * KiB), await bytesOfImage(first, 4 * KiB * KiB)]) {
    const sim = new Sim(2);
    sim.writeDisk(IMAGE, before);
    const journal = new DiskJournal();
    sim.disk.journal = journal;
    await bytesOfImage(sim, 1000 * KiB);
    const replay = new CrashReplay(new Map([[IMAGE, before]]), journal);
    let whole = 0;
    for (const point of crashPoints(journal, new Prng(3), 3)) {
      const image = replay.build(point).files.get(IMAGE)!;
      const head = new Uint8Array(4);
      image.read(0, head);
      if (head[3] !== 0xfb) continue;
      whole++;
      const { code, output } = await peer.run('check', '-f', 'qcow2', writeFile(peer.path, IMAGE, image));
      assert.ok(code === 0 || code === 3, `${point.what}: ${output}`);
    }
    t.diagnostic(`${whole} images`);
    assert.ok(whole > 0);
  }
});
