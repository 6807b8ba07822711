/** For tests: what a guest has written to an overlay when a crash comes in the midst of a job, and what it finds. */
import { AioContext } from '../aio/context.ts';
import type { DiskJournal } from '../aio/sim/journal.ts';
import type { PageStore } from '../aio/sim/pages.ts';
import { Sim } from '../aio/sim/sim.ts';
import { Iov } from '../base/memory.ts';
import { Prng } from '../base/prng.ts';
import { SECTOR } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import type { CrashPoint } from '../drivers/qcow2/testing-crash-states.ts';
import { type ChainFiles, CLUSTER, chainOf, readAll, SIZE } from './testing-stream.ts';

export const FILES: ChainFiles = { base: 'base', middle: 'middle', top: 'top' };
/** Crashes that are looked at of each run. */
const STATES = 60;
export const CHECK_LEAKS = 3;

/** A write of the guest's: sectors that nobody else writes. */
export interface GuestWrite {
  readonly at: number;
  readonly bytes: Uint8Array;
  /** Moments of the journal: it has begun; it is on stable storage. */
  readonly began: number;
  stable: number;
}

/** Writes every eighth of the disk once, and flushes now and then. */
export async function guest(blk: BlockBackend, journal: DiskJournal, seed: number): Promise<GuestWrite[]> {
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
export async function look(files: ReadonlyMap<string, PageStore>): Promise<{ content: Uint8Array; below: string }> {
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
export function problem(content: Uint8Array, model: Uint8Array, writes: readonly GuestWrite[], moment: number): string {
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

export function choose(points: readonly CrashPoint[], prng: Prng, states = STATES): CrashPoint[] {
  return points.filter(() => prng.chance(states / points.length));
}
