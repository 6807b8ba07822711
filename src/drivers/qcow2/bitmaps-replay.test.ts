/**
 * A crash at any moment of sessions that store bitmaps: writes missing, torn and out of order as far as nothing made
 * them stable. A bitmap that is not marked in use has every write that is on the disk; the image has no corruption.
 */
import assert from 'node:assert/strict';
import { closeSync, ftruncateSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import type { PageStore } from '../../aio/sim/pages.ts';
import { Sim } from '../../aio/sim/sim.ts';
import { Prng } from '../../base/prng.ts';
import { KiB, MiB, SECTOR } from '../../base/units.ts';
import type { Qcow2Node } from './driver.ts';
import { registerQcow2 } from './testing.ts';
import { type Extents, extentsOf } from './testing-bitmaps.ts';
import { CrashReplay, crashPoints, eachExtent } from './testing-crash-states.ts';
import { type CrashFormat, Guest, IMAGE, nodeOf, openGuest, prepare, readContent } from './testing-crash-work.ts';
import { PeerFolder } from './testing-peer.ts';

/** Where each session writes: far apart, so that each is a granule of its own. */
const PLACES = [64 * KiB, 256 * KiB, 512 * KiB, 768 * KiB];
const GRANULARITY = 4 * KiB;
const OFF: Extents = [[32 * KiB, GRANULARITY]];
const SUBSETS = 10;

const regions = PLACES.map((at) => ({ at, length: SECTOR }));
const FORMATS: readonly CrashFormat[] = [
  { name: 'plain', create: { size: MiB, 'cluster-size': 4 * KiB }, regions },
  { name: 'small clusters', create: { size: MiB, 'cluster-size': 512 }, regions },
  {
    ...{ name: 'backing file', regions, backing: 4 * KiB },
    create: { size: MiB, 'cluster-size': 4 * KiB, 'backing-file': 'base.raw', 'backing-fmt': 'raw' },
  },
  { name: 'lazy refcounts', create: { size: MiB, 'cluster-size': 4 * KiB, 'lazy-refcounts': true }, regions },
];

/** Sessions one after the other: bitmaps are made, go on, are changed, and are removed. */
async function sessions(guest: Guest): Promise<void> {
  const write = (at: number): Promise<void> => guest.perform([{ do: 'write', at, length: SECTOR }]);
  const bitmaps = () => guest.blk.root!.bitmaps;
  await guest.open();
  await guest.sim.complete(bitmaps().add('on', { granularity: GRANULARITY, persistent: true }));
  const off = bitmaps().add('off', { granularity: GRANULARITY, persistent: true, disabled: true });
  (await guest.sim.complete(off)).mark(OFF[0]![0], 1);
  await write(PLACES[0]!);
  await guest.perform([{ do: 'reopen' }]);
  await write(PLACES[1]!);
  await guest.sim.complete(bitmaps().add('new', { granularity: 64 * KiB, persistent: true }));
  await guest.perform([{ do: 'reopen' }]);
  await guest.sim.complete(bitmaps().remove('new'));
  await write(PLACES[2]!);
  await guest.perform([{ do: 'resize', size: 2 * MiB }, { do: 'reopen' }]);
  await write(PLACES[3]!);
  await guest.sim.complete(bitmaps().remove('off'));
  await guest.sim.complete(bitmaps().remove('on'));
  await guest.close();
}

interface Found {
  readonly inUse: boolean;
  readonly extents: Extents;
}

/** The bitmaps of a state, where there is data, and what the image says of its backing file. */
async function look(format: CrashFormat, files: ReadonlyMap<string, PageStore>) {
  const sim = new Sim(1);
  for (const [path, store] of files) sim.disk.create(path).cached = store.clone();
  const context = new AioContext(sim.backend());
  const blk = await sim.complete(openGuest(sim, context, nodeOf(format, { 'read-only': true })));
  const { values } = await sim.complete(readContent(blk, regions));
  const bitmaps = new Map<string, Found>();
  for (const bitmap of blk.root!.bitmaps.list()) {
    bitmaps.set(bitmap.name, { inUse: bitmap.inconsistent, extents: extentsOf(bitmap) });
  }
  const { backingFile } = (blk.root!.impl as unknown as Qcow2Node).image.header;
  await sim.complete(blk.close());
  await context.stop();
  return { bitmaps, written: PLACES.filter((at) => values.get(at / SECTOR) !== 0), backingFile };
}

function store(path: string, content: PageStore): void {
  const fd = openSync(path, 'w');
  eachExtent(content, (at, bytes) => writeSync(fd, bytes, 0, bytes.length, at));
  ftruncateSync(fd, content.size);
  closeSync(fd);
}

for (const format of FORMATS) {
  test(`after a crash a bitmap is right or in use: ${format.name}`, needs('qemu-img'), async (t) => {
    registerQcow2();
    const prepared = await prepare(format, []);
    const guest = new Guest(format, prepared, 5, 1000);
    await sessions(guest);
    assert.deepEqual(guest.errors, []);
    const peer = new PeerFolder(join(scratch(t), 'peer'));
    t.after(() => peer.end());
    for (const [path, bytes] of prepared.files) writeFileSync(join(peer.path, path), bytes);
    const replay = new CrashReplay(prepared.files, guest.journal);
    const known = new Set<string>();
    const seen = new Map<string, number>();
    for (const point of crashPoints(guest.journal, new Prng(9), SUBSETS)) {
      const state = replay.build(point);
      if (known.has(state.hash)) continue;
      known.add(state.hash);
      const { bitmaps, written, backingFile } = await look(format, state.files);
      assert.equal(backingFile, format.create['backing-file'], point.what);
      for (const [name, { inUse, extents }] of bitmaps) {
        const what = `${name} ${inUse ? 'in use' : 'right'}`;
        seen.set(what, (seen.get(what) ?? 0) + 1);
        if (inUse) continue;
        if (name === 'off') assert.deepEqual(extents, OFF, point.what);
        const must = name === 'on' ? written : [];
        const misses = must.filter((at) => !extents.some(([from, length]) => at >= from && at < from + length));
        assert.deepEqual(misses, [], `${point.what}: '${name}' does not have what is written`);
      }
      // Our own look takes no time; a process does.
      if (known.size % 2 === 0) continue;
      store(join(peer.path, IMAGE), state.files.get(IMAGE)!);
      const fix = format.create['lazy-refcounts'] ? ['-r', 'all'] : [];
      let { code, output } = await peer.run('check', ...fix, '-f', 'qcow2', IMAGE.slice(1));
      if (fix.length > 0) ({ code, output } = await peer.run('check', '-f', 'qcow2', IMAGE.slice(1)));
      assert.ok(code === 0 || code === 3, `${point.what}: qemu-img check ends with ${code}: ${output}`);
    }
    t.diagnostic(`${known.size} states: ${[...seen].map(([what, count]) => `${what} ${count}`).join(', ')}`);
    for (const what of ['on right', 'on in use', 'off right', 'new right', 'new in use'])
      assert.ok(seen.has(what), what);
  });
}
