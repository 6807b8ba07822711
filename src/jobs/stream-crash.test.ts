/**
 * A crash at any moment of a stream leaves an image that `qemu-img check` finds no corruption in, that reads as before
 * through whatever its header names by then, and that has what the guest has flushed meanwhile.
 */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { needs, scratch } from '../../test/harness.ts';
import { AioContext } from '../aio/context.ts';
import { DiskJournal } from '../aio/sim/journal.ts';
import type { PageStore } from '../aio/sim/pages.ts';
import { Sim } from '../aio/sim/sim.ts';
import { Iov } from '../base/memory.ts';
import { Prng } from '../base/prng.ts';
import { SECTOR } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import { writeFile } from '../drivers/qcow2/testing-crash.ts';
import { type CrashPoint, CrashReplay, crashPoints } from '../drivers/qcow2/testing-crash-states.ts';
import { PeerFolder } from '../drivers/qcow2/testing-peer.ts';
import {
  type ChainFiles,
  CLUSTER,
  chainOf,
  makeChain,
  readAll,
  registerStreamDrivers,
  SHORT_BASE,
  SIZE,
  streamOf,
} from './testing-stream.ts';

before(registerStreamDrivers);

const FILES: ChainFiles = { base: 'base', middle: 'middle', top: 'top' };
const STATES = 60;
const CHECK_LEAKS = 3;

/** A write of the guest's: sectors that nobody else writes. */
interface GuestWrite {
  readonly at: number;
  readonly bytes: Uint8Array;
  /** Moments of the journal: it has begun; it is on stable storage. */
  readonly began: number;
  stable: number;
}

/** Writes every eighth of the disk once, and flushes now and then. */
async function guest(blk: BlockBackend, journal: DiskJournal, seed: number): Promise<GuestWrite[]> {
  const random = new Prng(seed);
  const writes: GuestWrite[] = [];
  for (let n = 0; n < 8; n++) {
    const at = n * 7 * CLUSTER + random.below(16) * SECTOR;
    const bytes = new Uint8Array(new SharedArrayBuffer((1 + random.below(20)) * SECTOR)).fill(0xc0 + n);
    const write: GuestWrite = { at, bytes, began: journal.mark(), stable: Number.POSITIVE_INFINITY };
    writes.push(write);
    await blk.write(at, Iov.of(blk.context.backend.memory(bytes)));
    if (random.below(2) === 0) continue;
    await blk.flush();
    const now = journal.mark();
    for (const one of writes) one.stable = Math.min(one.stable, now);
  }
  return writes;
}

/** What the disk holds after a crash, through what the header of the overlay names. */
async function look(files: ReadonlyMap<string, PageStore>): Promise<{ content: Uint8Array; below: string }> {
  const sim = new Sim(1);
  sim.driveItself();
  for (const [path, store] of files) sim.disk.create(path).cached = store.clone();
  const context = new AioContext(sim.backend());
  const head = new Uint8Array(CLUSTER);
  files.get(FILES.top)!.read(0, head);
  const view = new DataView(head.buffer);
  const name = view.getUint32(12);
  const below = Buffer.from(head.subarray(name, name === 0 ? 0 : name + view.getUint32(16))).toString();
  const file = { driver: 'file', filename: FILES.top };
  const raw = { driver: 'raw', 'read-only': true, file: { driver: 'file', filename: FILES.base } };
  const tree = below === FILES.middle ? chainOf(FILES, false) : { driver: 'qcow2', file };
  const blk = await BlockBackend.open(context, below === FILES.base ? { ...tree, backing: raw } : tree);
  const content = await readAll(blk);
  await blk.close();
  await context.stop();
  return { content, below };
}

/** What is wrong with what was found after a crash at `moment`. */
function problem(content: Uint8Array, model: Uint8Array, writes: readonly GuestWrite[], moment: number): string {
  const allowed = new Map<number, Uint8Array[]>();
  for (const { at, bytes, began, stable } of writes) {
    if (began > moment) continue;
    for (let from = 0; from < bytes.length; from += SECTOR) {
      const old = stable <= moment ? [] : [model.subarray(at + from, at + from + SECTOR)];
      allowed.set(at + from, [...old, bytes.subarray(from, from + SECTOR)]);
    }
  }
  for (let at = 0; at < SIZE; at += SECTOR) {
    const found = content.subarray(at, at + SECTOR);
    const these = allowed.get(at) ?? [model.subarray(at, at + SECTOR)];
    if (!these.some((one) => Buffer.compare(one, found) === 0)) return `byte ${at} holds ${found[0]}`;
  }
  return '';
}

function choose(points: readonly CrashPoint[], prng: Prng): CrashPoint[] {
  return points.filter(() => prng.chance(STATES / points.length));
}

test('no crash on the way of a stream changes what the disk reads as', needs('qemu-img'), async (t) => {
  const peer = new PeerFolder(join(scratch(t), 'peer'));
  t.after(() => peer.end());
  const named = new Set<string>();
  for (let seed = 1; seed <= 6; seed++) {
    const keepBase = seed % 2 === 0;
    const sim = new Sim(seed);
    sim.driveItself();
    for (const path of Object.values(FILES)) sim.writeDisk(path, new Uint8Array(0));
    const context = new AioContext(sim.backend());
    const model = await makeChain(context, FILES, seed, keepBase ? SHORT_BASE : SIZE);
    const start = new Map(Object.values(FILES).map((path) => [path, sim.readDisk(path)!] as const));
    const journal = new DiskJournal();
    sim.disk.journal = journal;
    const blk = await BlockBackend.open(context, chainOf(FILES, true));
    const job = streamOf(blk, FILES, keepBase);
    job.start();
    const writes = seed > 2 ? await guest(blk, journal, seed) : [];
    await job.ended;
    assert.equal(job.error, undefined);
    await blk.close();
    await context.stop();
    const replay = new CrashReplay(start, journal);
    // The peer looks for what the overlay names, too.
    for (const path of [FILES.base, FILES.middle]) writeFileSync(join(peer.path, path), start.get(path)!);
    for (const point of choose(crashPoints(journal, new Prng(seed), 2), new Prng(seed))) {
      const { files } = replay.build(point);
      const what = `seed ${seed}, ${point.what}`;
      const { content, below } = await look(files);
      assert.equal(problem(content, model, writes, point.moment), '', what);
      named.add(below);
      const { code, output } = await peer.run(
        'check',
        '-f',
        'qcow2',
        writeFile(peer.path, FILES.top, files.get(FILES.top)!),
      );
      assert.ok(code === 0 || code === CHECK_LEAKS, `${what}: ${output}`);
    }
  }
  // Both sides of the last step were seen.
  assert.deepEqual([...named].sort(), ['', FILES.base, FILES.middle]);
});
