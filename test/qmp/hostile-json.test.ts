/** What is no JSON, no command, or too much of it: one answer each, that of qemu-storage-daemon, in bounded memory. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { MiB } from '../../src/base/units.ts';
import { MAIN, needs, scratch } from '../harness.ts';
import { type Fields, type Json, Peer, pair } from './conversation.ts';

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';
const LARGE = LONG ? 16 * MiB : 6 * MiB;
const OURS = [process.execPath, MAIN, 'qemu-storage-daemon'];

/** Ends what is open: a byte that is in no JSON. */
const CUT = '\u0001';

const withId = (id: string): string => `{"execute":"query-version","id":${id}}`;
const sized = (size: string): string =>
  `{"execute":"blockdev-add","arguments":{"driver":"null-co","node-name":"sized","size":${size}}}`;

const IDS = [
  ...['-0', '00', '01', '-', '+1', '.5', '.5e1', '1.', '0x10', 'NaN', 'Infinity', '1.5', '1E+2', '1e5'],
  ...['9223372036854775808', '-9223372036854775809', '18446744073709551615', '18446744073709551616', '1'.repeat(300)],
  ...['null', 'true', '[]', '{}', '""', '"\\u0000"', '"\\u0001"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"'],
  ...['"\\uD83D"', '"\\ud83dx"', '"\\ud83d\\u0041"', '"\\uffff"', '"\\ufffe"', '"\\ufdd0"', '"\\ud83f\\udfff"'],
  ...['"\\udbff\\udffd"', '"\\u00zz"', '"\\v"', "'x'", "'it\\'s'", '"tab\t"', '"line\n"', '"\x7f"', '"é"', '"😀"'],
  ...['{"__proto__":{"a":1},"constructor":null}', '{"a":1,"a":2}', '[1,]', '{"a"}', 'tru', 'trueX', '#', '"\\/"'],
].map(withId);

const ENVELOPES = [
  ...['[]', '5', '"x"', 'null', '{}', '{"id":1}', '{"arguments":{}}', '{"__proto__":1}', '{"execute":5,"id":[]}'],
  ...['{"execute":null}', '{"execute":""}', '{"execute":"nope"}', '{"execute":"__proto__"}', '{"execute":"toString"}'],
  ...['{"execute":"query-version","arguments":[]}', '{"execute":"query-version","arguments":null}'],
  ...['{"execute":"query-version","arguments":{"__proto__":1}}', '{"execute":"query-version","control":{},"id":2}'],
  ...['{"execute":"query-version","arguments":{"constructor":1}}', '{"execute":"query-version","execute":"quit"}'],
  ...['{"exec-oob":"query-version","id":3}', '{"exec-oob":"nope","id":3}', '{"exec-oob":5,"id":3}'],
  ...['{"exec-oob":"query-version","execute":"query-version"}', '{"execute":"nope","exec-oob":"nope"}'],
  ...['{"execute":"qmp_capabilities"}', '{"execute":"qmp_capabilities","arguments":{"enable":["nonsense"]}}'],
  ...[withId('1') + withId('2'), `${withId('1')},${withId('2')}`, `[${withId('1')}]`, '}{', '][', '{,}', ')', '@@@'],
  ...[
    '// words\n{"execute":"query-version"}',
    '\ufeff{"execute":"query-version"}',
    '{"execute":"query-version" "id":1}',
  ],
  ...[
    '{"execute":"query-version"',
    '[1,2',
    '"\\',
    '"\\"',
    "'",
    '\u0001\u0002\u0003',
    '\u0000',
    '{"exe\u0000cute":"x"}',
  ],
  ...[
    sized('1.5'),
    sized('-1.5'),
    sized('9223372036854775808'),
    sized('18446744073709551616'),
    sized('"1"'),
    sized('[]'),
  ],
];

const BYTES: readonly (readonly number[])[] = [
  ...[[0xff], [0xfe], [0x80], [0xc3], [0xed, 0xa0, 0x80], [0xf4, 0x90, 0x80, 0x80], [0xf8, 0x88, 0x80, 0x80, 0x80]],
  ...[
    [0xe2, 0x82],
    [0xef, 0xbf, 0xbf],
    [0xef, 0xb7, 0x90],
    [0xf0, 0x9f, 0xbf, 0xbf],
    [0xc0, 0xaf],
  ],
];

/** What is a C string there ends at its first NUL; releases say what they are. */
function told(replies: readonly Fields[]): Json[] {
  return replies.map((reply) => {
    if ('return' in reply) return { ...reply, return: {} };
    const { class: kind, desc } = reply.error as Fields;
    return { ...reply, error: { class: kind!, desc: String(desc).replace('\u0000', '') } };
  });
}

test(
  'what is wrong with the bytes of a command is told as qemu-storage-daemon does',
  needs('qemu-storage-daemon'),
  async (t) => {
    const { theirs, ours } = await pair(t, []);
    const texts = [...IDS, ...ENVELOPES].map((text) => new TextEncoder().encode(`${text}${CUT}`));
    const strings = BYTES.map((bytes) => Uint8Array.of(0x22, ...bytes, 0x22, 1));
    for (const bytes of [...texts, ...strings, ...BYTES.map((some) => Uint8Array.of(...some, 1))]) {
      const [own, other] = await Promise.all([ours.replies(bytes), theirs.replies(bytes)]);
      assert.deepEqual(told(own), told(other), new TextDecoder().decode(bytes));
    }
    assert.equal(await ours.quit(), 0);
  },
);

/** A client of its own on the second monitor, greeted or waiting for that. */
async function connect(t: TestContext, peer: Peer): Promise<Socket> {
  const socket = createConnection(join(peer.directory, 'second'));
  socket.on('error', () => undefined);
  t.after(() => socket.destroy());
  await once(socket, 'connect');
  return socket;
}

async function greeted(socket: Socket): Promise<void> {
  let text = '';
  while (!text.includes('"QMP"')) text += String((await once(socket, 'data'))[0]);
}

const SECOND = ['--chardev', 'socket,id=s,path=$DIR/second,server=on,wait=off', '--monitor', 's'];
const NEGOTIATE = '{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}\n';

test('a command may come byte by byte, or many with another before its answer', { timeout: 60_000 }, async (t) => {
  const ours = await Peer.start(t, scratch(t), OURS, SECOND);
  const client = await connect(t, ours);
  await greeted(client);
  for (const byte of new TextEncoder().encode(NEGOTIATE + withId('"slow"'))) client.write(Uint8Array.of(byte));
  const all = [...Array(500).keys()].map((id) => `{"exec-oob":"query-version","id":${id}}`);
  client.write(all.join(''));
  let text = '';
  while (text.split('\n').length < 503) text += String((await once(client, 'data'))[0]);
  const replies = text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Fields);
  assert.deepEqual(
    replies.map(({ id }) => id),
    [undefined, 'slow', ...Array(500).keys()],
  );
  // One that has said all it wants to say, in the middle of a word.
  client.end('{"execute":"qu');
  const next = await connect(t, ours);
  await greeted(next);
  assert.equal(await ours.quit(), 0);
});

test('who sends and never reads costs little, and others are answered', { timeout: 60_000 }, async (t) => {
  const ours = await Peer.start(t, scratch(t), OURS, SECOND);
  const before = ours.peakBytes;
  const mute = await connect(t, ours);
  mute.write(NEGOTIATE);
  mute.pause();
  const flood = '{"execute":"query-qmp-schema"}\n'.repeat(1000);
  for (let n = 0; n < 20; n++) mute.write(flood);
  // These wait for their turn, and those that are too many are sent away.
  const others = await Promise.all([...Array(40)].map(() => connect(t, ours)));
  const gone = others.slice(8).map((socket) => socket.closed || once(socket.resume(), 'close'));
  await Promise.all(gone);
  for (let n = 0; n < 100; n++) assert.deepEqual(Object.keys(await ours.execute('query-version', {})), ['return']);
  assert.ok(ours.peakBytes < before + 64 * MiB, `${before} bytes, then ${ours.peakBytes}`);
  mute.destroy();
  await greeted(others[0]!);
  assert.equal(await ours.quit(), 0);
});

test('values as large as they may be are answered, in bounded memory', { timeout: 120_000 }, async (t) => {
  const ours = await Peer.start(t, scratch(t), OURS, []);
  const long = (text: string, bytes: number): string => text.repeat(bytes / Buffer.byteLength(text));
  const members = [...Array(LONG ? 500_000 : 50_000).keys()].map((n) => `"${n * 8191}":0`).join(',');
  const raw = '{"driver":"raw","file":'.repeat(1000);
  const given: readonly (readonly [string, string])[] = [
    [withId(`"${long('x', LONG ? 60 * MiB : 40 * MiB)}"`), 'return'],
    [withId(`"${long('\u007f', LARGE)}"`), 'return'],
    [withId(`"${long('\\n', LARGE)}"`), 'return'],
    [withId(`"${long('é', LARGE)}"`), 'return'],
    [withId(`{${members}}`), 'return'],
    [withId(`[${'1,'.repeat(LONG ? 1_000_000 : 200_000)}1]`), 'return'],
    [withId(`${'['.repeat(1022)}${']'.repeat(1022)}`), 'return'],
    [withId(`${'["x",'.repeat(1000)}"${long('x', 8 * MiB)}"${']'.repeat(1000)}`), 'return'],
    [`"${long('x', 65 * MiB)}"\n`, 'JSON token size limit exceeded'],
    [`"${long('x', LARGE)}`, 'JSON parse error, stray'],
    [long('x', LARGE), 'JSON parse error, invalid keyword'],
    [`{"execute":"${long('x', LARGE)}"}`, 'The command xxx'],
    [`{"execute":"blockdev-del","arguments":{"node-name":"${long('x', LARGE)}"}}`, 'Failed to find node'],
    [`{"execute":"blockdev-add","arguments":${raw}{"driver":"null-co"}${'}'.repeat(1000)}}`, 'Parameters are nested'],
  ];
  for (const [text, answer] of given) {
    const [reply] = await ours.replies(text);
    const desc = String((reply?.error as Fields | undefined)?.desc ?? 'return');
    assert.ok(desc.startsWith(answer), `${text.slice(0, 60)}: ${desc.slice(0, 80)}`);
  }
  t.diagnostic(`${Math.round(ours.peakBytes / MiB)} MiB at most`);
  assert.ok(ours.peakBytes < 1536 * MiB, `${ours.peakBytes} bytes`);
  assert.equal(await ours.quit(), 0);
});
