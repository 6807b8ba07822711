/** The copy-on-read filter over the smallest format (SEMANTICS R11): clusters of 4096 bytes. */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { Gate } from '../../aio/op.ts';
import { Sim } from '../../aio/sim/sim.ts';
import { inContext } from '../../aio/testing.ts';
import { Errno } from '../../base/errors.ts';
import { BlockBackend } from '../../block/backend.ts';
import { BOUNCE_POOL, BounceUse, bouncePool } from '../../block/bounce.ts';
import { registerDriver } from '../../block/registry.ts';
import {
  bytesOf,
  hint,
  registerTestDrivers,
  settle,
  type TestDisk,
  testDisk,
  testIov,
  until,
} from '../../block/testing.ts';
import { CLUSTER, tableDriver, tables } from '../../block/testing-format.ts';
import { copyOnReadDriver } from './driver.ts';

const SIZE = 16 * CLUSTER;

before(() => {
  registerTestDrivers();
  registerDriver(tableDriver);
  registerDriver(copyOnReadDriver);
});

interface Chain {
  readonly blk: BlockBackend;
  readonly top: TestDisk;
  readonly base: TestDisk;
  /** Clusters that the active layer holds. */
  held(): number[];
}

const memory = (disk: string) => ({ driver: 'memory', disk });

/** copy-on-read -> top (empty) -> middle (holds cluster 2) -> base (all 0xba). */
async function inChain(context: AioContext, more: object, body: (chain: Chain) => Promise<void>): Promise<void> {
  const top = testDisk('top', 0);
  const middle = testDisk('middle', CLUSTER);
  const base = testDisk('base', SIZE);
  base.bytes.fill(0xba);
  middle.bytes.fill(0x2b);
  const below = { driver: 'table', 'node-name': 'middle', size: SIZE, file: memory('middle'), backing: memory('base') };
  const layer = { driver: 'table', 'read-only': false, size: SIZE, file: memory('top'), backing: below };
  const file = { 'node-name': 'top', ...layer };
  const blk = await BlockBackend.open(context, { driver: 'copy-on-read', file, ...more });
  tables.get('middle')!.table.set(2, 0);
  try {
    const held = (): number[] => [...tables.get('top')!.table.keys()].sort((a, b) => a - b);
    await body({ blk, top, base, held });
  } finally {
    await blk.close();
  }
}

const reads = (disk: TestDisk): string[] => disk.log.filter((line) => line.startsWith('read'));

inContext('R11 what is read is copied in whole clusters, once, and reads the same ever after', async (context) => {
  await inChain(context, {}, async ({ blk, top, base, held }) => {
    const iov = testIov(context, [3 * CLUSTER]);
    await blk.read(CLUSTER + 100, iov.slice(0, 2 * CLUSTER));
    assert.deepEqual(held(), [1, 2, 3]);
    const seen = bytesOf(iov);
    assert.ok(seen.subarray(0, CLUSTER - 100).every((byte) => byte === 0xba));
    assert.ok(seen.subarray(CLUSTER - 100, 2 * CLUSTER - 100).every((byte) => byte === 0x2b));
    const before = reads(base).length;
    base.bytes.fill(0);
    await blk.read(CLUSTER, iov);
    assert.equal(reads(base).length, before);
    assert.ok(bytesOf(iov).every((byte, i) => byte === (i >= CLUSTER && i < 2 * CLUSTER ? 0x2b : 0xba)));
    await blk.flush();
    assert.ok(top.log.includes('flush'));
  });
});

inContext(
  'R11 what is to be prefetched is copied; where it cannot be, nobody is told before the read',
  async (context) => {
    await inChain(context, {}, async ({ blk, base, held }) => {
      assert.equal(await hint(blk, CLUSTER + 100, 2 * CLUSTER), 0);
      assert.deepEqual(held(), [1, 2, 3]);
      base.script.push({ op: 'read', errno: Errno.ENXIO }, { op: 'read', errno: Errno.ENXIO });
      assert.equal(await hint(blk, 8 * CLUSTER, 512), 0);
      assert.deepEqual(held(), [1, 2, 3]);
      await assert.rejects(blk.read(8 * CLUSTER, testIov(context, [512])), { errno: Errno.ENXIO });
    });
  },
);

inContext('R11 copies are not writes of the guest: no bitmap has them, and no permission to write', async (context) => {
  await inChain(context, { 'read-only': true }, async ({ blk, held }) => {
    assert.equal(blk.readOnly, true);
    await assert.rejects(blk.write(0, testIov(context, [512])), { code: 'EPERM' });
    await blk.read(0, testIov(context, [512]));
    assert.deepEqual(held(), [0]);
  });
  await inChain(context, {}, async ({ blk }) => {
    const dirty: number[] = [];
    blk.root!.children[0]!.node.dirtyHooks.push((at) => dirty.push(at));
    await blk.read(0, testIov(context, [SIZE]));
    assert.deepEqual(dirty, []);
    await blk.write(CLUSTER, testIov(context, [CLUSTER]));
    assert.deepEqual(dirty, [CLUSTER]);
  });
});

inContext('R11 a copy is never written over newer data, wherever it was overtaken', async (context) => {
  await inChain(context, {}, async ({ blk, base, held }) => {
    base.hold('read');
    const iov = testIov(context, [512]);
    const reading = blk.read(512, iov);
    await until(() => base.waiting('read') === 1);
    const newer = testIov(context, [1024], 5);
    const writing = blk.write(256, newer);
    await settle();
    base.release('read');
    await Promise.all([reading, writing]);
    const whole = testIov(context, [CLUSTER]);
    await blk.read(0, whole);
    assert.deepEqual(bytesOf(whole).subarray(256, 1280), bytesOf(newer));
    assert.equal(bytesOf(whole)[255], 0xba);
    assert.equal(bytesOf(whole)[1280], 0xba);
    assert.deepEqual(held(), [0]);
  });
});

inContext('R11 bottom: only what the layers down to it hold is copied', async (context) => {
  await inChain(context, { bottom: 'middle' }, async ({ blk, held }) => {
    const iov = testIov(context, [SIZE]);
    await blk.read(0, iov);
    assert.deepEqual(held(), [2]);
    assert.equal(bytesOf(iov)[0], 0xba);
  });
  for (const bottom of ['top', 'nobody']) {
    await assert.rejects(
      inChain(context, { bottom }, async () => undefined),
      { code: 'EINVAL', message: /bottom/ },
    );
  }
});

inContext('R11 a read fails where what is below cannot be read, or its copy cannot be written', async (context) => {
  await inChain(context, {}, async ({ blk, top, base, held }) => {
    base.script.push({ op: 'read', errno: Errno.ENXIO });
    await assert.rejects(blk.read(0, testIov(context, [512])), { code: 'ENXIO' });
    top.script.push({ op: 'write', errno: Errno.ENOSPC });
    await assert.rejects(blk.read(0, testIov(context, [512])), { code: 'ENOSPC' });
    tables.get('top')!.failCommit = Errno.EIO;
    await assert.rejects(blk.read(0, testIov(context, [512])), { code: 'EIO' });
    assert.deepEqual(held(), []);
    tables.get('top')!.failCommit = 0;
    await blk.read(0, testIov(context, [512]));
    assert.deepEqual(held(), [0]);
    assert.equal(blk.inFlight, 0);
  });
});

inContext('R11 an image that cannot be written to is refused below the filter', async (context) => {
  testDisk('top', 0);
  testDisk('base', SIZE);
  const layer = { driver: 'table', 'read-only': true, size: SIZE, file: memory('top'), backing: memory('base') };
  await assert.rejects(BlockBackend.open(context, { driver: 'copy-on-read', file: layer }), { code: 'EPERM' });
});

inContext('R11 many copies at once share bounded memory, and a drained section has none', async (context) => {
  await inChain(context, {}, async ({ blk, base }) => {
    base.hold('read');
    const reading = Promise.all(Array.from({ length: 16 }, (_, i) => blk.read(i * CLUSTER, testIov(context, [100]))));
    await until(() => base.waiting('read') > 4);
    const draining = blk.drain();
    base.release('read');
    {
      using _drained = await draining;
      const { length } = base.log;
      await settle(20);
      assert.equal(base.log.length, length);
    }
    await reading;
    const { height } = blk.root!.children[0]!.node;
    assert.equal(bouncePool(context, height, BounceUse.COPY).freeBytes, BOUNCE_POOL);
  });
});

test('what was copied is flushed within seconds, once for all that came meanwhile, not while drained', async () => {
  const sim = new Sim(1);
  sim.driveItself();
  const context = new AioContext(sim.backend());
  const pass = async (seconds: number): Promise<void> => {
    const gate = new Gate<void>();
    context.timer(() => gate.open(), 'test').armIn(seconds * 1e9);
    await gate.promise;
  };
  await inChain(context, {}, async ({ blk, top, held }) => {
    const flushes = (): number => top.log.filter((line) => line === 'flush').length;
    const read = (cluster: number): Promise<void> => blk.read(cluster * CLUSTER, testIov(context, [10]));
    await read(0);
    await read(3);
    assert.deepEqual([held(), flushes()], [[0, 3], 0]);
    await pass(6);
    assert.equal(flushes(), 1);
    // What is there already has nothing to save.
    await read(0);
    await pass(60);
    assert.equal(flushes(), 1);
    // A failure is for whoever flushes.
    top.script.push({ op: 'flush', errno: Errno.EIO });
    await read(4);
    await pass(6);
    assert.equal(flushes(), 2);
    await blk.flush();
    assert.equal(flushes(), 3);
    await read(5);
    const drained = await blk.drain();
    await pass(60);
    assert.equal(flushes(), 3);
    drained.end();
    await pass(6);
    assert.equal(flushes(), 4);
    // One that is on its way is waited for.
    top.hold('flush');
    await read(6);
    await pass(6);
    assert.equal(top.waiting('flush'), 1);
    let begun = false;
    const draining = blk.drain().then((section) => {
      begun = true;
      section.end();
    });
    await pass(60);
    assert.equal(begun, false);
    top.release('flush');
    await draining;
  });
  await context.stop();
});
