/** Everything that may be asked of a job, of every kind and in every state that stays: as in qemu-storage-daemon. */
import assert from 'node:assert/strict';
import { copyFileSync } from 'node:fs';
import { test } from 'node:test';
import { type JobVerb, VERBS } from '../../src/jobs/job-states.ts';
import { needs, peer } from '../harness.ts';
import { alike, type Fields, type Json, type Peer, pair } from './conversation.ts';

type State = 'running' | 'paused' | 'ready' | 'standby' | 'waiting' | 'pending' | 'concluded';

interface Kind {
  /** Makes its nodes, which have a lot to copy or next to nothing; answers the command that begins it. */
  begin(daemon: Peer, much: boolean): Promise<readonly [string, Fields]>;
  readonly states: readonly State[];
}

/** Bytes a second: nothing gets done at it. */
const SLOW = 65_536;
const WORKS: readonly State[] = ['running', 'paused', 'pending', 'concluded'];

async function add(daemon: Peer, options: Fields): Promise<void> {
  assert.deepEqual(await daemon.execute('blockdev-add', options), { return: {} });
}

async function memory(daemon: Peer, name: string, much: boolean): Promise<void> {
  await add(daemon, { driver: 'null-co', 'node-name': name, size: much ? 2 ** 24 : 65_536 });
}

/** A copy of one of the images that were prepared. */
async function image(daemon: Peer, name: string, of: string, much: boolean, backing: string | null): Promise<void> {
  const filename = `${daemon.directory}/${name}.qcow2`;
  copyFileSync(`${daemon.directory}/${of}-${much ? 'large' : 'small'}`, filename);
  await add(daemon, { driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename }, backing });
}

const KINDS: Readonly<Record<string, Kind>> = {
  stream: {
    states: WORKS,
    async begin(daemon, much) {
      await image(daemon, 'base', 'full', much, null);
      await image(daemon, 'top', 'empty', much, 'base');
      return ['block-stream', { device: 'top' }];
    },
  },
  commit: {
    states: WORKS,
    async begin(daemon, much) {
      await memory(daemon, 'base', much);
      await image(daemon, 'mid', 'full', much, 'base');
      await image(daemon, 'top', 'empty', much, 'mid');
      return ['block-commit', { device: 'top', 'top-node': 'mid', 'base-node': 'base' }];
    },
  },
  'active commit': {
    states: [...WORKS, 'ready', 'standby'],
    async begin(daemon, much) {
      await memory(daemon, 'base', much);
      await image(daemon, 'top', 'full', much, 'base');
      return ['block-commit', { device: 'top', 'base-node': 'base' }];
    },
  },
  mirror: {
    states: [...WORKS, 'ready', 'standby'],
    async begin(daemon, much) {
      await memory(daemon, 'base', much);
      await memory(daemon, 'top', much);
      return ['blockdev-mirror', { device: 'base', target: 'top', sync: 'full' }];
    },
  },
  backup: {
    states: [...WORKS, 'waiting'],
    async begin(daemon, much) {
      await memory(daemon, 'base', much);
      await memory(daemon, 'top', much);
      return ['blockdev-backup', { device: 'base', target: 'top', sync: 'full' }];
    },
  },
};

async function reached(daemon: Peer, from: number, status: string): Promise<void> {
  const { told } = daemon;
  await told.call(daemon, from, ({ data }) => (data as Fields).id === 'j' && (data as Fields).status === status);
}

async function must(daemon: Peer, command: string, args: Fields): Promise<void> {
  assert.deepEqual(await daemon.execute(command, args), { return: {} }, `${command} ${JSON.stringify(args)}`);
}

/** A job 'j' in that state. */
async function bring(daemon: Peer, kind: Kind, state: State): Promise<void> {
  const much = state === 'running' || state === 'paused';
  const [command, given] = await kind.begin(daemon, much);
  const ending = { 'auto-finalize': state !== 'pending', 'auto-dismiss': state !== 'concluded' };
  const args = { ...given, 'job-id': 'j', speed: much ? SLOW : 0, ...ending };
  const from = daemon.events.length;
  if (state === 'waiting') {
    await add(daemon, { driver: 'null-co', 'node-name': 'other', size: 2 ** 24 });
    await add(daemon, { driver: 'null-co', 'node-name': 'copy', size: 2 ** 24 });
    const other = { ...args, 'job-id': 'o', device: 'other', target: 'copy', speed: SLOW };
    const actions = [args, other].map((data) => ({ type: 'blockdev-backup', data }));
    await must(daemon, 'transaction', { actions, properties: { 'completion-mode': 'grouped' } });
  } else await must(daemon, command, args);
  if (much) await reached(daemon, from, 'running');
  if (state === 'paused') await must(daemon, 'job-pause', { id: 'j' });
  const waits = kind.states.includes('ready') && !much;
  if (waits) await reached(daemon, from, 'ready');
  if (state === 'standby') await must(daemon, 'job-pause', { id: 'j' });
  if (waits && (state === 'pending' || state === 'concluded')) await must(daemon, 'job-complete', { id: 'j' });
  await reached(daemon, from, state);
}

const NAMES = ['top', 'mid', 'base', 'other', 'copy'];

/** Takes away all that there is. */
async function clear(daemon: Peer): Promise<void> {
  for (;;) {
    const jobs = (await daemon.execute('query-jobs', {})).return as readonly Fields[];
    if (jobs.length === 0) break;
    const { id, status } = jobs[0]!;
    await daemon.execute(status === 'concluded' ? 'job-dismiss' : 'job-cancel', { id: id! });
  }
  const names = async (): Promise<Json[]> => {
    const nodes = (await daemon.execute('query-named-block-nodes', { flat: true })).return as readonly Fields[];
    return nodes.map((node) => node['node-name']!).filter((name) => NAMES.includes(String(name)));
  };
  for (let left = await names(); left.length > 0; left = await names()) {
    for (const name of NAMES) await daemon.execute('blockdev-del', { 'node-name': name });
  }
}

type Asked = readonly [command: string, verb: JobVerb, args: Fields];

const ID = { id: 'j' };
const DEVICE = { device: 'j' };

const ASKED: readonly Asked[] = [
  ['job-complete', 'complete', ID],
  ['block-job-complete', 'complete', DEVICE],
  ['job-finalize', 'finalize', ID],
  ['block-job-finalize', 'finalize', ID],
  ['job-dismiss', 'dismiss', ID],
  ['block-job-dismiss', 'dismiss', ID],
  ['block-job-set-speed', 'set-speed', { ...DEVICE, speed: -1 }],
  ['block-job-set-speed', 'set-speed', { ...DEVICE, speed: SLOW }],
  ['job-resume', 'resume', ID],
  ['job-pause', 'pause', ID],
  ['block-job-pause', 'pause', DEVICE],
  ['block-job-resume', 'resume', DEVICE],
  ['job-resume', 'resume', ID],
  ['job-cancel', 'cancel', ID],
  ['block-job-cancel', 'cancel', DEVICE],
  ['block-job-cancel', 'cancel', { ...DEVICE, force: true }],
];

/** One that is accepted ends the job. */
const ENDING: readonly JobVerb[] = ['complete', 'finalize', 'dismiss', 'cancel'];

async function prepare(directory: string): Promise<void> {
  for (const [name, size] of [
    ['large', '16M'],
    ['small', '64k'],
  ] as const) {
    for (const kind of ['empty', 'full']) {
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/${kind}-${name}`, size);
    }
    const length = name === 'large' ? '4M' : '64k';
    await peer('qemu-io', '-f', 'qcow2', '-c', `write 0 ${length}`, `${directory}/full-${name}`);
  }
}

const WITH = { ...needs('qemu-storage-daemon', 'qemu-img', 'qemu-io'), timeout: 120_000 };

test('J1 a job takes what its state allows, however it is asked', WITH, async (t) => {
  const { theirs, ours } = await pair(t, [], prepare);
  const both = <T>(body: (daemon: Peer) => Promise<T>): Promise<[T, T]> => Promise.all([body(ours), body(theirs)]);
  const different: string[] = [];
  const compare = async ([command, , args]: Asked, where: string): Promise<boolean> => {
    const [own, reply] = await both((daemon) => daemon.execute(command, args));
    const [mine, other] = [alike(own, ours.directory), alike(reply, theirs.directory)].map((one) =>
      JSON.stringify(one),
    );
    if (mine !== other) different.push(`${where}: ${command} ${JSON.stringify(args)}: ours ${mine}, theirs ${other}`);
    return 'return' in own;
  };
  for (const asked of ASKED) assert.equal(await compare(asked, 'no job'), false);
  let count = 0;
  for (const [name, kind] of Object.entries(KINDS)) {
    for (const state of kind.states) {
      const where = `${name}, ${state}`;
      const ends = ([, verb]: Asked): boolean => ENDING.includes(verb) && VERBS[verb].includes(state);
      await both((daemon) => bring(daemon, kind, state));
      for (const asked of ASKED) {
        if (ends(asked)) continue;
        const accepted = await compare(asked, where);
        if (!VERBS[asked[1]].includes(state)) assert.equal(accepted, false, `${where}: ${asked[0]}`);
        count++;
      }
      await both(clear);
      for (const asked of ASKED.filter(ends)) {
        await both((daemon) => bring(daemon, kind, state));
        await compare(asked, where);
        count++;
        await both(clear);
      }
    }
  }
  t.diagnostic(`${count} verbs`);
  assert.equal(different.join('\n'), '');
  assert.equal(await ours.quit(), 0);
});
