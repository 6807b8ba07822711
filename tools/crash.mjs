/**
 * `npm run crash`: crash replay of qcow2 (docs/QCOW2.md), longer than `npm test` has time for. Options: `--states N`,
 * how many states at least (20000); `--seed N`, the workload to begin with, and with it alone unless `--states` is
 * given.
 */
import { cpus } from 'node:os';
import { ensureBuilt, ensureDebian, ensureDependencies, say } from './setup.mjs';

const PROGRESS_MS = 10_000;

function numberOf(args, name) {
  const at = args.indexOf(name);
  if (at < 0) return undefined;
  const value = Number(args[at + 1]);
  if (!Number.isSafeInteger(value) || value < 0)
    throw new Error(`Could not use ${name}: '${args[at + 1]}' is no count`);
  return value;
}

async function main(args) {
  const seed = numberOf(args, '--seed');
  const states = numberOf(args, '--states') ?? (seed === undefined ? 20_000 : 0);
  await ensureDependencies();
  await ensureDebian();
  await ensureBuilt();
  const { CrashRunner } = await import('../dist/src/drivers/qcow2/testing-crash.js');
  const { RANDOM } = await import('../dist/src/drivers/qcow2/testing-crash-plans.js');
  const runner = new CrashRunner({ statesMax: 200, subsets: 2, processes: Math.max(2, cpus().length), sample: 20 });
  const { totals } = runner;
  const line = () =>
    Object.entries(totals)
      .map(([what, count]) => `${what} ${count}`)
      .join(', ');
  let shown = Date.now();
  const failed = [];
  const one = async (number) => {
    try {
      await runner.seed(number);
    } catch (error) {
      failed.push(number);
      console.log(error instanceof Error ? (error.stack ?? error.message) : error);
    }
    if (Date.now() - shown < PROGRESS_MS) return;
    shown = Date.now();
    console.log(`seed ${number}: ${line()}`);
  };
  await one(seed ?? RANDOM);
  for (let n = 0; totals.states < states; n++) {
    // Short workloads, which have the small numbers, and long ones take turns.
    await one(n);
    await one((seed ?? RANDOM) + 1 + n);
  }
  runner.end();
  console.log(`${line()}, corruptions ${failed.length}`);
  if (failed.length > 0) console.log(`Repeat one with: npm run crash -- --seed ${failed[0]}`);
  return failed.length === 0 ? 0 : 1;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  say(error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}
