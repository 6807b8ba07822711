/** Boots a throw-away Linux guest, for tests and benchmarks. What does it is a program beside the project. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';

function projectRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
}

const RUNNER = process.env.BLOCKPLANE_GUEST ?? resolve(projectRoot(), '../shared/tools/guest/guest.sh');
/** Undefined where a guest can be booted. */
export const whyNoGuest = existsSync(RUNNER) ? undefined : 'there is nothing to boot a guest with';

/** Runs `script` in a guest; answers what it printed. Throws when it did not end with 0. */
export async function guest(
  folder: string,
  options: readonly string[],
  script: string,
  ...args: string[]
): Promise<string> {
  const path = join(folder, 'script.sh');
  writeFileSync(path, script);
  const runner = spawn(RUNNER, [...options, '--timeout', LONG ? '2000' : '500', '--run', path, '--', ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let text = '';
  for (const stream of [runner.stdout, runner.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
    });
  }
  const [code] = (await once(runner, 'close')) as [number | null];
  assert.equal(code, 0, text);
  return text;
}
