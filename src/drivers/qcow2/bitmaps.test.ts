/** Persistent bitmaps against QEMU, both directions: what is stored is what was dirty. */
import assert from 'node:assert/strict';
import { copyFileSync, readFileSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { needs, peer } from '../../../test/harness.ts';
import { Prng } from '../../base/prng.ts';
import { GiB, KiB, MiB } from '../../base/units.ts';
import { testIov } from '../../block/testing.ts';
import type { Qcow2Node } from './driver.ts';
import {
  checked,
  type Extents,
  extentsOf,
  peerBitmaps,
  peerExtents,
  peerList,
  type Shape,
  scribble,
  setting,
} from './testing-bitmaps.ts';

const TIB = 1024 * GiB;
const PEERS = needs('qemu-img', 'qemu-io', 'qemu-nbd', 'nbdinfo');
const { context, open, make } = setting();

const SHAPES: readonly (readonly [Shape, number])[] = [
  [{ size: 5 * MiB + 512, 'cluster-size': 512 }, 512],
  [{ size: 5 * MiB + 512, 'cluster-size': 4096 }, 512],
  [{ size: 40 * MiB - 512 }, 64 * KiB],
  [{ size: 40 * MiB, 'extended-l2': true, 'refcount-bits': 1 }, 4096],
  [{ size: 3 * MiB, 'cluster-size': 2 * MiB, 'lazy-refcounts': true }, MiB],
  [{ size: 3 * MiB, 'data-file': 'x' }, 4096],
  [{ size: 5 * GiB + 512 }, 2 * GiB],
  [{ size: 16 * TIB }, 64 * KiB],
  [{ size: 512 }, 512],
];

for (const [options, granularity] of SHAPES) {
  const shape = `${JSON.stringify(options)}, granularity ${granularity}`;

  test(`QEMU reads what we have stored: ${shape}`, PEERS, async (t) => {
    const path = await make(t, options);
    const more =
      options['data-file'] === undefined ? {} : { 'data-file': { driver: 'file', filename: `${path}.data` } };
    const blk = await open(path, more);
    const { bitmaps } = blk.root!;
    const all = await bitmaps.add('all', { granularity, persistent: true });
    await scribble(blk, new Prng(3), 12);
    const late = await bitmaps.add('spät', { granularity, persistent: true, disabled: true });
    late.mark(0, options.size);
    const expected = { all: extentsOf(all), late: extentsOf(late) };
    await blk.close();
    await checked(path);
    assert.deepEqual(await peerList(path), [`all ${granularity} auto`, `spät ${granularity} `]);
    assert.deepEqual(await peerExtents(path, 'all'), expected.all);
    assert.deepEqual(await peerExtents(path, 'spät'), expected.late);
    const again = await open(path, more);
    assert.deepEqual(extentsOf(again.root!.bitmaps.get('all')), expected.all);
    assert.deepEqual(extentsOf(again.root!.bitmaps.get('spät')), expected.late);
    await again.close();
    await checked(path);
  });

  test(`we read what QEMU has stored, and go on: ${shape}`, PEERS, async (t) => {
    if (options['data-file'] !== undefined) return t.skip('as without');
    const path = await make(t, options);
    const grain = String(granularity);
    await peer('qemu-img', 'bitmap', '--add', '-g', grain, path, 'b');
    const middle = Math.floor(options.size / 1024) * 512;
    await peer('qemu-io', '-c', 'write 0 512', '-c', `write ${middle} 512`, path);
    await peer('qemu-img', 'bitmap', '--add', '--disable', '-g', grain, path, 'off');
    await peer('qemu-img', 'bitmap', '--merge', 'b', path, 'off');
    const before = await peerExtents(path, 'b');
    const blk = await open(path);
    const { bitmaps } = blk.root!;
    assert.deepEqual(extentsOf(bitmaps.get('b')), before);
    assert.deepEqual(extentsOf(bitmaps.get('off')), before);
    await bitmaps.clear('b');
    await scribble(blk, new Prng(4), 8);
    await bitmaps.merge('off', ['b']);
    const [b, off] = [extentsOf(bitmaps.get('b')), extentsOf(bitmaps.get('off'))];
    await blk.close();
    await checked(path);
    assert.deepEqual(await peerExtents(path, 'b'), b);
    assert.deepEqual(await peerExtents(path, 'off'), off);
    await peer('qemu-img', 'bitmap', '--remove', path, 'b');
    await checked(path);
  });
}

test('what QEMU and we do to bitmaps in turn, each finds as the other has left it', PEERS, async (t) => {
  const path = await make(t, { size: 8 * MiB });
  const prng = new Prng(21);
  const names = ['a', 'b', 'c'];
  for (let step = 0; step < 14; step++) {
    const name = names[prng.below(3)]!;
    const other = names[prng.below(3)]!;
    const there = new Map((await peerBitmaps(path)).map(({ name: one, flags }) => [one, flags.includes('auto')]));
    const verb = !there.has(name) ? 'add' : ['clear', 'remove', 'toggle', 'merge'][prng.below(4)]!;
    const what = `step ${step}: ${verb} ${name} ${other}`;
    if (prng.chance(0.5)) {
      const flag = verb === 'toggle' ? (there.get(name) ? 'disable' : 'enable') : verb;
      const args = flag === 'merge' ? ['--merge', there.has(other) ? other : name] : [`--${flag}`];
      await peer('qemu-img', 'bitmap', ...args, path, name);
      await peer('qemu-io', '-c', `write ${prng.below(100) * 64}k 64k`, path);
    } else {
      const blk = await open(path);
      const { bitmaps } = blk.root!;
      if (verb === 'add') await bitmaps.add(name, { persistent: true });
      else if (verb === 'clear') await bitmaps.clear(name);
      else if (verb === 'remove') await bitmaps.remove(name);
      else if (verb === 'toggle') await bitmaps.enable(name, !there.get(name));
      else await bitmaps.merge(name, [there.has(other) ? other : name]);
      await scribble(blk, prng, 2);
      await blk.close();
    }
    await checked(path);
    const blk = await open(path, { 'read-only': true });
    const ours = blk.root!.bitmaps.list();
    assert.deepEqual(
      (await peerList(path)).sort(),
      ours.map((b) => `${b.name} 65536 ${b.enabled ? 'auto' : ''}`).sort(),
      what,
    );
    for (const bitmap of ours) assert.deepEqual(extentsOf(bitmap), await peerExtents(path, bitmap.name), what);
    await blk.close();
  }
});

test('a read-only open changes nothing, whatever is there', PEERS, async (t) => {
  const path = await make(t, { size: 8 * MiB });
  await peer('qemu-img', 'bitmap', '--add', path, 'b');
  const before = readFileSync(path);
  const blk = await open(path, { 'read-only': true });
  assert.equal(blk.root!.bitmaps.get('b').enabled, true);
  await blk.close();
  assert.ok(readFileSync(path).equals(before));
});

test('resizing keeps them: with QEMU what it had, and dirty what came', PEERS, async (t) => {
  const path = await make(t, { size: 8 * MiB, 'cluster-size': 512 });
  let blk = await open(path);
  await blk.root!.bitmaps.add('on', { granularity: 512, persistent: true });
  await blk.root!.bitmaps.add('off', { granularity: 512, persistent: true, disabled: true });
  await blk.write(MiB, testIov(context, [512]));
  await blk.close();
  blk = await open(path);
  await blk.truncate(64 * MiB);
  const dead = `${path}.dead`;
  copyFileSync(path, dead);
  await blk.close();
  await checked(path);
  const grown: Extents = [
    [MiB, 512],
    [8 * MiB, 56 * MiB],
  ];
  assert.deepEqual(await peerExtents(path, 'on'), grown);
  assert.deepEqual(await peerExtents(path, 'off'), []);
  const torn = await open(dead);
  assert.deepEqual(
    torn.root!.bitmaps.list().map((b) => b.inconsistent),
    [true, true],
    'their tables are too short',
  );
  await torn.close();
  blk = await open(path);
  await blk.truncate(MiB + 1024);
  await blk.close();
  await checked(path);
  assert.deepEqual(await peerExtents(path, 'on'), [[MiB, 512]]);
  await peer('qemu-img', 'resize', '-q', path, '3M');
  blk = await open(path);
  assert.deepEqual(extentsOf(blk.root!.bitmaps.get('on')), [[MiB, 512]]);
  await blk.close();
});

test(
  'snapshots and amended refcounts go with bitmaps; applying one and going back to version 2 do not',
  PEERS,
  async (t) => {
    const path = await make(t, { size: 8 * MiB });
    let blk = await open(path);
    const bitmap = await blk.root!.bitmaps.add('b', { persistent: true });
    await scribble(blk, new Prng(5), 5);
    await blk.close();
    blk = await open(path);
    const node = blk.root!.impl as Qcow2Node;
    await node.snapshots.create('s');
    await assert.rejects(node.snapshots.apply('s'), { code: 'EBUSY', message: /bitmaps/ });
    await node.amend({ 'refcount-bits': 32 });
    await assert.rejects(node.amend({ compat: '0.10' }), { code: 'EINVAL' });
    await scribble(blk, new Prng(6), 5);
    const expected = extentsOf(blk.root!.bitmaps.get('b'));
    assert.ok(expected.length >= extentsOf(bitmap).length);
    await blk.close();
    await checked(path);
    assert.deepEqual(await peerExtents(path, 'b'), expected);
    blk = await open(path, { 'read-only': true, snapshot: 's' });
    assert.deepEqual(blk.root!.bitmaps.list(), [], "they are not those of the snapshot's disk");
    await blk.close();
  },
);

test('storing again and again does not make the file longer', PEERS, async (t) => {
  const path = await make(t, { size: 64 * MiB, 'cluster-size': 4096 });
  const sizes: number[] = [];
  for (let i = 0; i < 6; i++) {
    const blk = await open(path);
    if (i === 0) await blk.root!.bitmaps.add('b', { granularity: 512, persistent: true });
    await blk.write(i * 512, testIov(context, [512]));
    await blk.close();
    sizes.push(statSync(path).size);
  }
  await checked(path);
  assert.equal(sizes[5], sizes[2], sizes.join());
});

test('a sparse disk of 16 TiB costs no memory for what nobody writes', async (t) => {
  const path = await make(t, { size: 16 * TIB });
  const blk = await open(path);
  const bitmap = await blk.root!.bitmaps.add('b', { granularity: 4096, persistent: true });
  await blk.write(0, testIov(context, [4096]));
  await blk.write(16 * TIB - 4096, testIov(context, [4096]));
  assert.ok(bitmap.bits.memory <= 8192, `${bitmap.bits.memory}`);
  await assert.rejects(blk.root!.bitmaps.add('c', { granularity: 2048, persistent: true }), { code: 'EFBIG' });
  await blk.close();
});

test('an empty disk, and version 2, cannot keep bitmaps', async (t) => {
  for (const options of [{ size: 0 }, { size: MiB, compat: '0.10' }] as never[]) {
    const path = await make(t, options);
    const blk = await open(path);
    await assert.rejects(blk.root!.bitmaps.add('b', { persistent: true }), { code: 'ENOTSUP' });
    await blk.root!.bitmaps.add('b');
    await blk.close();
  }
});
