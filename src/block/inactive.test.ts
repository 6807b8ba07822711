import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { PoolBackend } from '../aio/pool/backend.ts';
import { type BlockError, Errno } from '../base/errors.ts';
import { MiB } from '../base/units.ts';
import { rawDriver } from '../drivers/raw/driver.ts';
import { BlockBackend, type BlockBackendOptions } from './backend.ts';
import { drain } from './drain.ts';
import { PERM_ALL } from './driver.ts';
import { type NodeOptions, openNode, releaseNode } from './graph.ts';
import { setActive } from './inactive.ts';
import { findLendable, Lendable } from './lease.ts';
import { allNodes, nodeByName, registerDriver } from './registry.ts';
import { BlockStatus } from './status.ts';
import { bytesOf, registerTestDrivers, settle, testDisk, testIov, until } from './testing.ts';

let context: AioContext;
before(() => {
  registerTestDrivers();
  registerDriver(rawDriver);
  context = new AioContext(new PoolBackend());
});
after(async () => {
  assert.deepEqual(allNodes(), []);
  await context.stop();
});

const EPERM = { errno: Errno.EPERM };

/** A raw node over a disk in memory; the node above has the name of the disk. */
function openRaw(name: string, more: Partial<NodeOptions> = {}) {
  const file = { driver: 'memory', disk: name, 'node-name': `${name}-file` };
  return openNode(context, { driver: 'raw', 'node-name': name, file, ...more });
}

function openPatient(name: string, more: BlockBackendOptions = {}): Promise<BlockBackend> {
  return BlockBackend.open(context, name, { allowInactive: true, owner: `export '${name}'`, ...more });
}

test('a backend that may stay gets EPERM while its node is inactive, and goes on afterwards', async () => {
  const disk = testDisk('stay', MiB);
  const node = await openRaw('stay');
  const blk = await openPatient('stay');
  await blk.write(0, testIov(context, [512], 3));
  for (let round = 0; round < 3; round++) {
    await setActive(node, false);
    const { length } = disk.log;
    const iov = testIov(context, [512]);
    await assert.rejects(blk.read(0, iov), EPERM);
    await assert.rejects(blk.write(0, iov), EPERM);
    await assert.rejects(blk.writeZeroes(0, 512), EPERM);
    await assert.rejects(blk.discard(0, 512), EPERM);
    await assert.rejects(blk.flush(), EPERM);
    await assert.rejects(blk.truncate(2 * MiB), EPERM);
    assert.throws(() => blk.blockStatus(0, 512, new BlockStatus()), EPERM);
    assert.equal(blk.length, MiB);
    assert.equal(disk.log.length, length, 'nothing comes to the disk');
    await setActive(node, true);
    const back = testIov(context, [512]);
    await blk.read(0, back);
    assert.deepEqual(bytesOf(back), bytesOf(testIov(context, [512], 3)));
    await blk.write(512, iov);
    await blk.flush();
  }
  await blk.close();
  await releaseNode(node);
});

test('its permissions wait with it, and are asked for again when the node becomes active', async () => {
  testDisk('perm', MiB);
  const node = await openRaw('perm');
  const blk = await openPatient('perm', { shared: 0 });
  const wanted = { perm: blk.perm, shared: blk.shared };
  await setActive(node, false);
  assert.deepEqual({ perm: blk.perm, shared: blk.shared }, { perm: 0, shared: PERM_ALL });
  assert.equal(nodeByName('perm-file').parents[0]!.perm, 0);
  // What it has now goes with another one; what it will ask for does not.
  const other = await openPatient('perm', { shared: 0 });
  await assert.rejects(setActive(node, true), /Could not use node 'perm' for export 'perm': .* does not share/);
  assert.equal(node.inactive, true);
  assert.equal(blk.perm, 0);
  await assert.rejects(blk.read(0, testIov(context, [512])), EPERM);
  await other.close();
  await setActive(node, true);
  assert.deepEqual({ perm: blk.perm, shared: blk.shared }, wanted);
  await blk.write(0, testIov(context, [512]));
  await blk.close();
  await releaseNode(node);
});

test('one that has not said so keeps the node active, and finds no place on an inactive one', async () => {
  testDisk('no', MiB);
  const node = await openRaw('no');
  const blk = await openPatient('no', { allowInactive: false });
  const refusal = { errno: Errno.EBUSY, message: "Could not inactivate node 'no': export 'no' uses it" };
  await assert.rejects(setActive(node, false), refusal);
  await blk.write(0, testIov(context, [512]));
  await blk.close();
  await setActive(node, false);
  await assert.rejects(openPatient('no', { allowInactive: false }), /for export 'no': it is inactive/);
  // One that may stay may also come.
  const patient = await openPatient('no');
  await assert.rejects(patient.read(0, testIov(context, [512])), EPERM);
  await setActive(node, true);
  await patient.write(0, testIov(context, [512]));
  // And go while the node is inactive.
  await setActive(node, false);
  await patient.close();
  await releaseNode(node);
});

test('a node that opens inactive has backends that may stay, also on the file below', async () => {
  testDisk('born', MiB);
  const node = await openRaw('born', { active: false });
  const blk = await openPatient('born');
  const below = await openPatient('born-file', { shared: PERM_ALL, readOnly: true });
  await assert.rejects(below.read(0, testIov(context, [512])), EPERM);
  await setActive(node, true);
  await below.read(0, testIov(context, [512]));
  await blk.write(0, testIov(context, [512]));
  // Both of them go.
  await setActive(node, false);
  await assert.rejects(below.read(0, testIov(context, [512])), EPERM);
  await setActive(node, true);
  await below.read(0, testIov(context, [512]));
  await blk.close();
  await below.close();
  await releaseNode(node);
});

test('what is under way ends before the node is inactive, and what waited meanwhile ends with EPERM', async () => {
  const disk = testDisk('wait', MiB);
  const node = await openRaw('wait');
  const blk = await openPatient('wait');
  disk.hold('write');
  const first = blk.write(0, testIov(context, [512]));
  await until(() => disk.waiting('write') === 1);
  const resting = setActive(node, false);
  await settle();
  assert.equal(node.inactive, false);
  const late = blk.read(0, testIov(context, [512]));
  late.catch(() => undefined);
  const status = blk.blockStatus(0, 512, new BlockStatus())!;
  status.catch(() => undefined);
  disk.release('write');
  await first;
  await resting;
  await assert.rejects(late, EPERM);
  await assert.rejects(status, EPERM);
  // What waits while it becomes active finds it so.
  const outer = await drain(node);
  const early = blk.read(0, testIov(context, [512]));
  await setActive(node, true);
  outer.end();
  await early;
  await blk.close();
  await releaseNode(node);
});

test('nothing of an inactive node is lent, and a bitmap that somebody shows keeps it active', async () => {
  testDisk('lent', MiB);
  const node = await openRaw('lent');
  const found = new Lendable();
  await setActive(node, false);
  await findLendable(node, 0, 512, found);
  assert.equal(found.length, 0);
  assert.equal(found.never, false);
  await setActive(node, true);
  await node.bitmaps.add('b');
  const { release } = node.bitmaps.share('b');
  await assert.rejects(setActive(node, false), { errno: Errno.EBUSY, message: /bitmap 'b' of node 'lent' is in use/ });
  release();
  await setActive(node, false);
  await releaseNode(node);
});

test('under load each request is done or refused, and what was done is there', async () => {
  const disk = testDisk('load', MiB);
  const node = await openRaw('load');
  const blk = await openPatient('load');
  let over = false;
  let refused = 0;
  const last = new Map<number, number>();
  const writer = async (at: number): Promise<void> => {
    for (let seed = 1; !over; seed++) {
      try {
        await blk.write(at, testIov(context, [512], seed));
        last.set(at, seed);
      } catch (error) {
        assert.equal((error as BlockError).errno, Errno.EPERM);
        refused++;
        await settle(1);
      }
    }
  };
  const writers = Array.from({ length: 8 }, (_, i) => writer(i * 4096));
  for (let round = 0; round < 50; round++) {
    await setActive(node, false);
    const before = disk.log.length;
    await settle();
    assert.equal(disk.log.length, before);
    await setActive(node, true);
    await settle();
  }
  over = true;
  await Promise.all(writers);
  assert.ok(refused > 0 && last.size === 8);
  for (const [at, seed] of last) {
    assert.deepEqual(disk.bytes.subarray(at, at + 512), bytesOf(testIov(context, [512], seed)));
  }
  await blk.close();
  await releaseNode(node);
});
