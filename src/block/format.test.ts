import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { Gate } from '../aio/op.ts';
import { PoolBackend } from '../aio/pool/backend.ts';
import { Errno } from '../base/errors.ts';
import { KiB } from '../base/units.ts';
import { BlockBackend } from './backend.ts';
import { registerDriver } from './registry.ts';
import { bytesOf, registerTestDrivers, settle, testDisk, testIov, until } from './testing.ts';
import { CLUSTER, type TableNode, tableDriver, tables } from './testing-format.ts';

let context: AioContext;
before(() => {
  registerTestDrivers();
  registerDriver(tableDriver);
  context = new AioContext(new PoolBackend());
});
after(() => context.stop());

const read = async (blk: BlockBackend, at: number, length: number): Promise<Uint8Array> => {
  const iov = testIov(context, [length], 77);
  await blk.read(at, iov);
  return bytesOf(iov);
};

test('what a format has nowhere comes from the layer below, and the first write brings the margins along', async () => {
  const base = testDisk('base', 10_000);
  for (let i = 0; i < base.bytes.length; i++) base.bytes[i] = (i % 255) + 1;
  testDisk('top', 0);
  const blk = await BlockBackend.open(context, {
    driver: 'table',
    'node-name': 'cow0',
    size: 64 * KiB,
    file: { driver: 'memory', disk: 'top' },
    backing: { driver: 'memory', disk: 'base' },
  });
  const table = tables.get('cow0') as TableNode;
  const model = new Uint8Array(64 * KiB);
  model.set(base.bytes);
  assert.deepEqual(await read(blk, 0, 64 * KiB), model);
  for (const [at, length] of [
    [100, 50],
    [4000, 200],
    [9900, 300],
    [30_000, 10_000],
    [4096, 4096],
  ] as const) {
    const iov = testIov(context, [length], at);
    await blk.write(at, iov);
    model.set(bytesOf(iov), at);
  }
  table.table.set(15, 'zero');
  table.table.set(14, 'opaque');
  model.fill(0, 15 * CLUSTER);
  model.fill(14, 14 * CLUSTER, 15 * CLUSTER);
  assert.deepEqual(await read(blk, 0, 64 * KiB), model);
  assert.ok(base.log.every((line) => !line.startsWith('write')));
  const commits = table.commits;
  await blk.write(100, testIov(context, [50], 1));
  assert.equal(table.commits, commits, 'in place where it is allocated');
  assert.equal(blk.inFlight, 0);
  await blk.close();
});

test('writes to one new cluster at the same time are all kept; a commit that fails gives the room back', async () => {
  testDisk('top', 0);
  const blk = await BlockBackend.open(context, {
    driver: 'table',
    'node-name': 'cow1',
    size: 64 * KiB,
    file: { driver: 'memory', disk: 'top' },
  });
  const table = tables.get('cow1') as TableNode;
  const all: Promise<void>[] = [];
  for (let i = 0; i < 16; i++) all.push(blk.write(i * 256, testIov(context, [256], i)));
  await Promise.all(all);
  for (let i = 0; i < 16; i++) {
    assert.deepEqual(await read(blk, i * 256, 256), bytesOf(testIov(context, [256], i)), `write ${i}`);
  }
  table.failCommit = Errno.ENOSPC;
  await assert.rejects(blk.write(20_000, testIov(context, [256])), { code: 'ENOSPC' });
  table.failCommit = 0;
  assert.equal(table.allocating.size, 0);
  assert.deepEqual(await read(blk, 20_000, 256), new Uint8Array(256));
  await blk.close();
});

test('a map that has to wait takes the coroutine path and the next request does not wait behind it', async () => {
  const disk = testDisk('top', 4 * CLUSTER);
  disk.bytes.fill(3);
  const blk = await BlockBackend.open(context, {
    driver: 'table',
    'node-name': 'slow0',
    size: 64 * KiB,
    file: { driver: 'memory', disk: 'top' },
  });
  const table = tables.get('slow0') as TableNode;
  table.table.set(0, 0);
  const gate = new Gate();
  table.slow = gate;
  const first = read(blk, 0, 512);
  await settle();
  table.slow = undefined;
  await read(blk, 0, 512);
  assert.equal(blk.inFlight, 1);
  gate.open();
  assert.ok((await first).every((byte) => byte === 3));
  await blk.close();
});

test('grace ends when the requests that use an extent now have ended, and does not wait for later ones', async () => {
  const disk = testDisk('top', 4 * CLUSTER);
  const blk = await BlockBackend.open(context, {
    driver: 'table',
    'node-name': 'grace0',
    size: 64 * KiB,
    file: { driver: 'memory', disk: 'top' },
  });
  const table = tables.get('grace0') as TableNode;
  for (let i = 0; i < 4; i++) table.table.set(i, i * CLUSTER);
  assert.equal(table.context.grace(), undefined, 'nothing is in flight');
  disk.hold('read');
  const fast = read(blk, 0, 512);
  const slow = read(blk, CLUSTER - 512, 1024);
  await until(() => disk.waiting('read') === 3);
  let over = false;
  const grace = Promise.resolve(table.context.grace()).then(() => {
    over = true;
  });
  const later = read(blk, 0, 512);
  await settle();
  disk.release('read', 1);
  await fast;
  disk.release('read', 1);
  await settle();
  assert.equal(over, false, 'one extent of the second request is in use still');
  disk.release('read', 1);
  await slow;
  await grace;
  assert.equal(disk.waiting('read'), 1, 'the later one is in flight still');
  disk.release('read');
  await later;
  await blk.close();
});
