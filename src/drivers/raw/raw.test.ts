import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { inContext } from '../../aio/testing.ts';
import { Iov } from '../../base/memory.ts';
import { BlockBackend } from '../../block/backend.ts';
import { RequestFlags } from '../../block/driver.ts';
import { registerDriver } from '../../block/registry.ts';
import { BlockStatus } from '../../block/status.ts';
import { bytesOf, registerTestDrivers, testDisk, testIov } from '../../block/testing.ts';
import { rawDriver } from './driver.ts';

before(() => {
  registerTestDrivers();
  registerDriver(rawDriver);
});

const file = (disk: string): { driver: string; disk: string } => ({ driver: 'memory', disk });

inContext('raw is the file, or a window of it that nothing leaves', async (context) => {
  const disk = testDisk('raw', 10_000);
  disk.bytes.fill(0xee);
  const blk = await BlockBackend.open(context, { driver: 'raw', offset: 1000, size: 5000, file: file('raw') });
  assert.equal(blk.length, 5000);
  await blk.write(4900, testIov(context, [100], 1));
  await assert.rejects(blk.write(4901, testIov(context, [100])), { code: 'EIO' });
  await blk.writeZeroes(0, 4900);
  assert.deepEqual(disk.bytes.slice(5900, 6000), bytesOf(testIov(context, [100], 1)));
  assert.ok(disk.bytes.subarray(1000, 5900).every((byte) => byte === 0));
  assert.equal(disk.bytes[999], 0xee);
  assert.equal(disk.bytes[6000], 0xee);
  await assert.rejects(blk.truncate(6000), { code: 'ENOTSUP' });
  await blk.close();
});

inContext('a window with blocks of the file across its edges leaves what is outside alone', async (context) => {
  const disk = testDisk('raw', 16_384);
  disk.bytes.fill(0xee);
  disk.limits = { alignment: 4096, memoryAlignment: 512 };
  const blk = await BlockBackend.open(context, { driver: 'raw', offset: 1000, size: 5000, file: file('raw') });
  await blk.write(0, testIov(context, [5000], 1));
  assert.deepEqual(disk.bytes.slice(1000, 6000), bytesOf(testIov(context, [5000], 1)));
  assert.ok(disk.bytes.subarray(0, 1000).every((byte) => byte === 0xee));
  assert.ok(disk.bytes.subarray(6000).every((byte) => byte === 0xee));
  await blk.close();
});

inContext('without a size it ends where the file ends, and resizes it', async (context) => {
  const disk = testDisk('raw', 10_000);
  const blk = await BlockBackend.open(context, { driver: 'raw', offset: 1000, file: file('raw') });
  const sizes: number[] = [];
  blk.users.add({ onResize: (length) => sizes.push(length) });
  assert.equal(blk.length, 9000);
  await blk.truncate(20_000);
  assert.equal(disk.bytes.length, 21_000);
  await blk.truncate(10);
  assert.equal(disk.bytes.length, 1010);
  assert.deepEqual([...new Set(sizes)], [20_000, 10]);
  await blk.close();
});

inContext('with leave to grow, writes beyond the end take the file along', async (context) => {
  const disk = testDisk('raw', 1000);
  const options = { driver: 'raw', offset: 100, file: file('raw') };
  const blk = await BlockBackend.open(context, options, { allowWriteBeyondEnd: true });
  await blk.write(850, testIov(context, [100], 1));
  assert.equal(blk.length, 950);
  assert.deepEqual(disk.bytes.slice(950, 1050), bytesOf(testIov(context, [100], 1)));
  await blk.close();
});

inContext('status goes through to the file; a filter is no layer of its own', async (context) => {
  const disk = testDisk('raw', 3 * 4096);
  disk.bytes.fill(1, 4096, 8192);
  const blk = await BlockBackend.open(context, { driver: 'raw', file: file('raw') });
  const out = new BlockStatus();
  const seen: [number, boolean, boolean, number][] = [];
  for (let at = 0; at < blk.length; at += out.length) {
    await blk.blockStatus(at, blk.length - at, out);
    seen.push([out.length, out.data, out.zero, out.depth]);
  }
  assert.deepEqual(seen, [
    [4096, false, true, 1],
    [4096, true, false, 1],
    [4096, false, true, 1],
  ]);
  await blk.close();
});

inContext('a window that does not fit into the file is refused', async (context) => {
  testDisk('raw', 1000);
  for (const [offset, size] of [
    [1001, undefined],
    [0, 1001],
    [500, 501],
    [2 ** 52, 2 ** 52],
  ] as const) {
    await assert.rejects(
      BlockBackend.open(context, { driver: 'raw', offset, ...(size === undefined ? {} : { size }), file: file('raw') }),
      { code: 'EINVAL', message: /(beyond|more than) the 1000 bytes/ },
    );
  }
});

test('raw is what an image is when nobody else wants it', () => {
  assert.equal(rawDriver.probe?.(new Uint8Array(512), 'x.qcow2'), 1);
});

inContext('a raw image by guess takes every write but the one that would make it another format', async (context) => {
  const disk = testDisk('raw', 100_000);
  const qcow2 = Uint8Array.of(0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3);
  const iov = (bytes: Uint8Array): Iov => {
    const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(bytes.length)));
    memory.bytes.set(bytes);
    return Iov.of(memory);
  };
  const whole = new Uint8Array(8192).fill(1);
  whole.set(qcow2);
  const blk = await BlockBackend.open(context, { driver: 'raw', guessed: true, file: file('raw') });
  const refused = { code: 'EPERM', message: /would look like a qcow2 image/ };
  await assert.rejects(blk.write(0, iov(whole)), refused);
  await assert.rejects(blk.write(0, iov(qcow2)), refused);
  // Nothing of it, however long it is.
  assert.ok(disk.bytes.every((byte) => byte === 0));
  // Half of it and the other half, one after the other and at the same time.
  const halves = (): Promise<void>[] => [blk.write(0, iov(qcow2.subarray(0, 2))), blk.write(2, iov(qcow2.subarray(2)))];
  assert.equal((await Promise.allSettled(halves())).filter(({ status }) => status === 'rejected').length, 1);
  await blk.writeZeroes(0, 2);
  await blk.write(1, iov(qcow2), RequestFlags.FUA);
  assert.deepEqual(disk.bytes.slice(0, 9), Uint8Array.of(0, ...qcow2));
  // The image itself may be zeroed, and what is behind the beginning is nobody's business.
  await blk.writeZeroes(0, 4096);
  await blk.write(512, iov(whole));
  await blk.write(0, iov(whole.slice(8)));
  assert.deepEqual(disk.bytes.slice(0, 8184), whole.slice(8));
  await blk.close();
  const given = await BlockBackend.open(context, { driver: 'raw', file: file('raw') });
  await given.write(0, iov(qcow2));
  await given.close();
});

inContext('zeroes over the beginning of a raw image by guess are written at once, however many', async (context) => {
  const disk = testDisk('raw', 100_000);
  const blk = await BlockBackend.open(context, {
    ...{ driver: 'raw', guessed: true, discard: 'unmap', file: file('raw') },
  });
  disk.bytes.fill(1);
  await blk.writeZeroes(100, 90_000);
  assert.deepEqual(
    disk.log.filter((entry) => !entry.startsWith('read')),
    ['zero 100+90000 flags 0'],
  );
  assert.ok(disk.bytes.subarray(100, 90_100).every((byte) => byte === 0));
  // Zeroes behind a qcow2 image's magic leave the magic.
  disk.bytes.set([0x51, 0x46, 0x49, 0xfb]);
  await assert.rejects(blk.writeZeroes(4, 50_000), { code: 'EPERM' });
  await blk.close();
});

inContext('the beginning of a window is where the image begins, whatever the blocks are', async (context) => {
  const disk = testDisk('raw', 16_384);
  disk.limits = { alignment: 4096, memoryAlignment: 512 };
  const blk = await BlockBackend.open(context, { driver: 'raw', offset: 1000, guessed: true, file: file('raw') });
  const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(4096)));
  memory.bytes.set([0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe]);
  await assert.rejects(blk.write(0, Iov.of(memory)), { code: 'EPERM' });
  await blk.write(24, Iov.of(memory));
  assert.deepEqual(disk.bytes.slice(1024, 1030), memory.bytes.slice(0, 6));
  await blk.close();
});
