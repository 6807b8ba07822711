import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { PoolBackend } from '../aio/pool/backend.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { PagedBits } from '../base/paged-bits.ts';
import { Prng } from '../base/prng.ts';
import { GiB, KiB, MiB } from '../base/units.ts';
import { BlockBackend } from './backend.ts';
import type { DirtyBitmap } from './dirty-bitmap.ts';
import type { BitmapStore, BitmapToStore, Driver, DriverNode, StoredBitmap } from './driver.ts';
import type { NodeOptions } from './graph.ts';
import { registerDriver } from './registry.ts';
import { registerTestDrivers, testDisk, testIov } from './testing.ts';

let context: AioContext;

/** Keeps bitmaps in memory, and notes what it is asked to do. */
class TestStore implements BitmapStore {
  stored: StoredBitmap[] = [];
  readonly bits = new Map<string, number[]>();
  readonly log: string[] = [];
  fails = 0;
  readonly checkpointEvery = 0;

  async extend(): Promise<void> {
    throw new Error('nothing is covered');
  }

  assertStorable(name: string): void {
    if (name === 'unstorable') throw new BlockError(Errno.ENOTSUP, 'Could not store it: scripted');
  }

  async load(name: string, bits: PagedBits): Promise<void> {
    if (this.fails !== 0) throw new BlockError(this.fails, 'Could not load: scripted');
    for (const bit of this.bits.get(name) ?? []) bits.set(bit, bit);
  }

  async use(names: readonly string[]): Promise<void> {
    this.log.push(`use ${names.join(' ')}`);
  }

  async store(bitmaps: readonly BitmapToStore[]): Promise<void> {
    this.log.push(`store ${bitmaps.map(({ name }) => name).join(' ')}`);
    if (this.fails !== 0) throw new BlockError(this.fails, 'Could not store: scripted');
  }

  async remove(name: string): Promise<void> {
    this.log.push(`remove ${name}`);
  }
}

let store: TestStore;

/** A filter that keeps bitmaps. */
const keeperDriver: Driver = {
  name: 'keeper',
  role: 'format',
  children: { file: 'filtered' },
  options: {},
  async open(opening): Promise<DriverNode> {
    const file = (await opening.openChild('file', 'filtered'))!;
    return {
      get length() {
        return file.length;
      },
      bitmaps: store,
      map: (at, want, _why, out) => out.data(want, file, at),
    };
  },
};

before(() => {
  registerTestDrivers();
  registerDriver(keeperDriver);
  context = new AioContext(new PoolBackend());
});

after(() => context.stop());

let disks = 0;

async function opened(size: number, more: Record<string, unknown> = {}): Promise<BlockBackend> {
  const disk = `bitmaps-${disks++}`;
  testDisk(disk, size);
  return BlockBackend.open(context, { driver: 'memory', disk, discard: 'unmap', ...more } as NodeOptions);
}

async function keeper(more: Record<string, unknown> = {}): Promise<BlockBackend> {
  const disk = `bitmaps-${disks++}`;
  testDisk(disk, MiB);
  return BlockBackend.open(context, { driver: 'keeper', ...more, file: { driver: 'memory', disk } } as NodeOptions);
}

function extents(bitmap: DirtyBitmap): string {
  const found: string[] = [];
  for (let at = bitmap.next(0, bitmap.size, true); at < bitmap.size; ) {
    const end = bitmap.next(at, bitmap.size, false);
    found.push(`${at}+${end - at}`);
    at = bitmap.next(end, bitmap.size, true);
  }
  return found.join(' ');
}

test('random writes, zeroes and discards leave what a plain set of granules has', async () => {
  const size = 256 * KiB + 300;
  const blk = await opened(size);
  const { bitmaps } = blk.root!;
  const prng = new Prng(11);
  const kept = await Promise.all(
    [512, 4096, 65_536].map((granularity) => bitmaps.add(`g${granularity}`, { granularity })),
  );
  const models = kept.map(() => new Set<number>());
  for (let step = 0; step < 120; step++) {
    const at = prng.below(size);
    const length = Math.min(prng.chance(0.5) ? prng.between(1, 600) : prng.between(1, 30_000), size - at);
    const kind = prng.below(3);
    if (kind === 0) await blk.write(at, testIov(context, [length]));
    else if (kind === 1) await blk.writeZeroes(at, length);
    else await blk.discard(at, length);
    for (const [i, { granularity }] of kept.entries()) {
      for (let g = Math.floor(at / granularity); g * granularity < at + length; g++) models[i]!.add(g);
    }
    if (prng.chance(0.05)) {
      const which = prng.below(kept.length);
      await bitmaps.clear(kept[which]!.name);
      models[which]!.clear();
    }
    for (const [i, bitmap] of kept.entries()) {
      assert.equal(bitmap.bits.count, models[i]!.size, `step ${step}`);
      for (const g of models[i]!) assert.equal(bitmap.bits.next(g, g + 1, true), g, `step ${step}`);
    }
  }
  await blk.close();
});

test('a failed write is recorded, a read is not', async () => {
  const disk = testDisk('bitmaps-fail', 64 * KiB);
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'bitmaps-fail' } as NodeOptions);
  const bitmap = await blk.root!.bitmaps.add('b', { granularity: 512 });
  disk.script.push({ op: 'write', errno: Errno.EIO });
  await blk.read(0, testIov(context, [512]));
  assert.equal(bitmap.dirty, 0);
  await assert.rejects(blk.write(1024, testIov(context, [512])));
  assert.equal(extents(bitmap), '1024+512');
  await blk.close();
});

test('a bitmap follows the size: what goes is forgotten, what comes is dirty', async () => {
  const blk = await opened(64 * KiB);
  const bitmap = await blk.root!.bitmaps.add('b', { granularity: 4096 });
  const still = await blk.root!.bitmaps.add('off', { granularity: 4096, disabled: true });
  await blk.write(40 * KiB, testIov(context, [8 * KiB]));
  await blk.truncate(42 * KiB);
  assert.equal(bitmap.size, 42 * KiB);
  assert.equal(extents(bitmap), `${40 * KiB}+${2 * KiB}`);
  await blk.truncate(64 * KiB);
  assert.equal(extents(bitmap), `${40 * KiB}+${24 * KiB}`);
  assert.equal(still.size, 64 * KiB);
  assert.equal(extents(still), '');
  await blk.close();
});

test('a write that makes the disk longer is recorded whole', async () => {
  testDisk('bitmaps-grow', 1000);
  const options = { driver: 'memory', disk: 'bitmaps-grow' };
  const blk = await BlockBackend.open(context, options, { allowWriteBeyondEnd: true });
  const bitmap = await blk.root!.bitmaps.add('b', { granularity: 512 });
  await blk.write(900, testIov(context, [2000]));
  assert.equal(extents(bitmap), '512+2388');
  await blk.close();
});

test('disabled bitmaps record nothing, enabled ones go on', async () => {
  const blk = await opened(64 * KiB);
  const { bitmaps } = blk.root!;
  const bitmap = await bitmaps.add('b', { granularity: 512, disabled: true });
  await blk.write(0, testIov(context, [512]));
  assert.equal(extents(bitmap), '');
  assert.equal(blk.root!.dirtyHooks.length, 0, 'nothing is called for it');
  await bitmaps.enable('b', true);
  await blk.write(512, testIov(context, [512]));
  await bitmaps.enable('b', false);
  await blk.write(1024, testIov(context, [512]));
  assert.equal(extents(bitmap), '512+512');
  await blk.close();
});

test('merging adds what others have, from finer and coarser ones too', async () => {
  const blk = await opened(64 * KiB);
  const { bitmaps } = blk.root!;
  const mark = async (name: string, granularity: number, at: number): Promise<void> => {
    (await bitmaps.add(name, { granularity, disabled: true })).mark(at, 1);
  };
  await mark('into', 4096, 0);
  await mark('same', 4096, 20_000);
  await mark('fine', 512, 40_960 + 4000);
  await mark('coarse', 16_384, 60_000);
  await bitmaps.merge('into', ['same', 'fine', 'coarse']);
  assert.equal(extents(bitmaps.get('into')), '0+4096 16384+4096 40960+4096 49152+16384');
  assert.equal(extents(bitmaps.get('same')), '16384+4096');
  await assert.rejects(bitmaps.merge('into', ['same', 'none']), { code: 'ENOENT' });
  await blk.close();
});

test('names are unique in a node, and what cannot be is refused', async () => {
  const blk = await opened(64 * KiB);
  const { bitmaps } = blk.root!;
  assert.equal((await bitmaps.add('b')).granularity, 64 * KiB, 'the default');
  const both = await Promise.allSettled([bitmaps.add('twice'), bitmaps.add('twice')]);
  assert.deepEqual(both.map(({ status }) => status).sort(), ['fulfilled', 'rejected']);
  await assert.rejects(bitmaps.add('b'), { code: 'EEXIST' });
  await assert.rejects(bitmaps.add(''), { code: 'EINVAL' });
  await assert.rejects(bitmaps.add('x'.repeat(1024)), { code: 'EINVAL' });
  for (const granularity of [0, 256, 1000, 4 * GiB, -512, 0.5, Number.NaN]) {
    await assert.rejects(bitmaps.add('g', { granularity }), { code: 'EINVAL', message: /granularity/ });
  }
  for (const granularity of [512, 2 * GiB]) await bitmaps.add(`g${granularity}`, { granularity });
  await assert.rejects(bitmaps.add('p', { persistent: true }), { code: 'ENOTSUP' });
  await assert.rejects(bitmaps.remove('none'), { code: 'ENOENT' });
  await assert.rejects(bitmaps.clear('none'), { code: 'ENOENT' });
  await bitmaps.remove('b');
  assert.deepEqual(
    bitmaps.list().map(({ name }) => name),
    ['twice', 'g512', 'g2147483648'],
  );
  await blk.close();
});

test('a bitmap that somebody relies on is changed by writes only', async () => {
  const blk = await opened(64 * KiB);
  const { bitmaps } = blk.root!;
  const bitmap = await bitmaps.add('b', { granularity: 512 });
  const one = bitmaps.share('b');
  const two = bitmaps.share('b');
  one.release();
  one.release();
  const changes = [bitmaps.remove('b'), bitmaps.clear('b'), bitmaps.enable('b', false), bitmaps.merge('b', [])];
  for (const change of changes) await assert.rejects(change, { code: 'EBUSY' });
  await blk.write(0, testIov(context, [512]));
  assert.equal(bitmap.dirty, 512);
  two.release();
  await bitmaps.remove('b');
  await blk.close();
});

test('stored bitmaps are loaded, marked before they change, and stored before the node closes', async () => {
  store = new TestStore();
  const row = { granularity: 4096, inconsistent: false };
  store.stored = [
    { ...row, name: 'on', enabled: true },
    { ...row, name: 'off', enabled: false },
    { ...row, name: 'broken', enabled: true, inconsistent: true },
  ];
  store.bits.set('on', [2, 3]);
  const blk = await keeper();
  const { bitmaps } = blk.root!;
  assert.deepEqual(store.log, ['use on']);
  assert.equal(extents(bitmaps.get('on')), '8192+8192');
  await bitmaps.clear('off');
  await bitmaps.enable('off', false);
  await bitmaps.add('new', { persistent: true, granularity: 512 });
  await bitmaps.add('passing');
  await assert.rejects(bitmaps.add('unstorable', { persistent: true }), { code: 'ENOTSUP' });
  for (const change of [bitmaps.clear('broken'), bitmaps.merge('on', ['broken']), bitmaps.enable('broken', false)]) {
    await assert.rejects(change, { code: 'EINVAL', message: /inconsistent/ });
  }
  assert.throws(() => bitmaps.share('broken'), { code: 'EINVAL' });
  await blk.write(0, testIov(context, [512]));
  await bitmaps.remove('broken');
  await blk.close();
  assert.deepEqual(store.log, ['use on', 'use off', 'remove broken', 'store on off new']);
});

test('one that comes to hold more than it did when it was frozen is marked again before', async () => {
  store = new TestStore();
  store.stored = [{ granularity: 4096, inconsistent: false, name: 'b', enabled: true }];
  store.bits.set('b', [2, 3]);
  const blk = await keeper();
  const { bitmaps } = blk.root!;
  for (const [at, marked] of [
    [8192, 0],
    [4096, 1],
  ] as const) {
    const { bitmap, thaw } = await bitmaps.freeze('b');
    await blk.write(40960, testIov(context, [512]));
    store.log.length = 0;
    await thaw((visit) => visit(at, 8192));
    assert.equal(store.log.length, marked);
    assert.equal(extents(bitmap), `${at}+8192 40960+4096`);
    assert.equal(bitmap.users, 0);
  }
  await blk.close();
});

test('a read-only node loads, and changes nothing', async () => {
  store = new TestStore();
  store.stored = [{ name: 'b', granularity: 4096, enabled: true, inconsistent: false }];
  store.bits.set('b', [0]);
  const blk = await keeper({ 'read-only': true });
  const { bitmaps } = blk.root!;
  assert.equal(extents(bitmaps.get('b')), '0+4096');
  for (const change of [bitmaps.remove('b'), bitmaps.clear('b'), bitmaps.add('c', { persistent: true })]) {
    await assert.rejects(change, { code: 'EPERM' });
  }
  await blk.close();
  assert.deepEqual(store.log, []);
});

test('where loading fails nothing is stored, and where storing fails the close says so', async () => {
  store = new TestStore();
  store.stored = [{ name: 'b', granularity: 4096, enabled: true, inconsistent: false }];
  store.fails = Errno.EIO;
  await assert.rejects(keeper(), { code: 'EIO', message: /load/ });
  assert.deepEqual(store.log, []);
  store.fails = 0;
  const blk = await keeper();
  store.fails = Errno.ENOSPC;
  await assert.rejects(blk.close(), { code: 'ENOSPC', message: /store/ });
});
