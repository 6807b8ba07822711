/** STARTTLS in the server's handshake, with a TLS that only says that it has begun. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError, Errno } from '../../base/errors.ts';
import { Option, OptionReply } from '../../proto/nbd/constants.ts';
import * as wire from '../../proto/nbd/option.ts';
import { ExportList } from './export-list.ts';
import { handshake, handshakeMemorySize, longestHandshakeMessage, type TlsPolicy } from './handshake.ts';
import { DEFAULT_LIMITS, type NbdLimits } from './limits.ts';
import { concat, fakeExport, ManualTimers, MemorySocket, parseReplies, plainMemory } from './testing.ts';

const MODERN = wire.encodeClientFlags(3);
const STARTTLS = wire.encodeOption(Option.STARTTLS);
const STRUCTURED = wire.encodeOption(Option.STRUCTURED_REPLY);
const EXTENDED = wire.encodeOption(Option.EXTENDED_HEADERS);
const GO = wire.encodeOption(Option.GO, wire.encodeInfoRequest('disk', []));
const CONTEXTS = wire.encodeOption(Option.SET_META_CONTEXT, wire.encodeMetaContextRequest('disk', ['base:allocation']));

interface Talk {
  /** What the client says in plain text. */
  readonly plain: readonly Uint8Array[];
  /** And once TLS has begun. */
  readonly inside?: readonly Uint8Array[];
  readonly required?: boolean;
  readonly limits?: Partial<NbdLimits>;
  /** Instead of beginning TLS. */
  readonly start?: (timers: ManualTimers) => Promise<void>;
}

/** Runs the handshake; how it ended, what was replied, and how often TLS began. */
async function converse({ plain, inside = [], required = false, limits, start }: Talk) {
  const all = { ...DEFAULT_LIMITS, ...limits };
  const exports = new ExportList(10);
  exports.add(fakeExport({ name: 'disk' }));
  const socket = new MemorySocket();
  const timers = new ManualTimers();
  let starts = 0;
  const policy: TlsPolicy = {
    required,
    async start() {
      starts++;
      await start?.(timers);
      socket.feed(concat(...inside));
      socket.end();
    },
  };
  socket.feed(concat(...plain));
  if (inside.length === 0 && !start) socket.end();
  const memory = plainMemory(handshakeMemorySize(longestHandshakeMessage(all)));
  const result = await handshake(timers.context, socket, memory, exports, all, policy);
  assert.equal(timers.armed.size, 0, 'the deadline is disarmed');
  const replies = parseReplies(socket.output).replies.map(({ option, type }) => [option, type]);
  return { result, replies, starts };
}

test('where TLS is required, every option but STARTTLS and ABORT is ERR_TLS_REQD without it', async () => {
  for (let option: number = Option.LIST; option <= 12; option++) {
    if (option === Option.STARTTLS) continue;
    const { result, replies, starts } = await converse({ plain: [MODERN, wire.encodeOption(option)], required: true });
    assert.deepEqual(replies, [[option, OptionReply.ERR_TLS_REQD]]);
    assert.ok('ended' in result);
    assert.equal(starts, 0);
  }
  const abort = await converse({ plain: [MODERN, wire.encodeOption(Option.ABORT)], required: true });
  assert.deepEqual(abort.replies, [[Option.ABORT, OptionReply.ACK]]);
  const name = wire.encodeOption(Option.EXPORT_NAME, wire.encodeString('disk'));
  const old = await converse({ plain: [MODERN, name], required: true });
  assert.ok('ended' in old.result && /without TLS/.test(old.result.ended));
  assert.deepEqual(old.replies, []);
});

test('where TLS is optional a client goes without it', async () => {
  const { result, starts } = await converse({ plain: [MODERN, GO] });
  assert.ok(!('ended' in result));
  assert.equal(starts, 0);
});

test('2021-3716 nothing that was agreed before STARTTLS survives it', async () => {
  for (const required of [false, true]) {
    const { result, replies } = await converse({
      plain: [MODERN, STRUCTURED, CONTEXTS, EXTENDED, STARTTLS],
      inside: [GO],
      required,
    });
    assert.ok(!('ended' in result), 'it goes on inside');
    assert.equal(result.structured, false);
    assert.equal(result.extended, false);
    assert.deepEqual(result.contexts, {});
    const agreed = replies.filter(([, type]) => type === OptionReply.ACK).map(([option]) => option);
    const before = [Option.STRUCTURED_REPLY, Option.SET_META_CONTEXT, Option.EXTENDED_HEADERS];
    assert.deepEqual(agreed, [...(required ? [] : before), Option.STARTTLS, Option.GO]);
  }
  const again = await converse({ plain: [MODERN, STRUCTURED, STARTTLS], inside: [STRUCTURED, CONTEXTS, GO] });
  assert.ok(!('ended' in again.result) && again.result.structured);
  assert.notEqual(again.result.contexts.baseAllocation, undefined);
});

test('2021-3716 what is sent behind STARTTLS ahead of its answer ends the connection', async () => {
  for (const behind of [GO, STRUCTURED, new Uint8Array([22])]) {
    const { result, replies, starts } = await converse({ plain: [MODERN, STARTTLS, behind] });
    assert.ok('ended' in result && /did not wait/.test(result.ended));
    assert.deepEqual(replies, []);
    assert.equal(starts, 0);
  }
});

test('a second STARTTLS, and one with data, is ERR_INVALID', async () => {
  const { result, replies, starts } = await converse({
    plain: [MODERN, wire.encodeOption(Option.STARTTLS, new Uint8Array(1)), STARTTLS],
    inside: [STRUCTURED, STARTTLS, GO],
    required: true,
  });
  assert.deepEqual(replies.slice(0, 2), [
    [Option.STARTTLS, OptionReply.ERR_INVALID],
    [Option.STARTTLS, OptionReply.ACK],
  ]);
  assert.deepEqual(replies[3], [Option.STARTTLS, OptionReply.ERR_INVALID]);
  assert.ok(!('ended' in result) && result.structured, 'a refused STARTTLS changes nothing');
  assert.equal(starts, 1);
});

test('a TLS that does not come about ends the handshake, with its reason', async () => {
  const { result } = await converse({
    plain: [MODERN, STARTTLS],
    start: async () => {
      throw new BlockError(Errno.EACCES, 'its certificate is not accepted: expired');
    },
  });
  assert.deepEqual(result, { ended: 'its certificate is not accepted: expired' });
});

test('the deadline of the handshake covers TLS, and bytes and options are counted through it', async () => {
  const { result } = await converse({
    plain: [MODERN, STARTTLS],
    start: async (timers) => {
      timers.fire();
      throw new BlockError(Errno.ECONNRESET, 'the connection has ended');
    },
  });
  assert.deepEqual(result, { ended: 'the handshake took too long' });
  const limits = { maxOptions: 3, optionsPerExport: 0 };
  const many = await converse({ plain: [MODERN, STRUCTURED, STARTTLS], inside: [STRUCTURED, CONTEXTS, GO], limits });
  assert.ok('ended' in many.result && /more than 3 options/.test(many.result.ended));
});
