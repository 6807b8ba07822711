/**
 * A crash at any moment of a session with checkpoints of the bitmaps: what the image says of one is at least what is
 * dirty, it is not in use but for the moments in which something else than writes changes it, and with each checkpoint
 * it is exact.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { needs, peer, run, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import type { PageStore } from '../../aio/sim/pages.ts';
import { Sim } from '../../aio/sim/sim.ts';
import { Errno } from '../../base/errors.ts';
import { Prng } from '../../base/prng.ts';
import { KiB, MiB, SECTOR } from '../../base/units.ts';
import { testIov } from '../../block/testing.ts';
import { registerQcow2 } from './testing.ts';
import { checked, type Extents, extentsOf, peerExtents, peerList, setting } from './testing-bitmaps.ts';
import { CrashReplay, crashPoints } from './testing-crash-states.ts';
import { type CrashFormat, Guest, nodeOf, openGuest, prepare, readContent } from './testing-crash-work.ts';

/** A region of a bitmap with granules of a sector is 512 KiB. */
const PLACES = [64 * KiB, 256 * KiB, 640 * KiB, 1100 * KiB, 1900 * KiB];
const regions = PLACES.map((at) => ({ at, length: SECTOR }));
const node = { 'bitmap-checkpoint': 1 };
const SUBSETS = 8;
const FORMATS: readonly CrashFormat[] = [
  { name: 'plain', create: { size: 2 * MiB, 'cluster-size': 4 * KiB }, regions, node },
  { name: 'small clusters', create: { size: 2 * MiB, 'cluster-size': 512 }, regions, node },
  { name: 'lazy refcounts', create: { size: 2 * MiB, 'cluster-size': 4 * KiB, 'lazy-refcounts': true }, regions, node },
];

/** Moments of the journal from which on, and up to which, the bitmap outlives a crash. */
interface Safe {
  readonly from: number;
  to: number;
}

async function session(guest: Guest): Promise<readonly Safe[]> {
  const { sim } = guest;
  const spans: Safe[] = [];
  const write = (...places: readonly number[]): Promise<void> =>
    guest.perform(
      places.map((at) => ({ do: 'write', at, length: SECTOR }) as const),
      places.length,
    );
  /** A checkpoint has come, and another one would have. */
  const checkpoint = async (): Promise<void> => {
    const end = sim.now + 2.5e9;
    await sim.run(() => sim.now >= end);
    const from = guest.journal.mark();
    const last = spans.at(-1);
    if (last) last.to = Math.min(last.to, from);
    spans.push({ from, to: Number.POSITIVE_INFINITY });
  };
  const change = async (work: Promise<unknown>): Promise<void> => {
    spans.at(-1)!.to = guest.journal.mark();
    await sim.complete(work);
  };
  const bitmaps = () => guest.blk.root!.bitmaps;
  await guest.open();
  await sim.complete(bitmaps().add('on', { granularity: SECTOR, persistent: true }));
  await checkpoint();
  await write(PLACES[0]!, PLACES[1]!);
  await checkpoint();
  await write(PLACES[2]!);
  await change(bitmaps().add('other', { granularity: 4 * KiB, persistent: true, disabled: true }));
  await checkpoint();
  await write(PLACES[3]!);
  spans.at(-1)!.to = guest.journal.mark();
  await guest.perform([{ do: 'resize', size: 3 * MiB }]);
  await checkpoint();
  spans.at(-1)!.to = guest.journal.mark();
  await guest.perform([{ do: 'reopen' }]);
  await checkpoint();
  await write(PLACES[4]!);
  await guest.close();
  return spans;
}

async function look(format: CrashFormat, files: ReadonlyMap<string, PageStore>) {
  const sim = new Sim(1);
  for (const [path, store] of files) sim.disk.create(path).cached = store.clone();
  const context = new AioContext(sim.backend());
  const blk = await sim.complete(openGuest(sim, context, nodeOf(format, { 'read-only': true })));
  const { values } = await sim.complete(readContent(blk, regions));
  const found = blk.root!.bitmaps.list().find(({ name }) => name === 'on');
  const bitmap = found && { inUse: found.inconsistent, extents: extentsOf(found), dirty: found.dirty };
  await sim.complete(blk.close());
  await context.stop();
  return { bitmap, written: PLACES.filter((at) => values.get(at / SECTOR) !== 0) };
}

const holds = (extents: Extents, at: number): boolean =>
  extents.some(([from, length]) => at >= from && at < from + length);

for (const format of FORMATS) {
  test(`with checkpoints a bitmap outlives a crash: ${format.name}`, async (t) => {
    registerQcow2();
    const prepared = await prepare(format, []);
    const guest = new Guest(format, prepared, 5, 1000);
    const spans = await session(guest);
    assert.deepEqual(guest.errors, []);
    const replay = new CrashReplay(prepared.files, guest.journal);
    let [safe, exact, wide] = [0, 0, 0];
    for (const point of crashPoints(guest.journal, new Prng(9), SUBSETS)) {
      const { bitmap, written } = await look(format, replay.build(point).files);
      if (bitmap !== undefined && !bitmap.inUse) {
        const misses = written.filter((at) => !holds(bitmap.extents, at));
        assert.deepEqual(misses, [], `${point.what}: the bitmap does not have what is written`);
        if (bitmap.dirty === written.length * SECTOR) exact++;
        else wide++;
      }
      if (!spans.some(({ from, to }) => point.moment >= from && point.moment < to)) continue;
      safe++;
      assert.equal(bitmap?.inUse, false, `${point.what}: the bitmap is in use, or not there`);
    }
    t.diagnostic(`${safe} states in which it has to be right; ${exact} exact, ${wide} with whole regions`);
    assert.ok(safe > 50 && exact > 10 && wide > 10);
  });
}

const { context, open, make } = setting();
const PEERS = needs('qemu-img', 'qemu-nbd', 'nbdinfo');

test('after a crash others take the bitmap for right, and go on with it', PEERS, async (t) => {
  const path = await make(t, { size: 256 * MiB });
  let blk = await open(path);
  await blk.root!.bitmaps.add('b', { persistent: true });
  await blk.close();
  blk = await open(path, { 'bitmap-checkpoint': 3600 });
  await blk.write(130 * MiB, testIov(context, [512]));
  const dead = `${scratch(t)}/dead.qcow2`;
  assert.equal((await run('cp', [path, dead])).code, 0);
  await blk.close();
  assert.deepEqual(await peerList(dead), ['b 65536 auto']);
  assert.deepEqual(await peerExtents(dead, 'b'), [[128 * MiB, 64 * MiB]], 'the region of what was written');
  await checked(dead);
  await peer('qemu-img', 'bitmap', '--disable', dead, 'b');
  assert.deepEqual(await peerExtents(path, 'b'), [[130 * MiB, 64 * KiB]], 'a close is exact');
  await checked(path);
});

test('where the image cannot be told, the bitmap is in use; a write fails only where that fails, too', async () => {
  registerQcow2();
  const format = FORMATS[0]!;
  const prepared = await prepare(format, []);
  const guest = new Guest(format, prepared, 7, 1000);
  await guest.open();
  const { sim, blk } = guest;
  await sim.complete(blk.root!.bitmaps.add('on', { granularity: SECTOR, persistent: true }));
  const wait = async (): Promise<void> => {
    const end = sim.now + 2.5e9;
    await sim.run(() => sim.now >= end);
  };
  await wait();
  assert.ok(blk.root!.bitmaps.checkpoints!.active);
  sim.inject({ op: 'write', nth: 1, errno: Errno.EIO });
  await guest.perform([{ do: 'write', at: PLACES[0]!, length: SECTOR }]);
  assert.deepEqual(guest.errors, [], 'the write went through');
  assert.ok(!blk.root!.bitmaps.checkpoints!.active);
  await wait();
  assert.ok(blk.root!.bitmaps.checkpoints!.active, 'the next checkpoint covers it again');
  await guest.close();
});

test('a period that cannot be is refused', async (t) => {
  const path = await make(t, { size: MiB });
  await assert.rejects(open(path, { 'bitmap-checkpoint': 90_000 }), { code: 'EINVAL', message: /bitmap-checkpoint/ });
});
