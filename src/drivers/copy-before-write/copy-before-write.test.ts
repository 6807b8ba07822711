/** The copy-before-write filter and snapshot-access, over disks in memory. Clusters are 64 KiB. */
import assert from 'node:assert/strict';
import { before } from 'node:test';
import type { AioContext } from '../../aio/context.ts';
import { inContext } from '../../aio/testing.ts';
import { Errno } from '../../base/errors.ts';
import { KiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { RequestFlags } from '../../block/driver.ts';
import { openNode, releaseNode } from '../../block/graph.ts';
import { registerDriver } from '../../block/registry.ts';
import { bytesOf, registerTestDrivers, settle, type TestDisk, testDisk, testIov, until } from '../../block/testing.ts';
import { rawDriver } from '../raw/driver.ts';
import { snapshotAccessDriver } from '../snapshot-access/driver.ts';
import { copyBeforeWriteDriver } from './driver.ts';

const UNIT = 64 * KiB;
const SIZE = 8 * UNIT + 512;

before(() => {
  registerTestDrivers();
  for (const driver of [rawDriver, snapshotAccessDriver]) registerDriver(driver);
  registerDriver(copyBeforeWriteDriver);
});

interface Kept {
  readonly disk: TestDisk;
  readonly target: TestDisk;
  readonly blk: BlockBackend;
  readonly then: BlockBackend;
}

async function inFilter(
  context: AioContext,
  more: object,
  body: (kept: Kept) => Promise<void>,
  inTarget = 0xee,
): Promise<void> {
  const disk = testDisk('disk', SIZE);
  disk.bytes.fill(1);
  const target = testDisk('target', SIZE);
  target.bytes.fill(inTarget);
  const base = await openNode(context, {
    driver: 'raw',
    'node-name': 'disk',
    file: { driver: 'memory', disk: 'disk' },
  } as never);
  await base.bitmaps.add('b', { granularity: UNIT });
  const first = await BlockBackend.open(context, 'disk');
  await first.write(2 * UNIT + 5, testIov(context, [10], 1));
  await first.close();
  disk.bytes.fill(1);
  const tree = {
    driver: 'copy-before-write',
    'node-name': 'cbw',
    file: 'disk',
    target: { driver: 'memory', disk: 'target' },
  };
  try {
    const blk = await BlockBackend.open(context, { ...tree, ...more } as never);
    const then = await BlockBackend.open(context, { driver: 'snapshot-access', file: 'cbw' } as never);
    try {
      await body({ disk, target, blk, then });
    } finally {
      await then.close();
      await blk.close();
    }
  } finally {
    await releaseNode(base);
  }
}

async function read(context: AioContext, blk: BlockBackend, at: number, length: number): Promise<Uint8Array> {
  const iov = testIov(context, [length], 77);
  await blk.read(at, iov);
  return bytesOf(iov);
}

const all = (bytes: Uint8Array, value: number): boolean => bytes.every((byte) => byte === value);
const writes = ({ log }: TestDisk): string[] => log.filter((line) => !line.startsWith('read') && line !== 'flush');

inContext(
  'what is about to be written over is copied first, once, in whole clusters; then writes go straight',
  async (context) => {
    await inFilter(context, {}, async ({ disk, target, blk, then }) => {
      disk.log.length = 0;
      await blk.write(UNIT + 100, testIov(context, [512], 4));
      assert.deepEqual(writes(target), [`write ${UNIT}+${UNIT}`]);
      assert.deepEqual(disk.log, [`read ${UNIT}+${UNIT}`, `write ${UNIT + 100}+512`]);
      const { slow } = blk.stats;
      await blk.write(UNIT + 700, testIov(context, [512], 4));
      await blk.write(0, testIov(context, [SIZE], 6));
      assert.equal(blk.stats.slow, slow + 1);
      assert.ok(all(target.bytes, 1));
      assert.ok(all(await read(context, then, 0, SIZE), 1));
      await blk.writeZeroes(0, UNIT, RequestFlags.MAY_UNMAP);
      await blk.discard(UNIT, UNIT);
      await blk.flush();
      assert.ok(all(await read(context, then, 0, SIZE), 1));
      assert.ok(!target.log.includes('flush'));
    });
  },
);

inContext('a write waits for who reads the same for the snapshot, and a reader for a copy', async (context) => {
  await inFilter(context, {}, async ({ disk, target, blk, then }) => {
    disk.hold('read', 1);
    const reading = read(context, then, 0, 512);
    await until(() => disk.waiting('read') === 1);
    let written = false;
    const writing = blk.write(0, testIov(context, [512], 4)).then(() => {
      written = true;
    });
    await until(() => writes(target).length === 1);
    await settle();
    assert.equal(written, false);
    disk.release('read');
    assert.ok(all(await reading, 1));
    await writing;
    target.hold('write', 1);
    const next = blk.write(UNIT, testIov(context, [512], 4));
    await until(() => target.waiting('write') === 1);
    const late = read(context, then, UNIT, 512);
    await settle();
    target.release('write');
    assert.ok(all(await late, 1));
    await next;
  });
});

inContext('bitmap: only what is dirty in it is kept, and can be read', async (context) => {
  await inFilter(context, { bitmap: { node: 'disk', name: 'b' } }, async ({ target, blk, then }) => {
    await blk.write(0, testIov(context, [SIZE], 4));
    assert.deepEqual(writes(target), [`write ${2 * UNIT}+${UNIT}`]);
    assert.ok(all(await read(context, then, 2 * UNIT, UNIT), 1));
    await assert.rejects(read(context, then, 0, 512), { code: 'EACCES', message: /not kept/ });
    await assert.rejects(read(context, then, 2 * UNIT, UNIT + 1), { code: 'EACCES' });
  });
  await assert.rejects(
    inFilter(context, { bitmap: { node: 'disk', name: 'none' } }, async () => undefined),
    { code: 'ENOENT' },
  );
});

inContext(
  'cbw-timeout: a copy that takes too long has failed, the guest goes on as on-cbw-error says',
  async (context) => {
    for (const how of ['break-guest-write', 'break-snapshot'] as const) {
      await inFilter(context, { 'cbw-timeout': 1, 'on-cbw-error': how }, async ({ target, blk, then }) => {
        target.hold('write', 1);
        const writing = blk.write(0, testIov(context, [512], 4));
        if (how === 'break-snapshot') await writing;
        else await assert.rejects(writing, { code: 'ETIMEDOUT' });
        target.release('write');
        await settle();
        if (how === 'break-snapshot') await assert.rejects(read(context, then, 0, 512), { code: 'EACCES' });
        else assert.ok(all(await read(context, then, 0, 512), 1));
      });
    }
  },
);

inContext('a copy that fails is tried again by the next write', async (context) => {
  await inFilter(context, {}, async ({ disk, target, blk, then }) => {
    target.script.push({ op: 'write', errno: Errno.ENOSPC });
    await assert.rejects(blk.write(0, testIov(context, [512], 4)), { code: 'ENOSPC' });
    assert.equal(disk.bytes[0], 1);
    await blk.write(0, testIov(context, [512], 4));
    assert.ok(all(await read(context, then, 0, UNIT), 1));
  });
});

inContext('zeroes are not copied as data', async (context) => {
  await inFilter(context, {}, async ({ disk, target, blk }) => {
    disk.bytes.fill(0);
    await blk.write(0, testIov(context, [512], 4));
    assert.deepEqual(writes(target), [`zero 0+${UNIT} flags ${RequestFlags.MAY_UNMAP}`]);
  });
});

inContext('what cannot be is refused with the option that is wrong', async (context) => {
  for (const [more, message] of [
    [{ 'cbw-timeout': -1 }, /cbw-timeout/],
    [{ bitmap: { node: 'disk' } }, /'bitmap' needs/],
    [{ 'min-cluster-size': 3000 }, /min-cluster-size/],
    [{ 'min-cluster-size': 2 ** 30 }, /larger than/],
    [{ target: undefined }, /'target' is missing/],
  ] as const) {
    await assert.rejects(
      inFilter(context, more, async () => undefined),
      { code: 'EINVAL', message },
    );
  }
});

inContext(
  'of a cluster with zeroes at its ends only the rest is copied, where the target has zeroes',
  async (context) => {
    const body = async ({ disk, target, blk, then }: Kept): Promise<void> => {
      disk.bytes.fill(0);
      const block = 4 * KiB;
      const data: readonly (readonly [number, number])[] = [
        [2 * block, 3 * block],
        [UNIT, UNIT + block + 5],
        [4 * UNIT - block, 4 * UNIT],
        [4 * UNIT, 4 * UNIT + 1],
        [5 * UNIT - 1, 5 * UNIT],
      ];
      for (const [from, to] of data) disk.bytes.fill(9, from, to);
      const moment = Uint8Array.from(disk.bytes);
      for (let cluster = 0; cluster < 6; cluster++)
        await blk.write(cluster * UNIT + 100, testIov(context, [300], cluster));
      assert.deepEqual(writes(target), [
        `write ${2 * block}+${block}`,
        `write ${UNIT}+${2 * block}`,
        `write ${4 * UNIT - block}+${block}`,
        `write ${4 * UNIT}+${UNIT}`,
      ]);
      assert.deepEqual(await read(context, then, 0, SIZE), moment);
      // In the target itself what was zero is what was there: nothing of the copies' neighbours.
      assert.deepEqual(target.bytes.subarray(0, 6 * UNIT), moment.subarray(0, 6 * UNIT));
    };
    await inFilter(context, {}, body, 0);
  },
);

inContext('writes to one cluster at once: it is copied once, before any of them', async (context) => {
  await inFilter(context, {}, async ({ disk, target, blk, then }) => {
    const before = writes(disk).length;
    target.hold('write', 1);
    const writing = [0, 1, 2, 3].map((n) => blk.write(n * 4096, testIov(context, [4096], n)));
    await until(() => target.waiting('write') === 1);
    await settle();
    const begun = writes(disk).length;
    target.release('write');
    await Promise.all(writing);
    assert.equal(begun, before);
    assert.deepEqual(writes(target), [`write 0+${UNIT}`]);
    assert.equal(writes(disk).length, before + 4);
    assert.ok(all(await read(context, then, 0, UNIT), 1));
  });
});
