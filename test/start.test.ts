/** `npm start`, as tools/start.mjs: a script that serves with nothing said, and passes on what is said. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { needs, peer, Served, scratch } from './harness.ts';

const MiB = 1024 * 1024;

function start(t: TestContext, ...args: string[]): Served {
  let root = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(root, 'package.json'))) root = dirname(root);
  const child = spawn(process.execPath, [join(root, 'tools', 'start.mjs'), ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    cwd: scratch(t),
  });
  t.after(() => child.kill('SIGKILL'));
  return new Served(child);
}

test('without arguments it serves a sparse image; the first line on stdout is the URI', needs('nbdinfo'), async (t) => {
  const served = start(t);
  await served.printed(1);
  assert.match(served.uri(), /^nbd\+unix:\/\/\/\?socket=\/.+$/);
  assert.equal((await peer('nbdinfo', '--size', served.uri())).trim(), String(1024 * MiB));
  const { code } = await served.stop('SIGINT');
  assert.equal(code, 0);
});

test('arguments are passed on, exit codes too', needs('nbdinfo'), async (t) => {
  const image = `${scratch(t)}/a.img`;
  writeFileSync(image, '');
  truncateSync(image, 3 * MiB);
  const served = start(t, '--export-name', 'x', '--read-only', image);
  await served.printed(1);
  assert.match(served.uri(), /^nbd\+unix:\/\/\/x\?socket=/);
  assert.match(await peer('nbdinfo', served.uri()), /is_read_only: true/);
  assert.equal((await served.stop()).code, 0);
  const { code, stderr } = await start(t, '--no-such-option').exited;
  assert.equal(code, 2);
  assert.match(stderr, /unknown option/);
});
