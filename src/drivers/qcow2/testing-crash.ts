/**
 * For tests: crash replay. A workload runs once in a simulated world; the states in which a crash may have left its
 * files are made from the journal, and each must satisfy `qemu-img check` and the model of what the guest was promised.
 */
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AioContext } from '../../aio/context.ts';
import type { JournalEntry } from '../../aio/sim/journal.ts';
import { PageStore } from '../../aio/sim/pages.ts';
import type { ScriptedFault } from '../../aio/sim/sim.ts';
import { Sim } from '../../aio/sim/sim.ts';
import type { BlockError } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { Prng } from '../../base/prng.ts';
import { MiB, SECTOR } from '../../base/units.ts';
import type { BlockBackend } from '../../block/backend.ts';
import type { Qcow2Node } from './driver.ts';
import { registerQcow2 } from './testing.ts';
import { type GuestContent, type GuestModel, sectorsOf } from './testing-crash-model.ts';
import { type Plan, planOfSeed } from './testing-crash-plans.ts';
import { type CrashPoint, CrashReplay, type CrashState, crashPoints, eachExtent } from './testing-crash-states.ts';
import {
  addValues,
  type CrashFormat,
  describeStep,
  Guest,
  IMAGE,
  nodeOf,
  openGuest,
  type Prepared,
  prepare,
  readContent,
} from './testing-crash-work.ts';
import { PeerFolder } from './testing-peer.ts';

export interface CrashOptions {
  /** At most about so many states of a workload, fewer of large clusters; all flush boundaries are among them. */
  readonly statesMax: number;
  /** Random subsets at each moment. */
  readonly subsets: number;
  /** `qemu-img` processes at a time. */
  readonly processes: number;
  /** One state in so many is read by qemu-img, too, and one is written to and closed. */
  readonly sample: number;
  /** The disk forgets what it was told to make stable: for seeing that this is found out. */
  readonly lying?: boolean;
}

export interface CrashTotals {
  workloads: number;
  states: number;
  clean: number;
  leaks: number;
  /** Repaired, since their dirty bit was set. */
  dirty: number;
  /** Version 2 has no dirty bit: COPIED flags that do not fit, in the middle of a snapshot operation. */
  copied: number;
  readByPeer: number;
  continued: number;
}

interface Found {
  readonly content: GuestContent;
  readonly snapshots: ReadonlyMap<string, GuestContent>;
}

/** All that can be found out of a state without knowing when it was. */
interface Examined {
  readonly dirty: boolean;
  /** Only COPIED flags do not fit: nothing is lost by it, whatever is done to the image. */
  readonly copied: boolean;
  /** Of the check; of the one after the repair where it was repaired. */
  readonly code: number;
  readonly output: string;
  readonly found: readonly Found[];
  /** A sector that holds something when the disk grows after the crash. */
  readonly grown: number | undefined;
}

export interface FaultOutcome {
  /** The fault has happened. */
  readonly came: boolean;
  /** What the guest was told. */
  readonly errors: readonly BlockError[];
}

/** A state that breaks a promise. Its files are kept. */
export class CrashFailure extends Error {}

const CHECK_LEAKS = 3;
const CHECK_CORRUPT = 2;

export class CrashRunner {
  readonly totals: CrashTotals = {
    ...{ workloads: 0, states: 0, clean: 0, leaks: 0, dirty: 0, copied: 0, readByPeer: 0, continued: 0 },
  };
  readonly #options: CrashOptions;
  readonly #folder = mkdtempSync(join(tmpdir(), 'blockplane-crash-'));
  readonly #peers: readonly PeerFolder[];
  readonly #prepared = new Map<string, Prepared>();

  constructor(options: CrashOptions) {
    registerQcow2();
    this.#options = options;
    this.#peers = Array.from({ length: options.processes }, (_, i) => new PeerFolder(join(this.#folder, String(i))));
  }

  end(): void {
    for (const peer of this.#peers) peer.end();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** Runs the workload of a seed and examines its states. CrashFailure names the one that is wrong. */
  seed(seed: number): Promise<void> {
    return this.run(planOfSeed(seed));
  }

  /** As {@link seed}, of any workload. */
  async run(plan: Plan): Promise<void> {
    const { seed } = plan;
    const prepared = await this.#prepare(plan);
    const guest = new Guest(plan.format, prepared, seed, 1000);
    await guest.open();
    await guest.perform(plan.steps, plan.atOnce);
    const last = await guest.read();
    if (plan.atOnce === 1) assertCurrent(plan, guest.model, last);
    await guest.close();
    const prng = new Prng(seed);
    if (this.#options.lying) guest.journal.entries.splice(0, Infinity, ...lies(guest.journal.entries));
    const most = this.#options.statesMax / (plan.format.create['cluster-size']! < MiB ? 1 : 4);
    const points = choose(crashPoints(guest.journal, prng, this.#options.subsets), most, prng);
    await this.#examineAll(plan, guest, new CrashReplay(prepared.files, guest.journal), points);
    this.totals.workloads++;
  }

  /** Runs a workload with a fault in it, and examines what it leaves. False when the fault did not come. */
  async fault(plan: Plan, fault: ScriptedFault): Promise<FaultOutcome> {
    const prepared = await this.#prepare(plan);
    const guest = new Guest(plan.format, prepared, plan.seed, 1000);
    await guest.open();
    guest.sim.inject(fault);
    await guest.perform(plan.steps, plan.atOnce);
    await guest.closeAnyway();
    const came = guest.sim.faults.waiting === 0;
    const files = new Map([...guest.sim.disk.files].map(([path, file]) => [path, file.cached.clone()] as const));
    const what = `after ${JSON.stringify(fault)}`;
    const moment = guest.journal.moment;
    const state = { point: { moment, what, must: true, fates: new Map() }, files, hash: '' };
    const examined = await this.#examine(plan, state, this.#peers[0]!);
    this.#count(examined);
    const problem = this.#problem(guest, state.point, examined);
    if (problem !== undefined) throw fail(plan, guest, state, problem);
    return { came, errors: guest.errors };
  }

  async #prepare(plan: Plan): Promise<Prepared> {
    const { name } = plan.format;
    const prepared = this.#prepared.get(name) ?? (await prepare(plan.format, plan.setup));
    this.#prepared.set(name, prepared);
    return prepared;
  }

  async #examineAll(plan: Plan, guest: Guest, replay: CrashReplay, points: readonly CrashPoint[]): Promise<void> {
    const known = new Map<string, Promise<Examined>>();
    let next = 0;
    const worker = async (folder: PeerFolder): Promise<void> => {
      while (next < points.length) {
        const state = replay.build(points[next++]!);
        const isNew = !known.has(state.hash);
        if (isNew) known.set(state.hash, this.#examine(plan, state, folder));
        const examined = await known.get(state.hash)!.catch((error: Error) => {
          throw fail(plan, guest, state, `it cannot be used: ${error.message}`);
        });
        if (isNew) this.#count(examined);
        const problem = this.#problem(guest, state.point, examined);
        if (problem !== undefined) throw fail(plan, guest, state, problem);
      }
    };
    // All are waited for: their files are in use.
    const ends = await Promise.allSettled(this.#peers.map(worker));
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
  }

  async #examine(plan: Plan, state: CrashState, folder: PeerFolder): Promise<Examined> {
    const { format } = plan;
    const number = this.totals.states++;
    const paths = new Map(
      [...state.files].map(([path, store]) => [path, writeFile(folder.path, path, store)] as const),
    );
    const image = paths.get(IMAGE)!;
    const dirty = isDirty(state.files.get(IMAGE)!);
    const found = [await look(format, state.files)];
    let grown: number | undefined;
    // What comes out here does not matter where the dirty bit is set, as long as all is well after the repair.
    let { code, output } = await folder.run('check', ...(dirty ? ['-r', 'all'] : []), '-f', 'qcow2', image);
    const copied = format.create.compat === '0.10' && code === CHECK_CORRUPT && onlyCopied(output);
    if (copied) await folder.run('check', '-r', 'all', '-f', 'qcow2', image);
    if (dirty || copied) {
      ({ code, output } = await folder.run('check', '-f', 'qcow2', image));
      const repaired = new Map(state.files);
      repaired.set(IMAGE, readStore(image));
      found.push(await look(format, repaired));
    } else if (number % this.#options.sample === 0) {
      found.push({ content: await this.#peerReads(format, image, folder), snapshots: found[0]!.snapshots });
    } else if (number % this.#options.sample === 1 && code !== CHECK_CORRUPT) {
      const after = await goOn(format, state.files);
      grown = after.grown;
      writeFile(folder.path, IMAGE, after.image);
      ({ code, output } = await folder.run('check', '-f', 'qcow2', image));
      this.totals.continued++;
    }
    return { dirty, copied, code, output, found, grown };
  }

  async #peerReads(format: CrashFormat, image: string, folder: PeerFolder): Promise<GuestContent> {
    const raw = join(folder.path, 'raw');
    await folder.run('convert', '-f', 'qcow2', '-O', 'raw', image, raw);
    const values = new Map<number, number>();
    const fd = openSync(raw, 'r');
    const { size } = fstatSync(fd);
    for (const { at, length } of format.regions) {
      const bytes = new Uint8Array(Math.max(0, Math.min(length, size - at)));
      readSync(fd, bytes, 0, bytes.length, at);
      addValues(values, at, bytes);
    }
    closeSync(fd);
    this.totals.readByPeer++;
    return { size, values };
  }

  #count({ dirty, copied, code }: Examined): void {
    if (dirty) this.totals.dirty++;
    else if (copied) this.totals.copied++;
    else if (code === CHECK_LEAKS) this.totals.leaks++;
    else if (code === 0) this.totals.clean++;
  }

  #problem({ model }: Guest, { moment }: CrashPoint, examined: Examined): string | undefined {
    const { copied, code, output, found, grown } = examined;
    if (copied && !model.shares(moment)) return 'COPIED flags do not fit';
    if (code !== 0 && code !== CHECK_LEAKS) return `qemu-img check ends with ${code}: ${output}`;
    if (grown !== undefined) return `when the disk grows after that, sector ${grown} is not zeroes`;
    for (const { content, snapshots } of found) {
      const problem = model.problem(moment, content) ?? model.snapshotProblem(moment, snapshots);
      if (problem !== undefined) return problem;
    }
    return undefined;
  }
}

/** Without a crash, reads must find exactly what was written last. */
function assertCurrent(plan: Plan, model: GuestModel, last: GuestContent): void {
  for (const sector of sectorsOf(plan.format.regions, model.size)) {
    const [is, should] = [last.values.get(sector), model.current.get(sector) ?? 0];
    if (is === should && last.size === model.size) continue;
    throw new CrashFailure(`${titleOf(plan)}: without a crash, sector ${sector} holds ${is}, not ${should}`);
  }
}

function titleOf({ seed, format, steps, atOnce }: Plan): string {
  return `seed ${seed}, ${format.name}, ${atOnce} at once: ${steps.map(describeStep).join('; ')}`;
}

function fail(plan: Plan, guest: Guest, state: CrashState, problem: string): CrashFailure {
  const kept = mkdtempSync(join(tmpdir(), 'blockplane-crash-kept-'));
  for (const [path, store] of state.files) writeFile(kept, path, store);
  const entries = [...state.point.fates].map(([i, fate]) => {
    const { path, change, began, ended } = guest.journal.entries[i]!;
    const what = change === null ? '' : 'at' in change ? `${change.kind} at ${change.at}` : `size ${change.size}`;
    return `  ${path} ${what} (${began}..${ended}): ${JSON.stringify(fate)}`;
  });
  return new CrashFailure(
    [
      `${problem}`,
      titleOf(plan),
      `state: ${state.point.what}; not stable, but there:`,
      ...entries,
      `kept in ${kept}`,
    ].join('\n'),
  );
}

/** Without the datasyncs nothing is stable. */
function lies(entries: readonly JournalEntry[]): JournalEntry[] {
  return entries.filter(({ change }) => change !== null);
}

/** All that must be, and of the others as many as there is room for, spread over time. */
function choose(points: readonly CrashPoint[], most: number, prng: Prng): CrashPoint[] {
  const must = points.filter((point) => point.must).length;
  const share = (most - must) / Math.max(1, points.length - must);
  return points.filter((point) => point.must || prng.chance(share));
}

/** True when all errors of a check are about COPIED flags. */
function onlyCopied(output: string): boolean {
  const errors = output.split('\n').filter((line) => line.startsWith('ERROR'));
  return errors.length > 0 && errors.every((line) => line.startsWith('ERROR OFLAG_COPIED'));
}

/** The header's incompatible feature bit 0, of version 3. */
function isDirty(image: PageStore): boolean {
  const head = new Uint8Array(80);
  image.read(0, head);
  return head[7] === 3 && (head[79]! & 1) !== 0;
}

/** What our own driver finds, read-only: in a world of its own. */
async function look(format: CrashFormat, files: ReadonlyMap<string, PageStore>): Promise<Found> {
  const { sim, context } = worldOf(files);
  const open = (more: Readonly<Record<string, unknown>>): Promise<BlockBackend> =>
    sim.complete(openGuest(sim, context, nodeOf(format, { 'read-only': true, ...more })));
  const blk = await open({});
  const content = await sim.complete(readContent(blk, format.regions));
  const names = (blk.root!.impl as unknown as Qcow2Node).snapshots.list().map(({ name }) => name);
  await sim.complete(blk.close());
  const snapshots = new Map<string, GuestContent>();
  for (const snapshot of names) {
    const old = await open({ snapshot });
    snapshots.set(snapshot, await sim.complete(readContent(old, format.regions)));
    await sim.complete(old.close());
  }
  await context.stop();
  return { content, snapshots };
}

function worldOf(files: ReadonlyMap<string, PageStore>): { sim: Sim; context: AioContext } {
  const sim = new Sim(1);
  for (const [path, store] of files) sim.disk.create(path).cached = store.clone();
  return { sim, context: new AioContext(sim.backend()) };
}

interface Continued {
  readonly image: PageStore;
  readonly grown: number | undefined;
}

/** Whoever opens the image after the crash can go on with it, and the disk can grow. */
async function goOn(format: CrashFormat, files: ReadonlyMap<string, PageStore>): Promise<Continued> {
  const { sim, context } = worldOf(files);
  const blk = await sim.complete(openGuest(sim, context, nodeOf(format)));
  const cluster = format.create['cluster-size']!;
  const bytes = new Uint8Array(new SharedArrayBuffer(SECTOR)).fill(1);
  const at = [0, 3, 7, 11, 12].map((n) => n * cluster).filter((n) => n + SECTOR <= blk.length);
  for (const place of at) await sim.complete(blk.write(place, Iov.of(context.backend.memory(bytes))));
  const { snapshots } = blk.root!.impl as unknown as Qcow2Node;
  const old = blk.length;
  let grown: number | undefined;
  if (format.create.compat !== '0.10' || snapshots.list().length === 0) {
    const size = Math.max(old, ...format.regions.map((region) => region.at + region.length));
    await sim.complete(blk.truncate(size));
    const { values } = await sim.complete(readContent(blk, format.regions));
    for (const [sector, value] of values) if (sector * SECTOR >= old && value !== 0) grown ??= sector;
  }
  await sim.complete(blk.close());
  await context.stop();
  return { image: sim.disk.files.get(IMAGE)!.cached, grown };
}

/** Puts a file of a state into a folder; returns its path. */
export function writeFile(folder: string, path: string, store: PageStore): string {
  const target = join(folder, path);
  const fd = openSync(target, 'w');
  try {
    eachExtent(store, (at, bytes) => writeSync(fd, bytes, 0, bytes.length, at));
    ftruncateSync(fd, store.size);
  } finally {
    closeSync(fd);
  }
  return target;
}

function readStore(path: string): PageStore {
  const store = new PageStore();
  store.write(0, readFileSync(path));
  return store;
}
