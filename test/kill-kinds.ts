/** For tests that kill a daemon: what it may be killed in, and what has to hold afterwards. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Prng } from '../src/base/prng.ts';
import type { Qapi, QmpClient } from '../src/daemon/index.ts';
import { BITMAP } from './kill-images.ts';

/** A daemon with several disks, as those see it who tell it what to do with one of them: as if there was no other. */
export class Told {
  readonly directory: string;
  readonly random: Prng;
  /** A job has ended well, as far as was heard. */
  completed = false;
  readonly #client: QmpClient;
  readonly #number: number;
  /** The state of each job and how much of it is done, as far as was heard. */
  readonly #jobs = new Map<string, { status: string; done: number }>();
  #sent: string | undefined;

  constructor(client: QmpClient, number: number, directory: string, random: Prng) {
    this.#client = client;
    this.#number = number;
    this.directory = directory;
    this.random = random;
    void this.#listen();
  }

  async #listen(): Promise<void> {
    for await (const { event, data } of this.#client.events()) {
      if (event === 'BLOCK_JOB_COMPLETED' && this.#isOwn(data.device) && data.error === undefined)
        this.completed = true;
      if (event === 'JOB_STATUS_CHANGE' && this.#isOwn(data.id)) this.#job(data.id).status = data.status;
    }
  }

  #isOwn(name: string): boolean {
    return name.endsWith(`-${this.#number}`);
  }

  #job(id: string): { status: string; done: number } {
    const job = this.#jobs.get(id) ?? { status: 'undefined', done: 0 };
    this.#jobs.set(id, job);
    return job;
  }

  /** An @ at the end of a name in `args` stands for this disk. */
  async send(command: string, args: object): Promise<void> {
    this.#sent = command;
    try {
      await this.#client.execute(command as never, named(args, this.#number) as never);
    } finally {
      this.#sent = undefined;
    }
  }

  /** Waits until the job is there. */
  async until(status: Qapi<'JobStatus'>): Promise<void> {
    for (;;) {
      const jobs = await this.#client.execute('query-jobs', {});
      const own = jobs.find(({ id }) => this.#isOwn(id));
      assert.ok(own, `the job has ended before it was ${status}`);
      if (own.status === status) return;
      await delay(1);
    }
  }

  /** Takes in how far jobs are. */
  note(jobs: readonly Qapi<'JobInfo'>[]): void {
    for (const { id, 'current-progress': current, 'total-progress': total } of jobs) {
      if (this.#isOwn(id)) this.#job(id).done = current / Math.max(total, 1);
    }
  }

  /** There is a job, or there was one. */
  get hasBegun(): boolean {
    return [...this.#jobs.values()].some(({ status }) => status !== 'undefined' && status !== 'created');
  }

  /** What is under way, as far as was heard: the state of a job, or a command; undefined for nothing. */
  get phase(): string | undefined {
    const job = [...this.#jobs.values()].find(({ status }) => status !== 'concluded' && status !== 'null');
    if (job?.status === 'running') return `running, ${job.done < 0.5 ? '<' : '>'} 50%`;
    return this.#sent ?? job?.status;
  }
}

/** `what` with the names of the disk `number`. */
export function named<T extends object>(what: T, number: number): T {
  return JSON.parse(JSON.stringify(what).replaceAll('@"', `-${number}"`)) as T;
}

export interface Kind {
  /** What comes before the guest. */
  readonly prepare?: (daemon: Told) => Promise<unknown>;
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
  /** Milliseconds in which it is killed, to begin with: it becomes known how long it takes. Default {@link KILL_MS}. */
  readonly withinMs?: number;
  /** It is to be killed in its commands, too, not only in the job that they begin. */
  readonly inCommands?: boolean;
}

/** By their names. */
export type Kinds = Readonly<Record<string, Kind>>;

export const KILL_MS = 250;
/** For what takes a moment, and for what is over at once. */
const SOON_MS = 50;
const NOW_MS = 25;
/** To the first checkpoint of a bitmap that a backup has begun with, a little less. */
const CHECKPOINT_MS = 900;

const job = { 'job-id': 'j@' } as const;
const mirror = { ...job, device: 'top@', target: 'new@', sync: 'full' } as const;
const incremental = { ...mirror, target: 'kept@', sync: 'incremental', bitmap: BITMAP } as const;

const JOBS: Kinds = {
  stream: {
    act: (daemon) => daemon.send('block-stream', { ...job, device: 'top@' }),
    unchanged: ['base', 'mid'],
    withinMs: 2 * SOON_MS,
  },
  commit: {
    act: (daemon) => daemon.send('block-commit', { ...job, device: 'top@', 'top-node': 'mid@' }),
    unchanged: ['mid'],
  },
  'active commit': {
    act: (daemon) => daemon.send('block-commit', { ...job, device: 'top@', 'base-node': 'base@' }),
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
    first: async (daemon) => {
      const filename = join(daemon.directory, 'made');
      writeFileSync(filename, '');
      await daemon.send('blockdev-add', { driver: 'file', 'node-name': 'made@', filename });
    },
    act: (daemon) => {
      const options = { driver: 'qcow2', file: 'made@', size: 2 ** 28, preallocation: 'metadata' };
      return daemon.send('blockdev-create', { ...job, options });
    },
    unchanged: ['base', 'mid'],
    withinMs: 2 * SOON_MS,
  },
  amend: {
    act: (daemon) =>
      daemon.send('x-blockdev-amend', { ...job, 'node-name': 'top@', options: { driver: 'qcow2', version: 'v2' } }),
    unchanged: ['base', 'mid'],
    withinMs: SOON_MS,
  },
};

const ENDS: Kinds = {
  'completing a mirror': {
    prepare: async (daemon) => {
      await daemon.send('blockdev-mirror', mirror);
      await daemon.until('ready');
    },
    act: (daemon) => daemon.send('job-complete', { id: 'j@' }),
    nodes: ['new'],
    unchanged: ['base', 'mid'],
    holders: ['top', 'new'],
    withinMs: NOW_MS,
  },
  'completing an active commit': {
    prepare: async (daemon) => {
      await JOBS['active commit']!.act(daemon);
      await daemon.until('ready');
    },
    act: (daemon) => daemon.send('job-complete', { id: 'j@' }),
    unchanged: [],
    holders: ['top', 'base'],
    withinMs: NOW_MS,
  },
  'finalizing a mirror': {
    prepare: async (daemon) => {
      await daemon.send('blockdev-mirror', { ...mirror, 'auto-finalize': false });
      await daemon.until('ready');
    },
    first: async (daemon) => {
      await daemon.send('job-complete', { id: 'j@' });
      await daemon.until('pending');
    },
    act: (daemon) => daemon.send('job-finalize', { id: 'j@' }),
    nodes: ['new'],
    unchanged: ['base', 'mid'],
    holders: ['top', 'new'],
    withinMs: NOW_MS,
  },
  cancel: {
    act: async (daemon) => {
      const kinds = ['stream', 'commit', 'mirror', 'write-blocking mirror', 'backup'] as const;
      await JOBS[daemon.random.pick(kinds)]!.act(daemon);
      await delay(daemon.random.below(SOON_MS));
      // It may have ended since.
      const force = daemon.random.chance(0.5);
      await daemon.send('block-job-cancel', { device: 'j@', force }).catch(() => undefined);
    },
    nodes: ['new'],
    unchanged: ['mid'],
    withinMs: 2 * SOON_MS,
  },
  'jobs of one transaction': {
    act: (daemon) =>
      daemon.send('transaction', {
        actions: [
          { type: 'blockdev-backup', data: { ...mirror, 'job-id': 'j0@' } },
          { type: 'blockdev-backup', data: { ...mirror, 'job-id': 'j1@', device: 'other@', target: 'copy@' } },
        ],
        properties: { 'completion-mode': 'grouped' },
      }),
    nodes: ['new', 'other', 'copy'],
    unchanged: ['base', 'mid', 'other'],
  },
};

const REST: Kinds = {
  'a snapshot': {
    inCommands: true,
    act: (daemon) => daemon.send('blockdev-snapshot', { node: 'top@', overlay: 'over@' }),
    nodes: ['over'],
    unchanged: ['base', 'mid'],
    holders: ['over'],
    withinMs: NOW_MS,
  },
  'a snapshot that is committed': {
    inCommands: true,
    act: async (daemon) => {
      await daemon.send('blockdev-snapshot', { node: 'top@', overlay: 'over@' });
      await delay(daemon.random.below(SOON_MS));
      await daemon.send('block-commit', { ...job, device: 'over@', 'base-node': 'top@' });
      await daemon.until('ready');
      await daemon.send('job-complete', { id: 'j@' });
    },
    nodes: ['over'],
    unchanged: ['base', 'mid'],
    holders: ['over', 'top'],
  },
  'internal snapshots': {
    inCommands: true,
    act: async (daemon) => {
      for (;;) {
        await daemon.send('blockdev-snapshot-internal-sync', { device: 'top@', name: 's' });
        await daemon.send('blockdev-snapshot-delete-internal-sync', { device: 'top@', name: 's' });
      }
    },
    unchanged: ['base', 'mid'],
  },
  'changes of persistent bitmaps': {
    inCommands: true,
    act: async (daemon) => {
      const of = (name: string, more = {}): object => ({ node: 'top@', name, ...more });
      for (;;) {
        await daemon.send('block-dirty-bitmap-add', of('c', { persistent: true }));
        await daemon.send('block-dirty-bitmap-merge', { node: 'top@', target: 'c', bitmaps: [BITMAP] });
        await daemon.send('block-dirty-bitmap-disable', of('c'));
        await daemon.send('block-dirty-bitmap-enable', of('c'));
        await daemon.send('block-dirty-bitmap-clear', of('c'));
        await daemon.send('block-dirty-bitmap-remove', of('c'));
      }
    },
    tracked: true,
    unchanged: ['base', 'mid'],
  },
  'an incremental backup': {
    act: (daemon) => daemon.send('blockdev-backup', incremental),
    nodes: ['kept'],
    tracked: true,
    unchanged: ['base', 'mid'],
    withinMs: 2 * SOON_MS,
  },
  'an incremental backup, with a checkpoint of its bitmap': {
    prepare: async (daemon) => {
      await daemon.send('blockdev-backup', { ...incremental, speed: 1 });
      await delay(CHECKPOINT_MS);
    },
    act: async (daemon) => {
      await delay(daemon.random.below(4 * SOON_MS));
      await daemon.send('block-job-set-speed', { device: 'j@', speed: 0 });
    },
    nodes: ['kept'],
    tracked: true,
    unchanged: ['base', 'mid'],
    options: { 'bitmap-checkpoint': 1 },
  },
};

function some(kinds: Kinds, ...names: string[]): Kinds {
  return Object.fromEntries(names.map((name) => [name, kinds[name]!]));
}

/** Each group is for one daemon. A daemon begins one job after the other, so short ones are not all together. */
export const GROUPS: Readonly<Record<string, Kinds>> = {
  'jobs, some': some(JOBS, 'stream', 'create', 'active commit', 'mirror'),
  'jobs, others': some(JOBS, 'commit', 'amend', 'backup', 'write-blocking mirror'),
  'the last steps of jobs, and jobs that are given up': ENDS,
  'snapshots and persistent bitmaps': REST,
};
