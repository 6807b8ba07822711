/** Names that are taken or no names, nodes that somebody uses, and transactions that fail in their midst. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MAIN, needs, peer, scratch } from '../harness.ts';
import { alike, type Fields, type Json, Peer, pair } from './conversation.ts';

const WITH = { ...needs('qemu-storage-daemon', 'qemu-img', 'qemu-io'), timeout: 120_000 };

const NAMES = [
  ...[
    '',
    'a',
    '__proto__',
    'constructor',
    'toString',
    'hasOwnProperty',
    '#block1',
    '😀',
    'é',
    'a b',
    'a/b',
    '1a',
    '-a',
  ],
  ...[
    '.',
    '_x',
    'a.b-c_d',
    'null',
    'n'.repeat(31),
    'n'.repeat(32),
    ...[255, 256, 1023, 1024].map((n) => 'n'.repeat(n)),
  ],
  'n'.repeat(2 ** 20),
];

const MAKERS: readonly ((
  name: string,
) => readonly [make: readonly [string, Fields], take: readonly [string, Fields]])[] = [
  (name) => [
    ['blockdev-add', { driver: 'null-co', 'node-name': name, size: 65_536 }],
    ['blockdev-del', { 'node-name': name }],
  ],
  (id) => [
    ['object-add', { 'qom-type': 'throttle-group', id }],
    ['object-del', { id }],
  ],
  (id) => [
    ['chardev-add', { id, backend: { type: 'null', data: {} } }],
    ['chardev-remove', { id }],
  ],
  (id) => [
    ['block-export-add', { type: 'nbd', id, 'node-name': 'disk', name: 'x' }],
    ['block-export-del', { id }],
  ],
  (name) => [
    ['block-dirty-bitmap-add', { node: 'disk', name }],
    ['block-dirty-bitmap-remove', { node: 'disk', name }],
  ],
  (id) => [
    ['blockdev-create', { 'job-id': id, options: { driver: 'file', filename: '$DIR/nowhere/x', size: 0 } }],
    ['job-dismiss', { id }],
  ],
];

test('a name that is none, or is taken, is refused as in qemu-storage-daemon', WITH, async (t) => {
  const { theirs, ours } = await pair(t, ['--blockdev', 'null-co,node-name=disk,size=65536']);
  await both(theirs, ours, 'nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd' } } });
  const different: string[] = [];
  const ask = async ([command, args]: readonly [string, Fields]): Promise<void> => {
    const from = [ours.events.length, theirs.events.length];
    const [own, other] = await both(theirs, ours, command, args);
    if (own !== other) different.push(`${command} ${JSON.stringify(args).slice(0, 90)}: ours ${own}, theirs ${other}`);
    if (command !== 'blockdev-create' || own !== '{"return":{}}') return;
    const concluded = ({ data }: Fields): boolean => (data as Fields).status === 'concluded';
    await Promise.all([ours.told(from[0]!, concluded), theirs.told(from[1]!, concluded)]);
  };
  for (const maker of MAKERS) {
    for (const name of NAMES) {
      const [make, take] = maker(name);
      for (const step of [make, make, take, take]) await ask(step);
    }
  }
  assert.equal(different.join('\n').replaceAll(/n{64,}/g, 'n...n'), '');
  assert.equal(await ours.quit(), 0);
});

async function both(theirs: Peer, ours: Peer, command: string, args: Fields): Promise<[string, string]> {
  const [own, other] = await Promise.all([ours.execute(command, args), theirs.execute(command, args)]);
  return [JSON.stringify(alike(own, ours.directory)), JSON.stringify(alike(other, theirs.directory))];
}

async function images(directory: string): Promise<void> {
  for (const name of ['base', 'top', 'other', 'over', 'copy', 'spare']) {
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/${name}.qcow2`, '16M');
  }
  for (const name of ['base', 'top']) {
    await peer('qemu-io', '-f', 'qcow2', '-c', 'write 0 4M', `${directory}/${name}.qcow2`);
  }
}

function node(name: string, backing: Json = null): Fields {
  return { driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename: `$DIR/${name}.qcow2` }, backing };
}

const SLOW = 65_536;
const JOBS: Readonly<Record<string, readonly [string, Fields]>> = {
  stream: ['block-stream', { device: 'top' }],
  commit: ['block-commit', { device: 'top', 'base-node': 'base' }],
  mirror: ['blockdev-mirror', { device: 'top', target: 'copy', sync: 'full' }],
  backup: ['blockdev-backup', { device: 'top', target: 'copy', sync: 'full' }],
  'mirror of what is below': ['blockdev-mirror', { device: 'base', target: 'spare', sync: 'full' }],
  'backup elsewhere': ['blockdev-backup', { device: 'top', target: 'spare', sync: 'full' }],
  'mirror of the target': ['blockdev-mirror', { device: 'copy', target: 'spare', sync: 'full' }],
};

/** Refused here, where a job has its nodes for itself. */
const OURS_ALONE = /^(backup, then (backup elsewhere|mirror of the target)|backup elsewhere, then backup)$/;

test('two jobs on the same nodes go together where they do in qemu-storage-daemon', WITH, async (t) => {
  const { theirs, ours } = await pair(t, [], images);
  const started = async (daemon: Peer, id: string, [command, args]: readonly [string, Fields]): Promise<boolean> =>
    'return' in (await daemon.execute(command, { ...args, 'job-id': id, speed: SLOW }));
  for (const options of [node('base'), node('top', 'base'), node('copy'), node('spare')]) {
    await both(theirs, ours, 'blockdev-add', options);
  }
  const different: string[] = [];
  for (const [first, one] of Object.entries(JOBS)) {
    for (const [second, two] of Object.entries(JOBS)) {
      const what = `${first}, then ${second}`;
      const outcomes = await Promise.all(
        [ours, theirs].map(async (daemon) => {
          assert.equal(await started(daemon, 'a', one), true, what);
          const outcome = await started(daemon, 'b', two);
          const from = daemon.events.length;
          const over = (id: string) =>
            daemon.told(from, ({ data }) => (data as Fields).id === id && (data as Fields).status === 'null');
          for (const id of outcome ? ['b', 'a'] : ['a']) {
            await daemon.execute('job-cancel', { id });
            await over(id);
          }
          return outcome;
        }),
      );
      if (outcomes[0] !== outcomes[1] && !OURS_ALONE.test(what)) different.push(`${what}: ours ${outcomes[0]}`);
    }
  }
  assert.equal(different.join('\n'), '');
  assert.equal(await ours.quit(), 0);
});

const BITMAP = { node: 'top', name: 'kept' };
const ACTIONS: readonly Fields[] = [
  { type: 'block-dirty-bitmap-add', data: { node: 'top', name: 'made', persistent: true } },
  { type: 'block-dirty-bitmap-clear', data: BITMAP },
  { type: 'block-dirty-bitmap-disable', data: BITMAP },
  { type: 'block-dirty-bitmap-enable', data: BITMAP },
  { type: 'block-dirty-bitmap-merge', data: { node: 'top', target: 'kept', bitmaps: ['made'] } },
  { type: 'blockdev-snapshot-internal-sync', data: { device: 'top', name: 'moment' } },
  { type: 'blockdev-backup', data: { device: 'base', target: 'copy', sync: 'full', 'job-id': 'b' } },
  {
    type: 'drive-backup',
    data: { device: 'other', target: '$DIR/made.qcow2', format: 'qcow2', sync: 'full', 'job-id': 'd' },
  },
  { type: 'block-dirty-bitmap-remove', data: { node: 'top', name: 'gone' } },
  { type: 'blockdev-snapshot', data: { node: 'top', overlay: 'over' } },
  {
    type: 'blockdev-snapshot-sync',
    data: { 'node-name': 'spare', 'snapshot-file': '$DIR/sync.qcow2', 'snapshot-node-name': 'sync' },
  },
];

const OURS = [process.execPath, MAIN, 'qemu-storage-daemon'];

test('a transaction that fails at any of its actions, for any reason, leaves all as it was', WITH, async (t) => {
  const directory = scratch(t);
  await images(directory);
  const ours = await Peer.start(t, directory, OURS, []);
  const must = async (command: string, args: Fields): Promise<void> => {
    assert.deepEqual(await ours.execute(command, args), { return: {} }, `${command} ${JSON.stringify(args)}`);
  };
  const overlay = { driver: 'qcow2', 'node-name': 'over', file: { driver: 'file', filename: '$DIR/over.qcow2' } };
  for (const options of [node('base'), node('top'), node('other'), node('copy'), node('spare')])
    await must('blockdev-add', options);
  await must('blockdev-add', { ...overlay, backing: null });
  for (const name of ['kept', 'gone']) await must('block-dirty-bitmap-add', { node: 'top', name });
  const state = async (): Promise<Json> => {
    const nodes = await ours.execute('query-named-block-nodes', { flat: true });
    const graph = await ours.execute('x-debug-query-block-graph', {});
    return alike([nodes, graph, await ours.execute('query-jobs', {})], directory);
  };
  const before = await state();
  const failing: readonly Fields[] = [
    { type: 'abort', data: {} },
    { type: 'block-dirty-bitmap-add', data: BITMAP },
    { type: 'blockdev-snapshot', data: { node: 'other', overlay: 'other' } },
    { type: 'blockdev-backup', data: { device: 'other', target: 'base', sync: 'full', 'job-id': 'b' } },
    { type: 'drive-backup', data: { device: 'other', target: '$DIR/no/x', sync: 'full', 'job-id': 'e' } },
  ];
  for (const wrong of failing) {
    for (let at = 0; at <= ACTIONS.length; at++) {
      const actions = [...ACTIONS.slice(0, at), wrong, ...ACTIONS.slice(at)];
      const reply = await ours.execute('transaction', { actions });
      const what = `${wrong.type} at ${at}`;
      assert.ok('error' in reply, what);
      assert.deepEqual(await state(), before, `${what}: ${(reply.error as Fields).desc}`);
    }
  }
  // Reopened half: the last one cannot be what is asked.
  for (const bad of [{ ...node('copy'), 'read-only': 'x' }, { ...node('copy'), driver: 'raw' }, node('nowhere')]) {
    const options = [{ ...node('other'), 'read-only': true }, { ...node('spare'), discard: 'unmap' }, bad];
    assert.ok('error' in (await ours.execute('blockdev-reopen', { options } as unknown as Fields)));
    assert.deepEqual(await state(), before);
  }
  await must('transaction', { actions: ACTIONS });
  assert.equal(await ours.quit(), 0);
});
