/** Disks that move between IOThreads while they are used; src/lib/move.test.ts tries every moment. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { MessageChannel } from 'node:worker_threads';
import type { ClientReport, ClientTask } from '../src/channel/testing-client.ts';
import { begin } from '../src/channel/testing-threads.ts';
import { RawClient } from '../src/exports/nbd/raw-client.ts';
import { BlkHandle, type BlockError, customNode, type Disk, open, serveNbd } from '../src/index.ts';
import { available as haveNative } from '../src/native/file.ts';
import { testLock } from '../src/native/lock.ts';
import { needs, pattern, peer, run, scratch, socketOf, sparse } from './harness.ts';
import { keepMoving, openIn, qcow2, startThreads } from './movers.ts';

const MiB = 1024 * 1024;
const RAM = new URL('./ram-driver.js', import.meta.url);
const FUSSY = new URL('./fussy-driver.js', import.meta.url);

function code(expected: string, message = /./): (error: BlockError) => boolean {
  return (error) => {
    assert.equal(error.code, expected, error.message);
    assert.match(error.message, message);
    return true;
  };
}

async function readBytes(disk: Disk, at: number, length: number): Promise<Uint8Array> {
  return (await disk.read(new Uint8Array(length), 0, length, at)).buffer;
}

for (const format of ['raw', 'qcow2'] as const) {
  test(`B8 a ${format} disk goes on in another thread with all that was written, resized and counted`, async (t) => {
    const [here, there] = await startThreads(t);
    const path = format === 'raw' ? sparse(`${scratch(t)}/disk.img`, MiB) : await qcow2(t, MiB);
    const disk = await openIn(t, path, here);
    const bytes = pattern(8192);
    await disk.write(bytes, 0, 8192, 4096);
    for (const [i, to] of [there, here, there, there].entries()) {
      await disk.setAioContext(to);
      assert.equal(disk.iothread, to);
      assert.deepEqual(await readBytes(disk, 4096, 8192), bytes);
      bytes.set(pattern(512, i + 2), i * 512);
      await disk.write(bytes.subarray(i * 512, i * 512 + 512), 0, 512, 4096 + i * 512);
      await disk.truncate(MiB + (i + 1) * 4096);
    }
    assert.equal((await disk.stat()).size, MiB + 4 * 4096);
    assert.equal(disk.ioStats.write.requests, 5);
    const [first, last] = [await here.stats(), await there.stats()];
    assert.deepEqual([first.disks, last.disks], [0, 1]);
    await disk.close();
    if (format === 'qcow2') await peer('qemu-img', 'check', path).catch((error) => skipWithout(t, error));
  });
}

/** The peer may be missing; any other failure is one. */
function skipWithout(t: TestContext, error: Error): void {
  if (!/ENOENT/.test(error.message)) throw error;
  t.diagnostic('qemu-img is not installed');
}

test('B8 handles of any kind of thread go on: data is right, with and without a loop, and synchronous', async (t) => {
  const threads = await startThreads(t);
  const disk = await openIn(t, await qcow2(t), threads[0]);
  const tasks: Omit<ClientTask, 'descriptor'>[] = [
    { what: 'verify', from: 0, length: 65_536, seed: 1, times: 400 },
    { what: 'verify', from: 65_536, length: 65_536, seed: 2, times: 400, aio: 'pool' },
    { what: 'sync', from: MiB, times: 400, seed: 3 },
  ];
  const reports = tasks.map(async (task) => {
    const worker = begin({ ...task, descriptor: await disk.handle() });
    return ((await once(worker, 'message')) as [ClientReport])[0];
  });
  let over = false;
  const all = Promise.all(reports).finally(() => {
    over = true;
  });
  const moves = await keepMoving(disk, threads, () => over);
  for (const report of await all) assert.deepEqual(report, {});
  assert.ok(moves >= 3, `${moves} moves`);
});

test('B8 threads that die with requests on their way, in the middle of moves, take nothing with them', async (t) => {
  const threads = await startThreads(t);
  const disk = await openIn(t, await qcow2(t), threads[0]);
  let over = false;
  const moving = keepMoving(disk, threads, () => over);
  for (let i = 0; i < 8; i++) {
    const memory = new SharedArrayBuffer(200 * 512);
    const task = { memory, times: 200 };
    const [stays, leaves] = [await disk.handle(), await disk.handle()];
    const left = once(begin({ descriptor: leaves, what: 'leave', ...task }), 'exit');
    const worker = begin({ descriptor: stays, what: 'fill', ...task });
    // Its requests are on their way when it says so.
    await once(worker, 'message');
    await Promise.all([worker.terminate(), left]);
  }
  over = true;
  assert.ok((await moving) > 3);
  await disk.write(pattern(512), 0, 512, 0);
  assert.deepEqual(await readBytes(disk, 0, 512), pattern(512));
});

test('B8 what waits for a drained section of a handle moves with it, in order', async (t) => {
  const [here, there] = await startThreads(t);
  const disk = await openIn(t, sparse(`${scratch(t)}/disk.img`, MiB), here);
  await using holder = BlkHandle.attach(await disk.handle());
  await using writer = BlkHandle.attach(await disk.handle());
  const memory = new SharedArrayBuffer(2048);
  writer.register(memory);
  const bytes = new Uint8Array(memory);
  const drained = await holder.drain();
  const stop = new AbortController();
  const requests = [
    writer.write(0, bytes.subarray(0, 512).fill(1)),
    writer.write(4096, bytes.subarray(512, 1024).fill(2), { signal: stop.signal }),
  ];
  const refused = assert.rejects(requests[1]!, { name: 'AbortError' });
  // By its answer the thread has looked into the rings.
  await here.stats();
  await disk.setAioContext(there);
  requests.push(writer.write(8192, bytes.subarray(1024, 1536).fill(3)));
  await there.stats();
  assert.equal(writer.pending, 3);
  stop.abort();
  await refused;
  drained.end();
  await Promise.all([requests[0], requests[2]]);
  const read = [await readBytes(disk, 0, 1), await readBytes(disk, 4096, 1), await readBytes(disk, 8192, 1)];
  assert.deepEqual(
    read.map(([byte]) => byte),
    [1, 0, 3],
  );
});

test('B8 descriptors from before a move lead to the new home, also when they are shared on', async (t) => {
  const [here, there] = await startThreads(t);
  const disk = await openIn(t, sparse(`${scratch(t)}/disk.img`, MiB), here);
  const early = await disk.handle();
  await using known = BlkHandle.attach(await disk.handle());
  await disk.setAioContext(there);
  await using late = BlkHandle.attach(early);
  await using shared = BlkHandle.attach(known.share());
  await here.stop();
  for (const handle of [late, shared, known]) {
    const memory = new SharedArrayBuffer(512);
    handle.register(memory);
    await handle.write(0, new Uint8Array(memory).fill(9));
    handle.readSync(0, new Uint8Array(memory));
    assert.equal(handle.homeStats.turns > 0, true);
  }
  assert.deepEqual([...new Set(await readBytes(disk, 0, 512))], [9]);
});

test('B8 bitmaps move: those that are kept in the image, and those that are not', async (t) => {
  const [here, there] = await startThreads(t);
  const path = await qcow2(t);
  const disk = await openIn(t, path, here);
  await disk.bitmaps.add('kept', { persistent: true });
  await disk.bitmaps.add('own', { granularity: 512 });
  await disk.bitmaps.add('off', { disabled: true });
  const dirty: [number, number][] = [];
  for (const [i, to] of [there, here, there].entries()) {
    await disk.write(pattern(512), 0, 512, i * MiB);
    dirty.push([i * MiB, 512]);
    await disk.setAioContext(to);
  }
  const infos = await disk.bitmaps.list();
  assert.deepEqual(
    infos.map(({ name, persistent, enabled, dirty: bytes }) => ({ name, persistent, enabled, bytes })),
    [
      { name: 'kept', persistent: true, enabled: true, bytes: 3 * 65_536 },
      { name: 'own', persistent: false, enabled: true, bytes: 3 * 512 },
      { name: 'off', persistent: false, enabled: false, bytes: 0 },
    ],
  );
  const found: [number, number][] = [];
  for await (const { offset, length, dirty: is } of disk.bitmaps.extents('own')) if (is) found.push([offset, length]);
  assert.deepEqual(found, dirty);
});

test('B8 who cannot move vetoes, is named, and nothing has changed', async (t) => {
  const [here, there] = await startThreads(t, RAM);
  const disk = await openIn(t, await qcow2(t), here);
  await disk.bitmaps.add('b');
  const service = await serveNbd(disk, { bitmaps: ['b'], exportName: 'x' });
  await assert.rejects(disk.setAioContext(there), code('EBUSY', /to IOThread 'there': NBD export 'x' shows/));
  await service.stop();
  const file = { driver: 'file', filename: sparse(`${scratch(t)}/disk.img`, MiB) } as const;
  const first = await openIn(t, { driver: 'raw', 'node-name': 'shared', 'read-only': true, file }, here);
  const second = await open({ driver: 'raw', file: 'shared', 'read-only': true }, { iothread: here });
  for (const one of [first, second]) {
    await assert.rejects(one.setAioContext(there), code('EBUSY', /node 'shared' is used by something else too$/));
  }
  await second.close();
  await first.setAioContext(there);
  const ram = await openIn(t, customNode({ driver: 'ram', size: MiB }), here);
  await ram.write(pattern(512), 0, 512, 512);
  await assert.rejects(
    ram.setAioContext(there),
    code('ENOTSUP', /driver 'ram' of node '#block\d+' does not support it$/),
  );
  assert.deepEqual(await readBytes(ram, 512, 512), pattern(512));
  await assert.rejects(disk.setAioContext('there' as never), code('EINVAL', /^iothread: expected an IOThread/));
  assert.equal(disk.iothread, here);
  await disk.setAioContext(there);
  await disk.close();
  await assert.rejects(disk.setAioContext(here), code('EBADF'));
});

test(
  'B8 a move that fails at its end goes back: with its locks, its bitmaps and its data',
  needs('qemu-img'),
  async (t) => {
    const [here, there] = await startThreads(t, FUSSY);
    const path = await qcow2(t);
    const plain = await open(path, { iothread: here });
    await plain.bitmaps.add('kept', { persistent: true });
    await plain.close();
    const file = { driver: 'qcow2', file: { driver: 'file', filename: path } };
    const disk = await openIn(t, customNode({ driver: 'fussy', 'fails-in': 'there', file }), here);
    const handle = BlkHandle.attach(await disk.handle());
    for (let i = 0; i < 3; i++) {
      await disk.write(pattern(4096, i + 1), 0, 4096, i * MiB);
      await assert.rejects(disk.setAioContext(there), code('EIO', /^Could not open: not in this thread$/));
      assert.equal(disk.iothread, here);
      if (haveNative()) assert.notEqual((await run('qemu-img', ['info', path])).code, 0, 'it is locked');
      assert.deepEqual(await readBytes(disk, i * MiB, 4096), pattern(4096, i + 1));
    }
    await disk.flush();
    await handle.close();
    await disk.close();
    await peer('qemu-img', 'check', path);
    const again = await openIn(t, path, here);
    const [kept] = await again.bitmaps.list();
    assert.deepEqual([kept?.inconsistent, kept?.dirty], [false, 3 * 65_536]);
  },
);

test('B8 a disk that was opened elsewhere and is given up there is not closed here', async (t) => {
  const [here, there] = await startThreads(t);
  const target = { driver: 'null-co', size: MiB, 'latency-ns': 250e6 } as const;
  const disk = await openIn(t, target, here);
  await using handle = BlkHandle.attach(await disk.handle());
  const { port1, port2 } = new MessageChannel();
  const moved = await here.call('move-out', { move: -1, subject: { disk: disk.id }, to: 'there' });
  await there.call('move-in', { move: -1, moved, link: port2 }, [port2]);
  assert.equal(await there.call('move-drop', { move: -1 }), true);
  await here.call('move-back', { move: -1 });
  port1.close();
  // Long enough to look whether the disk is still there.
  handle.flushSync();
  await disk.setAioContext(there);
  handle.flushSync();
});

test('B8 a thread that dies of a disk that comes to it leaves the disk where it was', async (t) => {
  const [here, there] = await startThreads(t, FUSSY);
  const file = { driver: 'file', filename: sparse(`${scratch(t)}/disk.img`, MiB) };
  const disk = await openIn(t, customNode({ driver: 'fussy', 'ends-in': 'there', file }), here);
  await assert.rejects(disk.setAioContext(there), code('EIO', /IOThread 'there' died/));
  await disk.write(pattern(512), 0, 512, 0);
  assert.deepEqual(await readBytes(disk, 0, 512), pattern(512));
});

test('L7 an image is locked at every moment of a move', async (t) => {
  if (!haveNative()) return t.skip('there are no locks without the native layer');
  const threads = await startThreads(t);
  const path = sparse(`${scratch(t)}/disk.img`, MiB);
  const disk = await openIn(t, path, threads[0]);
  const fd = openSync(path, 'r+');
  t.after(() => closeSync(fd));
  let moves = 0;
  const moving = keepMoving(disk, threads, () => ++moves > 30);
  for (let looks = 0; moves <= 30; looks++) {
    // Somebody writes, and nobody else may.
    assert.ok(testLock(fd, 'write', 101, 1) && testLock(fd, 'write', 201, 1), `not locked at look ${looks}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
  await moving;
  await disk.close();
  assert.equal(testLock(fd, 'write', 100, 4) || testLock(fd, 'write', 200, 4), false, 'all given back');
});

test(
  'B8 exports go on in the thread of their service, and take in disks of other threads',
  needs('qemu-io'),
  async (t) => {
    const [here, there] = await startThreads(t);
    const disk = await openIn(t, await qcow2(t), here);
    const other = await openIn(t, sparse(`${scratch(t)}/disk.img`, MiB), there);
    await using service = await serveNbd([
      { disk, exportName: 'a' },
      { disk: other, exportName: 'b' },
    ]);
    const io = (uri: string, ...commands: string[]): Promise<string> =>
      peer('qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri);
    const [first, second] = service.uris as [string, string];
    for (const [i, to] of [there, here, there].entries()) {
      await io(first, `write -P ${i + 1} ${i * 64}k 1000`, 'write -z 1M 64k', 'discard 2M 64k', 'flush');
      await io(second, `write -P ${i + 7} ${i * 4096} 100`, 'write -z 100k 3000', 'flush');
      await disk.setAioContext(to);
      await other.setAioContext(i % 2 === 0 ? here : there);
      await io(first, `read -P ${i + 1} ${i * 64}k 1000`, 'read -P 0 1M 64k');
      await io(second, `read -P ${i + 7} ${i * 4096} 100`, `read -P 0 ${i * 4096 + 100} 100`);
    }
    const map = (): Promise<string> => peer('qemu-img', 'map', '--output=json', '-f', 'raw', first);
    const afar = await map();
    assert.equal(disk.iothread, there);
    await disk.setAioContext(here);
    assert.equal(await map(), afar);
    await disk.setAioContext(there);
    await service.addExport({ disk: other, exportName: 'c' });
    await assert.rejects(
      service.addExport({ disk, exportName: 'd', bitmaps: ['x'] }),
      code('EINVAL', /another IOThread/),
    );
    await service.removeExport('a');
    await disk.close();
    await other.close();
  },
);

test('B8 block status is the same at every moment of moves', needs('qemu-img'), async (t) => {
  const threads = await startThreads(t);
  const disk = await openIn(t, await qcow2(t), threads[0]);
  for (let i = 0; i < 16; i++) await disk.write(pattern(65_536), 0, 65_536, i * 4 * 65_536);
  await using service = await serveNbd(disk);
  const map = (): Promise<string> => peer('qemu-img', 'map', '--output=json', '-f', 'raw', service.uri);
  const expected = await map();
  let over = false;
  const moving = keepMoving(disk, threads, () => over);
  for (let i = 0; i < 5; i++) assert.equal(await map(), expected);
  over = true;
  assert.ok((await moving) >= 5);
});

test('B8 a disk leaves the thread that disks share, and comes back to that of another disk', async (t) => {
  const path = (): string => sparse(`${scratch(t)}/disk.img`, MiB);
  const [thread] = await startThreads(t);
  const [leaver, keeper] = [await open(path()), await open(path())];
  const shared = leaver.iothread;
  assert.equal(keeper.iothread, shared);
  const service = await serveNbd(leaver);
  await leaver.setAioContext(thread);
  await keeper.close();
  await RawClient.readOnce(socketOf(service.uri), '', 0, 512);
  const comer = await open(path(), { iothread: thread });
  await comer.setAioContext(shared);
  await service.stop();
  await leaver.close();
  await comer.write(pattern(512), 0, 512, 0);
  assert.deepEqual(await readBytes(comer, 0, 512), pattern(512));
  await comer.close();
  await assert.rejects(shared.stats(), code('ESHUTDOWN'));
});
