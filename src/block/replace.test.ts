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
import { type NodeOptions, openNode, releaseNode, replaceChild } from './graph.ts';
import { allNodes, nodeByName, registerDriver } from './registry.ts';
import { bytesOf, registerTestDrivers, testDisk, testIov } from './testing.ts';

let context: AioContext;
before(() => {
  registerTestDrivers();
  registerDriver(nullDriver);
  registerDriver(rawDriver);
  context = new AioContext(new PoolBackend());
});
after(() => context.stop());

test('G2 a filter can be put in between and taken out again, with the permissions going over in one step', async () => {
  const disk = testDisk('between', MiB);
  disk.bytes.fill(9);
  const blk = await BlockBackend.open(context, {
    driver: 'raw',
    file: { driver: 'memory', disk: 'between', 'node-name': 'leaf' },
  });
  const edge = blk.root!.children[0]!;
  const seen: number[] = [];
  disk.permissions = (perm) => seen.push(perm);
  const leaf = nodeByName('leaf');
  const filter = await openNode(context, { driver: 'raw', 'node-name': 'filter', file: 'leaf' });
  await replaceChild(edge, filter);
  assert.deepEqual(
    leaf.parents.map((parent) => parent.describe),
    ["node 'filter' as 'file'"],
  );
  const { perm } = leaf.parents[0]!;
  assert.equal(perm, edge.perm, 'the filter hands on what is needed');
  await blk.write(0, testIov(context, [512]));
  // Nobody else holds the filter: it closes as it is taken out.
  await releaseNode(filter);
  await replaceChild(edge, leaf);
  assert.equal(filter.closed, true);
  assert.deepEqual(leaf.parents, [edge]);
  assert.ok(
    seen.every((perms) => perms === edge.perm),
    `${seen}`,
  );
  await blk.close();
  assert.deepEqual(allNodes(), []);
});

test('G2 heights, alignments and lengths of all that is above follow the new child', async () => {
  const disk = testDisk('limits', MiB);
  disk.limits = { alignment: 4096 };
  testDisk('plain', 2 * MiB);
  const blk = await BlockBackend.open(context, {
    driver: 'raw',
    file: { driver: 'raw', 'node-name': 'mid', file: { driver: 'memory', disk: 'plain' } },
  });
  const sizes: number[] = [];
  blk.users.add({ onResize: (length) => sizes.push(length) });
  const to = await openNode(context, {
    driver: 'raw',
    'node-name': 'new',
    file: { driver: 'raw', file: { driver: 'memory', disk: 'limits' } },
  });
  assert.deepEqual([blk.root!.height, blk.limits.alignment, blk.length], [2, 1, 2 * MiB]);
  await replaceChild(nodeByName('mid').children[0]!, to);
  assert.deepEqual([blk.root!.height, blk.limits.alignment, blk.length], [4, 4096, MiB]);
  assert.deepEqual(sizes, [MiB]);
  await releaseNode(to);
  await blk.close();
  assert.deepEqual(allNodes(), []);
});

test('G2 a replacement that would be too deep is refused, counted from the root', async () => {
  const tower = (levels: number, top: NodeOptions): NodeOptions =>
    levels === 0 ? top : { driver: 'raw', file: tower(levels - 1, top) };
  const half = MAX_DEPTH / 2;
  const upper = await openNode(
    context,
    tower(half - 1, { driver: 'raw', 'node-name': 'low', file: { driver: 'null-co' } }),
  );
  const lower = await openNode(context, tower(half - 1, { driver: 'null-co' }));
  const deeper = await openNode(context, { driver: 'raw', file: lower.name });
  const edge = nodeByName('low').children[0]!;
  const from = edge.node;
  await assert.rejects(replaceChild(edge, deeper), { errno: Errno.ELOOP });
  assert.deepEqual([edge.node, deeper.refs, deeper.parents.length], [from, 1, 0]);
  await replaceChild(edge, lower);
  assert.equal(upper.height, MAX_DEPTH - 1);
  for (const node of [upper, deeper, lower]) await releaseNode(node);
  assert.deepEqual(allNodes(), []);
});

test('G2 replacements of one edge at the same time, by nodes that are let go meanwhile, leave one child', async () => {
  for (const name of ['r0', 'r1', 'r2']) testDisk(name, MiB).bytes.fill(Number(name[1]) + 1);
  const blk = await BlockBackend.open(context, { driver: 'raw', file: { driver: 'memory', disk: 'r0' } });
  const edge = blk.root!.children[0]!;
  const one = await openNode(context, { driver: 'memory', disk: 'r1' });
  const two = await openNode(context, { driver: 'memory', disk: 'r2' });
  const section = await blk.drain();
  const all = [replaceChild(edge, one), replaceChild(edge, two), releaseNode(one), releaseNode(two)];
  section.end();
  await Promise.all(all);
  assert.equal(edge.node, two);
  assert.deepEqual([one.closed, two.closed, two.refs, two.parents], [true, false, 1, [edge]]);
  const iov = testIov(context, [512]);
  await blk.read(0, iov);
  assert.equal(bytesOf(iov)[0], 3);
  await blk.close();
  assert.deepEqual(allNodes(), []);
});

test('G2 a driver that refuses leaves both nodes as they were', async () => {
  const a = testDisk('ga', MiB);
  const b = testDisk('gb', MiB);
  const blk = await BlockBackend.open(context, { driver: 'raw', file: { driver: 'memory', disk: 'ga' } });
  const edge = blk.root!.children[0]!;
  const from = edge.node;
  const to = await openNode(context, { driver: 'memory', disk: 'gb' });
  let held = edge.perm;
  a.permissions = (perm) => {
    held = perm;
  };
  b.permissions = (perm) => {
    if (perm !== 0) throw new BlockError(Errno.EBUSY, 'Could not lock: scripted');
  };
  const { perm, shared } = edge;
  await assert.rejects(replaceChild(edge, to), { errno: Errno.EBUSY });
  assert.deepEqual([edge.node, edge.perm, edge.shared, held], [from, perm, shared, perm]);
  assert.deepEqual([from.parents, to.parents, from.refs, to.refs], [[edge], [], 1, 1]);
  await blk.close();
  await releaseNode(to);
});
