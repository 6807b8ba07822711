/** Nodes that somebody uses: what may be done to them then, and which jobs go together, beside qemu-storage-daemon. */
import assert from 'node:assert/strict';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { needs, peer, scratch } from '../harness.ts';
import { type Fields, type Json, type Peer, pair } from './conversation.ts';

const WITH = { ...needs('qemu-storage-daemon', 'qemu-img', 'qemu-io'), timeout: 120_000 };

type Asked = readonly [command: string, args: Fields];

/** The MiB that each holds; in this order they can be opened, and in the other one deleted. */
const IMAGES = { base: 0, mid: 1, top: 2, copy: 0, spare: 0, over: 0 } as const;
const NAMES = Object.keys(IMAGES) as (keyof typeof IMAGES)[];
const BELOW: Readonly<Record<string, string>> = { mid: 'base', top: 'mid' };

function node(name: string, file: Json = { driver: 'file', 'node-name': `${name}-file`, filename: at(name) }): Fields {
  return { driver: 'qcow2', 'node-name': name, file, backing: BELOW[name] ?? null };
}

function at(name: string): string {
  return `$DIR/${name}.qcow2`;
}

/** Makes the images once; the answer puts them where a daemon looks for them. */
async function images(t: TestContext): Promise<(directory: string) => Promise<void>> {
  const made = scratch(t);
  for (const name of NAMES) {
    const path = join(made, `${name}.qcow2`);
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, '4M');
    await peer('qemu-io', '-f', 'qcow2', '-c', `write ${IMAGES[name]}M 1M`, path);
  }
  return async (directory) => {
    for (const name of NAMES) copyFileSync(join(made, `${name}.qcow2`), join(directory, `${name}.qcow2`));
  };
}

async function must(daemon: Peer, [command, args]: Asked): Promise<void> {
  assert.deepEqual(await daemon.execute(command, args), { return: {} }, `${command} ${JSON.stringify(args)}`);
}

async function open(daemon: Peer): Promise<void> {
  for (const name of NAMES) await must(daemon, ['blockdev-add', node(name)]);
}

/** Ends all that there is. What is left in use once all jobs and exports have gone is an error. */
async function clear(daemon: Peer, what: string): Promise<void> {
  const list = async (command: string): Promise<readonly Fields[]> =>
    (await daemon.execute(command, {})).return as readonly Fields[];
  for (let jobs = await list('query-jobs'); jobs.length > 0; jobs = await list('query-jobs')) {
    for (const { id, status } of jobs) {
      await daemon.execute(status === 'concluded' ? 'job-dismiss' : 'job-cancel', { id: id! });
    }
  }
  for (let all = await list('query-block-exports'); all.length > 0; all = await list('query-block-exports')) {
    for (const { id } of all) await daemon.execute('block-export-del', { id: id!, mode: 'hard' });
  }
  for (const name of ['filter', 'over', ...NAMES.toReversed()])
    await daemon.execute('blockdev-del', { 'node-name': name });
  // What a snapshot has put elsewhere in the chain.
  for (const { 'node-name': name } of await list('query-named-block-nodes')) {
    await daemon.execute('blockdev-del', { 'node-name': name! });
  }
  for (const { 'node-name': name } of (await list('query-named-block-nodes')).toReversed()) {
    await daemon.execute('blockdev-del', { 'node-name': name! });
  }
  assert.deepEqual(await list('query-named-block-nodes'), [], what);
}

const LIVES = { 'auto-finalize': false, speed: 65_536 };
const STREAM = { ...LIVES, 'job-id': 'j' };
const NAMED = { ...STREAM, 'filter-node-name': 'f' };
const EXPORT = { type: 'nbd', id: 'e', 'node-name': 'copy', name: 'e' };
const USERS: Readonly<Record<string, readonly [of: readonly string[], asked: readonly Asked[]]>> = {
  nobody: [['copy'], []],
  'an export': [['copy'], [['block-export-add', { ...EXPORT, writable: true }]]],
  'a vhost-user export': [
    ['copy'],
    [
      [
        'block-export-add',
        { type: 'vhost-user-blk', id: 'e', 'node-name': 'copy', addr: { type: 'unix', path: '$DIR/vu' } },
      ],
    ],
  ],
  'an export of its bitmap': [
    ['copy'],
    [
      ['block-dirty-bitmap-disable', { node: 'copy', name: 'b' }],
      ['block-export-add', { ...EXPORT, bitmaps: ['b'] }],
    ],
  ],
  'a filter': [['copy'], [['blockdev-add', { driver: 'copy-on-read', 'node-name': 'filter', file: 'copy' }]]],
  'other nodes': [['base', 'mid', 'copy-file'], []],
  stream: [['top', 'mid', 'base', 'f'], [['block-stream', { ...NAMED, device: 'top', 'base-node': 'base' }]]],
  // 7.2 ends when the node over a filter with a name is reopened.
  commit: [
    ['top', 'mid', 'base'],
    [['block-commit', { ...STREAM, device: 'top', 'top-node': 'mid', 'base-node': 'base' }]],
  ],
  'active commit': [['top', 'mid', 'base', 'f'], [['block-commit', { ...NAMED, device: 'top', 'base-node': 'base' }]]],
  'active commit of one layer': [['top', 'mid'], [['block-commit', { ...NAMED, device: 'top', 'base-node': 'mid' }]]],
  mirror: [['copy', 'spare', 'f'], [['blockdev-mirror', { ...NAMED, device: 'copy', target: 'spare', sync: 'full' }]]],
  'mirror of both': [
    ['copy', 'spare', 'f'],
    [['blockdev-mirror', { ...NAMED, device: 'copy', target: 'spare', sync: 'full', 'copy-mode': 'write-blocking' }]],
  ],
  backup: [['copy', 'spare', 'f'], [['blockdev-backup', { ...NAMED, device: 'copy', target: 'spare', sync: 'full' }]]],
  'backup of its bitmap': [
    ['copy'],
    [
      [
        'blockdev-backup',
        { ...NAMED, device: 'copy', target: 'spare', sync: 'bitmap', bitmap: 'b', 'bitmap-mode': 'always' },
      ],
    ],
  ],
};

const CHANGES: Readonly<Record<string, (name: string) => Asked>> = {
  delete: (name) => ['blockdev-del', { 'node-name': name }],
  'reopen read-only': (name) => {
    const file = { driver: 'file', 'node-name': name, filename: at('copy') };
    return [
      'blockdev-reopen',
      { options: [{ ...(name === 'copy-file' ? file : node(name, `${name}-file`)), 'read-only': true }] },
    ];
  },
  resize: (name) => ['block_resize', { 'node-name': name, size: 1_048_576 }],
  snapshot: (name) => ['blockdev-snapshot', { node: name, overlay: 'over' }],
  'put over another': (name) => ['blockdev-snapshot', { node: 'over', overlay: name }],
  'snapshot within': (name) => ['blockdev-snapshot-internal-sync', { device: name, name: 's' }],
  'remove the bitmap': (name) => ['block-dirty-bitmap-remove', { node: name, name: 'b' }],
  'clear the bitmap': (name) => ['block-dirty-bitmap-clear', { node: name, name: 'b' }],
  'merge into the bitmap': (name) => ['block-dirty-bitmap-merge', { node: name, target: 'b', bitmaps: ['c'] }],
  'merge from the bitmap': (name) => ['block-dirty-bitmap-merge', { node: name, target: 'c', bitmaps: ['b'] }],
  read: (name) => ['block-export-add', { ...EXPORT, id: 'x', name: 'x', 'node-name': name }],
  'put a filter over': (name) => ['blockdev-add', { driver: 'raw', 'node-name': 'filter', file: name }],
  'write to': (name) => ['block-export-add', { ...EXPORT, id: 'x', name: 'x', 'node-name': name, writable: true }],
};

/** Where one is refused and the other is not, and why that is well. */
const REFUSED_HERE: readonly (readonly [RegExp, why: string])[] = [
  [
    /^reopen read-only .*\bwith (stream|commit|active commit.*|mirror.*|backup|backup of its bitmap)$/,
    'a job has its nodes',
  ],
  [/^snapshot copy with backup/, 'a job has its nodes'],
  [/^put over another /, 'an overlay is nobody else’s'],
  [/^write to (base|mid) with active commit/, 'guests see the base'],
  [/^resize copy with a vhost-user export$/, 'an export has the size that it has told'],
];
const TAKEN_HERE: readonly (readonly [RegExp, why: string])[] = [
  [/^merge from the bitmap copy with an export of its bitmap$/, 'it is only read'],
  [/^snapshot within (copy|base|mid) with (a filter|other nodes)$/, 'nothing reads differently'],
  [/^snapshot (base|mid) with other nodes$/, 'the nodes above go on with the overlay'],
  [/^write to copy with backup/, 'it is put above the filter'],
];

function unexpected(what: string, ours: boolean, theirs: boolean): string | undefined {
  if (ours === theirs || (ours ? TAKEN_HERE : REFUSED_HERE).some(([names]) => names.test(what))) return undefined;
  return `${what}: ${ours ? 'taken here, and refused there' : 'refused here, and taken there'}`;
}

test('what is done to a node that is in use is refused, or taken, as in qemu-storage-daemon', WITH, async (t) => {
  const fill = await images(t);
  const { theirs, ours } = await pair(t, ['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd'], fill);
  const outcome = async (
    daemon: Peer,
    what: string,
    [name, asked]: readonly [string, readonly Asked[]],
    change: Asked,
  ): Promise<boolean> => {
    await open(daemon);
    for (const bitmap of name === 'f' ? [] : ['b', 'c']) {
      await must(daemon, ['block-dirty-bitmap-add', { node: name, name: bitmap }]);
    }
    for (const each of asked) await must(daemon, each);
    const taken = 'return' in (await daemon.execute(...change));
    await clear(daemon, what);
    await fill(daemon.directory);
    return taken;
  };
  const different: string[] = [];
  for (const [user, [names, asked]] of Object.entries(USERS)) {
    for (const name of names) {
      for (const [verb, change] of Object.entries(CHANGES)) {
        const what = `${verb} ${name} with ${user}`;
        const [own, other] = await Promise.all(
          [ours, theirs].map((daemon) => outcome(daemon, what, [name, asked], change(name))),
        );
        different.push(unexpected(what, own!, other!) ?? '');
      }
    }
  }
  assert.equal(different.filter(Boolean).join('\n'), '');
  assert.equal(await ours.quit(), 0);
});

/** Nodes, how many layers each shows, and what is below them; what a mirror writes to is not below its filter there. */
async function graphOf(daemon: Peer): Promise<readonly string[]> {
  const { nodes, edges } = (await daemon.execute('x-debug-query-block-graph', {})).return as {
    readonly nodes: readonly { readonly id: number; readonly type: string; readonly name: string }[];
    readonly edges: readonly { readonly parent: number; readonly child: number; readonly name: string }[];
  };
  const drivers = new Map(nodes.filter(({ type }) => type === 'block-driver').map(({ id, name }) => [id, name]));
  const named = ({ drv, ro, backing_file: below, backing_file_depth: depth, 'node-name': name }: Fields): string =>
    `${name}: ${drv}, ${ro ? 'ro' : 'rw'}, ${depth}${below === undefined ? '' : ', over a file'}`;
  const all = (await daemon.execute('query-named-block-nodes', {})).return as readonly Fields[];
  const own = (at: number): boolean => drivers.has(at);
  return [
    ...all.map(named),
    ...edges
      .filter(({ parent, child, name }) => own(parent) && own(child) && name !== 'target')
      .map(({ parent, child, name }) => `${drivers.get(parent)} ${name} ${drivers.get(child)}`),
  ].sort();
}

test('the filter of a job has its name, and lies where it does in qemu-storage-daemon', WITH, async (t) => {
  const fill = await images(t);
  const { theirs, ours } = await pair(t, [], fill);
  for (const [user, [, asked]] of Object.entries(USERS)) {
    const job = asked.find(([, args]) => args['job-id'] === 'j' && args.bitmap === undefined);
    if (job === undefined) continue;
    const [command, args] = job;
    const seen = await Promise.all(
      [theirs, ours].map(async (daemon) => {
        await open(daemon);
        const before = await graphOf(daemon);
        await must(daemon, [command, { ...args, 'filter-node-name': 'f' }]);
        const meanwhile = await graphOf(daemon);
        await daemon.execute('job-cancel', { id: 'j' });
        const ended = ({ event, data }: Fields): boolean =>
          event === 'JOB_STATUS_CHANGE' && (data as Fields).status === 'null';
        await daemon.told(0, ended);
        daemon.events.length = 0;
        assert.deepEqual(await graphOf(daemon), before, user);
        await must(daemon, ['blockdev-add', { driver: 'null-co', 'node-name': 'f' }]);
        await must(daemon, ['blockdev-del', { 'node-name': 'f' }]);
        await clear(daemon, user);
        await fill(daemon.directory);
        return meanwhile;
      }),
    );
    assert.ok(seen[1]!.some((line) => line.startsWith('f: ')));
    assert.deepEqual(seen[1], seen[0], user);
  }
  assert.equal(await ours.quit(), 0);
});

const JOBS: Readonly<Record<string, Asked>> = {
  stream: ['block-stream', { ...LIVES, device: 'top' }],
  'stream of mid': ['block-stream', { ...LIVES, device: 'mid' }],
  commit: ['block-commit', { ...LIVES, device: 'top', 'top-node': 'mid', 'base-node': 'base' }],
  'active commit': ['block-commit', { ...LIVES, device: 'top', 'base-node': 'base' }],
  mirror: ['blockdev-mirror', { ...LIVES, device: 'top', target: 'copy', sync: 'full' }],
  'mirror of the target': ['blockdev-mirror', { ...LIVES, device: 'copy', target: 'spare', sync: 'full' }],
  'mirror into a layer': ['blockdev-mirror', { ...LIVES, device: 'spare', target: 'mid', sync: 'full' }],
  backup: ['blockdev-backup', { ...LIVES, device: 'top', target: 'copy', sync: 'full' }],
  'backup elsewhere': ['blockdev-backup', { ...LIVES, device: 'top', target: 'spare', sync: 'full' }],
  'backup of mid': ['blockdev-backup', { ...LIVES, device: 'mid', target: 'spare', sync: 'full' }],
  amend: ['x-blockdev-amend', { 'node-name': 'top', options: { driver: 'qcow2' } }],
  create: ['blockdev-create', { options: { driver: 'qcow2', file: 'copy-file', size: 1_048_576 } }],
};

/** Refused here, where a job has for itself the layers that it works on; there backups and streams share them. */
const ALONE_HERE: ReadonlySet<string> = new Set([
  ...['stream, then backup', 'stream, then backup elsewhere', 'stream, then backup of mid'],
  ...['backup, then stream', 'backup, then backup elsewhere', 'backup elsewhere, then stream'],
  ...['backup elsewhere, then backup', 'backup of mid, then stream of mid', 'backup of mid, then commit'],
  ...['stream of mid, then active commit', 'stream of mid, then backup of mid'],
]);

test('two jobs on the same nodes go together where they do in qemu-storage-daemon', WITH, async (t) => {
  const fill = await images(t);
  const { theirs, ours } = await pair(t, [], fill);
  const outcome = async (daemon: Peer, what: string, jobs: readonly Asked[]): Promise<boolean[]> => {
    await open(daemon);
    const taken: boolean[] = [];
    for (const [i, [command, args]] of jobs.entries()) {
      taken.push('return' in (await daemon.execute(command, { ...args, 'job-id': `j${i}` })));
    }
    await clear(daemon, what);
    await fill(daemon.directory);
    return taken;
  };
  const different: string[] = [];
  for (const [first, one] of Object.entries(JOBS)) {
    for (const [second, two] of Object.entries(JOBS)) {
      const what = `${first}, then ${second}`;
      const [own, other] = await Promise.all([ours, theirs].map((daemon) => outcome(daemon, what, [one, two])));
      if (own!.join() !== other!.join() && !(ALONE_HERE.has(what) && own!.join() === 'true,false')) {
        different.push(`${what}: ours ${own}, theirs ${other}`);
      }
    }
  }
  assert.equal(different.join('\n'), '');
  assert.equal(await ours.quit(), 0);
});

test('a guest that comes while a backup goes on does not change what the backup is of', WITH, async (t) => {
  const fill = await images(t);
  const { ours } = await pair(t, ['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd'], fill);
  await open(ours);
  const backup = { device: 'copy', target: 'spare', sync: 'full', 'job-id': 'j', speed: 65_536 };
  await must(ours, ['blockdev-backup', backup]);
  await must(ours, ['block-export-add', { ...EXPORT, writable: true }]);
  // By another node it would come past the filter.
  await must(ours, ['blockdev-add', { driver: 'raw', 'node-name': 'filter', file: 'copy' }]);
  const past = await ours.execute('block-export-add', {
    ...EXPORT,
    id: 'x',
    name: 'x',
    'node-name': 'filter',
    writable: true,
  });
  assert.match(String((past.error as Fields).desc), /does not share 'write'/);
  await must(ours, ['blockdev-del', { 'node-name': 'filter' }]);
  await peer('qemu-io', '-f', 'raw', '-c', 'write -P 9 960k 64k', `nbd+unix:///e?socket=${ours.directory}/nbd`);
  await must(ours, ['block-job-set-speed', { device: 'j', speed: 0 }]);
  await ours.told(0, ({ event }) => event === 'BLOCK_JOB_COMPLETED');
  await clear(ours, 'the end');
  const read = await peer('qemu-io', '-f', 'qcow2', '-c', 'read -P 205 960k 64k', join(ours.directory, 'spare.qcow2'));
  assert.doesNotMatch(read, /failed/);
});

test('the name of a node goes with its last user', WITH, async (t) => {
  const fill = await images(t);
  const { ours } = await pair(t, ['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd'], fill);
  await open(ours);
  await must(ours, ['block-export-add', EXPORT]);
  const file = { 'node-name': 'copy', 'snapshot-file': '$DIR/new.qcow2', 'snapshot-node-name': 'new' };
  await must(ours, ['blockdev-snapshot-sync', file]);
  await must(ours, ['block-export-del', { id: 'e' }]);
  await ours.told(0, ({ event }) => event === 'BLOCK_EXPORT_DELETED');
  await must(ours, ['blockdev-add', { driver: 'null-co', 'node-name': 'new' }]);
  await must(ours, ['blockdev-del', { 'node-name': 'new' }]);
});
