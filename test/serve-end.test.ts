/** How `blockplane serve` ends: signals at any time, clients that hold on, threads that die. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { type TestContext, test } from 'node:test';
import { RawClient } from '../src/exports/nbd/raw-client.ts';
import { Command } from '../src/proto/nbd/constants.ts';
import { MAIN, pattern, Served, scratch, serve, socketOf, sparse } from './harness.ts';

const MiB = 1024 * 1024;

/** Environment that loads `text` first, in every thread. */
function preload(dir: string, text: string): NodeJS.ProcessEnv {
  const path = `${dir}/preload.cjs`;
  writeFileSync(path, text);
  return { NODE_OPTIONS: `--require=${path}` };
}

const wait = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

for (const [when, name, args] of [
  ['its thread starts', 'node:worker_threads', ['--iothreads', '1']],
  ['its socket is made', 'node:fs', []],
] as const) {
  test(`SIGTERM while ${when} ends serve before it says anything, exit code 0`, async (t) => {
    const dir = scratch(t);
    const [object, key] = name === 'node:fs' ? ['fs', 'mkdtempSync'] : ['worker_threads', 'Worker'];
    const patch = `
      if (require('node:worker_threads').isMainThread) {
        const target = require('node:${object}');
        const { ${key}: was } = target;
        target.${key} = function (...args) {
          process.kill(process.pid, 'SIGTERM');
          return new.target ? new was(...args) : was(...args);
        };
        require('node:module').syncBuiltinESMExports();
      }`;
    const child = spawn(process.execPath, [MAIN, 'serve', ...args, sparse(`${dir}/a.img`, MiB)], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...preload(dir, patch), TMPDIR: dir },
    });
    t.after(() => child.kill('SIGKILL'));
    const { code, stdout, stderr } = await new Served(child).exited;
    assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: '', stderr: '' });
  });
}

test('a client that does not read its replies does not hold up the end', { timeout: 60_000 }, async (t) => {
  const image = `${scratch(t)}/a.img`;
  writeFileSync(image, pattern(32 * MiB));
  const served = await serve(t, [image]);
  const client = await RawClient.connect(socketOf(served.uri()));
  await client.go('');
  client.socket.pause();
  for (let i = 0; i < 8; i++) client.request(Command.READ, 0, 16 * MiB, i);
  const other = await RawClient.readOnce(socketOf(served.uri()), '', 4096, 4096);
  assert.ok(other.equals(pattern(8192).subarray(4096)));
  const { code, stderr } = await served.stop();
  await client.destroy();
  assert.equal(code, 0, stderr);
});

for (const mode of ['none', 'line', 'json'] as const) {
  test(`an IOThread that dies ends serve with its reason and exit code 1, progress ${mode}`, async (t: TestContext) => {
    const dir = scratch(t);
    const when = `require('node:fs').existsSync(${JSON.stringify(`${dir}/now`)})`;
    const crash = `setInterval(() => { if (${when}) throw new Error('out of luck'); }, 20).unref();`;
    const env = preload(dir, `if (!require('node:worker_threads').isMainThread) ${crash}`);
    const served = await serve(t, [`--progress=${mode}`, sparse(`${dir}/a.img`, MiB)], { env });
    const socket = socketOf(served.uri());
    writeFileSync(`${dir}/now`, '');
    const { code, stderr } = await served.exited;
    assert.equal(code, 1);
    assert.match(stderr, /(^|\n|\[K)blockplane: IOThread 'io0' died: out of luck\n$/);
    assert.equal(existsSync(dirname(socket)), false);
  });
}

test('the live line says what goes on, and is gone at the end', async (t) => {
  const served = await serve(t, ['--progress=line', sparse(`${scratch(t)}/a.img`, MiB)]);
  const client = await RawClient.connect(socketOf(served.uri()));
  await client.go('');
  while (!served.text.stderr.includes('1 client ')) await once(served.child.stderr!, 'data');
  await client.destroy();
  const { code, stdout, stderr } = await served.stop();
  assert.equal(code, 0);
  assert.match(stderr, /\[K1 client {2}\d+ requests\/s {2}[\d.]+ \w+\/s/);
  assert.ok(stderr.endsWith('\r\x1b[K'), JSON.stringify(stderr.slice(-80)));
  assert.doesNotMatch(stdout, /requests\/s/);
});

test('standard error that is gone ends nothing', async (t) => {
  const served = await serve(t, ['--progress=line', sparse(`${scratch(t)}/a.img`, MiB)]);
  served.child.stderr!.destroy();
  await wait(2200);
  assert.equal(served.child.exitCode, null);
  assert.equal((await served.stop()).code, 0);
});

test('a second signal ends at once what the first one cannot', { timeout: 60_000 }, async (t) => {
  const dir = scratch(t);
  const when = `require('node:fs').existsSync(${JSON.stringify(`${dir}/now`)})`;
  const hang = `
    require('node:fs').writeFileSync(${JSON.stringify(`${dir}/stuck`)}, '');
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);`;
  const stuck = `setInterval(() => { if (${when}) { ${hang} } }, 20).unref();`;
  const env = preload(dir, `if (!require('node:worker_threads').isMainThread) ${stuck}`);
  const served = await serve(t, [sparse(`${dir}/a.img`, MiB)], { env });
  const directory = dirname(socketOf(served.uri()));
  writeFileSync(`${dir}/now`, '');
  while (!existsSync(`${dir}/stuck`)) await wait(10);
  served.child.kill('SIGTERM');
  // The same signal twice in a moment is one: it often comes from a terminal and from npm.
  served.child.kill('SIGINT');
  await wait(700);
  assert.equal(served.child.exitCode, null);
  // On a slow machine another may still be one with those before.
  const again = setInterval(() => served.child.kill('SIGINT'), 1000);
  t.after(() => clearInterval(again));
  const { code, stderr } = await served.stop('SIGINT');
  assert.equal(code, 1);
  assert.match(stderr, /^blockplane: Stopped at once: requests in flight were not waited for\n$/);
  assert.equal(existsSync(directory), false);
});

test('more clients than --max-connections wait until one leaves', async (t) => {
  const served = await serve(t, ['--max-connections', '2', sparse(`${scratch(t)}/a.img`, MiB)]);
  const connect = (): Promise<RawClient> => RawClient.connect(socketOf(served.uri()));
  const [first, second] = [await connect(), await connect()];
  await first.go('');
  await second.go('');
  const third = await connect();
  await wait(300);
  assert.equal(third.available, 0);
  second.request(Command.READ, 0, 512);
  assert.equal((await second.simpleReply())?.error, 0);
  await first.destroy();
  await third.go('');
  third.request(Command.READ, 0, 512);
  assert.equal((await third.simpleReply())?.error, 0);
  await Promise.all([second.destroy(), third.destroy()]);
});
