import assert from 'node:assert/strict';
import { once } from 'node:events';
import { eachBackend, inContext } from '../aio/testing.ts';
import { BlockStatus } from '../block/status.ts';
import { BlkHandle, drainHandles } from './handle.ts';
import { type BlkDescriptor, SLOTS } from './layout.ts';
import type { ClientTask } from './testing-client.ts';
import { attach, begin, CountedOp, report, share, startHome, until, work } from './testing-threads.ts';

eachBackend('B1 every kind of request goes through a handle, and comes back with its own errno', async (backend) => {
  await using home = await startHome(backend);
  await using handle = await attach(home);
  assert.equal(handle.name, 'disk');
  assert.equal(handle.length, 1048576);
  assert.equal(handle.readOnly, false);
  const memory = new SharedArrayBuffer(8192);
  handle.register(memory);
  const bytes = new Uint8Array(memory);
  bytes.subarray(0, 4096).fill(7);
  await handle.write(4096, bytes.subarray(0, 4096));
  await handle.readv(4096, [bytes.subarray(6000, 8000), bytes.subarray(4096, 6000), bytes.subarray(8000, 8192)]);
  assert.ok(bytes.every((byte) => byte === 7));
  await handle.flush();
  const status = new BlockStatus();
  await handle.blockStatus(0, 65536, status);
  assert.deepEqual([status.length, status.zero, status.data, status.depth], [4096, true, false, 1]);
  await handle.blockStatus(4096, 65536, status);
  assert.deepEqual([status.length, status.zero, status.data], [4096, false, true]);
  await handle.writeZeroes(4096, 4096);
  await handle.discard(0, 4096);
  await handle.read(4096, bytes.subarray(0, 4096));
  assert.ok(bytes.subarray(0, 4096).every((byte) => byte === 0));
  await assert.rejects(handle.read(1048576, bytes), {
    code: 'EIO',
    message: 'Could not read 8192 bytes at 1048576: it ends at 1048576',
  });
  await home.call('fail', 'write');
  await assert.rejects(handle.write(0, bytes), {
    code: 'ENOSPC',
    where: { node: 'disk', op: 'write', at: 0, length: 8192 },
  });
  await assert.rejects(handle.blockStatus(2 ** 40, 1, status), { code: 'EINVAL' });
  const { slow } = await report(home);
  assert.ok(slow <= 6, 'reads and writes stay on the fast path');
});

eachBackend("a driver's own error crosses in full, asynchronously and synchronously", async (backend) => {
  await using home = await startHome(backend);
  await using handle = await attach(home);
  const { bytes } = handle.register(new SharedArrayBuffer(512));
  for (let i = 0; i < 3; i++) {
    await handle.write(0, bytes);
    await home.call('fail', 'flush');
    await home.call('fail', 'zero');
    const scripted = { code: 'ENOSPC', message: 'Could not flush: scripted' };
    const both = [assert.rejects(handle.flush(), scripted), assert.rejects(handle.writeZeroes(0, 512), /zero 0\+512/)];
    await Promise.all(both);
    await handle.write(0, bytes);
    await home.call('fail', 'flush');
    assert.throws(() => handle.flushSync(), scripted);
  }
});

eachBackend('B1 more pieces than a record holds are all read and written', async (backend) => {
  await using home = await startHome(backend);
  await using handle = await attach(home);
  const memory = new SharedArrayBuffer(100 * 512);
  handle.register(memory);
  const pieces = Array.from({ length: 50 }, (_, i) => new Uint8Array(memory, i * 512, 512).fill(i + 1));
  await handle.writev(512, pieces);
  const back = Array.from({ length: 50 }, (_, i) => new Uint8Array(memory, (50 + i) * 512, 512));
  await handle.readv(512, back);
  for (let i = 0; i < 50; i++) assert.ok(back[i]!.every((byte) => byte === i + 1));
});

eachBackend('B1 four threads, two with loops of their own, keep to what they wrote on one disk', async (backend) => {
  await using home = await startHome(backend);
  const tasks: ClientTask[] = [];
  for (const seed of [1, 2, 3, 4]) {
    const descriptor = await share(home);
    tasks.push({
      ...{ descriptor, what: 'verify', seed, from: seed * 131072, length: 131072 },
      ...(seed > 2 ? { aio: seed === 3 ? backend : 'pool' } : {}),
    });
  }
  for (const answer of await Promise.all(tasks.map(work))) assert.deepEqual(answer, {});
  await until(async () => (await report(home)).channels === 0);
});

inContext('B1 a thread that drives a context gets its completions through its loop', async (context, backend) => {
  await using home = await startHome(backend);
  const handle = BlkHandle.attach(await share(home), { context });
  const region = handle.register(new SharedArrayBuffer(512));
  const op = new CountedOp();
  op.iov.push(region, 0, 512);
  const before = context.stats.turns;
  const ended = new Promise<void>((resolve) => {
    op.next = resolve;
  });
  handle.submit(op);
  assert.deepEqual(op.results, []);
  while (op.results.length === 0) await context.yield();
  await ended;
  assert.deepEqual(op.results, [0]);
  assert.ok(context.stats.turns > before);
  await handle.close();
});

eachBackend('B1 a handle in the home context goes straight to the BlockBackend', async (backend) => {
  await using home = await startHome(backend);
  const descriptor = await share(home);
  assert.deepEqual(await home.call('localRead', descriptor, [descriptor.port]), [77]);
  await until(async () => (await report(home)).channels === 0);
});

eachBackend('B1 a handle goes from thread to thread', async (backend) => {
  await using home = await startHome(backend);
  const relay = begin({ descriptor: await share(home), what: 'relay' });
  const [descriptor] = (await once(relay, 'message')) as [BlkDescriptor];
  assert.deepEqual(await work({ descriptor, what: 'verify' }), {});
});

eachBackend('B7 done never runs inside submit, also when it is known at once how the request ends', async (backend) => {
  await using home = await startHome(backend);
  await using handle = await attach(home);
  const region = handle.register(new SharedArrayBuffer(512));
  const ops = [0, 2 ** 50, 512].map((at) => {
    const op = new CountedOp();
    op.at = at;
    op.iov.push(region, 0, 512);
    return op;
  });
  for (const op of ops) {
    handle.submit(op);
    handle.cancel(op);
    assert.deepEqual(op.results, []);
  }
  await until(() => handle.pending === 0);
  for (const op of ops) assert.equal(op.results.length, 1);
  assert.ok([-5, -125].includes(ops[1]!.results[0]!));
});

eachBackend('a full channel makes requests wait in line, in order, and each ends once', async (backend) => {
  await using home = await startHome(backend);
  await using handle = await attach(home);
  const region = handle.register(new SharedArrayBuffer(512));
  await home.call('hold', 'read');
  const order: number[] = [];
  const ops = Array.from({ length: 3 * SLOTS }, (_, i) => {
    const op = new CountedOp();
    op.at = i * 512;
    op.iov.push(region, 0, 512);
    op.next = () => order.push(i);
    return op;
  });
  for (const op of ops) handle.submit(op);
  assert.equal(handle.pending, 3 * SLOTS);
  await until(async () => (await home.call('waiting', 'read')) === SLOTS - 1);
  handle.cancel(ops.at(-1)!);
  await home.call('release', 'read');
  await until(() => handle.pending === 0);
  for (const op of ops.slice(0, -1)) assert.deepEqual(op.results, [0]);
  assert.deepEqual(ops.at(-1)!.results, [-125], 'what waits in line can be given up');
  assert.deepEqual(
    (await report(home)).log.filter((line) => line.startsWith('read')),
    ops.slice(0, -1).map((op) => `read ${op.at}+512`),
  );
});

eachBackend(
  'B3 requests wait for the end of a drained section; one that is given up meanwhile never begins',
  async (b) => {
    await using home = await startHome(b);
    await using handle = await attach(home);
    const memory = new SharedArrayBuffer(512);
    handle.register(memory);
    await home.call('drain');
    const bytes = new Uint8Array(memory).fill(9);
    const controller = new AbortController();
    const first = handle.write(0, bytes);
    const second = handle.write(512, bytes, { signal: controller.signal });
    await until(async () => (await report(home)).queued === 2);
    controller.abort(new Error('changed my mind'));
    await assert.rejects(second, /changed my mind/);
    assert.equal((await report(home)).queued, 1);
    await home.call('undrain');
    await first;
    assert.deepEqual((await report(home)).log, ['write 0+512']);
    await assert.rejects(handle.read(0, bytes, { signal: controller.signal }), /changed my mind/);
  },
);

eachBackend('D5 a drain from another thread holds all others back, over two contexts, and nests', async (backend) => {
  await using home = await startHome(backend);
  await using other = await startHome(backend, 'io1');
  await using handle = await attach(home);
  await using third = await attach(home);
  await using far = await attach(other);
  const memory = new SharedArrayBuffer(512);
  third.register(memory);
  await home.call('hold', 'read');
  const under = third.read(0, new Uint8Array(memory));
  await until(async () => (await home.call('waiting', 'read')) === 1);
  let drained = false;
  const draining = drainHandles([handle, far]).then((all) => {
    drained = true;
    return all;
  });
  await until(async () => (await report(other)).inFlight === 0);
  assert.equal(drained, false, 'a request is in flight');
  await home.call('release', 'read');
  await under;
  const all = await draining;
  const inner = await handle.drain();
  const late = third.read(512, new Uint8Array(memory));
  await until(async () => (await report(home)).queued === 1);
  inner.end();
  inner.end();
  assert.equal((await report(home)).queued, 1);
  all.end();
  await late;
});

eachBackend('a drained section ends with the handle that began it', async (backend) => {
  await using home = await startHome(backend);
  const handle = await attach(home);
  await using other = await attach(home);
  await handle.drain();
  const flushed = other.flush();
  await until(async () => (await report(home)).queued === 1);
  await handle.close();
  await flushed;
});

eachBackend('what a disk and its context have done is read from another thread, while it is busy', async (backend) => {
  await using home = await startHome(backend);
  await using handle = await attach(home);
  const { bytes } = handle.register(new SharedArrayBuffer(8192));
  await handle.write(0, bytes);
  await handle.read(0, bytes);
  await handle.flush();
  await assert.rejects(handle.read(2 ** 40, bytes), { code: 'EIO' });
  // It answers nobody before it is told that it is over.
  const over = new Int32Array(new SharedArrayBuffer(8));
  const busy = home.call('busy', over);
  await until(() => Atomics.load(over, 1) === 1);
  const { requests, read, write, flush } = handle.diskStats;
  const { turns, completions, wakesSent, wakesSaved } = handle.homeStats;
  Atomics.store(over, 0, 1);
  assert.deepEqual([requests, read.requests, read.failed, read.bytes, write.bytes], [4, 2, 1, 8192, 8192]);
  assert.equal(flush.requests, 1);
  assert.equal(
    read.latencyBuckets.reduce((sum, count) => sum + count),
    2,
  );
  assert.ok(turns > 0 && completions > 0 && wakesSent + wakesSaved > 0);
  await busy;
});

eachBackend('the length that a handle sees follows the disk', async (backend) => {
  await using home = await startHome(backend);
  await using handle = await attach(home);
  await home.call('truncate', 4096);
  assert.equal(handle.length, 4096);
});

eachBackend(
  'B1 three threads, 100,000 requests each, on two IOThreads: none lost, none twice, no lock taken',
  async (b) => {
    await using home = await startHome(b);
    await using other = await startHome(b, 'io1');
    const tasks = [];
    for (const [at, thread] of [home, other, home].entries()) {
      const descriptor = await share(thread, 'null');
      tasks.push(work({ descriptor, what: 'flood', times: 100_000, ...(at === 2 ? { aio: b } : {}) }));
    }
    const before = await home.call<number>('acquisitions', (await share(home)).mutex);
    for (const answer of await Promise.all(tasks)) {
      assert.deepEqual(answer.results, new Map([[0, 100_000]]));
      assert.equal(answer.calls, 100_000);
      assert.ok(answer.homeWakes! + answer.homeWakesSaved! <= 100_000);
    }
    assert.equal((await report(home)).requests + (await report(other)).requests, 300_000);
    assert.equal(await home.call<number>('acquisitions', (await share(home)).mutex), before);
  },
);
