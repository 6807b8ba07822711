/**
 * `npm run bench`: every benchmark; `npm run bench -- NAME OPTIONS`: one of them (nbd, startup, heap).
 * `npm run bench -- NAME --help` lists its options.
 */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { benchmarks, ensureBuilt, ensureDebian, ensureDependencies, published, root, say } from './setup.mjs';

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
    const done = spawnSync(process.execPath, [script, ...args.slice(one ? 1 : 0)], {
      stdio: 'inherit',
      env: { ...process.env, ...published },
    });
    if (done.status !== 0 && done.status !== 77) failed += 1;
  }
  return failed === 0 ? 0 : 1;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  say(error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}
