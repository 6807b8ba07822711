import assert from 'node:assert/strict';
import { copyFileSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { needs, peer, run, scratch } from '../../../test/harness.ts';
import { Errno } from '../../base/errors.ts';
import { Prng } from '../../base/prng.ts';
import { GiB, KiB, MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { testDisk, testIov } from '../../block/testing.ts';
import { Autoclear, ExtensionType } from '../../proto/qcow2/constants.ts';
import { parseHeader } from '../../proto/qcow2/header.ts';
import { bitmapsExtension, extension } from '../../proto/qcow2/header-extensions.ts';
import type { Qcow2CreateOptions } from './create-options.ts';
import type { Qcow2Node } from './driver.ts';
import { makeImage } from './testing.ts';
import {
  checked,
  context,
  type Extents,
  extentsOf,
  headerOf,
  make,
  open,
  PEERS,
  patchHeader,
  peerBitmaps,
  peerExtents,
  peerList,
  scribble,
  TIB,
} from './testing-bitmaps.ts';

after(() => context.stop());

const SHAPES: readonly (readonly [Partial<Qcow2CreateOptions> & { size: number }, number])[] = [
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

test('a process that dies leaves bitmaps in use, and one that nobody has changed as it is', PEERS, async (t) => {
  const path = await make(t, { size: 8 * MiB });
  let blk = await open(path);
  await blk.root!.bitmaps.add('on', { persistent: true });
  (await blk.root!.bitmaps.add('off', { persistent: true, disabled: true })).mark(0, 1);
  await blk.close();
  blk = await open(path);
  await blk.write(MiB, testIov(context, [512]));
  await blk.flush();
  const dead = `${path}.dead`;
  copyFileSync(path, dead);
  await blk.close();
  assert.deepEqual(await peerList(path), ['on 65536 auto', 'off 65536 ']);
  await checked(dead);
  assert.deepEqual(await peerList(dead), ['on 65536 in-use,auto', 'off 65536 ']);
  assert.deepEqual(await peerExtents(dead, 'off'), [[0, 64 * KiB]]);
  blk = await open(dead);
  const { bitmaps } = blk.root!;
  assert.deepEqual(
    bitmaps.list().map((b) => `${b.name} ${b.inconsistent}`),
    ['on true', 'off false'],
  );
  await assert.rejects(bitmaps.clear('on'), { code: 'EINVAL', message: /inconsistent/ });
  await blk.truncate(4 * MiB);
  await blk.close();
  await checked(dead);
  assert.deepEqual(await peerList(dead), ['on 65536 in-use,auto', 'off 65536 '], 'kept as it is');
  blk = await open(dead);
  await blk.root!.bitmaps.remove('on');
  await blk.close();
  await checked(dead);
  assert.deepEqual(await peerList(dead), ['off 65536 ']);
});

test('what QEMU left in use when it died is inconsistent', PEERS, async (t) => {
  const path = await make(t, { size: 8 * MiB });
  await peer('qemu-img', 'bitmap', '--add', path, 'b');
  const { signal } = await run('qemu-io', ['-c', 'write 0 64k', '-c', 'sigraise 9', path]);
  assert.equal(signal, 'SIGKILL');
  for (const more of [{ 'read-only': true }, {}]) {
    const blk = await open(path, more);
    assert.equal(blk.root!.bitmaps.get('b').inconsistent, true);
    await blk.close();
  }
  assert.deepEqual(await peerList(path), ['b 65536 in-use,auto']);
});

test('bitmaps mean nothing once a program that does not know them has written the image', PEERS, async (t) => {
  const path = await make(t, { size: 8 * MiB });
  const blk = await open(path);
  await blk.root!.bitmaps.add('b', { persistent: true });
  await blk.write(0, testIov(context, [512]));
  await blk.close();
  assert.equal(headerOf(path).autoclear, BigInt(Autoclear.BITMAPS), 'we maintain them');
  // As such a program does; and a bit that is nobody's yet.
  patchHeader(path, (header) => {
    header.autoclear = 1n << 40n;
  });
  const before = readFileSync(path);
  const reading = await open(path, { 'read-only': true });
  assert.deepEqual(reading.root!.bitmaps.list(), []);
  await reading.close();
  assert.ok(readFileSync(path).equals(before), 'read-only changes nothing');
  const writing = await open(path);
  assert.deepEqual(writing.root!.bitmaps.list(), []);
  await writing.close();
  const header = headerOf(path);
  assert.equal(header.autoclear, 0n);
  assert.equal(extension(header, ExtensionType.BITMAPS), undefined);
  const { code } = await run('qemu-img', ['check', '-q', path]);
  assert.equal(code, 3, 'leaks and nothing else');
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

test('opening and closing without a change writes no bits', async (t) => {
  const disk = testDisk('quiet', 0);
  await makeImage(context, { driver: 'memory', disk: 'quiet' }, { size: 8 * MiB } as Qcow2CreateOptions);
  const node: NodeOptions = { driver: 'qcow2', file: { driver: 'memory', disk: 'quiet' } };
  let blk = await BlockBackend.open(context, node);
  await blk.root!.bitmaps.add('b', { granularity: 512, persistent: true });
  await blk.write(0, testIov(context, [512]));
  await blk.close();
  const table = bitmapTable(disk.bytes);
  blk = await BlockBackend.open(context, node);
  await blk.close();
  assert.equal(bitmapTable(disk.bytes), table, 'the same table');
  t.diagnostic(`table at ${table}`);
});

/** Where the table of the first bitmap is. */
function bitmapTable(bytes: Uint8Array): number {
  const place = bitmapsExtension(parseHeader(bytes.subarray(0, 64 * KiB), bytes.length))!;
  return Number(new DataView(bytes.buffer).getBigUint64(place.directoryOffset));
}

/** An image with a bitmap that is not going to change and one that is, in a disk that stops after some operations. */
async function dying(
  name: string,
  operations: number,
  errno: number,
): Promise<{ bytes: Uint8Array; stopped: boolean }> {
  const disk = testDisk(name, 0);
  const file = { driver: 'memory', disk: name };
  await makeImage(context, file, { size: MiB, 'cluster-size': 512 } as Qcow2CreateOptions);
  const node: NodeOptions = { driver: 'qcow2', file };
  const setUp = await BlockBackend.open(context, node);
  await setUp.root!.bitmaps.add('on', { granularity: 512, persistent: true });
  (await setUp.root!.bitmaps.add('off', { granularity: 512, persistent: true, disabled: true })).mark(5000, 1);
  await setUp.write(0, testIov(context, [512], 7));
  await setUp.close();
  const blk = await BlockBackend.open(context, node);
  await blk.write(9 * KiB, testIov(context, [KiB], 7));
  await blk.root!.bitmaps.add('new', { granularity: 4096, persistent: true });
  await blk.write(90 * KiB, testIov(context, [KiB], 7));
  await blk.flush();
  let left = operations;
  disk.take = (op) => (op === 'read' || left-- > 0 ? {} : { errno });
  const failure = await blk.close().then(
    () => undefined,
    (error: unknown) => error,
  );
  const stopped = left < 0;
  assert.equal(failure !== undefined, stopped, `after ${operations} operations: ${failure}`);
  return { bytes: disk.bytes, stopped };
}

for (const errno of ['ENOSPC', 'EIO'] as const) {
  const what = `wherever storing ends with ${errno}, a bitmap is right or in use, and the data is there`;
  test(what, needs('qemu-img'), async (t) => {
    const path = join(scratch(t), 'image.qcow2');
    const seen = new Set<string>();
    for (let operations = 0, going = true; going; operations++) {
      const { bytes, stopped } = await dying(`dying-${errno}`, operations, Errno[errno]);
      going = stopped;
      writeFileSync(path, bytes);
      const { code, stdout, stderr } = await run('qemu-img', ['check', path]);
      assert.ok(code === 0 || code === 3, `after ${operations} operations: ${stdout}${stderr}`);
      const blk = await open(path);
      const { bitmaps } = blk.root!;
      const right: Record<string, Extents> = {
        on: [
          [0, 512],
          [9 * KiB, KiB],
          [90 * KiB, KiB],
        ],
        off: [[4608, 512]],
        new: [[88 * KiB, 4 * KiB]],
      };
      const states = bitmaps.list().map((bitmap) => {
        if (!bitmap.inconsistent)
          assert.deepEqual(extentsOf(bitmap), right[bitmap.name], `${operations}: ${bitmap.name}`);
        return `${bitmap.name} ${bitmap.inconsistent ? 'in use' : 'right'}`;
      });
      assert.ok(states.includes('off right'), 'nobody has changed it');
      seen.add(states.join());
      for (const [at, length] of [
        [0, 512],
        [9 * KiB, KiB],
        [90 * KiB, KiB],
      ] as const) {
        const iov = testIov(context, [length]);
        await blk.read(at, iov);
        const expected = testIov(context, [length], 7);
        assert.deepEqual(iov.run(0), expected.run(0));
      }
      await blk.close();
      assert.ok(operations < 100);
    }
    t.diagnostic([...seen].join(' / '));
    assert.deepEqual(
      [...seen].sort(),
      ['off right,on in use', 'on in use,off right', 'on right,off right,new right']
        .filter((state) => seen.has(state))
        .sort(),
    );
    assert.ok(seen.has('on right,off right,new right') && seen.size >= 2);
  });
}

test('a checkpoint puts the bits into the file and leaves them in use', PEERS, async (t) => {
  const path = await make(t, { size: 8 * MiB });
  const blk = await open(path);
  await blk.root!.bitmaps.add('b', { persistent: true });
  await blk.write(0, testIov(context, [512]));
  {
    using _drained = await blk.drain();
    await blk.root!.bitmaps.store(true);
  }
  assert.deepEqual(headerOf(path).autoclear, BigInt(Autoclear.BITMAPS));
  copyFileSync(path, `${path}.dead`);
  assert.deepEqual(await peerList(`${path}.dead`), ['b 65536 in-use,auto']);
  await checked(`${path}.dead`);
  await blk.write(MiB, testIov(context, [512]));
  await blk.close();
  await checked(path);
  assert.deepEqual(await peerExtents(path, 'b'), [
    [0, 64 * KiB],
    [MiB, 64 * KiB],
  ]);
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

test('what cannot be is refused, and names the field', async (t) => {
  const path = await make(t, { size: 8 * MiB });
  const made = await open(path);
  for (const name of ['a', 'b'])
    (await made.root!.bitmaps.add(name, { persistent: true, granularity: 512 })).mark(0, 1);
  await made.close();
  const good = readFileSync(path);
  const { directoryOffset: at } = bitmapsExtension(headerOf(path))!;
  const view = (bytes: Buffer): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const table = Number(view(good).getBigUint64(at));
  const data = view(good).getBigUint64(table);
  const bad: readonly [RegExp, (bytes: DataView) => void][] = [
    [/bitmap_table_size/, (bytes) => bytes.setUint32(at + 8, 2)],
    [/bitmap_table_offset/, (bytes) => bytes.setBigUint64(at, 512n)],
    [/beyond the end of the file/, (bytes) => bytes.setBigUint64(at, BigInt(GiB))],
    [/beyond the end of the file/, (bytes) => bytes.setBigUint64(table, BigInt(GiB))],
    [/bitmap table is invalid/, (bytes) => bytes.setBigUint64(table, 513n)],
    [/in use already/, (bytes) => bytes.setBigUint64(Number(bytes.getBigUint64(at + 32)), data)],
    [/in use already/, (bytes) => bytes.setBigUint64(table, BigInt(at))],
    [/name_size/, (bytes) => bytes.setUint16(at + 18, 0)],
    [/granularity_bits/, (bytes) => bytes.setUint8(at + 17, 8)],
  ];
  for (const [message, damage] of bad) {
    const bytes = Buffer.from(good);
    damage(view(bytes));
    writeFileSync(path, bytes);
    for (const more of [{}, { 'read-only': true }]) {
      await assert.rejects(open(path, more), { code: 'EINVAL', message });
      assert.ok(readFileSync(path).equals(bytes), `${message}: nothing is written`);
    }
  }
});
