import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { PoolBackend } from '../aio/pool/backend.ts';
import { Errno } from '../base/errors.ts';
import { Iov } from '../base/memory.ts';
import { KiB, MiB } from '../base/units.ts';
import { BlockBackend } from './backend.ts';
import { BOUNCE_POOL, BounceUse, bouncePool, zeroIov } from './bounce.ts';
import { RequestFlags } from './driver.ts';
import type { NodeOptions } from './graph.ts';
import { truncateNode } from './io.ts';
import { registerDriver } from './registry.ts';
import { bytesOf, registerTestDrivers, settle, type TestDisk, testDisk, testIov, until } from './testing.ts';
import { tableDriver, tables } from './testing-format.ts';

let context: AioContext;
before(() => {
  registerTestDrivers();
  registerDriver(tableDriver);
  context = new AioContext(new PoolBackend());
});
after(() => context.stop());

async function opened(
  size: number,
  change: (disk: TestDisk) => void = () => undefined,
  more: Partial<NodeOptions> = {},
) {
  const disk = testDisk('io', size);
  change(disk);
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'io', ...more });
  return { disk, blk };
}

const read = async (blk: BlockBackend, at: number, length: number): Promise<Uint8Array> => {
  const iov = testIov(context, [length], 77);
  await blk.read(at, iov);
  return bytesOf(iov);
};

test('R1 every request in flight is tracked on its node with kind and range, and taken off at its end', async () => {
  const { disk, blk } = await opened(64 * KiB, (d) => {
    d.limits = { alignment: 512 };
  });
  const node = blk.root!;
  disk.hold('read');
  disk.hold('write');
  const requests = [
    blk.read(0, testIov(context, [512])),
    blk.write(1024, testIov(context, [1024])),
    blk.write(5000, testIov(context, [10])),
  ];
  await settle();
  const seen: string[] = [];
  for (let t = node.firstTracked; t; t = t.next)
    seen.push(`${t.kind}:${t.at}+${t.length}:${t.overlapAt}-${t.overlapEnd}:${t.serialising}`);
  assert.deepEqual(seen, ['0:0+512:0-512:false', '1:1024+1024:1024-2048:false', '1:5000+10:4608-5120:true']);
  assert.equal(node.inFlight, 3);
  disk.release('read');
  disk.release('write');
  await Promise.all(requests);
  assert.equal(node.firstTracked, null);
  assert.equal(node.inFlight, 0);
  assert.equal(node.serialising, 0);
  await blk.close();
});

test('R2 an unaligned write waits for what overlaps its blocks, and later ones wait for it', async () => {
  const { disk, blk } = await opened(64 * KiB, (d) => {
    d.limits = { alignment: 4096 };
  });
  disk.hold('write');
  const first = blk.write(0, testIov(context, [4096], 1));
  await until(() => disk.waiting('write') === 1);
  const unaligned = blk.write(100, testIov(context, [8], 2));
  const beside = blk.write(8192, testIov(context, [4096], 3));
  await settle();
  assert.deepEqual(disk.log, ['write 0+4096', 'write 8192+4096'], 'only what does not overlap has started');
  disk.hold('read');
  disk.release('write');
  await until(() => disk.waiting('read') === 1);
  const after = blk.write(0, testIov(context, [4096], 4));
  await settle();
  assert.deepEqual(disk.log.slice(2), ['read 0+4096'], 'it would be undone by the write that is on its way');
  disk.release('read');
  await Promise.all([first, unaligned, beside, after]);
  assert.deepEqual(disk.log.slice(2), ['read 0+4096', 'write 0+4096', 'write 0+4096']);
  assert.deepEqual(disk.bytes.slice(0, 4096), bytesOf(testIov(context, [4096], 4)));
  await blk.close();
});

test('R2 many unaligned writes into one block at once lose nothing', async () => {
  const { disk, blk } = await opened(64 * KiB, (d) => {
    d.limits = { alignment: 4096 };
  });
  const all: Promise<void>[] = [];
  for (let i = 0; i < 64; i++) all.push(blk.write(i * 64, testIov(context, [64], i)));
  await Promise.all(all);
  for (let i = 0; i < 64; i++) {
    assert.deepEqual(disk.bytes.slice(i * 64, i * 64 + 64), bytesOf(testIov(context, [64], i)), `write ${i}`);
  }
  await blk.close();
});

test('R2 SERIALISING waits for any overlap; with NO_WAIT it is EBUSY', async () => {
  const { disk, blk } = await opened(64 * KiB);
  disk.hold('write');
  const first = blk.write(0, testIov(context, [1024], 1));
  await settle();
  const flags = RequestFlags.SERIALISING | RequestFlags.NO_WAIT;
  await assert.rejects(blk.write(512, testIov(context, [1024]), flags), { code: 'EBUSY' });
  const second = blk.write(512, testIov(context, [1024], 2), RequestFlags.SERIALISING);
  await settle();
  assert.deepEqual(disk.log, ['write 0+1024']);
  disk.release('write');
  await Promise.all([first, second]);
  assert.deepEqual(disk.bytes.slice(512, 1536), bytesOf(testIov(context, [1024], 2)));
  await blk.close();
});

test('R2 three serialising requests in a ring of overlaps all end', async () => {
  const { blk } = await opened(64 * KiB);
  const all = [0, 1, 2, 3, 4, 5].map((n) =>
    blk.write((n % 3) * 512, testIov(context, [1024 + 512 * (n % 2)], n), RequestFlags.SERIALISING),
  );
  await Promise.all(all);
  await blk.close();
});

test('R3 unaligned reads are one read of the whole blocks; requests of no length do not reach the driver', async () => {
  const { disk, blk } = await opened(64 * KiB, (d) => {
    d.limits = { alignment: 512 };
    for (let i = 0; i < d.bytes.length; i++) d.bytes[i] = i % 251;
  });
  const got = await read(blk, 700, 1000);
  assert.deepEqual(got, disk.bytes.slice(700, 1700));
  assert.deepEqual(disk.log, ['read 512+1536']);
  disk.log.length = 0;
  await blk.write(600, testIov(context, [100], 5));
  assert.deepEqual(disk.log, ['read 512+512', 'write 512+512']);
  disk.log.length = 0;
  await blk.write(1000, testIov(context, [100], 5));
  assert.deepEqual(disk.log, ['read 512+1024', 'write 512+1024'], 'two blocks are one read');
  disk.log.length = 0;
  await blk.write(1000, testIov(context, [2000], 5));
  assert.deepEqual(disk.log, ['read 512+512', 'read 2560+512', 'write 512+2560']);
  disk.log.length = 0;
  await blk.write(513, new Iov());
  await blk.read(513, new Iov());
  assert.deepEqual(disk.log, []);
  await blk.close();
});

test('R3 more runs than the driver takes are copied together, unaligned memory as well', async () => {
  for (const limits of [{ maxIov: 4 }, { memoryAlignment: 512 }]) {
    const { disk, blk } = await opened(64 * KiB, (d) => {
      d.limits = limits;
    });
    const iov = testIov(context, new Array(300).fill(7), 3);
    await blk.write(11, iov);
    assert.deepEqual(disk.bytes.slice(11, 11 + 2100), bytesOf(iov));
    const back = testIov(context, new Array(300).fill(7), 4);
    await blk.read(11, back);
    assert.deepEqual(bytesOf(back), bytesOf(iov));
    await blk.close();
  }
});

test('R4 requests are split at maxTransfer, and a child reads as zeroes past its end', async () => {
  const { disk, blk } = await opened(64 * KiB, (d) => {
    d.limits = { maxTransfer: 4096 };
  });
  await read(blk, 100, 10_000);
  assert.deepEqual(disk.log, ['read 100+4096', 'read 4196+4096', 'read 8292+1808']);
  await blk.close();

  const short = testDisk('short-file', 1000);
  short.bytes.fill(9);
  const table = await BlockBackend.open(context, {
    driver: 'table',
    'node-name': 't-short',
    size: 8192,
    file: { driver: 'memory', disk: 'short-file' },
  });
  tables.get('t-short')!.table.set(0, 0);
  const got = await read(table, 0, 4096);
  assert.ok(got.subarray(0, 1000).every((byte) => byte === 9) && got.subarray(1000).every((byte) => byte === 0));
  await table.close();
});

test('R6 zeroes go to the driver, else they are written in pieces; NO_FALLBACK is ENOTSUP instead', async () => {
  const { disk, blk } = await opened(64 * KiB, (d) => {
    d.limits = { maxZero: 8192 };
  });
  await blk.writeZeroes(0, 20_000, RequestFlags.MAY_UNMAP);
  assert.deepEqual(disk.log, ['zero 0+8192 flags 0', 'zero 8192+8192 flags 0', 'zero 16384+3616 flags 0']);
  disk.unsupported = true;
  disk.bytes.fill(1);
  disk.log.length = 0;
  await blk.writeZeroes(100, 5000);
  assert.deepEqual(disk.log, ['zero 100+5000 flags 0', 'write 100+5000']);
  assert.ok(disk.bytes.subarray(100, 5100).every((byte) => byte === 0));
  assert.equal(disk.bytes[99]! + disk.bytes[5100]!, 2);
  await assert.rejects(blk.writeZeroes(0, 512, RequestFlags.NO_FALLBACK), { code: 'ENOTSUP' });
  await blk.close();

  const big = await opened(40 * MiB, (d) => {
    d.missing.add('zero');
  });
  big.disk.bytes.fill(1);
  await big.blk.writeZeroes(1, 40 * MiB - 2);
  assert.deepEqual(
    big.disk.log.map((line) => line.split('+')[1]),
    [16 * MiB, 16 * MiB, 8 * MiB - 2].map(String),
  );
  assert.deepEqual([big.disk.bytes[0], big.disk.bytes[1], big.disk.bytes.at(-2), big.disk.bytes.at(-1)], [1, 0, 0, 1]);
  assert.ok(zeroIov(context, 4096, 1).isZero());
  await big.blk.close();
});

test('R6 MAY_UNMAP needs discard=unmap; detect-zeroes turns writes of zeroes into zero writes', async () => {
  for (const [discard, detect, flags] of [
    ['unmap', 'unmap', RequestFlags.MAY_UNMAP],
    ['ignore', 'unmap', 0],
    ['unmap', 'on', 0],
  ] as const) {
    const { disk, blk } = await opened(64 * KiB, undefined, { discard, 'detect-zeroes': detect });
    const zeroes = testIov(context, [1024, 1024]);
    zeroes.fill(0);
    await blk.write(512, zeroes);
    await blk.write(512, testIov(context, [512], 1));
    assert.deepEqual(disk.log, [`zero 512+2048 flags ${flags}`, 'write 512+512']);
    disk.log.length = 0;
    await blk.writeZeroes(0, 512, RequestFlags.MAY_UNMAP);
    assert.deepEqual(disk.log, [`zero 0+512 flags ${discard === 'unmap' ? RequestFlags.MAY_UNMAP : 0}`]);
    await blk.close();
  }
});

test('R7 a discard is advisory: left out with discard=ignore, cut to whole blocks, refusals are ignored', async () => {
  const ignoring = await opened(64 * KiB);
  await ignoring.blk.discard(0, 4096);
  assert.deepEqual(ignoring.disk.log, []);
  await ignoring.blk.close();
  const { disk, blk } = await opened(
    64 * KiB,
    (d) => {
      d.limits = { alignment: 512, maxDiscard: 4096 };
    },
    { discard: 'unmap' },
  );
  await blk.discard(100, 10_000);
  assert.deepEqual(disk.log, ['discard 512+4096', 'discard 4608+4096', 'discard 8704+1024']);
  disk.log.length = 0;
  await blk.discard(1, 400);
  assert.deepEqual(disk.log, []);
  disk.unsupported = true;
  await blk.discard(0, 512);
  disk.script.push({ op: 'discard', errno: Errno.EINVAL }, { op: 'discard', errno: Errno.EIO });
  await blk.discard(0, 512);
  await assert.rejects(blk.discard(0, 512), { code: 'EIO' });
  await blk.close();
});

test('R8 flushes are one at a time, skipped when nothing was written since, and go on to the children', async () => {
  const { disk, blk } = await opened(64 * KiB);
  await blk.flush();
  assert.deepEqual(disk.log, [], 'nothing was written');
  await blk.write(0, testIov(context, [512]));
  disk.log.length = 0;
  disk.hold('flush');
  const first = blk.flush();
  await until(() => disk.waiting('flush') === 1);
  const second = blk.flush();
  await settle();
  assert.deepEqual(disk.log, ['flush'], 'one at a time');
  disk.release('flush');
  await Promise.all([first, second]);
  assert.deepEqual(disk.log, ['flush'], 'the second had nothing left to do');
  await blk.write(0, testIov(context, [512]));
  disk.hold('flush');
  const third = blk.flush();
  await until(() => disk.waiting('flush') === 1);
  await blk.write(512, testIov(context, [512]));
  disk.release('flush');
  await third;
  disk.log.length = 0;
  await blk.flush();
  assert.deepEqual(disk.log, ['flush'], 'what was written during a flush is not covered by it');
  await blk.close();

  const below = testDisk('below', 0);
  const table = await BlockBackend.open(context, {
    driver: 'table',
    size: MiB,
    file: { driver: 'memory', disk: 'below' },
  });
  await table.write(0, testIov(context, [512]));
  below.log.length = 0;
  await table.flush();
  assert.deepEqual(below.log, ['flush']);
  await table.flush();
  assert.deepEqual(below.log, ['flush']);
  await table.close();
});

test('R8 a failed flush covers nothing: the next one goes to the disk again', async () => {
  const { disk, blk } = await opened(64 * KiB);
  await blk.write(0, testIov(context, [512]));
  disk.script.push({ op: 'flush', errno: Errno.EIO });
  await assert.rejects(blk.flush(), { code: 'EIO' });
  disk.log.length = 0;
  await blk.flush();
  assert.deepEqual(disk.log, ['flush']);
  await blk.close();
});

test('R9 after every write the generation, the dirty hooks and the threshold see it, failed or not', async () => {
  const { disk, blk } = await opened(64 * KiB, undefined, { discard: 'unmap' });
  const node = blk.root!;
  const dirty: string[] = [];
  const crossed: number[] = [];
  node.dirtyHooks.push((at, length) => dirty.push(`${at}+${length}`));
  node.setWriteThreshold(4096, (end) => crossed.push(end));
  await blk.write(0, testIov(context, [4096]));
  assert.deepEqual(crossed, []);
  await blk.write(4000, testIov(context, [100]));
  await blk.write(8000, testIov(context, [100]));
  assert.deepEqual(crossed, [4100], 'once');
  disk.script.push({ op: 'write', errno: Errno.EIO });
  await assert.rejects(blk.write(512, testIov(context, [512])));
  await blk.writeZeroes(100, 50);
  await blk.discard(0, 512);
  assert.deepEqual(dirty, ['0+4096', '4000+100', '8000+100', '512+512', '100+50', '0+512']);
  assert.equal(node.writeGen, 6);
  await blk.close();
});

test('R9 writes beyond the end grow a node only for who may resize it', async () => {
  const disk = testDisk('grow', 1000);
  const strict = await BlockBackend.open(context, { driver: 'memory', disk: 'grow' });
  await assert.rejects(strict.write(900, testIov(context, [200])), { code: 'EIO' });
  await strict.close();
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'grow' }, { allowWriteBeyondEnd: true });
  const sizes: number[] = [];
  blk.users.add({ onResize: (length) => sizes.push(length) });
  await blk.write(900, testIov(context, [200], 1));
  assert.equal(blk.length, 1100);
  await blk.writeZeroes(2000, 100);
  assert.equal(blk.length, 2100);
  assert.deepEqual(sizes, [1100, 2100]);
  assert.deepEqual(await read(blk, 900, 200), bytesOf(testIov(context, [200], 1)));
  await blk.truncate(500);
  assert.equal(disk.bytes.length, 500);
  assert.deepEqual(sizes, [1100, 2100, 500]);
  await blk.close();
});

test('bounce memory is bounded: who finds none waits, in order, and every slot comes back', async () => {
  const pool = bouncePool(context, 9, BounceUse.PADDING);
  const first = await pool.acquire(2 * MiB);
  const second = await pool.acquire(2 * MiB);
  assert.equal(pool.freeBytes, 0);
  const order: string[] = [];
  const big = pool.acquire(MiB).then((bounce) => {
    order.push('big');
    return bounce;
  });
  const small = pool.acquire(512).then((bounce) => {
    order.push('small');
    return bounce;
  });
  await settle();
  assert.deepEqual(order, []);
  first.release();
  (await big).release();
  (await small).release();
  assert.deepEqual(order, ['big', 'small']);
  second.release();
  assert.equal(pool.freeBytes, BOUNCE_POOL);
});

test('hundreds of unaligned writes at once share the bounce memory and all end', async () => {
  const { disk, blk } = await opened(32 * MiB, (d) => {
    // Memory for the edges is held while memory for the transfer is asked for.
    d.limits = { alignment: 65536, memoryAlignment: 4096 };
  });
  const all: Promise<void>[] = [];
  for (let i = 0; i < 300; i++) all.push(blk.write(i * 100_000 + 1, testIov(context, [3000], i)));
  await Promise.all(all);
  for (let i = 0; i < 300; i += 37) {
    assert.deepEqual(disk.bytes.slice(i * 100_000 + 1, i * 100_000 + 3001), bytesOf(testIov(context, [3000], i)));
  }
  for (const use of Object.values(BounceUse)) assert.equal(bouncePool(context, 0, use).freeBytes, BOUNCE_POOL);
  await blk.close();
});

test('who makes a node longer does not cut off what writes add while it waits for them', async () => {
  const disk = testDisk('longer', 4096);
  const node = { driver: 'memory', disk: 'longer' };
  const blk = await BlockBackend.open(context, node, { allowWriteBeyondEnd: true });
  disk.hold('write');
  const first = blk.write(4096, testIov(context, [512]));
  await until(() => disk.waiting('write') === 1);
  const longer = truncateNode(blk.root!, 6144);
  // It waits for the first write, and so the second one does not wait for it.
  const second = blk.write(8192, testIov(context, [512], 7));
  await until(() => disk.waiting('write') === 2);
  disk.release('write');
  await Promise.all([first, longer, second]);
  assert.equal(blk.length, 8704);
  assert.deepEqual(await read(blk, 8192, 512), bytesOf(testIov(context, [512], 7)));
  await blk.close();
});
