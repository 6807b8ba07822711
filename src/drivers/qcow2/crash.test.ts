/**
 * A crash at any moment leaves an image that `qemu-img check` finds no corruption in (leaks are allowed), with every
 * byte that was flushed. `npm run crash` does the same for longer, and `npm run crash -- --seed N` repeats one
 * workload.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { needs } from '../../../test/harness.ts';
import { CrashFailure, type CrashOptions, CrashRunner } from './testing-crash.ts';
import { KIND_COUNT, RANDOM } from './testing-crash-plans.ts';

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
