import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { PoolBackend } from '../aio/pool/backend.ts';
import { Errno } from '../base/errors.ts';
import { MiB } from '../base/units.ts';
import { nullDriver } from '../drivers/null-co/driver.ts';
import { BlockBackend } from './backend.ts';
import { type Drained, drain, drainAll, kickDrain } from './drain.ts';
import { openNode, releaseNode, replaceChild } from './graph.ts';
import { allNodes, nodeByName, registerDriver } from './registry.ts';
import { registerTestDrivers, settle, testDisk, testIov, until } from './testing.ts';
import { tableDriver, tables } from './testing-format.ts';

let context: AioContext;
before(() => {
  registerTestDrivers();
  registerDriver(tableDriver);
  registerDriver(nullDriver);
  context = new AioContext(new PoolBackend());
});
after(() => context.stop());

test('D1 a drain quiesces the parents before the driver, waits for both, and ends the other way round', async () => {
  const disk = testDisk('d1', MiB);
  const blk = await BlockBackend.open(context, {
    driver: 'table',
    'node-name': 'd1-top',
    size: MiB,
    file: { driver: 'memory', disk: 'd1', 'node-name': 'd1-file' },
  });
  const table = tables.get('d1-top')!;
  const order: string[] = [];
  let exportBusy = true;
  blk.users.add({
    onDrainBegin: () => order.push(`user begin, driver ${table.drains.length}`),
    onDrainEnd: () => order.push(`user end, driver ${table.drains.length}`),
    drainBusy: () => exportBusy,
  });
  table.table.set(0, 0);
  disk.hold('read');
  const read = blk.read(0, testIov(context, [512]));
  await settle();
  let drained = false;
  // The lowest node: everything above it stops too.
  const draining = drain(nodeByName('d1-file')).then((section) => {
    drained = true;
    return section;
  });
  assert.deepEqual(order, ['user begin, driver 0']);
  assert.deepEqual(table.drains, ['begin']);
  disk.release('read');
  await read;
  await settle();
  assert.equal(drained, false, 'the export is busy');
  exportBusy = false;
  table.busy = true;
  kickDrain();
  await settle();
  assert.equal(drained, false, "the driver's own work goes on");
  table.busy = false;
  table.context.quiet();
  const section = await draining;
  const nested = await drain(nodeByName('d1-file'));
  section.end();
  await settle();
  assert.deepEqual(table.drains, ['begin'], 'counted');
  nested.end();
  assert.deepEqual(table.drains, ['begin', 'end']);
  assert.deepEqual(order, ['user begin, driver 0', 'user end, driver 2']);
  assert.equal(nodeByName('d1-file').quiesce + blk.root!.quiesce + blk.quiesce, 0);
  await blk.close();
});

test('D1 draining a parent leaves the other users of its child alone', async () => {
  testDisk('shared', MiB);
  const shared = 15;
  const file = await openNode(context, { driver: 'memory', disk: 'shared', 'node-name': 'shared0' });
  const one = await BlockBackend.open(context, 'shared0', { perm: 1, shared });
  const two = await BlockBackend.open(
    context,
    { driver: 'table', size: MiB, file: 'shared0', 'read-only': true },
    {
      perm: 1,
      shared,
    },
  );
  const section = await drain(two.root!);
  await one.read(0, testIov(context, [512]));
  section.end();
  await one.close();
  await two.close();
  await releaseNode(file);
});

test('D3 whoever uses a backend is asked to stop, asked whether it is quiet, and told to go on', async () => {
  const blk = await BlockBackend.open(context, { driver: 'null-co' });
  const calls: string[] = [];
  let busy = true;
  blk.users.add({
    onDrainBegin: () => calls.push('pause'),
    onDrainEnd: () => calls.push('resume'),
    drainBusy: () => {
      calls.push('busy?');
      return busy;
    },
  });
  const draining = blk.drain();
  await settle();
  busy = false;
  kickDrain();
  (await draining).end();
  assert.deepEqual(calls, ['pause', 'busy?', 'busy?', 'resume']);
  await blk.close();
});

test('D5 drainAll quiesces every node before it waits for any; then none is in flight or opened', async () => {
  const disks = [0, 1, 2].map((n) => testDisk(`all${n}`, MiB));
  const blks = await Promise.all(
    disks.map((_, n) => BlockBackend.open(context, { driver: 'memory', disk: `all${n}`, 'node-name': `all${n}` })),
  );
  for (const disk of disks) disk.hold('write');
  const writes = blks.map((blk) => blk.write(0, testIov(context, [512])));
  const draining = drainAll(context, allNodes());
  assert.ok(blks.every((blk) => blk.quiesce === 1 && blk.root!.quiesce === 1));
  disks[0]!.release('write');
  disks[2]!.release('write');
  await settle();
  disks[1]!.release('write');
  const section = await draining;
  assert.ok(allNodes().every((node) => node.inFlight === 0));
  await Promise.all(writes);
  await assert.rejects(openNode(context, { driver: 'null-co' }), { errno: Errno.EBUSY });
  section.end();
  section.end();
  assert.ok(blks.every((blk) => blk.quiesce === 0));
  await Promise.all(blks.map((blk) => blk.close()));
});

test('D5 nodes that are drained together are all quiesced before any is waited for; others go on', async () => {
  const names = ['both0', 'both1', 'other'];
  const disks = names.map((name) => testDisk(name, MiB));
  const blks = await Promise.all(
    names.map((name) => BlockBackend.open(context, { driver: 'memory', disk: name, 'node-name': name })),
  );
  for (const disk of disks) disk.hold('write');
  const writes = blks.map((blk) => blk.write(0, testIov(context, [512])));
  const draining = drain(...blks.slice(0, 2).map((blk) => blk.root!));
  assert.deepEqual(
    blks.map((blk) => blk.quiesce),
    [1, 1, 0],
  );
  disks[1]!.release('write');
  await settle();
  disks[0]!.release('write');
  (await draining).end();
  assert.ok(blks.every((blk) => blk.quiesce === 0));
  disks[2]!.release('write');
  await Promise.all(writes);
  await Promise.all(blks.map((blk) => blk.close()));
});

test('D6 who is attached to a drained node is quiesced, and let go when the drain ends', async () => {
  testDisk('d6', MiB);
  const file = await openNode(context, { driver: 'memory', disk: 'd6', 'node-name': 'd6-file' });
  const section = await drain(file);
  const blk = await BlockBackend.open(context, { driver: 'table', size: MiB, file: 'd6-file' });
  assert.equal(blk.quiesce, 1);
  assert.equal(blk.root!.quiesce, 1);
  let done = false;
  const read = blk.read(0, testIov(context, [512])).then(() => {
    done = true;
  });
  await settle();
  assert.equal(done, false);
  section.end();
  await read;
  assert.equal(blk.quiesce + blk.root!.quiesce, 0);

  // Into the place of a drained node, and out of it again.
  testDisk('d6b', MiB);
  const other = await openNode(context, { driver: 'memory', disk: 'd6b', 'node-name': 'd6-other' });
  const drained = await drain(other);
  await replaceChild(blk.root!.children[0]!, other);
  assert.equal(blk.quiesce, 1);
  await replaceChild(blk.root!.children[0]!, file);
  assert.equal(blk.quiesce, 0);
  drained.end();
  await blk.read(0, testIov(context, [512]));
  await blk.close();
  await releaseNode(other);
  await releaseNode(file);
});

test('D6 a node may be closed inside a drained section', async () => {
  const disk = testDisk('gone', MiB);
  const node = await openNode(context, { driver: 'memory', disk: 'gone' });
  const section = await drain(node);
  await releaseNode(node);
  assert.equal(disk.closed, true);
  section.end();
  await until(() => node.quiesce === 0);
});

test('D1 a user that drains again as a drain ends leaves everybody above the node quiesced', async () => {
  testDisk('again', MiB);
  const file = await openNode(context, { driver: 'memory', disk: 'again', 'node-name': 'again0' });
  const first = await BlockBackend.open(context, 'again0', { perm: 1, shared: 15 });
  const second = await BlockBackend.open(
    context,
    { driver: 'table', 'node-name': 'again1', size: MiB, file: 'again0', 'read-only': true },
    { perm: 1, shared: 15 },
  );
  const table = tables.get('again1')!;
  let again: Promise<Drained> | undefined;
  first.users.add({
    onDrainEnd: () => {
      again ??= drain(file);
    },
  });
  (await drain(file)).end();
  assert.ok(again);
  assert.deepEqual([first.quiesce, second.root!.quiesce, second.quiesce], [1, 1, 1]);
  const section = await again;
  section.end();
  assert.deepEqual([file.quiesce, first.quiesce, second.root!.quiesce, second.quiesce], [0, 0, 0, 0]);
  assert.deepEqual(table.drains.at(-1), 'end');
  await first.close();
  await second.close();
  await releaseNode(file);
});

test('D6 a driver is told of a drain that began before it was open, and of none after its close', async () => {
  testDisk('told', MiB);
  const file = await openNode(context, { driver: 'memory', disk: 'told', 'node-name': 'told0' });
  const below = await drain(file);
  const top = await openNode(context, { driver: 'table', 'node-name': 'told1', size: MiB, file: 'told0' });
  const table = tables.get('told1')!;
  assert.deepEqual(table.drains, ['begin']);
  below.end();
  assert.deepEqual(table.drains, ['begin', 'end']);
  const section = await drain(top);
  await releaseNode(top);
  section.end();
  assert.deepEqual(table.drains, ['begin', 'end', 'begin']);
  await releaseNode(file);
});

test('D5 a node whose open began before drainAll and ends inside it is refused and closed', async () => {
  const disk = testDisk('late', MiB);
  let open = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    open = resolve;
  });
  registerDriver({
    name: 'late',
    role: 'filter',
    options: {},
    children: { file: 'filtered' },
    open: async (openContext) => {
      const file = (await openContext.openChild('file', 'filtered'))!;
      await held;
      return { length: file.length };
    },
  });
  const opening = openNode(context, { driver: 'late', file: { driver: 'memory', disk: 'late', 'node-name': 'late0' } });
  await until(() => allNodes().some((node) => node.name === 'late0'));
  const section = await drainAll(context, allNodes());
  open();
  await assert.rejects(opening, { errno: Errno.EBUSY });
  assert.equal(disk.closed, true);
  section.end();
  assert.deepEqual(allNodes(), []);
});
