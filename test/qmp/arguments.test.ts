/** Every place in the arguments of every command, with what cannot be there: an error that names it, as in QEMU. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MAIN, needs, scratch } from '../harness.ts';
import { type Fields, type Json, Peer, pair } from './conversation.ts';
import { SchemaWalk } from './schema-walk.ts';

const OURS = [process.execPath, MAIN, 'qemu-storage-daemon'];
const NODES = ['n0', 'n1'].flatMap((name) => ['--blockdev', `null-co,node-name=${name},size=1048576`]);

const VALUES: readonly (readonly [kind: string, json: string])[] = [
  ...([
    ['null', 'null'],
    ['boolean', 'true'],
    ['string', '"nonsense"'],
    ['number', '1.5'],
  ] as const),
  ...([
    ['integer', '1'],
    ['object', '{}'],
    ['array', '[]'],
    ['integer', '18446744073709551616'],
  ] as const),
];

/** What a value of that kind cannot be. */
function fits(kinds: readonly string[], kind: string): boolean {
  return kinds.includes('value') || kinds.includes(kind) || (kind === 'integer' && kinds.includes('number'));
}

const WITH = { ...needs('qemu-storage-daemon'), timeout: 120_000 };

test(
  'a value of a wrong type, one too many and one that is missing are told as in qemu-storage-daemon',
  WITH,
  async (t) => {
    const { theirs, ours } = await pair(t, NODES);
    const [walk, other] = await Promise.all([SchemaWalk.of(ours), SchemaWalk.of(theirs)]);
    const there = new Set(other.commands.flatMap((command) => [...other.places(command)].map(keyOf)));
    const different = new Map<string, string>();
    let count = 0;
    for (const place of walk.commands.flatMap((command) => [...walk.places(command)])) {
      const compared = there.has(keyOf(place));
      const given = VALUES.filter(([kind]) => !fits(place.kinds, kind)).map(([, json]) => place.fill(json));
      const [less, more] = [place.without(), place.beside()];
      for (const args of [...given, JSON.stringify(more), ...(less ? [JSON.stringify(less)] : [])]) {
        const line = `{"execute":"${place.command}","arguments":${args}}`;
        const [[own], told] = await Promise.all([
          ours.replies(line.replaceAll('$DIR', ours.directory)),
          compared ? theirs.replies(line.replaceAll('$DIR', theirs.directory)) : undefined,
        ]);
        assert.ok(own && 'error' in own, line);
        count++;
        const same = !told || wordsOf(own) === wordsOf(told[0]!);
        if (!same && !isElsewhere(told[0]!, place.path))
          different.set(line, `ours   ${descOf(own)}\ntheirs ${descOf(told[0]!)}`);
      }
    }
    t.diagnostic(`${count} wrong arguments, ${different.size} told otherwise`);
    assert.deepEqual([...different].slice(0, 40).flat().join('\n'), '');
    assert.equal(await ours.quit(), 0);
  },
);

function keyOf({
  command,
  path,
  kinds,
  optional,
}: {
  command: string;
  path: string;
  kinds: readonly string[];
  optional: boolean;
}) {
  return `${command} ${path} ${kinds.join()} ${optional}`;
}

/** The width of an integer is the driver's affair here. */
function wordsOf(reply: Fields): string {
  const text = JSON.stringify(reply.error);
  return text.replace(/Invalid parameter type for ('[^']*'), expected: integer/, 'Parameter $1 expects uint64');
}

/** It stumbles over another place: drivers and objects have other members there, or need some. */
function isElsewhere(reply: Fields, path: string): boolean {
  const desc = String(descOf(reply));
  if (desc.includes('does not accept value')) return true;
  const name = /^Parameter '(.*)' is (unexpected|missing)$/.exec(desc)?.[1];
  return name !== undefined && !name.endsWith('nonsense') && !(name === path && desc.endsWith('missing'));
}

function descOf(reply: Fields): Json {
  return (reply.error as Fields | undefined)?.desc ?? JSON.stringify(reply);
}

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';

const INTEGERS = [
  ...['0', '-1', '4294967296', '9007199254740992', '9223372036854775807', '-9223372036854775808'],
  ...(LONG ? ['1', '2147483647', '2147483648', '-2147483649', '4294967295', '9007199254740991'] : []),
  ...(LONG ? ['9223372036854775808', '18446744073709551615'] : []),
];

/** These wait as long as they are told to. */
const WAITS = /open-timeout|reconnect/;

test('any integer of 64 bits in any place is refused or leads to something sensible', {
  timeout: 120_000,
}, async (t) => {
  const ours = await Peer.start(t, scratch(t), OURS, NODES);
  const walk = await SchemaWalk.of(ours);
  let count = 0;
  for (const place of walk.commands.flatMap((command) => [...walk.places(command)])) {
    if (!place.kinds.includes('integer') || WAITS.test(place.path)) continue;
    for (const value of INTEGERS) {
      const line = `{"execute":"${place.command}","arguments":${place.fill(value)}}`.replaceAll('$DIR', ours.directory);
      const [reply] = await ours.replies(line);
      assert.ok(reply && ('error' in reply || 'return' in reply), line);
      count++;
      if ('return' in reply) await clear(ours);
    }
  }
  t.diagnostic(`${count} integers`);
  assert.equal(await ours.quit(), 0);
});

/** Takes away what a command has made. */
async function clear(ours: Peer): Promise<void> {
  for (;;) {
    const jobs = (await ours.execute('query-jobs', {})).return as readonly Fields[];
    if (jobs.length === 0) break;
    const [{ id, status }] = jobs as [Fields];
    await ours.execute(status === 'concluded' ? 'job-dismiss' : 'job-cancel', { id: id! });
  }
  for (const node of (await ours.execute('query-named-block-nodes', { flat: true })).return as readonly Fields[]) {
    const name = String(node['node-name']);
    if (name !== 'n1') await ours.execute('blockdev-del', { 'node-name': name });
  }
  await ours.execute('blockdev-add', { driver: 'null-co', 'node-name': 'n0', size: 2 ** 20 });
  await ours.execute('nbd-server-stop', {});
  await ours.execute('object-del', { id: 'n0' });
  await ours.execute('chardev-remove', { id: 'n0' });
}
