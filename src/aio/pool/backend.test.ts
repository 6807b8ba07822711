import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import * as net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { Worker } from 'node:worker_threads';
import { BlockError, Errno } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { AioContext } from '../context.ts';
import { SharedWord } from '../context-shared.ts';
import { SeenOp, wait } from '../seam-harness.ts';
import { PoolBackend } from './backend.ts';

const run = promisify(execFile);

function here(relative: string): string {
  return new URL(relative, import.meta.url).href;
}

/** Runs `source` as a module in a process of its own; resolves with what it printed. */
async function script(source: string, env: Record<string, string> = {}): Promise<string> {
  const { NODE_TEST_CONTEXT: _, ...rest } = process.env;
  const options = { env: { ...rest, ...env }, timeout: 20_000 };
  const { stdout } = await run(process.execPath, ['--input-type=module', '-e', source], options);
  return stdout.trim();
}

async function withContext(body: (context: AioContext, folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'bp-'));
  const context = new AioContext(new PoolBackend());
  try {
    await body(context, folder);
    await context.stop();
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const errorCode = (code: string) => (error: unknown) => error instanceof BlockError && error.code === code;

test('E6 wake-ups of another thread are never lost, and cost nothing while the context is awake', () =>
  withContext(async (context) => {
    const rounds = 20_000;
    let ran = 0;
    let last: (() => void) | undefined;
    const bh = context.bottomHalf(() => {
      ran++;
      last?.();
    }, 'woken');
    const worker = new Worker(
      `const { workerData, parentPort } = require('node:worker_threads');
       import(workerData.module).then(async ({ RemoteContext }) => {
         const remote = new RemoteContext(workerData.context);
         let pause = new Int32Array(new SharedArrayBuffer(4));
         for (let i = 0; i < workerData.rounds; i++) {
           remote.schedule(workerData.bh);
           if (i % 100 === 0) Atomics.wait(pause, 0, 0, 0.2);
         }
         parentPort.postMessage('done');
       });`,
      {
        eval: true,
        workerData: { module: here('../remote.js'), context: context.remote(), bh: bh.remote(), rounds },
      },
    );
    await new Promise((resolve) => worker.once('message', resolve));
    // Whatever was scheduled last runs without anything else happening here.
    await new Promise<void>((resolve) => {
      last = resolve;
      if (Atomics.load(context.shared, SharedWord.REMOTE_PENDING) === 0) resolve();
    });
    bh.delete();
    assert.ok(ran > 0);
    const sent = Atomics.load(context.shared, SharedWord.WAKES_SENT);
    const saved = Atomics.load(context.shared, SharedWord.WAKES_SAVED);
    assert.equal(sent + saved, rounds);
    assert.ok(saved > 0, `${sent} of ${rounds} wake-ups were sent`);
  }));

test('E6 a bottom half that another thread schedules wakes an idle context', () =>
  withContext(async (context) => {
    let woken = (): void => undefined;
    const bh = context.bottomHalf(() => woken(), 'woken');
    const worker = new Worker(
      `const { workerData, parentPort } = require('node:worker_threads');
       import(workerData.module).then(({ RemoteContext }) => {
         const remote = new RemoteContext(workerData.context);
         parentPort.on('message', () => remote.schedule(workerData.bh));
         parentPort.postMessage('ready');
       });`,
      { eval: true, workerData: { module: here('../remote.js'), context: context.remote(), bh: bh.remote() } },
    );
    await new Promise((resolve) => worker.once('message', resolve));
    for (let i = 0; i < 50; i++) {
      const ran = new Promise<void>((resolve) => {
        woken = resolve;
      });
      worker.postMessage('go');
      await ran;
    }
    await worker.terminate();
    bh.delete();
  }));

test('a context keeps its worker alive until it stops, and nothing of it stays afterwards', async () => {
  const source = `
    import { Worker, isMainThread } from 'node:worker_threads';
    import { AioContext } from '${here('../context.js')}';
    import { PoolBackend } from '${here('./backend.js')}';
    const context = new AioContext(new PoolBackend());
    setTimeout(() => console.log('alive'), 50).unref();
    const timer = context.timer(async () => { console.log('timer'); await context.stop(); }, 't');
    timer.armIn(100e6);
    process.on('exit', () => console.log('exit'));`;
  assert.equal(await script(source), 'alive\ntimer\nexit');
});

test('the whole seam works without the native layer', async () => {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const suite = new URL('../seam.test.js', import.meta.url).pathname;
  const options = { env: { ...env, BLOCKPLANE_NATIVE: 'off', BLOCKPLANE_AIO: 'pool' }, timeout: 60_000 };
  const { stdout } = await run(process.execPath, ['--test-reporter=tap', suite], options);
  assert.match(stdout, /# fail 0/);
  assert.match(stdout, /ok \d+ - pool: allocate grows/);
});

test('without the native layer a file is all data, is not punched, and takes every lock', async () => {
  const source = `
    import { AioContext } from '${here('../context.js')}';
    import { PoolBackend } from '${here('./backend.js')}';
    import { wait } from '${here('../seam-harness.js')}';
    const context = new AioContext(new PoolBackend());
    const file = await context.backend.openFile(process.execPath, { writable: false });
    const { size } = await file.stat();
    console.log(file.canAllocate, file.canLock, file.extent(0, 100), file.extent(size - 5, 100), file.extent(size, 1));
    console.log(await wait((op) => file.allocate(op, 'punch', 0, 10)), await file.lock('write', 0, 1));
    await file.close();
    await context.stop();`;
  assert.equal(await script(source, { BLOCKPLANE_NATIVE: 'off' }), `false false 100 5 0\n-${Errno.ENOTSUP} true`);
});

test('the size of a block device is its capacity', async (t) => {
  const device = ['/dev/vda', '/dev/sda', '/dev/nvme0n1', '/dev/loop0'].find(
    (path) => existsSync(path) && readable(path),
  );
  if (!device) {
    t.skip('no block device can be read here');
    return;
  }
  const sectors = Number(readFileSync(`/sys/class/block/${device.slice(5)}/size`, 'utf8'));
  const source = `
    import { AioContext } from '${here('../context.js')}';
    import { PoolBackend } from '${here('./backend.js')}';
    const context = new AioContext(new PoolBackend());
    const file = await context.backend.openFile('${device}', { writable: false });
    const { kind, size } = await file.stat();
    console.log(kind, size);
    await file.close();
    await context.stop();`;
  assert.equal(await script(source), `block ${sectors * 512}`);
  assert.equal(await script(source, { BLOCKPLANE_NATIVE: 'off' }), `block ${sectors * 512}`);
});

function readable(path: string): boolean {
  try {
    closeSync(openSync(path, 'r'));
    return true;
  } catch {
    return false;
  }
}

test('a synchronous turn that waits is refused with ENOTSUP', () =>
  withContext(async (context) => {
    assert.throws(() => context.poll(true), errorCode('ENOTSUP'));
  }));

test('writes of more runs than one call takes are short, and say so', () =>
  withContext(async (context, folder) => {
    const file = await context.backend.openFile(join(folder, 'f'), { writable: true, create: true });
    const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(4096)).fill(5));
    const iov = new Iov();
    for (let i = 0; i < 1500; i++) iov.push(memory, i, 2);
    assert.equal(await wait((op) => file.write(op, iov, 0, false)), 2048);
    assert.equal((await file.stat()).size, 2048);
    await file.close();
  }));

test('connections that nobody accepts are kept up to the backlog, the rest are dropped', () =>
  withContext(async (context, folder) => {
    const path = join(folder, 's');
    const listener = await context.backend.listen({ kind: 'unix', path }, { backlog: 4 });
    const ended: number[] = [];
    const sockets: net.Socket[] = [];
    for (let i = 0; i < 8; i++) {
      const socket = net.connect(path);
      await new Promise((resolve) => socket.once('connect', resolve));
      socket
        .on('close', () => ended.push(i))
        .on('error', () => undefined)
        .resume();
      sockets.push(socket);
    }
    while (ended.length < 4) await new Promise((resolve) => setTimeout(resolve, 2));
    assert.deepEqual(ended, [4, 5, 6, 7]);
    for (let i = 0; i < 4; i++) {
      assert.equal(await wait((op) => listener.accept(op)), 0);
      await listener.takeAccepted().close();
    }
    await listener.close();
    for (const socket of sockets) socket.destroy();
  }));

test('a peer that resets while its connection waits to be accepted does no harm', () =>
  withContext(async (context) => {
    const listener = await context.backend.listen({ kind: 'inet', host: '127.0.0.1', port: 0 });
    assert.ok(listener.address.kind === 'inet');
    const socket = net.connect(listener.address.port, '127.0.0.1');
    await new Promise((resolve) => socket.once('connect', resolve));
    socket.resetAndDestroy();
    await new Promise((resolve) => socket.once('close', resolve));
    assert.equal(await wait((op) => listener.accept(op)), 0);
    const accepted = listener.takeAccepted();
    const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(10)));
    assert.ok((await wait((op) => accepted.recv(op, memory, 0, 10, true))) <= 0);
    await accepted.close();
    await listener.close();
  }));

test('what node reads ahead for a receiver that does not come is bounded', () =>
  withContext(async (context, folder) => {
    const path = join(folder, 's');
    const listener = await context.backend.listen({ kind: 'unix', path });
    const sender = net.connect(path);
    assert.equal(await wait((op) => listener.accept(op)), 0);
    const accepted = listener.takeAccepted();
    sender.write(Buffer.alloc(8 * 1024 * 1024));
    // As long as nothing is received, there is no moment at which all of it could have left the sender.
    for (let i = 0; i < 20; i++) await new Promise((resolve) => setTimeout(resolve, 1));
    assert.ok(sender.writableLength > 0, 'the sender is held up');
    sender.destroy();
    await accepted.close();
    await listener.close();
  }));

test('stop with an operation that restarts itself for ever is a bug that is seen', async () => {
  const context = new AioContext(new PoolBackend());
  const file = await context.backend.openFile('/dev/null', { writable: true });
  const op = new (class extends SeenOp {
    override complete(): void {
      file.datasync(this);
    }
  })();
  file.datasync(op);
  await assert.rejects(context.backend.stop(), { name: 'Bug' });
  context.backend.abandon();
});
