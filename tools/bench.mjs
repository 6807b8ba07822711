/**
 * `npm run bench`: every benchmark; `npm run bench -- NAME OPTIONS`: one of them (nbd, startup, heap).
 * `npm run bench -- NAME --help` lists its options.
 */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { ensureBuilt, ensureDebian, ensureDependencies, root, say } from './setup.mjs';

/** The benchmarks are the files of bench/ that run by themselves. */
const SHARED = new Set(['common', 'fio', 'nbd-client', 'peers']);

/** Names of the benchmarks, in the order they run. */
export function benchmarks() {
  return readdirSync(join(root, 'bench'))
    .filter((file) => file.endsWith('.ts') && !file.endsWith('.test.ts'))
    .map((file) => file.slice(0, -'.ts'.length))
    .filter((name) => !SHARED.has(name))
    .sort();
}

async function main(args) {
  await ensureDependencies();
  await ensureBuilt();
  await ensureDebian();
  const names = benchmarks();
  const one = args[0] !== undefined && !args[0].startsWith('-');
  if (one && !names.includes(args[0])) {
    say(`Could not run benchmark '${args[0]}': there is none of that name, only ${names.join(', ')}`);
    return 1;
  }
  let failed = 0;
  for (const name of one ? [args[0]] : names) {
    const script = join(root, 'dist', 'bench', `${name}.js`);
    const done = spawnSync(process.execPath, [script, ...args.slice(one ? 1 : 0)], { stdio: 'inherit' });
    if (done.status !== 0 && done.status !== 77) failed += 1;
  }
  return failed === 0 ? 0 : 1;
}

if (import.meta.filename === process.argv[1]) process.exitCode = await main(process.argv.slice(2));
