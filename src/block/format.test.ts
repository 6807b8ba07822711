import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { Gate } from '../aio/op.ts';
import { PoolBackend } from '../aio/pool/backend.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { KiB } from '../base/units.ts';
import { BlockBackend } from './backend.ts';
import { RequestFlags } from './driver.ts';
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

test('R1 a request whose map or reserve fails half-way ends after the parts it has begun', async () => {
  const disk = testDisk('half', 4 * CLUSTER);
  const blk = await BlockBackend.open(context, {
    driver: 'table',
    'node-name': 'half0',
    size: 64 * KiB,
    file: { driver: 'memory', disk: 'half' },
  });
  const table = tables.get('half0') as TableNode;
  table.table.set(0, 0);
  const plain = table.map.bind(table);
  table.map = (at, want, why, out) => {
    if (at >= CLUSTER && why === 'read') throw new BlockError(Errno.EIO, 'Could not map: scripted');
    return plain(at, want, why, out);
  };
  table.reserve = () => Promise.reject(new BlockError(Errno.ENOSPC, 'Could not reserve: scripted'));
  for (const op of ['read', 'write'] as const) {
    disk.hold(op);
    let ended = false;
    const run = blk[op](0, testIov(context, [2 * CLUSTER])).finally(() => {
      ended = true;
    });
    const outcome = assert.rejects(run, { code: op === 'read' ? 'EIO' : 'ENOSPC' });
    await until(() => disk.waiting(op) === 1);
    await settle();
    assert.equal(ended, false, `the memory of the ${op} is in use`);
    disk.release(op);
    await outcome;
  }
  await blk.close();
});

test('R5 a FUA write in place of a format is flushed, unless the format says that its metadata is stable', async () => {
  const disk = testDisk('fua', 4 * CLUSTER);
  disk.nativeFua = true;
  const options = (name: string) => ({
    driver: 'table',
    'node-name': name,
    size: 64 * KiB,
    file: { driver: 'memory', disk: 'fua' },
  });
  const blk = await BlockBackend.open(context, options('fua0'));
  (tables.get('fua0') as TableNode).table.set(0, 0);
  await blk.write(0, testIov(context, [512]), RequestFlags.FUA);
  assert.deepEqual(disk.log, ['write 0+512', 'flush']);
  // The coroutine path comes to the same.
  disk.log.length = 0;
  await blk.write(0, testIov(context, [512]), RequestFlags.FUA | RequestFlags.SERIALISING);
  assert.deepEqual(disk.log, ['write 0+512', 'flush']);
  await blk.close();

  const stable = await BlockBackend.open(context, options('fua1'));
  const table = Object.assign(tables.get('fua1') as TableNode, { nativeFua: true });
  table.table.set(0, 0);
  disk.log.length = 0;
  await stable.write(0, testIov(context, [512]), RequestFlags.FUA);
  await stable.write(0, testIov(context, [512]), RequestFlags.FUA | RequestFlags.SERIALISING);
  assert.deepEqual(disk.log, ['write 0+512 flags 1', 'write 0+512 flags 1']);
  await stable.close();
});

test('grace waits for an extent from the moment the driver names it, although its map has not resolved', async () => {
  const disk = testDisk('named', 4 * CLUSTER);
  const blk = await BlockBackend.open(context, {
    driver: 'table',
    'node-name': 'named0',
    size: 64 * KiB,
    discard: 'unmap',
    file: { driver: 'memory', disk: 'named' },
  });
  const table = tables.get('named0') as TableNode;
  table.table.set(0, 0);
  const plain = table.map.bind(table);
  const requests: (() => Promise<void>)[] = [
    () => blk.read(0, testIov(context, [512]), RequestFlags.SERIALISING),
    () => blk.write(0, testIov(context, [512]), RequestFlags.SERIALISING),
    () => blk.writeZeroes(0, 512),
    () => blk.discard(0, 512),
  ];
  for (const request of requests) {
    const gate = new Gate();
    let graceful: unknown;
    let over = false;
    table.map = async (at, want, why, out) => {
      assert.equal(table.context.grace(), undefined, 'not before');
      await plain(at, want, why, out);
      graceful = table.context.grace();
      await gate.promise;
    };
    const running = request();
    await until(() => graceful !== undefined, 'the hold');
    void (graceful as Promise<void>).then(() => {
      over = true;
    });
    for (const op of ['read', 'write', 'zero', 'discard'] as const) disk.hold(op);
    gate.open();
    await settle();
    assert.equal(over, false);
    for (const op of ['read', 'write', 'zero', 'discard'] as const) disk.release(op);
    await running;
    await settle();
    assert.equal(over, true);
    table.map = plain;
    assert.equal(table.context.grace(), undefined, 'and not after');
  }
  await blk.close();
});

test('R6 what may not be written in place is zeroed all the same, unless it reads as zeroes', async () => {
  const disk = testDisk('inplace', 4 * CLUSTER);
  disk.bytes.fill(5);
  const blk = await BlockBackend.open(context, {
    driver: 'table',
    'node-name': 'inplace0',
    size: 64 * KiB,
    file: { driver: 'memory', disk: 'inplace' },
  });
  const table = tables.get('inplace0') as TableNode;
  table.table.set(0, 0).set(1, 'zero').set(2, 'opaque');
  const plain = table.map.bind(table);
  table.map = (at, want, why, out) => {
    if (why !== 'write') return plain(at, want, why, out);
    out.other('absent', Math.min(want, CLUSTER));
    return undefined;
  };
  await blk.writeZeroes(0, 3 * CLUSTER);
  assert.ok((await read(blk, 0, 3 * CLUSTER)).every((byte) => byte === 0));
  assert.equal(table.commits, 1, 'only the opaque one got a place');
  assert.equal(table.table.get(1), 'zero');
  await blk.close();
});
