/** The library as a program uses it. */
import assert from 'node:assert/strict';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { open as openHandle } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import { type TestContext, test } from 'node:test';
import { type BlockError, type BlockExtent, type Disk, type DiskWriteStream, IOThread, open } from '../src/index.ts';
import { pattern, scratch } from './harness.ts';

const MiB = 1024 * 1024;

function image(t: TestContext, bytes: Uint8Array): string {
  const path = `${scratch(t)}/disk.img`;
  writeFileSync(path, bytes);
  return path;
}

function sparse(t: TestContext, size: number): string {
  const path = image(t, new Uint8Array(0));
  truncateSync(path, size);
  return path;
}

/** Opens and closes with the test. */
async function opened(t: TestContext, ...args: Parameters<typeof open>): Promise<Disk> {
  const disk = await open(...args);
  t.after(() => disk.close());
  return disk;
}

function code(expected: string): (error: BlockError) => boolean {
  return (error) => {
    assert.equal(error.code, expected, error.message);
    return true;
  };
}

async function all<T>(source: AsyncIterable<T>): Promise<T[]> {
  const items: T[] = [];
  for await (const item of source) items.push(item);
  return items;
}

test('every form of read and write that a FileHandle takes does what the FileHandle does', async (t) => {
  const bytes = pattern(10_000);
  const path = image(t, bytes);
  const other = image(t, bytes);
  const handle = await openHandle(other, 'r+');
  t.after(() => handle.close());
  const disk = await opened(t, path);
  type Both = { read: Disk['read']; write: Disk['write'] };
  const forms: ((file: Both) => Promise<object>)[] = [
    (file) => file.read(new Uint8Array(100), 10, 50, 1000),
    (file) => file.read(new Uint8Array(100), 10, 50, 9980),
    (file) => file.read(new Uint8Array(100), 0, 100, 20_000),
    (file) => file.read(new Uint8Array(100), { offset: 3, length: 7, position: 5 }),
    (file) => file.read({ buffer: new Uint8Array(100), position: 77 }),
    (file) => file.read(new Uint8Array(10)),
    (file) => file.read(new Uint8Array(10), 0, 10, null),
    (file) => file.read(new Uint16Array(4), 0, 8, 3),
    (file) => file.write(pattern(64, 9), 8, 16, 4000),
    (file) => file.write(pattern(64, 8), { offset: 1, length: 3, position: 100 }),
    (file) => file.write(pattern(20, 7)),
    (file) => file.write(new DataView(pattern(12, 6).buffer), 0, 12, 200),
    (file) => file.read(new Uint8Array(40), 0, 40, 3990),
    (file) => file.read(new Uint8Array(0), 0, 0, 5),
    (file) => file.write('Grüße', 300),
    (file) => file.write('at the current position'),
    (file) => file.write('00ff7f', 400, 'hex'),
    (file) => file.write('é', null, 'latin1'),
    (file) => file.read({ position: 9000 }),
    (file) => file.read(),
  ];
  for (const [i, form] of forms.entries()) {
    assert.deepEqual({ ...(await form(disk)) }, { ...(await form(handle as unknown as Both)) }, `form ${i}`);
  }
  const parts = (): Uint8Array[] => [new Uint8Array(3), new Uint8Array(0), new Uint8Array(500)];
  assert.deepEqual({ ...(await disk.readv(parts(), 50)) }, { ...(await handle.readv(parts(), 50)) });
  assert.deepEqual({ ...(await disk.readv(parts(), 9990)) }, { ...(await handle.readv(parts(), 9990)) });
  const gather = [pattern(5), pattern(6)];
  assert.deepEqual({ ...(await disk.writev(gather, 60)) }, { ...(await handle.writev(gather, 60)) });
  // Node 20's own read() takes a bigint for the current position.
  const { buffer } = await disk.read(new Uint8Array(8), 0, 8, 5n);
  assert.deepEqual(buffer, new Uint8Array(readFileSync(path).subarray(5, 13)));
  await disk.sync();
  await disk.datasync();
  assert.ok(readFileSync(path).equals(readFileSync(other)));
  assert.equal((await disk.stat()).size, 10_000);
});

test('large requests go in pieces and come back whole', async (t) => {
  const bytes = pattern(37 * MiB + 123);
  const disk = await opened(t, sparse(t, bytes.length));
  const { bytesWritten } = await disk.write(bytes, 0, bytes.length, 0);
  assert.equal(bytesWritten, bytes.length);
  const back = new Uint8Array(bytes.length + 10 * MiB);
  const { bytesRead } = await disk.read(back, 0, back.length, 0);
  assert.equal(bytesRead, bytes.length);
  assert.ok(Buffer.compare(back.subarray(0, bytesRead), bytes) === 0);
  assert.ok(back.subarray(bytesRead).every((byte) => byte === 0));
});

test('many requests at once wait for shared memory rather than take more', async (t) => {
  await using thread = await IOThread.start({ memory: MiB });
  const disk = await open(sparse(t, 16 * MiB), { iothread: thread });
  const writes = Array.from({ length: 200 }, (_, i) => disk.write(pattern(70_000, i + 1), 0, 70_000, i * 80_000));
  await Promise.all(writes);
  const reads = Array.from({ length: 200 }, (_, i) => disk.read(new Uint8Array(70_000), 0, 70_000, i * 80_000));
  for (const [i, { buffer }] of (await Promise.all(reads)).entries()) {
    assert.ok(Buffer.compare(buffer, pattern(70_000, i + 1)) === 0, `write ${i}`);
  }
  await disk.close();
});

test('streams carry a disk in and out, whole and in part', async (t) => {
  const bytes = pattern(3 * MiB + 77);
  const source = await opened(t, image(t, bytes), { readOnly: true });
  const target = await opened(t, sparse(t, bytes.length));
  await pipeline(source.createReadStream({ highWaterMark: 100_000 }), target.createWriteStream());
  const whole = Buffer.concat((await all(target.createReadStream())) as Uint8Array[]);
  assert.ok(whole.equals(bytes));
  const part = Buffer.concat((await all(target.createReadStream({ start: 1000, end: 1999 }))) as Uint8Array[]);
  assert.ok(part.equals(bytes.subarray(1000, 2000)));
  const web = Buffer.concat(await all(target.readableWebStream({ start: 5 })));
  assert.ok(web.equals(bytes.subarray(5)));
  await assert.rejects(pipeline([bytes], target.createWriteStream({ start: 100 })), code('EIO'));
  assert.equal(target.closed, false);
});

test('block status covers the disk without gaps, and zero ranges read as zeroes', async (t) => {
  const disk = await opened(t, sparse(t, 8 * MiB), { discard: 'unmap' });
  await disk.write(pattern(MiB), 0, MiB, 2 * MiB);
  await disk.write(pattern(4096), 0, 4096, 8 * MiB - 4096);
  const check = async (): Promise<BlockExtent[]> => {
    const extents = await all(disk.blockStatus());
    let at = 0;
    for (const { offset, length, zero } of extents) {
      assert.equal(offset, at);
      at += length;
      if (!zero) continue;
      const { buffer } = await disk.read(new Uint8Array(length), 0, length, offset);
      assert.ok(buffer.every((byte) => byte === 0));
    }
    assert.equal(at, 8 * MiB);
    return extents;
  };
  const data = (extents: BlockExtent[]): number[][] =>
    extents.filter(({ zero }) => !zero).map(({ offset, length }) => [offset, length]);
  assert.deepEqual(data(await check()), [
    [2 * MiB, MiB],
    [8 * MiB - 4096, 4096],
  ]);
  await disk.writeZeroes(2 * MiB, 512 * 1024, { unmap: true, fua: true });
  await disk.discard(8 * MiB - 4096, 4096);
  const after = data(await check());
  assert.deepEqual(after[0], [2.5 * MiB, MiB / 2]);
  assert.deepEqual(
    (await all(disk.blockStatus(MiB, 1024))).map(({ offset, length }) => [offset, length]),
    [[MiB, 1024]],
  );
});

test('truncate grows with zeroes and shrinks', async (t) => {
  const path = image(t, pattern(1000));
  const disk = await opened(t, path);
  await disk.truncate(5000);
  assert.equal(disk.size, 5000);
  const { bytesRead, buffer } = await disk.read(new Uint8Array(6000), 0, 6000, 500);
  assert.equal(bytesRead, 4500);
  assert.deepEqual(buffer.subarray(0, 500), pattern(1000).subarray(500));
  assert.ok(buffer.subarray(500).every((byte) => byte === 0));
  await disk.truncate(100);
  assert.equal((await disk.stat()).size, 100);
  assert.equal(readFileSync(path).length, 100);
});

test('bad arguments are refused with the errno that says why', async (t) => {
  const disk = await opened(t, image(t, pattern(4096)));
  const buffer = new Uint8Array(16);
  await assert.rejects(disk.read(buffer, 0, 16, 2 ** 53), code('EFBIG'));
  await assert.rejects(disk.read(buffer, 0, 16, 2n ** 63n), code('EFBIG'));
  await assert.rejects(disk.read(buffer, 0, 16, -2), code('EINVAL'));
  await assert.rejects(disk.read(buffer, 0, 16, 1.5), code('EINVAL'));
  await assert.rejects(disk.read(buffer, 10, 16, 0), code('EINVAL'));
  await assert.rejects(disk.read(buffer, 17, 0, 0), code('EINVAL'));
  await assert.rejects(disk.write('text' as unknown as Uint8Array, 0, 4, 0), code('EINVAL'));
  await assert.rejects(disk.write('text', 0, 'utf-7' as BufferEncoding), code('EINVAL'));
  await assert.rejects(disk.write(buffer, 0, 16, 4090), code('EIO'));
  await assert.rejects(open(''), code('EINVAL'));
  await assert.rejects(open('/nonexistent/disk.img'), code('ENOENT'));
  await assert.rejects(open(scratch(t)), code('EISDIR'));
  await assert.rejects(open({ driver: 'nothing' } as never), code('ENOENT'));
  await assert.rejects(open('x', { cache: 'none at all' as never }), code('EINVAL'));
});

test('a read-only disk refuses to be written', async (t) => {
  const disk = await opened(t, image(t, pattern(4096)), { readOnly: true });
  assert.equal(disk.readOnly, true);
  await assert.rejects(disk.write(new Uint8Array(16), 0, 16, 0), code('EPERM'));
  await assert.rejects(disk.truncate(0), code('EPERM'));
  await disk.flush();
});

test('an image that looks like qcow2 is opened as raw only on demand', async (t) => {
  const bytes = pattern(4096);
  bytes.set([0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]);
  const path = image(t, bytes);
  await assert.rejects(open(path), /looks like a qcow2 image.*qcow2.*raw/);
  const disk = await opened(t, path, { format: 'raw' });
  assert.deepEqual((await disk.read(new Uint8Array(4096), 0, 4096, 0)).buffer, bytes);
});

test('a node tree by QAPI names: raw shows a window of its file', async (t) => {
  const bytes = pattern(8192);
  const filename = image(t, bytes);
  const disk = await opened(t, {
    driver: 'raw',
    'node-name': 'window',
    offset: 1000,
    size: 500,
    file: { driver: 'file', filename },
  });
  assert.equal(disk.size, 500);
  assert.equal(disk.nodeName, 'window');
  const { bytesRead, buffer } = await disk.read(new Uint8Array(1000), 0, 1000, 0);
  assert.equal(bytesRead, 500);
  assert.deepEqual(buffer.subarray(0, 500), bytes.subarray(1000, 1500));
});

test('close waits for what is under way, is idempotent, and ends the use of the disk', async (t) => {
  const path = sparse(t, 8 * MiB);
  const disk = await open(path);
  const bytes = pattern(8 * MiB);
  const writing = disk.write(bytes, 0, bytes.length, 0);
  await Promise.all([disk.close(), disk.close()]);
  await writing;
  await disk.close();
  assert.equal(disk.closed, true);
  assert.ok(readFileSync(path).equals(bytes));
  await assert.rejects(disk.read(new Uint8Array(1), 0, 1, 0), code('EBADF'));
  await assert.rejects(all(disk.blockStatus()), code('EBADF'));
  await assert.rejects(disk.flush(), code('EBADF'));
});

test('a signal gives a request up with its own reason, and close still waits for it', async (t) => {
  const reason = new Error('enough');
  const slow = { driver: 'null-co', size: 64 * MiB, 'latency-ns': 600e6 } as const;
  const disk = await open(slow);
  t.after(() => disk.close());
  // Without a write before it a flush has nothing to do, and may end before it is given up.
  await disk.write(new Uint8Array(1), 0, 1, 0);
  const controller = new AbortController();
  const { signal } = controller;
  const reading = disk.read({ buffer: new Uint8Array(32 * MiB), position: 0, signal });
  const flushing = disk.flush({ signal });
  setImmediate(() => controller.abort(reason));
  await assert.rejects(reading, (error) => error === reason);
  await assert.rejects(flushing, (error) => error === reason);
  await assert.rejects(disk.flush({ signal }), (error) => error === reason);
  await assert.rejects(open(slow, { signal }), (error) => error === reason);
  const stream = disk.createReadStream({ signal: AbortSignal.timeout(20) });
  await assert.rejects(all(stream), { name: 'AbortError' });
});

test('a signal gives a write up with its own reason, and close still waits for it', async (t) => {
  const reason = new Error('enough');
  const disk = await open({ driver: 'null-co', size: 64 * MiB, 'latency-ns': 600e6 });
  t.after(() => disk.close());
  const controller = new AbortController();
  const { signal } = controller;
  const writing = disk.write(new Uint8Array(32 * MiB), { position: 0, signal });
  setImmediate(() => controller.abort(reason));
  await assert.rejects(writing, (error) => error === reason);
  await assert.rejects(disk.write(new Uint8Array(1), { position: 0, signal }), (error) => error === reason);
  await disk.close();
});

test('a write stream that is destroyed closes only when its write has ended', async (t) => {
  const disk = await open({ driver: 'null-co', size: MiB, 'latency-ns': 200e6 });
  t.after(() => disk.close());
  const controller = new AbortController();
  for (const stop of [
    (stream: DiskWriteStream) => stream.destroy(),
    (stream: DiskWriteStream) => stream.destroy(new Error('no more')),
    () => controller.abort(),
  ]) {
    const stream = disk.createWriteStream({ signal: controller.signal });
    stream.on('error', () => undefined);
    stream.write(new Uint8Array(1000));
    stop(stream);
    await new Promise((resolve) => stream.once('close', resolve));
    assert.equal(stream.bytesWritten, 1000);
  }
  const last = disk.createWriteStream({ autoClose: true });
  last.write(new Uint8Array(1000));
  last.destroy();
  await new Promise((resolve) => last.once('close', resolve));
  assert.equal(last.bytesWritten, 1000);
  assert.equal(disk.closed, true);
});

test('two programs cannot write one image; readers can share it', async (t) => {
  const path = image(t, pattern(4096));
  const first = await open(path);
  await assert.rejects(open(path), /lock|permission|use/i);
  await first.close();
  const readers = await Promise.all([open(path, { readOnly: true }), open(path, { readOnly: true })]);
  await Promise.all(readers.map((reader) => reader.close()));
});

test('disks in threads of their own; a stopped thread refuses', async (t) => {
  const a = await IOThread.start({ name: 'a' });
  const b = await IOThread.start({ name: 'b' });
  const disks = await Promise.all([a, b].map((iothread) => open(sparse(t, MiB), { iothread })));
  assert.deepEqual(
    disks.map((disk) => disk.iothread.name),
    ['a', 'b'],
  );
  assert.equal((await a.stats()).disks, 1);
  await disks[0]!.write(pattern(100), 0, 100, 0);
  await a.stop();
  await assert.rejects(disks[0]!.flush(), code('ESHUTDOWN'));
  await disks[0]!.close();
  await disks[1]!.close();
  await b.stop();
});

test('the shared thread ends with the last disk', async (t) => {
  const first = await open(sparse(t, MiB));
  const second = await open(sparse(t, MiB));
  assert.equal(first.iothread, second.iothread);
  const { iothread } = first;
  await first.close();
  await second.flush();
  await second.close();
  await assert.rejects(iothread.stats(), code('ESHUTDOWN'));
  const third = await open(sparse(t, MiB));
  assert.notEqual(third.iothread, iothread);
  await third.close();
});
