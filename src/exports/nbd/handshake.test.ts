import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Info, Option, OptionReply, TransmissionFlag } from '../../proto/nbd/constants.ts';
import * as wire from '../../proto/nbd/option.ts';
import { ExportList, type NbdExport } from './export-list.ts';
import {
  type HandshakeEnd,
  handshake,
  handshakeMemorySize,
  longestHandshakeMessage,
  type Negotiated,
} from './handshake.ts';
import { DEFAULT_LIMITS, type NbdLimits } from './limits.ts';
import { concat, fakeExport, ManualTimers, MemorySocket, parseReplies, plainMemory } from './testing.ts';

const hex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text.replaceAll(' ', ''), 'hex'));
const FIXED = wire.encodeClientFlags(1);
const MODERN = wire.encodeClientFlags(3);
const GREETING = hex('4e42444d41474943 49484156454f5054 0003');
const WRITABLE_FLAGS = 0x0d6d;

function directory(...entries: NbdExport[]): ExportList {
  const list = new ExportList(10_000);
  for (const entry of entries) list.add(entry);
  return list;
}

const DISK = directory(fakeExport({ name: 'disk', description: 'a disk' }));

interface Outcome {
  readonly result: Negotiated | HandshakeEnd;
  readonly socket: MemorySocket;
}

/** Runs a handshake in which the client says `input`, in pieces, and then leaves. */
async function converse(
  input: Uint8Array,
  exports = DISK,
  limits: Partial<NbdLimits> = {},
  piece?: number,
): Promise<Outcome> {
  const all = { ...DEFAULT_LIMITS, ...limits };
  const socket = new MemorySocket(piece);
  socket.feed(input);
  socket.end();
  const memory = plainMemory(handshakeMemorySize(longestHandshakeMessage(all)));
  const timers = new ManualTimers();
  const result = await handshake(timers.context, socket, memory, exports, all);
  assert.equal(timers.armed.size, 0, 'the deadline is disarmed');
  assert.equal(socket.busy, false, 'nothing is pending');
  return { result, socket };
}

function negotiated({ result }: Outcome): Negotiated {
  assert.ok(!('ended' in result), 'ended' in result ? result.ended : '');
  return result;
}

function ended({ result }: Outcome): string {
  assert.ok('ended' in result, 'the handshake succeeded');
  return result.ended;
}

/** [option, type] of each reply. */
const kinds = ({ socket }: Outcome): [number, number][] =>
  parseReplies(socket.output).replies.map(({ option, type }) => [option, type]);

const go = (name: string, infos: readonly number[] = []): Uint8Array =>
  wire.encodeOption(Option.GO, wire.encodeInfoRequest(name, infos));
const info = (name: string, infos: readonly number[] = []): Uint8Array =>
  wire.encodeOption(Option.INFO, wire.encodeInfoRequest(name, infos));
const meta = (option: number, name: string, ...queries: string[]): Uint8Array =>
  wire.encodeOption(option, wire.encodeMetaContextRequest(name, queries));
const STRUCTURED = wire.encodeOption(Option.STRUCTURED_REPLY);
const EXTENDED = wire.encodeOption(Option.EXTENDED_HEADERS);
const ABORT = wire.encodeOption(Option.ABORT);

test('EXPORT_NAME is answered with size, flags and 124 zeroes, byte for byte', async () => {
  const outcome = await converse(concat(FIXED, hex('49484156454f5054 00000001 00000004 6469736b')));
  assert.equal(negotiated(outcome).exportName, 'disk');
  const answer = concat(GREETING, hex('0000000000100000 0d6d'), new Uint8Array(124));
  assert.deepEqual(outcome.socket.output, answer);
});

test('EXPORT_NAME is answered without the zeroes after NO_ZEROES, and in the old style too', async () => {
  const name = wire.encodeOption(Option.EXPORT_NAME, wire.encodeString('disk'));
  const short = concat(GREETING, hex('0000000000100000 0d6d'));
  assert.deepEqual((await converse(concat(MODERN, name))).socket.output, short);
  const old = await converse(concat(wire.encodeClientFlags(0), name));
  assert.deepEqual(old.socket.output, concat(short, new Uint8Array(124)));
  const strange = await converse(concat(wire.encodeClientFlags(0), ABORT));
  assert.match(ended(strange), /old style/);
});

test('2011-1925 an unknown export name ends EXPORT_NAME, and is ERR_UNKNOWN for GO, which may try again', async () => {
  for (const name of ['', 'dis', 'disk2', 'DISK', '__proto__', 'constructor', 'disk\0']) {
    const named = await converse(concat(MODERN, wire.encodeOption(Option.EXPORT_NAME, wire.encodeString(name))));
    assert.match(ended(named), /not there/);
    assert.deepEqual(named.socket.output, GREETING);
    const outcome = await converse(concat(MODERN, go(name), go('disk')));
    assert.equal(negotiated(outcome).exportName, 'disk');
    assert.deepEqual(kinds(outcome)[0], [Option.GO, OptionReply.ERR_UNKNOWN]);
  }
});

/** The bytes that a text of hex digits stands for, as a u32 in hex. */
function hexLength(payload: string): string {
  return (payload.replaceAll(' ', '').length / 2).toString(16).padStart(8, '0');
}

test('GO answers block sizes, size and flags, then ACK, byte for byte', async () => {
  const outcome = await converse(concat(MODERN, go('disk')));
  const reply = (type: string, payload: string): Uint8Array =>
    hex(`0003e889045565a9 00000007 ${type} ${hexLength(payload)} ${payload}`);
  const expected = concat(
    GREETING,
    reply('00000003', '0003 00000001 00001000 02000000'),
    reply('00000003', '0000 0000000000100000 0d6d'),
    reply('00000001', ''),
  );
  assert.deepEqual(outcome.socket.output, expected);
  const { structured, extended, contexts, buffered } = negotiated(outcome);
  assert.deepEqual({ structured, extended, contexts }, { structured: false, extended: false, contexts: {} });
  assert.equal(buffered.length, 0);
});

test('INFO answers what was asked for, once, and does not enter the transmission phase', async () => {
  const ask = [Info.DESCRIPTION, Info.NAME, Info.NAME, 4711, Info.EXPORT, Info.BLOCK_SIZE];
  const outcome = await converse(concat(MODERN, info('disk', ask), ABORT));
  const { replies } = parseReplies(outcome.socket.output);
  const infos = replies.filter(({ type }) => type === OptionReply.INFO).map(({ payload }) => wire.decodeInfo(payload));
  assert.deepEqual(infos, [
    { type: 'name', text: 'disk' },
    { type: 'description', text: 'a disk' },
    { type: 'block-size', minimum: 1, preferred: 4096, maximum: 32 << 20 },
    { type: 'export', size: 1 << 20, flags: WRITABLE_FLAGS },
  ]);
  assert.deepEqual(kinds(outcome).slice(-2), [
    [Option.INFO, OptionReply.ACK],
    [Option.ABORT, OptionReply.ACK],
  ]);
  assert.match(ended(outcome), /aborted/);
});

test('what a client has sent after GO is handed on', async () => {
  const more = hex('25609513 00000002');
  for (const piece of [1, 7, 1000]) {
    const { buffered } = negotiated(await converse(concat(MODERN, go('disk'), more), DISK, {}, piece));
    assert.deepEqual(buffered, more.subarray(0, buffered.length));
    if (piece === 1000) assert.equal(buffered.length, more.length);
  }
});

test('transmission flags say what an export allows', async () => {
  const flagsOf = async (entry: NbdExport, ...before: Uint8Array[]): Promise<number> => {
    const outcome = await converse(concat(MODERN, ...before, go('')), directory(entry));
    const { replies } = parseReplies(outcome.socket.output);
    for (const { type, payload } of replies) {
      const decoded = type === OptionReply.INFO ? wire.decodeInfo(payload) : undefined;
      if (decoded?.type === 'export') return decoded.flags;
    }
    assert.fail('no EXPORT information');
  };
  const T = TransmissionFlag;
  assert.equal(await flagsOf(fakeExport()), WRITABLE_FLAGS);
  assert.equal(await flagsOf(fakeExport(), STRUCTURED), WRITABLE_FLAGS | T.SEND_DF);
  assert.equal(await flagsOf(fakeExport(), EXTENDED), WRITABLE_FLAGS | T.SEND_DF);
  const readOnly = T.HAS_FLAGS | T.READ_ONLY | T.SEND_FLUSH | T.SEND_FUA | T.CAN_MULTI_CONN | T.SEND_CACHE;
  assert.equal(await flagsOf(fakeExport({ writable: false })), readOnly);
  assert.equal(await flagsOf(fakeExport({ multiConn: false })), WRITABLE_FLAGS & ~T.CAN_MULTI_CONN);
});

test('block sizes are powers of two, and the size is a multiple of the smallest', async () => {
  const sizes = async (size: number, alignment: number, optimal: number): Promise<number[]> => {
    const outcome = await converse(concat(MODERN, go('')), directory(fakeExport({ size, alignment, optimal })));
    const decoded = wire.decodeInfo(parseReplies(outcome.socket.output).replies[0]!.payload);
    assert.ok(decoded?.type === 'block-size');
    return [decoded.minimum, decoded.preferred, decoded.maximum];
  };
  assert.deepEqual(await sizes(1 << 20, 512, 65536), [512, 65536, 32 << 20]);
  assert.deepEqual(await sizes(1000, 512, 0), [8, 4096, 32 << 20]);
  assert.deepEqual(await sizes(0, 4096, 3 << 20), [4096, 4 << 20, 32 << 20]);
  assert.deepEqual(await sizes(2 ** 52 + 1, 4096, 4096), [1, 4096, 32 << 20]);
});

test('LIST gives all exports with their descriptions, however many, and takes no data', async () => {
  const entries = Array.from({ length: 300 }, (_, i) =>
    fakeExport({ name: `export ${i} ${'é'.repeat(i)}`, description: i % 2 ? 'd'.repeat(i) : '' }),
  );
  const outcome = await converse(concat(MODERN, wire.encodeOption(Option.LIST), ABORT), directory(...entries));
  const { replies } = parseReplies(outcome.socket.output);
  const listed = replies.filter(({ type }) => type === OptionReply.SERVER);
  assert.deepEqual(
    listed.map(({ payload }) => wire.decodeServer(payload)),
    entries.map(({ name, description }) => ({ name, description })),
  );
  assert.deepEqual(kinds(outcome).slice(-2), [
    [Option.LIST, OptionReply.ACK],
    [Option.ABORT, OptionReply.ACK],
  ]);
  for (const option of [Option.LIST, Option.STARTTLS, Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS]) {
    const refused = await converse(concat(MODERN, wire.encodeOption(option, hex('00')), go('disk')));
    assert.deepEqual(kinds(refused)[0], [option, OptionReply.ERR_INVALID]);
    assert.equal(negotiated(refused).structured, false);
  }
});

test('2017-15118 2020-10761 names of 4096 bytes work everywhere, and no error reply grows with them', async () => {
  const name = 'x'.repeat(4096);
  const exports = directory(fakeExport({ name, description: 'y'.repeat(4096) }));
  const list = wire.encodeOption(Option.LIST);
  const outcome = await converse(concat(MODERN, list, info(name, [Info.NAME, Info.DESCRIPTION]), go(name)), exports);
  assert.equal(negotiated(outcome).exportName, name);
  for (const length of [256, 257, 4095, 4096]) {
    const unknown = 'z'.repeat(length);
    const set = meta(Option.SET_META_CONTEXT, unknown, unknown);
    const refused = await converse(concat(MODERN, STRUCTURED, go(unknown), info(unknown), set));
    for (const { type, payload } of parseReplies(refused.socket.output).replies.slice(1)) {
      assert.equal(type, OptionReply.ERR_UNKNOWN);
      assert.ok(payload.length < 100);
    }
    assert.equal(kinds(refused).length, 4);
  }
  const long = 'x'.repeat(4097);
  const refused = await converse(concat(MODERN, go(long), meta(Option.LIST_META_CONTEXT, long), ABORT));
  const types = kinds(refused).map(([, type]) => type);
  assert.deepEqual(types, [OptionReply.ERR_TOO_BIG, OptionReply.ERR_TOO_BIG, OptionReply.ACK]);
  const named = await converse(concat(MODERN, wire.encodeOption(Option.EXPORT_NAME, wire.encodeString(long))));
  assert.deepEqual(named.socket.output, GREETING);
});

test('2022-26495 2022-26496 a name length that lies is ERR_INVALID, and negotiation goes on', async () => {
  for (const length of ['ffffffff', '7fffffff', '00000005', '00000003']) {
    const outcome = await converse(
      concat(MODERN, wire.encodeOption(Option.GO, hex(`${length} 6469736b 0000`)), go('disk')),
    );
    assert.equal(negotiated(outcome).exportName, 'disk');
    assert.deepEqual(kinds(outcome)[0], [Option.GO, OptionReply.ERR_INVALID]);
  }
});

test('metadata contexts are listed with wildcards and chosen by full names', async () => {
  const exports = directory(fakeExport({ name: 'disk', allocationDepth: true }), fakeExport({ name: 'plain' }));
  const listOf = async (name: string, ...queries: string[]): Promise<string[]> => {
    const outcome = await converse(concat(MODERN, meta(Option.LIST_META_CONTEXT, name, ...queries), ABORT), exports);
    const { replies } = parseReplies(outcome.socket.output);
    assert.equal(replies.at(-2)!.type, OptionReply.ACK);
    return replies.slice(0, -2).map(({ payload }) => {
      const context = wire.decodeMetaContext(payload)!;
      assert.equal(context.id, 0);
      return context.name;
    });
  };
  assert.deepEqual(await listOf('disk'), ['base:allocation', 'qemu:allocation-depth']);
  assert.deepEqual(await listOf('plain'), ['base:allocation']);
  assert.deepEqual(await listOf('disk', 'qemu:'), ['qemu:allocation-depth']);
  assert.deepEqual(await listOf('plain', 'qemu:'), []);
  assert.deepEqual(await listOf('disk', 'base:', 'base:allocation'), ['base:allocation']);
  assert.deepEqual(await listOf('disk', 'x-mine:all', 'base:alloc', ':'), []);

  const chosen = async (...options: Uint8Array[]): Promise<Negotiated['contexts']> =>
    negotiated(await converse(concat(MODERN, STRUCTURED, ...options, go('disk')), exports)).contexts;
  const set = (name: string, ...queries: string[]): Uint8Array => meta(Option.SET_META_CONTEXT, name, ...queries);
  const both = ['qemu:allocation-depth', 'base:allocation'];
  assert.deepEqual(await chosen(set('disk', ...both)), { baseAllocation: 1, allocationDepth: 2 });
  assert.deepEqual(await chosen(set('disk', 'base:', 'qemu:')), {}, 'wildcards choose nothing');
  assert.deepEqual(await chosen(set('disk')), {}, 'no query chooses nothing');
  assert.deepEqual(await chosen(set('disk', ...both), set('disk', both[0]!)), { allocationDepth: 2 }, 'the last wins');
  assert.deepEqual(await chosen(set('plain', 'base:allocation')), {}, 'chosen for another export');
  assert.deepEqual(await chosen(set('disk', ...both), set('nosuch')), {}, 'a failed choice leaves none');
  assert.deepEqual(await chosen(set('disk', ...both), set('disk', 'base')), {}, 'a query without a namespace');
});

test('dirty bitmaps are contexts of their own, behind the others', async () => {
  const names = ['a', 'qemu:dirty-bitmap:a', 'ü'];
  const bitmaps = { names, edges: () => [], release: () => undefined };
  const exports = directory(
    fakeExport({ name: 'disk', allocationDepth: true, bitmaps }),
    fakeExport({ name: 'plain' }),
  );
  const all = names.map((name) => `qemu:dirty-bitmap:${name}`);
  const listOf = async (...queries: string[]): Promise<string[]> => {
    const { socket } = await converse(
      concat(MODERN, meta(Option.LIST_META_CONTEXT, 'disk', ...queries), ABORT),
      exports,
    );
    const { replies } = parseReplies(socket.output);
    return replies.slice(0, -2).map(({ payload }) => wire.decodeMetaContext(payload)!.name);
  };
  assert.deepEqual(await listOf(), ['base:allocation', 'qemu:allocation-depth', ...all]);
  assert.deepEqual(await listOf('qemu:'), ['qemu:allocation-depth', ...all]);
  assert.deepEqual(await listOf('qemu:dirty-bitmap:'), all);
  assert.deepEqual(await listOf('qemu:dirty-bitmap:ü'), [all[2]]);
  assert.deepEqual(await listOf('qemu:dirty-bitmap:b', 'qemu:dirty'), []);
  const chosen = async (...queries: string[]): Promise<Negotiated['contexts']> => {
    const choice = meta(Option.SET_META_CONTEXT, 'disk', ...queries);
    return negotiated(await converse(concat(MODERN, STRUCTURED, choice, go('disk')), exports)).contexts;
  };
  assert.deepEqual(await chosen(all[2]!, all[0]!), {
    bitmaps: [
      { id: 3, index: 0 },
      { id: 5, index: 2 },
    ],
  });
  assert.deepEqual(await chosen('qemu:dirty-bitmap:', 'qemu:'), {}, 'wildcards choose nothing');
});

test('the ids of chosen contexts are those the client was told', async () => {
  const choice = meta(Option.SET_META_CONTEXT, 'disk', 'base:allocation', 'base:allocation');
  const outcome = await converse(concat(MODERN, EXTENDED, choice, go('disk')));
  const told = parseReplies(outcome.socket.output).replies.filter(({ type }) => type === OptionReply.META_CONTEXT);
  assert.deepEqual(
    told.map(({ payload }) => wire.decodeMetaContext(payload)),
    [{ id: negotiated(outcome).contexts.baseAllocation, name: 'base:allocation' }],
  );
});

test('choosing contexts needs structured replies first', async () => {
  const choice = meta(Option.SET_META_CONTEXT, 'disk', 'base:allocation');
  const outcome = await converse(concat(MODERN, choice, STRUCTURED, go('disk')));
  assert.deepEqual(kinds(outcome)[0], [Option.SET_META_CONTEXT, OptionReply.ERR_INVALID]);
  assert.deepEqual(negotiated(outcome).contexts, {});
});

test('structured replies and extended headers are agreed once, and extended implies structured', async () => {
  const plain = await converse(concat(MODERN, STRUCTURED, STRUCTURED, go('disk')));
  assert.deepEqual(kinds(plain).slice(0, 2), [
    [Option.STRUCTURED_REPLY, OptionReply.ACK],
    [Option.STRUCTURED_REPLY, OptionReply.ERR_INVALID],
  ]);
  assert.deepEqual([negotiated(plain).structured, negotiated(plain).extended], [true, false]);
  const outcome = await converse(concat(MODERN, EXTENDED, EXTENDED, STRUCTURED, go('disk')));
  assert.deepEqual(kinds(outcome).slice(0, 3), [
    [Option.EXTENDED_HEADERS, OptionReply.ACK],
    [Option.EXTENDED_HEADERS, OptionReply.ERR_INVALID],
    [Option.STRUCTURED_REPLY, OptionReply.ERR_EXT_HEADER_REQD],
  ]);
  assert.deepEqual([negotiated(outcome).structured, negotiated(outcome).extended], [true, true]);
  const named = wire.encodeOption(Option.EXPORT_NAME, wire.encodeString('disk'));
  assert.match(ended(await converse(concat(MODERN, EXTENDED, named))), /EXTENDED_HEADERS/);
});

test('unknown options and STARTTLS are ERR_UNSUP, and negotiation goes on', async () => {
  const tls = wire.encodeOption(Option.STARTTLS);
  const strange = [0, Option.PEEK_EXPORT, 12, 0xffffffff].map((n) => wire.encodeOption(n, new Uint8Array(100)));
  const outcome = await converse(concat(MODERN, tls, ...strange, go('disk')));
  assert.equal(negotiated(outcome).exportName, 'disk');
  for (const [, type] of kinds(outcome).slice(0, 5)) assert.equal(type, OptionReply.ERR_UNSUP);
});

test('2017-15119 options that are too long are skipped, then too many bytes end the handshake', async () => {
  const limits = { maxOptionBytes: 1000, maxHandshakeBytes: 10_000 };
  const big = wire.encodeOption(99, new Uint8Array(5000));
  const outcome = await converse(concat(MODERN, big, go('disk')), DISK, limits, 333);
  assert.equal(negotiated(outcome).exportName, 'disk');
  assert.deepEqual(kinds(outcome)[0], [99, OptionReply.ERR_TOO_BIG]);
  assert.match(ended(await converse(concat(MODERN, big, big, go('disk')), DISK, limits, 333)), /10000 bytes/);
  const huge = hex('49484156454f5054 00000063 ffffffff');
  assert.match(ended(await converse(concat(MODERN, huge))), /more than \d+ bytes/);
  const name = hex('49484156454f5054 00000001 00020000');
  assert.match(ended(await converse(concat(MODERN, name))), /too long/);
});

test('2017-15119 a flood of options ends at the limit, which grows with the exports', async () => {
  const flood = concat(MODERN, ...Array.from({ length: 50 }, () => wire.encodeOption(99)));
  const outcome = await converse(flood, DISK, { maxOptions: 10, optionsPerExport: 2 }, 16);
  assert.match(ended(outcome), /more than 12 options/);
  assert.equal(kinds(outcome).length, 12);
});

test('a wrong magic number or unknown client flags end the handshake', async () => {
  assert.match(ended(await converse(concat(MODERN, hex('49484156454f5055 00000002 00000000')))), /magic/);
  for (const flags of ['00000004', '80000000', 'ffffffff']) {
    const outcome = await converse(concat(hex(flags), go('disk')));
    assert.match(ended(outcome), /client flags/);
    assert.deepEqual(outcome.socket.output, GREETING);
  }
});

test('2013-7441 a client that leaves at any byte of a handshake ends it, and nothing stays pending', async () => {
  const list = wire.encodeOption(Option.LIST);
  const choice = meta(Option.SET_META_CONTEXT, 'disk', 'base:allocation');
  const whole = concat(MODERN, list, STRUCTURED, choice, go('disk'));
  for (let cut = 0; cut < whole.length; cut++) {
    assert.match(ended(await converse(whole.subarray(0, cut))), /left|could not/);
  }
  negotiated(await converse(whole, DISK, {}, 1));
});

test('a handshake that takes too long is cut at each of its waits, a blocked send among them', async () => {
  const memory = (): ReturnType<typeof plainMemory> => {
    return plainMemory(handshakeMemorySize(longestHandshakeMessage(DEFAULT_LIMITS)));
  };
  const many = directory(...Array.from({ length: 100 }, (_, i) => fakeExport({ name: `${i} ${'x'.repeat(1000)}` })));
  const part = concat(MODERN, wire.encodeOption(Option.LIST).subarray(0, 9));
  const cases: [MemorySocket, Uint8Array][] = [
    [new MemorySocket(), new Uint8Array(0)],
    [new MemorySocket(), part],
    [new MemorySocket(1e9, 0), MODERN],
    [new MemorySocket(1e9, 20_000), concat(MODERN, wire.encodeOption(Option.LIST))],
  ];
  for (const [socket, input] of cases) {
    const timers = new ManualTimers();
    socket.feed(input);
    const running = handshake(timers.context, socket, memory(), many, DEFAULT_LIMITS);
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(socket.busy, true);
    timers.fire();
    assert.deepEqual(await running, { ended: 'the handshake took too long' });
    assert.equal(socket.shut, true);
    assert.equal(socket.busy, false);
  }
});

test('row 10: no stream of options, however malformed, does anything but end or be answered', async () => {
  const name = fc.oneof(fc.constantFrom('', 'disk', 'nosuch'), fc.string({ maxLength: 20 }));
  const payload = fc.oneof(
    fc.uint8Array({ maxLength: 80 }),
    name.map(wire.encodeString),
    fc.tuple(name, fc.array(fc.integer({ min: 0, max: 9 }))).map(([n, infos]) => wire.encodeInfoRequest(n, infos)),
    fc
      .tuple(name, fc.array(fc.constantFrom('base:', 'base:allocation', 'qemu:', 'x', 'x-y:z'), { maxLength: 4 }))
      .map(([n, queries]) => wire.encodeMetaContextRequest(n, queries)),
  );
  const number = fc.oneof({ weight: 5, arbitrary: fc.integer({ min: 1, max: 11 }) }, fc.integer({ min: 0 }));
  const option = fc.oneof(
    { weight: 9, arbitrary: fc.tuple(number, payload).map(([n, bytes]) => wire.encodeOption(n, bytes)) },
    fc.uint8Array({ maxLength: 40 }),
  );
  const stream = fc.tuple(fc.constantFrom(FIXED, MODERN), fc.array(option, { maxLength: 8 }));
  await fc.assert(
    fc.asyncProperty(stream, fc.integer({ min: 1, max: 64 }), async ([flags, options], piece) => {
      const limits = { maxOptionBytes: 64, maxHandshakeBytes: 2000 };
      const outcome = await converse(concat(flags, ...options), DISK, limits, piece);
      const { replies, rest } = parseReplies(outcome.socket.output);
      for (const { type, payload: text } of replies) if (type > 0x80000000) assert.ok(wire.decodeString(text));
      const named = !('ended' in outcome.result) && rest.length > 0;
      assert.equal(rest.length, named ? (flags === MODERN ? 10 : 134) : 0, 'replies are whole');
    }),
    { numRuns: 1500 },
  );
});

test('an export list refuses names that are taken, do not fit or cannot travel', () => {
  const list = new ExportList(2);
  list.add(fakeExport({ name: 'a' }));
  assert.throws(() => list.add(fakeExport({ name: 'a' })), { code: 'EEXIST' });
  assert.throws(() => list.add(fakeExport({ name: '\ud800' })), { code: 'EINVAL' });
  assert.throws(() => list.add(fakeExport({ name: 'b', description: 'é'.repeat(2049) })), { code: 'EINVAL' });
  list.add(fakeExport({ name: '__proto__' }));
  assert.throws(() => list.add(fakeExport({ name: 'c' })), { code: 'ENOSPC' });
  assert.equal(list.find('constructor'), undefined);
  assert.equal(list.remove('a'), true);
  assert.equal(list.remove('a'), false);
});
