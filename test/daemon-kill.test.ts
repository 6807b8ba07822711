/**
 * A daemon that is killed at any moment of what it was told, while guests write, leaves images in which `qemu-img
 * check` finds no corruption, each guest's disk as it has flushed it, what lies below it as it was, and no bitmap that
 * could be relied on and lacks a change.
 *
 * A daemon has several disks, each with a guest; for each the kill comes at a moment of its own in what it was told.
 *
 * BLOCKPLANE_TEST_TIER=long: 20 kills of each kind; BLOCKPLANE_KILLS for another number, BLOCKPLANE_KILL_SECONDS for no
 * more than can be begun in that time for each group of kinds, BLOCKPLANE_SEED to begin with another seed.
 */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { Prng } from '../src/base/prng.ts';
import type { QmpClient } from '../src/daemon/index.ts';
import { IOThread, open } from '../src/index.ts';
import { withDaemon } from './daemon-process.ts';
import { needs, scratch } from './harness.ts';
import {
  assertBitmaps,
  assertClean,
  content,
  copyImage,
  Guest,
  isUntouched,
  LAYERS,
  makeImages,
  OTHERS,
} from './kill-images.ts';
import { GROUPS, KILL_MS, type Kind, type Kinds, named, Told } from './kill-kinds.ts';

const PEERS = needs('qemu-img', 'qemu-io', 'qemu-nbd', 'nbdinfo');

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';
const KILLS = Number(process.env.BLOCKPLANE_KILLS ?? (LONG ? 20 : 1));
const SECONDS = Number(process.env.BLOCKPLANE_KILL_SECONDS ?? Number.POSITIVE_INFINITY);
const SEED = Number(process.env.BLOCKPLANE_SEED ?? 1);
/** Daemons at a time: while one starts, or what it has left is looked at, the other one works. */
const LANES = 3;
/** Of the guests, before any of them is told anything. */
const RUN_IN_MS = 20;
/** From one question how far jobs are to the next. */
const NOTE_MS = 5;
/** By how much of it the time for a kill becomes longer with each that came in it. */
const STEP = 0.01;
/** How many steps one makes up for that came before it, or after it: so few do, on any machine. */
const EARLY = 8;
const LATE = 12;
/** Of what it was told. */
const OVER = 'after its end';

/** Of one kind: when it is killed, in what it was, and what was left. */
class Moments {
  readonly phases = new Map<string, number>();
  /** After which the bitmap was to be relied on. */
  reliable = 0;
  readonly #inCommands: boolean;
  #fromMs: number;
  #toMs: number;

  constructor({ withinMs = KILL_MS, inCommands = false }: Kind) {
    this.#inCommands = inCommands;
    this.#fromMs = inCommands ? 0 : withinMs / 4;
    this.#toMs = withinMs;
  }

  /** From its beginning to the kill. */
  draw(random: Prng): number {
    return this.#fromMs + random.float() * (this.#toMs - this.#fromMs);
  }

  note(phase: string, hasBegun: boolean): void {
    this.phases.set(phase, (this.phases.get(phase) ?? 0) + 1);
    const isEarly = !hasBegun && !this.#inCommands;
    const step = STEP * this.#toMs;
    this.#toMs = Math.min(KILL_MS, this.#toMs + step * (phase === OVER ? -LATE : isEarly ? EARLY / 2 : 1));
    this.#fromMs += step * (isEarly ? EARLY : -1);
    this.#fromMs = Math.min(Math.max(this.#fromMs, 0), this.#toMs * 0.9);
  }

  toString(): string {
    const found = [...this.phases, ...(this.reliable > 0 ? [['bitmap reliable', this.reliable]] : [])];
    return found.map(([phase, count]) => `${phase}: ${count}`).join('; ');
  }
}

/** A disk, with what is to be done to it. */
class Victim {
  readonly kind: Kind;
  readonly directory: string;
  /** From the beginning of what is done to it to the kill. */
  readonly afterMs: number;
  guest!: Guest;
  told!: Told;
  readonly #number: number;
  readonly #random: Prng;
  readonly #moments: Moments;
  #began = false;
  #acted = false;

  constructor(kind: Kind, number: number, directory: string, random: Prng, moments: Moments) {
    this.kind = kind;
    this.directory = directory;
    this.afterMs = moments.draw(random);
    this.#number = number;
    this.#random = random;
    this.#moments = moments;
    mkdirSync(directory);
    for (const image of this.images) copyImage(shared, image === 'top' ? this.top : image, directory, image);
  }

  get images(): string[] {
    return [...LAYERS, ...(this.kind.nodes ?? [])];
  }

  /** What was taken for the disk. */
  get top(): string {
    return this.kind.tracked ? 'tracked' : 'top';
  }

  /** What a daemon is to have open. */
  get args(): string[] {
    const { nodes = [], options } = this.kind;
    const number = this.#number;
    const node = (name: string, more: object): object => {
      const file = { driver: 'file', filename: join(this.directory, `${name}.qcow2`) };
      return named({ driver: 'qcow2', 'node-name': `${name}@`, file, ...more }, number);
    };
    const below = { backing: node('mid', { backing: node('base', {}) }) };
    const trees = [node('top', { ...below, ...options }), ...nodes.map((name) => node(name, { backing: null }))];
    return [
      ...trees.flatMap((tree) => ['--blockdev', JSON.stringify(tree)]),
      ...['--export', `type=nbd,id=e${number},node-name=top-${number},writable=on,name=disk${number}`],
    ];
  }

  /** Its guest comes to it. */
  async begin(client: QmpClient, nbd: string): Promise<void> {
    this.told = new Told(client, this.#number, this.directory, this.#random);
    const disk = await open(`nbd+unix:///disk${this.#number}?socket=${nbd}`, { format: 'raw', iothread: guests });
    this.guest = new Guest(disk, whole.get(this.top)!, this.#random);
    await this.kind.prepare?.(this.told);
  }

  async act(): Promise<void> {
    this.#began = true;
    await this.kind.act(this.told);
    this.#acted = true;
  }

  /** Now it is killed. */
  strike(): void {
    const phase = this.told.phase ?? (this.#acted ? OVER : 'between commands');
    this.#moments.note(this.#began ? phase : 'before its beginning', this.#began && this.told.hasBegun);
  }

  /** Of what the kill has left. */
  async check(what: string): Promise<void> {
    const { kind, directory } = this;
    for (const name of this.images) {
      if (!isUntouched(shared, name, directory)) await assertClean(directory, name, what);
    }
    await this.#checkDisk(what);
    for (const name of kind.unchanged) {
      if (isUntouched(shared, name, directory)) continue;
      assert.ok((await content(directory, name)).equals(whole.get(name)!), `${what}: ${name} has changed`);
    }
    const isInUse = !kind.tracked || (await assertBitmaps(directory, what));
    if (!isInUse) this.#moments.reliable++;
  }

  async #checkDisk(what: string): Promise<void> {
    const { holders = ['top'] } = this.kind;
    const wrong: string[] = [];
    for (const name of this.told.completed ? holders.slice(-1) : holders) {
      const why = this.guest.wrong(await content(this.directory, name));
      if (why === undefined) return;
      wrong.push(`${name}: ${why}`);
    }
    assert.fail(`${what}: ${wrong.join('; ')}`);
  }
}

/** Has a daemon do to each disk what its kind says, with guests, and kills it. */
async function kill(directory: string, victims: readonly Victim[]): Promise<void> {
  const nbd = join(directory, 'nbd');
  const args = ['--nbd-server', `addr.type=unix,addr.path=${nbd}`, ...victims.flatMap((victim) => victim.args)];
  await withDaemon(directory, args, async (client, child) => {
    await Promise.all(victims.map((victim) => victim.begin(client, nbd)));
    let killed = false;
    const untilTheEnd = (error: unknown): void => {
      if (!killed) throw error;
    };
    const using = victims.map((victim) => victim.guest.use().catch(untilTheEnd));
    const killing = async (): Promise<void> => {
      await Promise.all(victims.map(({ kind, told }) => kind.first?.(told)));
      void noteProgress(client, victims).catch(() => undefined);
      const atMs = RUN_IN_MS + Math.max(...victims.map(({ afterMs }) => afterMs));
      const acting = victims.map((victim) => delay(atMs - victim.afterMs).then(() => victim.act()));
      const strike = delay(atMs).then(() => {
        killed = true;
        for (const victim of victims) victim.strike();
        child.kill('SIGKILL');
      });
      await Promise.all([strike, ...acting]);
    };
    await Promise.all([...using, killing().catch(untilTheEnd)]);
    await Promise.all(victims.map(({ guest }) => guest.disk.close().catch(() => undefined)));
  });
}

async function noteProgress(client: QmpClient, victims: readonly Victim[]): Promise<never> {
  for (;;) {
    const jobs = await client.execute('query-jobs', {});
    for (const { told } of victims) told.note(jobs);
    await delay(NOTE_MS);
  }
}

const shared = mkdtempSync(join(tmpdir(), 'blockplane-test-'));
const whole = new Map<string, Buffer>();
let guests: IOThread;

before(async () => {
  guests = await IOThread.start();
  if (PEERS.skip) return;
  await makeImages(shared);
  for (const name of [...LAYERS, ...OTHERS]) whole.set(name, await content(shared, name));
});
after(async () => {
  await guests.stop();
  rmSync(shared, { recursive: true });
});

/** One daemon is killed, and what it has left looked at. */
async function once(directory: string, moments: ReadonlyMap<Kind, Moments>, kinds: Kinds, seed: number): Promise<void> {
  const random = new Prng(seed);
  const victims = Object.entries(kinds).map(
    ([name, kind], number) => new Victim(kind, number, join(directory, name), random.fork(), moments.get(kind)!),
  );
  await kill(directory, victims);
  for (const [n, victim] of victims.entries()) await victim.check(`${Object.keys(kinds)[n]}, seed ${seed}`);
}

for (const [group, kinds] of Object.entries(GROUPS)) {
  test(`a daemon killed at any moment keeps its disks: ${group}`, {
    ...PEERS,
    timeout: 60_000 + KILLS * 20_000,
  }, async (t) => {
    const moments = new Map(Object.values(kinds).map((kind) => [kind, new Moments(kind)]));
    const end = performance.now() + SECONDS * 1000;
    let kills = 0;
    const lane = async (): Promise<void> => {
      while (kills < KILLS && performance.now() < end) {
        const directory = scratch(t);
        await once(directory, moments, kinds, SEED + kills++);
        rmSync(directory, { recursive: true });
      }
    };
    await Promise.all(Array.from({ length: LANES }, lane));
    for (const [name, kind] of Object.entries(kinds)) t.diagnostic(`${name}: ${kills} kills: ${moments.get(kind)}`);
  });
}
