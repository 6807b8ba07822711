import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { BlockError } from '../base/errors.ts';
import { IOThread } from './iothread.ts';
import type { BackendChoice } from './select.ts';
import { chooseBackend } from './select.ts';
import { eachBackend, turn } from './testing.ts';

const extension = import.meta.url.slice(import.meta.url.lastIndexOf('.'));
const setup = new URL(`./testing-setup${extension}`, import.meta.url);

function start(aio: BackendChoice): Promise<IOThread> {
  return IOThread.start({ name: 'io0', aio, setup });
}

eachBackend('an IOThread runs its handlers in a thread of its own, on the backend asked for', async (backend) => {
  await using thread = await start(backend);
  assert.equal(thread.backend.name, backend);
  assert.equal(thread.name, 'io0');
  assert.equal(await thread.call('threadId'), thread.threadId);
  assert.deepEqual(await thread.call('echo', { a: [1, 'x', new Uint8Array(3)] }), { a: [1, 'x', new Uint8Array(3)] });
  const buffer = new ArrayBuffer(8);
  const echoed = await thread.call<ArrayBuffer>('echo', buffer, [buffer]);
  assert.equal(echoed.byteLength, 8);
  assert.equal(buffer.byteLength, 0, 'transferred');
});

eachBackend('calls run side by side and are answered each on its own', async (backend) => {
  await using thread = await start(backend);
  const stop = new AbortController();
  // It ends when it is told to, after all the others.
  const first = assert.rejects(thread.call('untilAbort', undefined, [], stop.signal));
  const others = Array.from({ length: 50 }, (_, i) => thread.call('echo', i));
  assert.deepEqual(
    await Promise.all(others),
    Array.from({ length: 50 }, (_, i) => i),
  );
  stop.abort();
  await first;
});

eachBackend('errors cross: a BlockError as one, others by name and message; the thread lives on', async (backend) => {
  await using thread = await start(backend);
  await assert.rejects(thread.call('refuse'), (error: unknown) => {
    assert.ok(error instanceof BlockError);
    assert.equal(error.code, 'ENOSPC');
    assert.equal(error.message, 'the disk is full');
    assert.deepEqual(error.where, { node: 'n0', at: 512 });
    return true;
  });
  await assert.rejects(thread.call('typeError'), { name: 'TypeError', message: 'not that type' });
  await assert.rejects(thread.call('unclonable'), { name: 'DataCloneError' });
  await assert.rejects(
    thread.call('echo', () => {}),
    { name: 'DataCloneError' },
  );
  await assert.rejects(thread.call('nothing'), { code: 'ENOSYS', message: "IOThread 'io0' has no 'nothing' to call" });
  await assert.rejects(thread.call('toString'), { code: 'ENOSYS' });
  assert.equal(await thread.call('echo', 1), 1);
});

eachBackend('events reach the owner in order, those of the setup too', async (backend) => {
  const thread = await start(backend);
  const events: unknown[] = [];
  thread.on('event', (name, payload) => events.push([name, payload]));
  await thread.call('emit', 1);
  await thread.call('emit', 2);
  await thread.stop();
  assert.deepEqual(events, [
    ['early', { name: 'io0' }],
    ['asked', 1],
    ['asked', 2],
  ]);
});

eachBackend(
  'stop ends the setup, then what is under way, then the thread; later calls are refused',
  async (backend) => {
    const thread = await start(backend);
    const crashes: unknown[] = [];
    thread.on('crash', (error) => crashes.push(error));
    const waiting = thread.call('untilStop');
    const sleeping = thread.call('sleep', 10_000_000);
    const stopped = thread.stop();
    assert.equal(thread.running, false);
    await assert.rejects(thread.call('echo'), { code: 'ESHUTDOWN' });
    assert.equal(await waiting, 'stopped');
    assert.equal(await sleeping, 'slept');
    await stopped;
    await thread.stop();
    await assert.rejects(thread.call('echo'), { code: 'ESHUTDOWN' });
    assert.deepEqual(crashes, []);
  },
);

/** What dies in `method` must reach the owner, everything pending, and everybody who asks later. */
async function expectDeath(backend: BackendChoice, method: string, why: RegExp): Promise<BlockError> {
  const thread = await start(backend);
  const crash = once(thread, 'crash') as Promise<[BlockError]>;
  const pending = thread.call('untilStop');
  const death = { code: 'EIO', message: why };
  await Promise.all([assert.rejects(pending, death), assert.rejects(thread.call(method), death)]);
  const [error] = await crash;
  assert.match(error.message, why);
  await assert.rejects(thread.call('echo'), death);
  await thread.stop();
  return error;
}

eachBackend('a Bug in a handler ends the thread and is reported with its stack', async (backend) => {
  const error = await expectDeath(backend, 'bug', /^IOThread 'io0' died: a broken promise$/);
  assert.match(String((error.cause as Error).stack), /testing-setup/);
});

eachBackend('a throw in a bottom half ends the thread', async (backend) => {
  await expectDeath(backend, 'bottomHalfThrows', /^IOThread 'io0' died: thrown in a bottom half$/);
});

eachBackend('a thread that exits on its own has died', async (backend) => {
  await expectDeath(backend, 'exit', /^IOThread 'io0' died: exit code 7$/);
});

eachBackend('E5 an IOThread that leaks a bottom half does not stop cleanly', async (backend) => {
  const thread = await start(backend);
  await thread.call('leak');
  await assert.rejects(thread.stop(), { code: 'EIO', message: "IOThread 'io0' died: BH 'leaked' leaked" });
});

eachBackend('a call whose signal is aborted ends when its handler has, with the reason', async (backend) => {
  await using thread = await start(backend);
  const controller = new AbortController();
  const call = thread.call('untilAbort', undefined, [], controller.signal);
  const other = thread.call('echo', 5, [], controller.signal);
  assert.equal(await other, 5);
  const reason = new Error('changed my mind');
  controller.abort(reason);
  await assert.rejects(call, reason);
  await assert.rejects(thread.call('echo', 1, [], controller.signal), reason);
});

test('a setup that cannot be had fails the start with its own error, and leaves no thread', async () => {
  const missing = new URL('./no-such-setup.js', import.meta.url);
  await assert.rejects(IOThread.start({ name: 'io0', aio: 'pool', setup: missing }), /no-such-setup/);
});

test('BLOCKPLANE_AIO forces a backend, an argument goes before it, and a wrong value is refused', async () => {
  const before = process.env.BLOCKPLANE_AIO;
  try {
    process.env.BLOCKPLANE_AIO = 'pool';
    const backend = await chooseBackend();
    assert.equal(backend.name, 'pool');
    assert.equal(backend.detail, 'BLOCKPLANE_AIO=pool');
    process.env.BLOCKPLANE_AIO = 'fast';
    await assert.rejects(chooseBackend(), { code: 'EINVAL', message: /BLOCKPLANE_AIO is 'fast'/ });
    assert.equal((await chooseBackend('pool')).name, 'pool');
  } finally {
    if (before === undefined) delete process.env.BLOCKPLANE_AIO;
    else process.env.BLOCKPLANE_AIO = before;
  }
});

/** A program of its own that starts a thread and then does `rest`; its exit code. */
async function program(backend: BackendChoice, rest: string): Promise<{ code: number; output: string }> {
  const source = `
    import { IOThread } from ${JSON.stringify(new URL(`./iothread${extension}`, import.meta.url).href)};
    const setup = new URL(${JSON.stringify(setup.href)});
    const thread = await IOThread.start({ name: 'io0', aio: '${backend}', setup });
    ${rest}`;
  const child = spawn(process.execPath, ['--input-type=module', '--eval', source], { timeout: 20_000 });
  let output = '';
  child.stderr.on('data', (chunk) => {
    output += chunk;
  });
  const [code] = (await once(child, 'close')) as [number];
  await turn();
  return { code, output };
}

eachBackend(
  'a program ends by itself after stop, and after unref, and by process.exit at any time',
  async (backend) => {
    const [stopped, unreferenced, exited] = await Promise.all([
      program(backend, 'await thread.stop();'),
      program(backend, 'thread.unref();'),
      program(backend, "thread.call('sleep', 3600e9); setTimeout(() => process.exit(3), 50);"),
    ]);
    assert.deepEqual(stopped, { code: 0, output: '' });
    assert.deepEqual(unreferenced, { code: 0, output: '' });
    assert.deepEqual(exited, { code: 3, output: '' });
  },
);
