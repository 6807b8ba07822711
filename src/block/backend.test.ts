import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { PoolBackend } from '../aio/pool/backend.ts';
import { Errno } from '../base/errors.ts';
import { MiB } from '../base/units.ts';
import { rawDriver } from '../drivers/raw/driver.ts';
import { BlockBackend } from './backend.ts';
import { kickDrain } from './drain.ts';
import { PERM_ALL, Perm } from './driver.ts';
import { openNode, releaseNode } from './graph.ts';
import { truncateNode } from './io.ts';
import { allNodes, registerDriver } from './registry.ts';
import { registerTestDrivers, settle, testDisk, testIov, until } from './testing.ts';

let context: AioContext;
before(() => {
  registerTestDrivers();
  registerDriver(rawDriver);
  context = new AioContext(new PoolBackend());
});
after(() => context.stop());

const { CONSISTENT_READ, WRITE } = Perm;

test('B1 a backend can be closed inside its drained section; what waits there ends with ENOMEDIUM', async () => {
  const disk = testDisk('leave', MiB);
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'leave' });
  await blk.write(0, testIov(context, [512]));
  const section = await blk.drain();
  const waits = assert.rejects(blk.read(0, testIov(context, [512])), { code: 'ENOMEDIUM' });
  await blk.close();
  assert.deepEqual(disk.log.slice(-2), ['flush', 'close']);
  section.end();
  await waits;
  assert.deepEqual([blk.quiesce, blk.queued, blk.root], [0, 0, null]);
  assert.deepEqual(allNodes(), []);
});

test('B1 closing and removing at the same time takes the node out once, flushed if anybody wants that', async () => {
  const disk = testDisk('twice', MiB);
  const node = await openNode(context, { driver: 'memory', disk: 'twice' });
  const blk = await BlockBackend.open(context, node.name);
  await blk.write(0, testIov(context, [512]));
  disk.hold('write');
  const write = blk.write(0, testIov(context, [512]));
  await until(() => disk.waiting('write') === 1);
  const ends = [blk.remove(), blk.close(), blk.remove(), blk.close()];
  await settle();
  disk.release('write');
  await write;
  await Promise.all(ends);
  assert.deepEqual([node.refs, node.parents.length, blk.quiesce, node.quiesce], [1, 0, 0, 0]);
  assert.equal(disk.log.at(-1), 'flush');
  await blk.close();
  // It can be used again.
  await blk.insert(node);
  await blk.read(0, testIov(context, [512]));
  await blk.close();
  await releaseNode(node);
});

test('B2 who gives up writing has what is in flight waited for and flushed before the lock goes', async () => {
  const disk = testDisk('drop', MiB);
  const blk = await BlockBackend.open(context, { driver: 'raw', file: { driver: 'memory', disk: 'drop' } });
  disk.permissions = (perm) => disk.log.push(`perm ${perm}`);
  disk.hold('write');
  const write = blk.write(0, testIov(context, [512]));
  await until(() => disk.waiting('write') === 1);
  const change = blk.setPermissions(CONSISTENT_READ, PERM_ALL);
  await settle();
  assert.deepEqual(disk.log, ['write 0+512']);
  disk.release('write');
  await Promise.all([write, change]);
  assert.deepEqual(disk.log, ['write 0+512', 'flush', `perm ${CONSISTENT_READ}`]);
  await assert.rejects(blk.write(0, testIov(context, [512])), { code: 'EPERM' });
  await blk.setPermissions(CONSISTENT_READ | WRITE, PERM_ALL);
  await blk.write(0, testIov(context, [512]));
  // A flush that fails: nothing has changed.
  disk.script.push({ op: 'flush', errno: Errno.EIO });
  await assert.rejects(blk.setPermissions(CONSISTENT_READ, PERM_ALL), { code: 'EIO' });
  assert.equal(blk.perm, CONSISTENT_READ | WRITE);
  await blk.close();
});

test('R8 a child that was written to is flushed although nobody above may write to it any more', async () => {
  const disk = testDisk('was', MiB);
  const blk = await BlockBackend.open(context, { driver: 'raw', file: { driver: 'memory', disk: 'was' } });
  await blk.write(0, testIov(context, [512]));
  const edge = blk.root!.children[0]!;
  const { perm } = edge;
  edge.perm = CONSISTENT_READ;
  assert.equal(blk.root!.clean, false);
  await blk.flush();
  assert.equal(disk.log.at(-1), 'flush');
  assert.equal(blk.root!.clean, true);
  edge.perm = perm;
  await blk.close();
});

test('B5 bounds are looked at again by requests that had to wait while the length changed', async () => {
  const disk = testDisk('shrink', MiB);
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'shrink', discard: 'unmap' });
  disk.hold('truncate');
  const shrink = truncateNode(blk.root!, 4096);
  await until(() => disk.waiting('truncate') === 1);
  const write = assert.rejects(blk.write(8192, testIov(context, [512])), { code: 'EIO' });
  const zero = assert.rejects(blk.writeZeroes(8192, 512), { code: 'EIO' });
  const discard = blk.discard(0, MiB);
  await settle();
  disk.release('truncate');
  await Promise.all([shrink, write, zero, discard]);
  assert.deepEqual(disk.log, ['truncate 4096', 'discard 0+4096']);
  assert.equal(disk.bytes.length, 4096);
  await blk.close();
});

test('D3 every user of a backend is told of drains and of sizes, and each can keep it busy', async () => {
  testDisk('users', MiB);
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'users' });
  const calls: string[] = [];
  const busy = new Set<string>();
  const user = (name: string) => ({
    onDrainBegin: () => calls.push(`${name} pause`),
    onDrainEnd: () => calls.push(`${name} resume`),
    drainBusy: () => busy.has(name),
    onResize: (length: number) => calls.push(`${name} ${length}`),
  });
  blk.users.add(user('a'));
  const b = user('b');
  blk.users.add(b);
  busy.add('b');
  let drained = false;
  const draining = blk.drain().then((section) => {
    drained = true;
    return section;
  });
  await settle();
  assert.equal(drained, false);
  busy.clear();
  kickDrain();
  (await draining).end();
  assert.deepEqual(calls, ['a pause', 'b pause', 'a resume', 'b resume']);
  calls.length = 0;
  blk.users.delete(b);
  await blk.truncate(4096);
  assert.deepEqual(calls, ['a pause', 'a 4096', 'a resume']);
  await blk.close();
});

test('D2 a coroutine drains by waiting: a resize meets nothing in flight, later ones the new size', async () => {
  const disk = testDisk('d2', MiB);
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'd2' });
  disk.hold('write');
  const before = blk.write(0, testIov(context, [512]));
  await until(() => disk.waiting('write') === 1);
  const after = blk.read(0, testIov(context, [512]));
  const resize = blk.truncate(2 * MiB);
  const queued = blk.write(MiB, testIov(context, [512])).catch((error: { code: string }) => error.code);
  await settle();
  assert.deepEqual(disk.log, ['write 0+512', 'read 0+512'], 'what was in flight is waited for');
  disk.release('write');
  await Promise.all([before, after, resize, queued]);
  assert.deepEqual(disk.log.slice(2), ['truncate 2097152', 'write 1048576+512']);
  assert.equal(await queued, undefined, 'what came meanwhile met the new size');
  assert.equal(blk.quiesce, 0);
  await blk.close();
});
