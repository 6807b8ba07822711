/**
 * A daemon that is killed at any moment of what it was told, while a guest writes, leaves images in which `qemu-img
 * check` finds no corruption, the guest's disk as it has flushed it, what lies below it as it was, and no bitmap that
 * could be relied on and lacks a change.
 *
 * BLOCKPLANE_TEST_TIER=long: 20 kills of each kind; BLOCKPLANE_KILLS for another number, BLOCKPLANE_SEED to begin with
 * another seed.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
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
  BITMAP,
  content,
  copyImage,
  Guest,
  isUntouched,
  LAYERS,
  makeImages,
  OTHERS,
} from './kill-images.ts';

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';
const KILLS = Number(process.env.BLOCKPLANE_KILLS ?? (LONG ? 20 : 1));
const SEED = Number(process.env.BLOCKPLANE_SEED ?? 1);
const KILL_MS = 250;
/** For what takes a moment, and for what is over at once. */
const SOON_MS = 50;
const NOW_MS = 15;

/** The daemon, as those who tell it what to do see it. */
class Told {
  readonly directory: string;
  readonly random: Prng;
  /** Jobs that have ended well, as far as was heard. */
  readonly completed = new Set<string>();
  readonly #client: QmpClient;

  constructor(client: QmpClient, directory: string, random: Prng) {
    this.#client = client;
    this.directory = directory;
    this.random = random;
    void this.#listen();
  }

  async #listen(): Promise<void> {
    for await (const { event, data } of this.#client.events()) {
      if (event === 'BLOCK_JOB_COMPLETED' && !('error' in data))
        this.completed.add((data as { device: string }).device);
    }
  }

  send(command: string, args: object): Promise<unknown> {
    return this.#client.execute(command as never, args as never);
  }

  /** Waits until the job is there. */
  async until(status: string): Promise<void> {
    for (;;) {
      const [job] = await this.#client.execute('query-jobs', {});
      assert.ok(job, `the job has ended before it was ${status}`);
      if (job.status === status) return;
      await delay(1);
    }
  }
}

interface Kind {
  /** What comes before the time in which it may be killed. */
  readonly first?: (daemon: Told) => Promise<unknown>;
  readonly act: (daemon: Told) => Promise<unknown>;
  /** Nodes beside the disk. */
  readonly nodes?: readonly string[];
  /** Images that show the same as before through what they name. */
  readonly unchanged: readonly string[];
  /** Images one of which holds what the guest has written: the last, once the job was seen to end. Default `top`. */
  readonly holders?: readonly string[];
  /** The disk has a persistent bitmap, of what it does not have in common with `kept`. */
  readonly tracked?: boolean;
  /** Options of the disk's node. */
  readonly options?: object;
  /** Milliseconds in which it is killed. Default {@link KILL_MS}. */
  readonly within?: number;
}

const job = { 'job-id': 'j' } as const;
const mirror = { ...job, device: 'top', target: 'new', sync: 'full' } as const;

const JOBS: Readonly<Record<string, Kind>> = {
  stream: {
    act: (daemon) => daemon.send('block-stream', { ...job, device: 'top' }),
    unchanged: ['base', 'mid'],
    within: 2 * SOON_MS,
  },
  commit: {
    act: (daemon) => daemon.send('block-commit', { ...job, device: 'top', 'top-node': 'mid' }),
    unchanged: ['mid'],
  },
  'active commit': {
    act: (daemon) => daemon.send('block-commit', { ...job, device: 'top', 'base-node': 'base' }),
    unchanged: [],
  },
  mirror: { act: (daemon) => daemon.send('blockdev-mirror', mirror), nodes: ['new'], unchanged: ['base', 'mid'] },
  'write-blocking mirror': {
    act: (daemon) => daemon.send('blockdev-mirror', { ...mirror, sync: 'top', 'copy-mode': 'write-blocking' }),
    nodes: ['new'],
    unchanged: ['base', 'mid'],
  },
  backup: { act: (daemon) => daemon.send('blockdev-backup', mirror), nodes: ['new'], unchanged: ['base', 'mid'] },
  create: {
    act: async (daemon) => {
      const filename = join(daemon.directory, 'made');
      writeFileSync(filename, '');
      await daemon.send('blockdev-add', { driver: 'file', 'node-name': 'made', filename });
      const options = { driver: 'qcow2', file: 'made', size: 2 ** 28, preallocation: 'metadata' };
      await daemon.send('blockdev-create', { ...job, options });
    },
    unchanged: ['base', 'mid'],
  },
  amend: {
    act: (daemon) => daemon.send('x-blockdev-amend', { ...job, 'node-name': 'top', options: amended }),
    unchanged: ['base', 'mid'],
    within: SOON_MS,
  },
};

const amended = { driver: 'qcow2', version: 'v2' };

/** The last steps of jobs, and jobs that are given up. */
const ENDS: Readonly<Record<string, Kind>> = {
  'completing a mirror': {
    first: async (daemon) => {
      await daemon.send('blockdev-mirror', mirror);
      await daemon.until('ready');
    },
    act: (daemon) => daemon.send('job-complete', { id: 'j' }),
    nodes: ['new'],
    unchanged: ['base', 'mid'],
    holders: ['top', 'new'],
    within: NOW_MS,
  },
  'completing an active commit': {
    first: async (daemon) => {
      await JOBS['active commit']!.act(daemon);
      await daemon.until('ready');
    },
    act: (daemon) => daemon.send('job-complete', { id: 'j' }),
    unchanged: [],
    holders: ['top', 'base'],
    within: NOW_MS,
  },
  'finalizing a mirror': {
    first: async (daemon) => {
      await daemon.send('blockdev-mirror', { ...mirror, 'auto-finalize': false });
      await daemon.until('ready');
      await daemon.send('job-complete', { id: 'j' });
      await daemon.until('pending');
    },
    act: (daemon) => daemon.send('job-finalize', { id: 'j' }),
    nodes: ['new'],
    unchanged: ['base', 'mid'],
    holders: ['top', 'new'],
    within: NOW_MS,
  },
  cancel: {
    act: async (daemon) => {
      const kinds = ['stream', 'commit', 'mirror', 'write-blocking mirror', 'backup'] as const;
      await JOBS[kinds[daemon.random.below(kinds.length)]!]!.act(daemon);
      await delay(daemon.random.below(SOON_MS));
      // It may have ended since.
      const force = daemon.random.below(2) === 1;
      await daemon.send('block-job-cancel', { device: 'j', force }).catch(() => undefined);
    },
    nodes: ['new'],
    unchanged: ['mid'],
    within: 2 * SOON_MS,
  },
  'jobs of one transaction': {
    act: (daemon) =>
      daemon.send('transaction', {
        actions: [
          { type: 'blockdev-backup', data: { ...mirror, 'job-id': 'j0' } },
          { type: 'blockdev-backup', data: { ...mirror, 'job-id': 'j1', device: 'other', target: 'copy' } },
        ],
        properties: { 'completion-mode': 'grouped' },
      }),
    nodes: ['new', 'other', 'copy'],
    unchanged: ['base', 'mid', 'other'],
  },
};

/** Snapshots, and persistent bitmaps. */
const REST: Readonly<Record<string, Kind>> = {
  'a snapshot': {
    act: (daemon) => daemon.send('blockdev-snapshot', { node: 'top', overlay: 'over' }),
    nodes: ['over'],
    unchanged: ['base', 'mid'],
    holders: ['over'],
    within: NOW_MS,
  },
  'a snapshot that is committed': {
    act: async (daemon) => {
      await daemon.send('blockdev-snapshot', { node: 'top', overlay: 'over' });
      await delay(daemon.random.below(SOON_MS));
      await daemon.send('block-commit', { ...job, device: 'over', 'base-node': 'top' });
      await daemon.until('ready');
      await daemon.send('job-complete', { id: 'j' });
    },
    nodes: ['over'],
    unchanged: ['base', 'mid'],
    holders: ['over', 'top'],
  },
  'internal snapshots': {
    act: async (daemon) => {
      for (;;) {
        await daemon.send('blockdev-snapshot-internal-sync', { device: 'top', name: 's' });
        await daemon.send('blockdev-snapshot-delete-internal-sync', { device: 'top', name: 's' });
      }
    },
    unchanged: ['base', 'mid'],
  },
  'changes of persistent bitmaps': {
    act: async (daemon) => {
      const of = (name: string, more = {}): object => ({ node: 'top', name, ...more });
      for (;;) {
        await daemon.send('block-dirty-bitmap-add', of('c', { persistent: true }));
        await daemon.send('block-dirty-bitmap-merge', { node: 'top', target: 'c', bitmaps: [BITMAP] });
        await daemon.send('block-dirty-bitmap-disable', of('c'));
        await daemon.send('block-dirty-bitmap-enable', of('c'));
        await daemon.send('block-dirty-bitmap-clear', of('c'));
        await daemon.send('block-dirty-bitmap-remove', of('c'));
      }
    },
    tracked: true,
    unchanged: ['base', 'mid'],
  },
  ...Object.fromEntries(
    [0, 1].map((seconds) => [
      `an incremental backup${seconds ? ', with checkpoints of its bitmap' : ''}`,
      {
        act: (daemon: Told) =>
          daemon.send('blockdev-backup', { ...mirror, target: 'kept', sync: 'incremental', bitmap: BITMAP }),
        nodes: ['kept'],
        tracked: true,
        unchanged: ['base', 'mid'],
        options: { 'bitmap-checkpoint': seconds },
        within: seconds ? 1200 : 2 * SOON_MS,
      },
    ]),
  ),
};

function node(directory: string, name: string, more: object): object {
  const file = { driver: 'file', filename: join(directory, `${name}.qcow2`) };
  return { driver: 'qcow2', 'node-name': name, file, ...more };
}

interface Outcome {
  readonly guest: Guest;
  readonly completed: boolean;
}

/** Milliseconds that a kind has taken here at least, where it came to its end: kills are to come before that. */
const took = new Map<Kind, number>();

function windowOf(kind: Kind): number {
  return Math.ceil(Math.min(kind.within ?? KILL_MS, took.get(kind) ?? Number.POSITIVE_INFINITY));
}

/** Has it do what the kind says, with a guest, and kills the daemon at a moment of `random`'s. */
async function killed(directory: string, kind: Kind, start: Uint8Array, random: Prng): Promise<Outcome> {
  const nbd = join(directory, 'nbd');
  const below = { backing: node(directory, 'mid', { backing: node(directory, 'base', {}) }) };
  const trees = [node(directory, 'top', { ...below, ...kind.options })];
  for (const name of kind.nodes ?? []) trees.push(node(directory, name, { backing: null }));
  const args = [
    ...trees.flatMap((tree) => ['--blockdev', JSON.stringify(tree)]),
    ...['--nbd-server', `addr.type=unix,addr.path=${nbd}`],
    ...['--export', 'type=nbd,id=e,node-name=top,writable=on,name=disk'],
  ];
  return withDaemon(directory, args, async (client, child) => {
    const disk = await open(`nbd+unix:///disk?socket=${nbd}`, { format: 'raw', iothread: guests });
    const guest = new Guest(disk, start, random);
    const told = new Told(client, directory, random);
    let over = false;
    const untilTheEnd = (error: unknown): void => {
      if (!over) throw error;
    };
    const using = guest.use().catch(untilTheEnd);
    await kind.first?.(told);
    const killing = delay(random.below(windowOf(kind))).then(() => {
      over = true;
      child.kill('SIGKILL');
    });
    const began = performance.now();
    const acting = kind.act(told).then(() => {
      if (!over) took.set(kind, Math.min(took.get(kind) ?? KILL_MS, performance.now() - began));
    });
    await Promise.all([using, acting.catch(untilTheEnd), killing]);
    await disk.close().catch(() => undefined);
    return { guest, completed: told.completed.size > 0 };
  });
}

const shared = mkdtempSync(join(tmpdir(), 'blockplane-test-'));
const whole = new Map<string, Buffer>();
let guests: IOThread;

before(async () => {
  guests = await IOThread.start();
  if (needs('qemu-img', 'qemu-io').skip) return;
  await makeImages(shared);
  for (const name of [...LAYERS, ...OTHERS]) whole.set(name, await content(shared, name));
});
after(async () => {
  await guests.stop();
  rmSync(shared, { recursive: true });
});

/** One kill, and a look at what it has left. True where all that it was told was over. */
async function once(directory: string, kind: Kind, seed: number): Promise<boolean> {
  const what = `seed ${seed}`;
  const images = [...LAYERS, ...(kind.nodes ?? [])];
  for (const name of images) copyImage(shared, name === 'top' && kind.tracked ? 'tracked' : name, directory, name);
  const start = whole.get(kind.tracked ? 'tracked' : 'top')!;
  const { guest, completed } = await killed(directory, kind, start, new Prng(seed));
  for (const name of images) {
    if (!isUntouched(shared, name, directory)) await assertClean(directory, name, what);
  }
  const holders = kind.holders ?? ['top'];
  const wrong: string[] = [];
  for (const name of completed ? holders.slice(-1) : holders) {
    const why = guest.wrong(await content(directory, name));
    if (why === undefined) break;
    wrong.push(`${name}: ${why}`);
  }
  assert.ok(wrong.length < (completed ? 1 : holders.length), `${what}: ${wrong.join('; ')}`);
  for (const name of kind.unchanged) {
    if (isUntouched(shared, name, directory)) continue;
    assert.ok((await content(directory, name)).equals(whole.get(name)!), `${what}: ${name} has changed`);
  }
  if (kind.tracked) await assertBitmaps(directory, what);
  return completed;
}

for (const [name, kind] of Object.entries({ ...JOBS, ...ENDS, ...REST })) {
  test(`a daemon killed at any moment keeps the disk: ${name}`, {
    ...needs('qemu-img', 'qemu-io', 'qemu-nbd', 'nbdinfo'),
    timeout: 60_000 + KILLS * 10_000,
  }, async (t) => {
    let completed = 0;
    for (let n = 0; n < KILLS; n++) {
      const directory = scratch(t);
      if (await once(directory, kind, SEED + n)) completed++;
      rmSync(directory, { recursive: true });
    }
    t.diagnostic(`${KILLS} kills, ${completed} of them after its end`);
  });
}
