import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { PoolBackend } from '../aio/pool/backend.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { MiB } from '../base/units.ts';
import { nullDriver } from '../drivers/null-co/driver.ts';
import { rawDriver } from '../drivers/raw/driver.ts';
import { BlockBackend } from './backend.ts';
import { MAX_DEPTH } from './depth.ts';
import { PERM_ALL, Perm } from './driver.ts';
import { type NodeOptions, openNode, releaseNode, replaceChild } from './graph.ts';
import { permNames } from './permissions.ts';
import { allNodes, driverByName, nodeByName, registerDriver } from './registry.ts';
import { BlockStatus } from './status.ts';
import { bytesOf, registerTestDrivers, settle, testDisk, testIov } from './testing.ts';
import { CLUSTER, tableDriver, tables } from './testing-format.ts';

let context: AioContext;
before(() => {
  registerTestDrivers();
  registerDriver(tableDriver);
  registerDriver(nullDriver, 'null-aio');
  registerDriver(rawDriver);
  registerDriver({
    ...tableDriver,
    name: 'refuses',
    open: async (openContext, options) => {
      await tableDriver.open(openContext, options as { size: number });
      throw new BlockError(Errno.EACCES, 'Could not open: scripted');
    },
  });
  context = new AioContext(new PoolBackend());
});
after(() => context.stop());

const { CONSISTENT_READ, WRITE, RESIZE } = Perm;

test('nested options become nodes, names are unique, and closing the backend closes them all', async () => {
  const disk = testDisk('g0', MiB);
  const blk = await BlockBackend.open(context, {
    driver: 'raw',
    'node-name': 'fmt',
    file: { driver: 'memory', disk: 'g0', 'node-name': 'prot' },
  });
  assert.equal(blk.root!.name, 'fmt');
  assert.equal(blk.root!.children[0]!.node, nodeByName('prot'));
  await assert.rejects(openNode(context, { driver: 'null-co', 'node-name': 'prot' }), { errno: Errno.EEXIST });
  await assert.rejects(openNode(context, { driver: 'null-co', 'node-name': '0x' }), { errno: Errno.EINVAL });
  const auto = await openNode(context, { driver: 'null-aio' });
  assert.match(auto.name, /^#block\d{3,}$/);
  await releaseNode(auto);
  await blk.close();
  assert.equal(disk.closed, true);
  assert.deepEqual(allNodes(), []);
});

test('bad options are named: unknown, wrong type, missing, force-share without read-only', async () => {
  const cases: [NodeOptions, RegExp][] = [
    [{ driver: 'nope' }, /Unknown driver 'nope' \(known: .*null-co/],
    [{ driver: 'null-co', sise: 1 }, /unknown option 'sise'/],
    [{ driver: 'null-co', size: -1 }, /option 'size' is -1, not a number of bytes/],
    [{ driver: 'null-co', size: 2 ** 53 }, /option 'size'/],
    [{ driver: 'null-co', 'read-zeroes': 'yes' }, /option 'read-zeroes' is 'yes', not a boolean/],
    [{ driver: 'null-co', discard: 'maybe' } as never, /option 'discard' is 'maybe', not one of ignore, unmap/],
    [{ driver: 'null-co', cache: { directt: true } } as never, /unknown option 'cache.directt'/],
    [{ driver: 'memory' }, /option 'disk' is missing/],
    [{ driver: 'raw' }, /option 'file' is missing/],
    [{ driver: 'raw', file: 3 }, /option 'file' is neither a node-name/],
    [{ driver: 'raw', file: 'nobody' }, /Could not find node 'nobody'/],
    [{ driver: 'null-co', 'force-share': true }, /'force-share' needs 'read-only'/],
    [{ driver: 'null-co', constructor: 1 }, /unknown option 'constructor'/],
  ];
  for (const [options, message] of cases) {
    await assert.rejects(
      openNode(context, options),
      (error) => error instanceof BlockError && message.test(error.message),
    );
  }
  assert.deepEqual(allNodes(), []);
  assert.throws(() => driverByName('constructor'), { errno: Errno.ENOENT });
});

test('an open that fails half-way closes what it had opened and frees the names', async () => {
  const file = testDisk('half', 4096);
  const backing = testDisk('half-backing', 4096);
  backing.script.push({ op: 'open', errno: Errno.EACCES });
  const options: NodeOptions = {
    driver: 'table',
    size: MiB,
    'node-name': 'half0',
    file: { driver: 'memory', disk: 'half', 'node-name': 'half1' },
    backing: { driver: 'memory', disk: 'half-backing', 'node-name': 'half2' },
  };
  await assert.rejects(BlockBackend.open(context, options), { code: 'EACCES' });
  assert.equal(file.closed, true);
  assert.deepEqual(allNodes(), []);
  const blk = await BlockBackend.open(context, options);
  await blk.close();
  assert.deepEqual(allNodes(), []);

  // The driver refuses after its children are open.
  await assert.rejects(
    BlockBackend.open(context, { driver: 'raw', offset: 5000, file: { driver: 'memory', disk: 'half' } }),
  );
  assert.equal(file.closed, true);
  assert.deepEqual(allNodes(), []);
});

test('a graph that is too deep is refused, by nesting and by reference', async () => {
  let options: NodeOptions = { driver: 'null-co' };
  for (let i = 0; i < MAX_DEPTH - 1; i++) options = { driver: 'raw', file: options };
  const deepest = await openNode(context, options);
  await assert.rejects(openNode(context, { driver: 'raw', file: options }), { errno: Errno.ELOOP });
  await assert.rejects(openNode(context, { driver: 'raw', file: deepest.name }), { errno: Errno.ELOOP });
  await releaseNode(deepest);
  assert.deepEqual(allNodes(), []);
});

test('children take over options: read-only for all, read-only always for a backing file', async () => {
  testDisk('i0', MiB);
  testDisk('i1', MiB);
  const blk = await BlockBackend.open(context, {
    driver: 'table',
    size: MiB,
    file: { driver: 'memory', disk: 'i0', 'node-name': 'i-file' },
    backing: { driver: 'memory', disk: 'i1', 'node-name': 'i-back' },
  });
  assert.equal(nodeByName('i-file').readOnly, false);
  assert.equal(nodeByName('i-back').readOnly, true);
  await blk.close();
  const ro = await BlockBackend.open(context, {
    driver: 'raw',
    'read-only': true,
    file: { driver: 'memory', disk: 'i0', 'node-name': 'i-file' },
  });
  assert.equal(nodeByName('i-file').readOnly, true);
  await assert.rejects(ro.truncate(0), { code: 'EPERM' });
  await assert.rejects(ro.write(0, testIov(context, [1])), { code: 'EPERM' });
  await ro.close();
});

test('B1 a second writer is refused by name, and sharing lets it in', async () => {
  const node = await openNode(context, { driver: 'null-co', 'node-name': 'perm0' });
  const one = await BlockBackend.open(context, 'perm0', { name: 'disk0' });
  await assert.rejects(BlockBackend.open(context, 'perm0', { name: 'disk1' }), {
    code: 'EPERM',
    message:
      "Could not use node 'perm0' for block backend 'disk1': block backend 'disk0' does not share 'write, resize'",
  });
  await one.setPermissions(CONSISTENT_READ | WRITE, PERM_ALL);
  await assert.rejects(
    BlockBackend.open(context, 'perm0', { name: 'disk1' }),
    /for block backend 'disk1': it would not share 'write', which block backend 'disk0' uses/,
  );
  const two = await BlockBackend.open(context, 'perm0', { name: 'disk1', shared: PERM_ALL });
  await two.write(0, testIov(context, [512]));
  await two.close();
  await one.close();
  await releaseNode(node);
  assert.equal(permNames(WRITE | RESIZE), 'write, resize');
});

test('B2 a permission change goes through the whole graph below or not at all', async () => {
  const disk = testDisk('p0', MiB);
  const seen: string[] = [];
  disk.permissions = (perm, shared) => {
    seen.push(`${perm}/${shared}`);
  };
  const blk = await BlockBackend.open(
    context,
    { driver: 'raw', 'node-name': 'p-raw', file: { driver: 'memory', disk: 'p0', 'node-name': 'p-file' } },
    { perm: CONSISTENT_READ, shared: PERM_ALL },
  );
  assert.deepEqual(seen, ['1/15']);
  const edge = blk.root!.children[0]!;
  await blk.setPermissions(CONSISTENT_READ | WRITE, CONSISTENT_READ);
  assert.deepEqual([edge.perm, edge.shared], [3, 1]);
  // The driver refuses: everything is as before, and the driver has been told to go back.
  disk.permissions = (perm, shared) => {
    seen.push(`${perm}/${shared}`);
    if (perm === PERM_ALL) throw new BlockError(Errno.EBUSY, 'locked');
  };
  await assert.rejects(blk.setPermissions(PERM_ALL, 0), /locked/);
  assert.deepEqual([edge.perm, edge.shared, blk.perm, blk.shared], [3, 1, 3, 1]);
  assert.deepEqual(seen, ['1/15', '3/1', '15/0', '3/1']);
  // Another user deep below refuses: the same.
  await blk.setPermissions(CONSISTENT_READ, PERM_ALL);
  const below = await BlockBackend.open(context, 'p-file', { perm: 0, shared: CONSISTENT_READ });
  await assert.rejects(
    blk.setPermissions(CONSISTENT_READ | WRITE, PERM_ALL),
    /for node 'p-raw' as 'file': an unnamed block backend does not share 'write'/,
  );
  assert.deepEqual([edge.perm, blk.perm], [1, 1]);
  await below.close();
  await blk.close();
});

test('B2 a format keeps other writers away from its file, and lets them read its backing file', async () => {
  testDisk('f0', MiB);
  testDisk('f1', MiB);
  const file = await openNode(context, { driver: 'memory', disk: 'f0', 'node-name': 'f-file' });
  const backing = await openNode(context, { driver: 'memory', disk: 'f1', 'node-name': 'f-back' });
  const blk = await BlockBackend.open(context, { driver: 'table', size: MiB, file: 'f-file', backing: 'f-back' });
  await assert.rejects(BlockBackend.open(context, 'f-file'), /does not share 'write, resize'/);
  await assert.rejects(BlockBackend.open(context, 'f-back'), /does not share 'write, resize'/);
  const reader = await BlockBackend.open(context, 'f-back', { readOnly: true });
  await reader.close();
  await assert.rejects(
    BlockBackend.open(context, { driver: 'null-co', 'read-only': true }, { perm: WRITE }),
    /it is read-only/,
  );
  await blk.close();
  await releaseNode(file);
  await releaseNode(backing);
});

test('B8 a node cannot be used from another context', async () => {
  const other = new AioContext(new PoolBackend(), { name: 'other' });
  const node = await openNode(context, { driver: 'null-co', 'node-name': 'home' });
  await assert.rejects(openNode(other, { driver: 'raw', file: 'home' }), /lives in context 'main', not 'other'/);
  await assert.rejects(BlockBackend.open(other, 'home'), /lives in context 'main'/);
  await releaseNode(node);
  await other.stop();
});

test('a child can be replaced while requests come; a cycle and a refused permission change nothing', async () => {
  const a = testDisk('ra', MiB);
  const b = testDisk('rb', MiB);
  a.bytes.fill(1);
  b.bytes.fill(2);
  const blk = await BlockBackend.open(context, {
    driver: 'raw',
    'node-name': 'top',
    file: { driver: 'memory', disk: 'ra' },
  });
  const nodeB = await openNode(context, { driver: 'memory', disk: 'rb', 'node-name': 'b' });
  const edge = blk.root!.children[0]!;
  await assert.rejects(replaceChild(edge, blk.root!), { errno: Errno.EINVAL });
  const holder = await BlockBackend.open(context, 'b', { perm: 0, shared: CONSISTENT_READ });
  const nodeA = edge.node;
  await assert.rejects(replaceChild(edge, nodeB), { code: 'EPERM' });
  assert.equal(edge.node, nodeA);
  assert.deepEqual(nodeA.parents, [edge]);
  await holder.close();
  const iov = testIov(context, [512]);
  a.hold('read');
  const read = blk.read(0, iov);
  const replaced = replaceChild(edge, nodeB);
  const late = testIov(context, [512]);
  const reading = blk.read(0, late);
  await settle();
  assert.equal(edge.node, nodeA, 'waits for what is in flight');
  a.release('read');
  await Promise.all([read, replaced, reading]);
  assert.equal(bytesOf(iov)[0], 1);
  assert.equal(bytesOf(late)[0], 2, 'what came meanwhile went to the new one');
  assert.equal(a.closed, true);
  await blk.close();
  await releaseNode(nodeB);
  assert.equal(b.closed, true);
});

test("what a job has put over a disk goes without the disk's being flushed, since its users go on", async () => {
  for (const implicit of [true, false]) {
    const disk = testDisk('below', MiB);
    const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'below', 'node-name': 'below' });
    const filter = await openNode(context, { driver: 'raw', file: 'below' });
    filter.implicit = implicit;
    await blk.write(0, testIov(context, [512]));
    disk.log.length = 0;
    await releaseNode(filter);
    assert.deepEqual(disk.log, implicit ? [] : ['flush']);
    await blk.close();
  }
});

test('closing flushes first, reports what the flush failed with, and closes all the same', async () => {
  const disk = testDisk('cl', MiB);
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'cl' });
  await blk.write(0, testIov(context, [512]));
  disk.log.length = 0;
  await blk.close();
  assert.deepEqual(disk.log, ['flush', 'close']);
  await blk.close();

  const failing = await BlockBackend.open(context, { driver: 'memory', disk: 'cl' });
  await failing.write(0, testIov(context, [512]));
  disk.script.push({ op: 'flush', errno: Errno.EIO }, { op: 'flush', errno: Errno.EIO });
  await assert.rejects(failing.close(), { code: 'EIO' });
  assert.equal(disk.closed, true);
  assert.deepEqual(allNodes(), []);
});

test('R10 block status: layers, zeroes past a short backing file, blocks of the alignment', async () => {
  const base = testDisk('s-base', 2 * CLUSTER + 100);
  base.bytes.fill(5);
  base.bytes.fill(0, CLUSTER, 2 * CLUSTER);
  testDisk('s-top', CLUSTER).bytes.fill(7);
  const blk = await BlockBackend.open(context, {
    driver: 'table',
    'node-name': 's0',
    size: 16 * CLUSTER,
    file: { driver: 'memory', disk: 's-top' },
    backing: { driver: 'memory', disk: 's-base' },
  });
  const table = tables.get('s0')!.table;
  table
    .set(4, 0)
    .set(5, 'zero')
    .set(6, 'opaque')
    .set(7, CLUSTER * 9);
  const seen: string[] = [];
  const out = new BlockStatus();
  for (let at = 0; at < 9 * CLUSTER; at += out.length) {
    await blk.wholeExtent(at, 9 * CLUSTER - at, out);
    const flags = `${out.data ? 'data ' : ''}${out.zero ? 'zero ' : ''}${out.allocated ? 'allocated ' : ''}`;
    seen.push(`${at}+${out.length}: ${flags}${out.depth}`);
  }
  assert.deepEqual(seen, [
    '0+4096: data allocated 2',
    '4096+4096: zero allocated 2',
    '8192+100: data allocated 2',
    '8292+8092: zero allocated 2',
    '16384+4096: data allocated 1',
    '20480+4096: zero allocated 1',
    '24576+4096: data allocated 1',
    '28672+4096: data zero allocated 1',
    '32768+4096: zero allocated 2',
  ]);
  assert.throws(() => blk.blockStatus(16 * CLUSTER, 1, out), { code: 'EINVAL' });
  await blk.close();

  const disk = testDisk('s-al', 64 * 1024);
  disk.limits = { alignment: 8192 };
  disk.bytes[4096 * 3] = 1;
  const aligned = await BlockBackend.open(context, { driver: 'memory', disk: 's-al' });
  await aligned.blockStatus(0, 64 * 1024, out);
  assert.deepEqual([out.length, out.zero], [8192, true]);
  await aligned.blockStatus(10_000, 50_000, out);
  assert.deepEqual([out.length, out.zero], [16384 - 10_000, false]);
  await aligned.close();

  const alone = await BlockBackend.open(context, {
    driver: 'table',
    size: CLUSTER,
    file: { driver: 'memory', disk: 's-top' },
  });
  await alone.blockStatus(0, CLUSTER, out);
  assert.deepEqual([out.zero, out.allocated, out.depth], [true, false, 0]);
  await alone.close();
});

test('one failure in the cleaning up does not keep the rest open', async () => {
  const file = testDisk('cf', 2 * CLUSTER);
  const backing = testDisk('cb', 2 * CLUSTER);
  const options: NodeOptions = {
    driver: 'table',
    size: MiB,
    file: { driver: 'memory', disk: 'cf' },
    backing: { driver: 'memory', disk: 'cb' },
  };
  const blk = await BlockBackend.open(context, options);
  file.script.push({ op: 'close', errno: Errno.EIO });
  backing.script.push({ op: 'close', errno: Errno.ENOSPC });
  await assert.rejects(blk.close(), { code: 'EIO' });
  assert.deepEqual([file.closed, backing.closed], [true, true]);
  assert.deepEqual(allNodes(), []);
  // The same in an open that fails: what is told is why it failed.
  file.script.push({ op: 'close', errno: Errno.EIO });
  await assert.rejects(openNode(context, { ...options, driver: 'refuses' }), { code: 'EACCES' });
  assert.deepEqual([file.closed, backing.closed], [true, true]);
  assert.deepEqual(allNodes(), []);
});

test('auto-read-only: a format over a file that can only be read is read-only, and without it refused', async () => {
  const disk = testDisk('ar', 2 * CLUSTER);
  disk.readOnly = true;
  const options: NodeOptions = { driver: 'table', size: MiB, file: { driver: 'memory', disk: 'ar' } };
  await assert.rejects(BlockBackend.open(context, options), { code: 'EPERM' });
  const blk = await BlockBackend.open(context, { ...options, 'auto-read-only': true });
  assert.equal(blk.readOnly, true);
  await blk.read(0, testIov(context, [512]));
  await assert.rejects(blk.write(0, testIov(context, [512])), { code: 'EPERM' });
  await blk.close();
});
