/**
 * Random operations on images of every geometry, by us and now and then by QEMU, against a model of the disk; at
 * intervals QEMU checks the image and compares it with the model. BLOCKPLANE_FUZZ_RUNS sets how many images,
 * BLOCKPLANE_FUZZ_SEED which one comes first: the seed in a message repeats it.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { needs } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { chooseBackend } from '../../aio/select.ts';
import { Prng } from '../../base/prng.ts';
import { registerQcow2 } from './testing.ts';
import { Fuzzer, randomPlan } from './testing-fuzz.ts';
import { TestImage } from './testing-image.ts';

const RUNS = Number(process.env.BLOCKPLANE_FUZZ_RUNS ?? 40);
const FIRST = Number(process.env.BLOCKPLANE_FUZZ_SEED ?? 1);
const STEPS = 40;
/** Images that found something, each a mistake of its own. */
const FOUND = [
  // The map said no data where a cluster of an external data file is a hole there.
  81,
];
/** However many runs were asked for: a test file has 15 minutes. */
const SECONDS_MAX = 13 * 60;

before(registerQcow2);

async function run(seed: number): Promise<void> {
  const prng = new Prng(seed);
  const plan = randomPlan(prng);
  const folder = mkdtempSync(join(tmpdir(), 'blockplane-fuzz-'));
  const context = new AioContext(await chooseBackend());
  let log: readonly string[] = [];
  try {
    const image = await TestImage.make(context, folder, plan, prng.chance(0.5) ? 'us' : 'QEMU');
    const fuzzer = new Fuzzer(prng, image);
    log = fuzzer.log;
    await fuzzer.run(STEPS);
  } catch (error) {
    const steps = log.map((line, i) => `  ${i}: ${line}`).join('\n');
    throw new Error(`seed ${seed}: ${JSON.stringify(plan)}\n${steps}\n${(error as Error).stack}`);
  } finally {
    await context.stop();
    if (process.env.BLOCKPLANE_FUZZ_KEEP === undefined) rmSync(folder, { recursive: true, force: true });
  }
}

test('images that found something once', needs('qemu-img', 'qemu-io'), async () => {
  for (const seed of FOUND) await run(seed);
});

test(`${RUNS} images of random operations, from seed ${FIRST}`, {
  ...needs('qemu-img', 'qemu-io'),
  timeout: 15 * 60_000,
}, async () => {
  const began = Date.now();
  for (let i = 0; i < RUNS && Date.now() - began < SECONDS_MAX * 1000; i++) await run(FIRST + i);
});
