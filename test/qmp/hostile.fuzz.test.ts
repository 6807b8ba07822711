/** Whatever a client sends, it gets a reply for each line, and the daemon goes on: its exports do not notice. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Prng } from '../../src/base/prng.ts';
import { MAIN, needs, peer, scratch } from '../harness.ts';
import { type Fields, type Json, Peer } from './conversation.ts';

const OURS = [process.execPath, MAIN, 'qemu-storage-daemon'];
const RUNS = Number(process.env.BLOCKPLANE_FUZZ_RUNS ?? 400);
const SEED = Number(process.env.BLOCKPLANE_FUZZ_SEED ?? 1);

const WORDS: readonly Json[] = [
  ...[
    null,
    true,
    false,
    0,
    -1,
    1,
    0.5,
    1e300,
    9007199254740994,
    '',
    'n0',
    'n1',
    'a',
    'nowhere',
    '#block0',
    '__proto__',
  ],
  ...['constructor', 'x'.repeat(5000), '\u0000', '/dev/null', 'json:{}', [], {}, [[]], ['n0'], { driver: 'null-co' }],
  ...[{ __proto__: null }, { driver: 'raw', file: 'n0' }, { type: 'nbd' }, { type: 'unix', data: { path: '' } }],
];

/** Integers as they are written, which no number holds. */
const EDGES = ['9223372036854775807', '9223372036854775808', '-9223372036854775808', '18446744073709551615', '1e400'];

interface Known {
  readonly commands: readonly string[];
  readonly members: ReadonlyMap<string, readonly string[]>;
}

/** The commands and what they take, as the daemon itself says. */
async function known(ours: Peer): Promise<Known> {
  const schema = (await ours.execute('query-qmp-schema', {})).return as readonly Fields[];
  const types = new Map(schema.map((type) => [String(type.name), type]));
  const commands = schema.filter((type) => type['meta-type'] === 'command');
  const namesOf = (type: Fields | undefined): string[] => {
    const own = ((type?.members ?? []) as readonly Fields[]).map(({ name }) => String(name));
    const variants = ((type?.variants ?? []) as readonly Fields[]).map((variant) => types.get(String(variant.type)));
    return [...own, ...variants.flatMap(namesOf)];
  };
  return {
    // These end it, or wait for somebody.
    commands: commands
      .map(({ name }) => String(name))
      .filter((name) => !/^(quit|chardev-add|chardev-change)$/.test(name)),
    members: new Map(
      commands.map((command) => [String(command.name), namesOf(types.get(String(command['arg-type'])))]),
    ),
  };
}

function randomArguments(prng: Prng, names: readonly string[]): string {
  const chosen = names.filter(() => prng.below(3) > 0);
  const parts = chosen.map((name) => {
    const value =
      prng.below(6) === 0 ? EDGES[prng.below(EDGES.length)]! : JSON.stringify(WORDS[prng.below(WORDS.length)]);
    return `${JSON.stringify(name)}:${value}`;
  });
  return `{${[...new Set(parts)].join(',')}}`;
}

test(`commands with arguments at random are answered (seed ${SEED})`, { timeout: 600_000 }, async (t) => {
  const ours = await Peer.start(t, scratch(t), OURS, ['--blockdev', 'null-co,node-name=n0,size=1M']);
  const { commands, members } = await known(ours);
  const prng = new Prng(SEED);
  for (let run = 0; run < RUNS; run++) {
    const command = commands[prng.below(commands.length)]!;
    const line = `{"execute":"${command}","arguments":${randomArguments(prng, members.get(command)!)},"id":${run}}`;
    const reply = await ours.raw(`${line}\n`);
    const { class: kind, desc } = (reply.error ?? {}) as Fields;
    assert.ok('return' in reply || (typeof kind === 'string' && typeof desc === 'string'), line);
    assert.ok(reply.id === run || String(desc).startsWith('JSON parse error'), line);
  }
  assert.equal(await ours.quit(), 0);
});

test('what is no JSON is answered, whole exports go on, and memory does not pile up', needs('qemu-io'), async (t) => {
  const directory = scratch(t);
  const ours = await Peer.start(t, directory, OURS, [
    ...['--blockdev', 'null-co,node-name=n0,size=1M', '--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd'],
    ...['--export', 'nbd,id=e,node-name=n0,writable=on'],
  ]);
  const wrong = [
    '}',
    '{"execute"',
    `${'['.repeat(1025)}`,
    `{"a":"${'x'.repeat(1 << 20)}`,
    '{"execute":"query-version","arguments":{"__proto__":{"x":1}}}',
    '{"execute":"query-version","execute":"quit"}',
    '\u0001',
    '"\\ud800"',
    '{"execute":"blockdev-add","arguments":{"driver":"null-co","node-name":"x","size":9223372036854775807}}',
    '{"execute":"blockdev-add","arguments":{"driver":"null-co","node-name":"x","size":-9223372036854775808}}',
  ];
  for (const text of wrong) {
    // What is cut short is ended by a byte that cannot be.
    const reply = await ours.raw(text === '{"execute"' ? `${text}\u0001\n` : `${text}\n`);
    assert.ok('error' in reply, text.slice(0, 80));
  }
  const uri = `nbd+unix:///n0?socket=${directory}/nbd`;
  await peer('qemu-io', '-f', 'raw', '-c', 'write 0 64k', uri);
  assert.deepEqual(Object.keys(await ours.execute('query-version', {})), ['return']);
  assert.equal(await ours.quit(), 0);
});

test('a flood of commands is answered in its order', { timeout: 60_000 }, async (t) => {
  const ours = await Peer.start(t, scratch(t), OURS, []);
  const count = 2000;
  const first = ours.raw(
    Array.from({ length: count }, (_, id) => `${JSON.stringify({ execute: 'query-version', id })}\n`).join(''),
  );
  const ids = [(await first).id];
  while (ids.length < count) ids.push((await ours.reply()).id);
  assert.deepEqual(
    ids,
    Array.from({ length: count }, (_, id) => id),
  );
  assert.equal(await ours.quit(), 0);
});
