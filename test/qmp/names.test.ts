/** Names that are none, or are taken, of everything that has one: refused as in qemu-storage-daemon, and not kept. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { needs, peer } from '../harness.ts';
import { alike, type Fields, type Json, type Peer, pair } from './conversation.ts';

const WITH = { ...needs('qemu-storage-daemon', 'qemu-img'), timeout: 120_000 };

const NAMES = [
  ...['', 'a', '__proto__', 'constructor', 'toString', '#block1', '😀', 'é', 'a b', 'a/b', 'a\0b', '1a', '-a', '.'],
  ...['_x', 'a.b-c_d', 'null', ...[31, 32, 255, 256, 1023, 1024, 4096, 4097].map((length) => 'n'.repeat(length))],
];
/** qemu-storage-daemon takes seconds for each message with it. */
const LONGEST = 'n'.repeat(2 ** 20);

type Asked = readonly [command: string, args: Fields];
type Maker = (name: string) => readonly [make: Asked, take: Asked];

const MAKERS: Readonly<Record<string, Maker>> = {
  node: (name) => [
    ['blockdev-add', { driver: 'null-co', 'node-name': name, size: 65_536 }],
    ['blockdev-del', { 'node-name': name }],
  ],
  object: (id) => [
    ['object-add', { 'qom-type': 'throttle-group', id }],
    ['object-del', { id }],
  ],
  'character device': (id) => [
    ['chardev-add', { id, backend: { type: 'null', data: {} } }],
    ['chardev-remove', { id }],
  ],
  export: (id) => [
    ['block-export-add', { type: 'nbd', id, 'node-name': 'disk', name: 'x' }],
    ['block-export-del', { id }],
  ],
  'name of an export': (name) => [
    ['nbd-server-add', { device: 'disk', name }],
    ['nbd-server-remove', { name }],
  ],
  bitmap: (name) => [
    ['block-dirty-bitmap-add', { node: 'disk', name }],
    ['block-dirty-bitmap-remove', { node: 'disk', name }],
  ],
  job: (id) => [
    ['blockdev-create', { 'job-id': id, options: { driver: 'file', filename: '$DIR/nowhere/x', size: 0 } }],
    ['job-dismiss', { id }],
  ],
  snapshot: (name) => [
    ['blockdev-snapshot-internal-sync', { device: 'image', name }],
    ['blockdev-snapshot-delete-internal-sync', { device: 'image', name }],
  ],
};

/** What differs, and why. */
const DIFFERENT: readonly (readonly [RegExp, why: string])[] = [
  [/^object-add .* ours .*expects an identifier: letters/, 'says what an identifier is'],
  [/^nbd-server-add .* ours .*export name '\(n64\)\.\.\.' too long.*too long/, 'the name is cut in the message'],
  [/^block-dirty-bitmap-add .* ours .*1023 is the limit.* theirs .*too long/, 'the name is cut in the message'],
  [/^blockdev-snapshot-.*n{50}.* (already exists|does not exist) on device/, '7.2 cuts names to 255 bytes'],
];

async function asked(daemon: Peer, [command, args]: Asked): Promise<string> {
  const reply = await daemon.execute(command, args);
  if (command === 'blockdev-create' && 'return' in reply) {
    await daemon.told(
      0,
      ({ data }) => (data as Fields).id === args['job-id'] && (data as Fields).status === 'concluded',
    );
  }
  return JSON.stringify(alike(reply, daemon.directory)).replaceAll(/n{40,}/g, (name) => `(n${name.length})`);
}

/** What there is, by name. */
async function known(daemon: Peer): Promise<Json> {
  const nodes = (await daemon.execute('query-named-block-nodes', {})).return as readonly Fields[];
  const all: Json[] = nodes.map((node) => [
    node['node-name']!,
    node['dirty-bitmaps'] ?? null,
    (node.image as Fields).snapshots ?? null,
  ]);
  for (const command of ['query-jobs', 'query-block-exports', 'query-chardev']) {
    all.push(await daemon.execute(command, {}));
  }
  all.push(await daemon.execute('qom-list', { path: '/objects' }));
  return all;
}

async function image(directory: string): Promise<void> {
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/image.qcow2`, '1M');
}

const BEGIN = [
  ...['--blockdev', 'null-co,node-name=disk,size=65536', '--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd'],
  ...['--blockdev', 'qcow2,node-name=image,file.driver=file,file.filename=$DIR/image.qcow2'],
];

test('a name that is none, or is taken, is refused as in qemu-storage-daemon, and leaves nothing', WITH, async (t) => {
  const { theirs, ours } = await pair(t, BEGIN, image);
  const before = await known(ours);
  const different: string[] = [];
  for (const [kind, maker] of Object.entries(MAKERS)) {
    for (const name of NAMES) {
      const [make, take] = maker(name);
      for (const step of [make, make, take, take]) {
        const [own, other] = await Promise.all([ours, theirs].map((daemon) => asked(daemon, step)));
        const what = `${step[0]} ${JSON.stringify(step[1]).slice(0, 120)}: ours ${own}, theirs ${other}`;
        if (own !== other && !DIFFERENT.some(([lines]) => lines.test(what))) different.push(what);
      }
    }
    assert.deepEqual(await known(ours), before, kind);
  }
  assert.equal(different.join('\n'), '');
  assert.equal(await ours.quit(), 0);
});

test('a name of a MiB is refused where names have a limit, and costs no more than itself', WITH, async (t) => {
  const { ours } = await pair(t, BEGIN, image);
  const before = await known(ours);
  for (const [kind, maker] of Object.entries(MAKERS)) {
    const [make, take] = maker(LONGEST);
    const first = await asked(ours, make);
    const limited = !['object', 'character device', 'export', 'job'].includes(kind);
    assert.equal(first.includes('error'), limited, `${kind}: ${first}`);
    assert.match(await asked(ours, make), /"error"/);
    assert.equal((await asked(ours, take)).includes('error'), limited, kind);
    assert.deepEqual(await known(ours), before, kind);
  }
  assert.equal(await ours.quit(), 0);
});

/** One name for different things: each is a name space of its own. */
test('a node, a job, an export and all others may have one name; what it is asked as decides', WITH, async (t) => {
  const { theirs, ours } = await pair(t, BEGIN, image);
  const steps = Object.values(MAKERS).map((maker) => maker('same'));
  const ends: readonly Asked[] = [
    ['block-job-cancel', { device: 'same' }],
    ['block-job-set-speed', { device: 'same', speed: 1 }],
    ['block-dirty-bitmap-add', { node: 'same', name: 'same' }],
  ];
  for (const step of [...steps.map(([make]) => make), ...ends, ...steps.map(([, take]) => take).reverse()]) {
    const [own, other] = await Promise.all([ours, theirs].map((daemon) => asked(daemon, step)));
    assert.equal(own, other, JSON.stringify(step));
  }
  assert.equal(await ours.quit(), 0);
});
