import assert from 'node:assert/strict';
import { once } from 'node:events';
import { globalMutex } from '../aio/global-mutex.ts';
import { eachBackend, inContext } from '../aio/testing.ts';
import { BlockStatus } from '../block/status.ts';
import { BlkHandle } from './handle.ts';
import { attach, begin, CountedOp, share, startHome, until, work } from './testing-threads.ts';

eachBackend('E10 synchronous requests do what the others do, and take the global mutex once each', async (backend) => {
  await using home = await startHome(backend);
  await using handle = await attach(home);
  const bytes = handle.register(new SharedArrayBuffer(1024)).bytes;
  const { acquisitions } = globalMutex().stats;
  handle.writeSync(512, bytes.fill(3));
  handle.readSync(512, bytes.subarray(0, 512));
  handle.writeZeroesSync(512, 512);
  handle.discardSync(0, 512);
  handle.flushSync();
  const status = new BlockStatus();
  handle.blockStatusSync(0, 4096, status);
  assert.equal(status.length, 4096);
  assert.throws(() => handle.readSync(2 ** 40, bytes), {
    code: 'EIO',
    message: 'Could not read 1024 bytes at 1099511627776: it ends at 1048576',
  });
  assert.equal(globalMutex().stats.acquisitions - acquisitions, 7);
  assert.equal(globalMutex().stats.owner, undefined);
});

eachBackend('E10 threads do synchronous I/O one at a time, each sees its own bytes', async (backend) => {
  await using home = await startHome(backend);
  const { acquisitions } = globalMutex().stats;
  const tasks = [];
  for (const seed of [1, 2, 3]) {
    tasks.push(work({ descriptor: await share(home), what: 'sync', seed, from: seed * 4096, times: 200 }));
  }
  for (const answer of await Promise.all(tasks)) assert.deepEqual(answer, {});
  assert.equal(globalMutex().stats.acquisitions - acquisitions, 3 * 401);
});

inContext('E10 a synchronous wait runs nothing else of its thread', async (context, backend) => {
  await using home = await startHome(backend);
  const handle = BlkHandle.attach(await share(home), { context });
  const region = handle.register(new SharedArrayBuffer(512));
  const ran: string[] = [];
  context.oneshot(() => ran.push('monitor'), 'monitor');
  const op = new CountedOp();
  op.iov.push(region, 0, 512);
  op.next = () => ran.push('other request');
  handle.submit(op);
  handle.readSync(0, region.bytes);
  handle.flushSync();
  assert.deepEqual(ran, []);
  await until(() => op.results.length === 1 && ran.length === 2);
  assert.deepEqual([...ran].sort(), ['monitor', 'other request']);
  await handle.close();
});

eachBackend('E10 where it could never end, a synchronous request is refused: EDEADLK', async (backend) => {
  await using home = await startHome(backend);
  await using other = await startHome(backend, 'io1');
  const local = await share(home);
  const what = 'EDEADLK: Could not read 512 bytes at 0 synchronously: this thread does its I/O itself';
  assert.equal(await home.call('trySync', local, [local.port]), what);
  const foreign = await share(home);
  const rule = "EDEADLK: Could not take the global mutex: IOThread 'io1' must not wait for other threads";
  assert.equal(await other.call('trySync', foreign, [foreign.port]), rule);
  assert.match(await home.call<string>('tryLock'), /IOThread 'io0' must not wait/);
  await using handle = await attach(home);
  {
    using _drained = handle.drainSync();
    assert.throws(() => handle.flushSync(), { code: 'EDEADLK', message: /it is drained by this handle/ });
  }
  handle.flushSync();
});

eachBackend('D1 a synchronous drain waits for what is in flight and holds back the rest', async (backend) => {
  await using home = await startHome(backend);
  await using handle = await attach(home);
  await using other = await attach(home);
  const bytes = other.register(new SharedArrayBuffer(512)).bytes;
  await home.call('hold', 'read');
  let reading = 50;
  const reads = Array.from({ length: 50 }, (_, i) => other.read(i * 512, bytes).then(() => reading--));
  await until(async () => (await home.call('waiting', 'read')) === 50);
  const told = new Int32Array(new SharedArrayBuffer(4));
  await home.call('releaseWhenDrained', { op: 'read', told });
  const drained = handle.drainSync();
  assert.deepEqual([told[0], reading], [1, 50]);
  let ended = false;
  const late = other.flush().then(() => {
    ended = true;
  });
  await Promise.all(reads);
  await home.call('report');
  assert.equal(ended, false);
  drained.end();
  await late;
});

eachBackend('who waits synchronously for a thread that dies is told', async (backend) => {
  const home = await startHome(backend);
  const crash = once(home, 'crash');
  const handle = await attach(home);
  const bytes = handle.register(new SharedArrayBuffer(512)).bytes;
  await home.call('hold', 'read');
  await home.call('exitIn', 20);
  assert.throws(() => handle.readSync(0, bytes), { code: 'EIO', message: /the thread of its I\/O, 'io0', died/ });
  assert.equal(globalMutex().stats.owner, undefined, 'the mutex was given back');
  await crash;
  await handle.close();
});

eachBackend('who only does synchronous I/O is told that the disk was closed', async (backend) => {
  await using home = await startHome(backend);
  const handle = await attach(home);
  const closing = home.call('closeDisk');
  assert.throws(
    () => {
      for (;;) handle.flushSync();
    },
    { code: 'ESHUTDOWN' },
  );
  await closing;
  await handle.close();
});

eachBackend(
  'a thread that dies in a synchronous wait leaves neither the mutex nor its request behind',
  async (backend) => {
    await using home = await startHome(backend);
    await using handle = await attach(home);
    const bytes = handle.register(new SharedArrayBuffer(512)).bytes;
    await home.call('hold', 'read');
    const worker = begin({ descriptor: await share(home), what: 'sync' });
    await until(async () => (await home.call('waiting', 'read')) === 1);
    assert.equal(globalMutex().stats.owner, worker.threadId);
    await worker.terminate();
    await until(() => globalMutex().stats.owner === undefined);
    await home.call('release', 'read');
    handle.readSync(0, bytes);
  },
);
