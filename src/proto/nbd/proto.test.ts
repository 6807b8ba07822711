import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Errno } from '../../base/errors.ts';
import {
  Chunk,
  EXTENDED_REPLY_SIZE,
  EXTENDED_REQUEST_SIZE,
  Info,
  NbdError,
  Option,
  OptionReply,
  REQUEST_SIZE,
  SIMPLE_REPLY_SIZE,
  STRUCTURED_REPLY_SIZE,
} from './constants.ts';
import { fromNbdError, toNbdError } from './errno.ts';
import * as option from './option.ts';
import * as reply from './reply.ts';
import {
  decodeExtendedRequest,
  decodeRequest,
  encodeExtendedRequest,
  encodeRequest,
  RequestHeader,
} from './request.ts';
import { getU64, setU64 } from './words.ts';

const u16 = fc.integer({ min: 0, max: 0xffff });
const u32 = fc.integer({ min: 0, max: 0xffffffff });
const u53 = fc.maxSafeNat();
const at = fc.integer({ min: 0, max: 13 });
const name = fc.string({ unit: 'grapheme', maxLength: 64 });

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
const hex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text.replaceAll(' ', ''), 'hex'));

test('a 64-bit wire integer below 2^53 round-trips, and one from 2^53 on reads as -1', () => {
  const view = new DataView(new ArrayBuffer(24));
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 0xffff_ffff_ffff_ffffn }), at, (value, where) => {
      view.setBigUint64(where, value);
      assert.equal(getU64(view, where), value < 2n ** 53n ? Number(value) : -1);
      if (value >= 2n ** 53n) return;
      view.setBigUint64(where, 0n);
      setU64(view, where, Number(value));
      assert.equal(view.getBigUint64(where), value);
    }),
  );
  for (const value of [0n, 2n ** 32n - 1n, 2n ** 32n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
    view.setBigUint64(0, value);
    assert.equal(getU64(view, 0), value < 2n ** 53n ? Number(value) : -1);
  }
});

test('a compact request is the 28 bytes of the specification', () => {
  const bytes = hex('25609513 0001 0001 0102030405060708 0000000100000200 00001000');
  const header = new RequestHeader();
  assert.equal(decodeRequest(viewOf(bytes), 0, header), true);
  assert.deepEqual(
    { ...header },
    {
      flags: 1,
      type: 1,
      cookieHi: 0x01020304,
      cookieLo: 0x05060708,
      offset: 0x1_0000_0200,
      length: 4096,
    },
  );
  bytes[0] = 0x26;
  assert.equal(decodeRequest(viewOf(bytes), 0, header), false);
});

test('request headers round-trip, compact and extended', () => {
  const fields = fc.record(
    { flags: u16, type: u16, cookieHi: u32, cookieLo: u32, offset: u53, length: u53 },
    { noNullPrototype: true },
  );
  const view = new DataView(new ArrayBuffer(13 + EXTENDED_REQUEST_SIZE));
  const header = new RequestHeader();
  fc.assert(
    fc.property(fields, at, (value, where) => {
      encodeExtendedRequest(view, where, value);
      assert.equal(decodeExtendedRequest(view, where, header), true);
      assert.deepEqual({ ...header }, value);
      assert.equal(decodeRequest(view, where, header), false);
      const compact = { ...value, length: value.length % 2 ** 32 };
      encodeRequest(view, where, compact);
      assert.equal(decodeRequest(view, where, header), true);
      assert.deepEqual({ ...header }, compact);
      assert.equal(decodeExtendedRequest(view, where, header), false);
    }),
  );
  assert.equal(REQUEST_SIZE, 28);
});

test('an extended request with an offset or a length of 2^63 reads as -1', () => {
  const bytes = hex('21e41c71 0000 0006 0000000000000001 8000000000000000 ffffffffffffffff');
  const header = new RequestHeader();
  assert.equal(decodeExtendedRequest(viewOf(bytes), 0, header), true);
  assert.deepEqual([header.offset, header.length], [-1, -1]);
});

test('reply headers round-trip, simple, structured and extended', () => {
  const fields = fc.record({ flags: u16, type: u16, hi: u32, lo: u32, offset: u53, length: u53, error: u32 });
  const view = new DataView(new ArrayBuffer(13 + EXTENDED_REPLY_SIZE));
  const out = new reply.ReplyHeader();
  fc.assert(
    fc.property(fields, at, ({ flags, type, hi, lo, offset, length, error }, where) => {
      const cookie = { cookieHi: hi, cookieLo: lo };
      assert.equal(reply.encodeSimpleReply(view, where, error, hi, lo), SIMPLE_REPLY_SIZE);
      assert.equal(reply.decodeReply(view, where, out), SIMPLE_REPLY_SIZE);
      assert.deepEqual({ ...out }, { ...cookie, kind: 'simple', error, flags: 0, type: 0, offset: 0, length: 0 });
      const short = length % 2 ** 32;
      assert.equal(reply.encodeChunk(view, where, flags, type, hi, lo, short), STRUCTURED_REPLY_SIZE);
      assert.equal(reply.decodeReply(view, where, out), STRUCTURED_REPLY_SIZE);
      assert.deepEqual({ ...out }, { ...cookie, kind: 'structured', error: 0, flags, type, offset: 0, length: short });
      const size = reply.encodeExtendedChunk(view, where, flags, type, hi, lo, offset, length);
      assert.equal(size, EXTENDED_REPLY_SIZE);
      assert.equal(reply.decodeReply(view, where, out), EXTENDED_REPLY_SIZE);
      assert.deepEqual({ ...out }, { ...cookie, kind: 'extended', error: 0, flags, type, offset, length });
    }),
  );
  view.setUint32(0, 0x12345678);
  assert.equal(reply.decodeReply(view, 0, out), 0);
});

test('reply chunks are the bytes of the specification', () => {
  const bytes = new Uint8Array(64);
  const view = viewOf(bytes);
  let size = reply.encodeChunk(view, 0, 1, Chunk.OFFSET_HOLE, 0, 7, 12);
  size += reply.encodeOffsetHole(view, size, 0x2_0000_0000, 65536);
  const hole = '668e33ef 0001 0002 0000000000000007 0000000c 0000000200000000 00010000';
  assert.deepEqual(bytes.slice(0, size), hex(hole));
  size = reply.encodeExtendedChunk(view, 0, 1, Chunk.BLOCK_STATUS_EXT, 0, 7, 512, 24);
  size += reply.encodeBlockStatusExt(view, size, 1, 1);
  const status = '6e8a278c 0001 0006 0000000000000007 0000000000000200 0000000000000018 00000001 00000001';
  assert.deepEqual(bytes.slice(0, size), hex(status));
});

test('error payloads round-trip with and without an offset, and a message length that lies is refused', () => {
  const bytes = new Uint8Array(512);
  const view = viewOf(bytes);
  fc.assert(
    fc.property(u32, name, u53, (error, text, offset) => {
      const message = option.encodeString(text.slice(0, 40)).slice(0, 400);
      const plain = reply.encodeError(view, 0, error, message);
      assert.equal(reply.decodeErrorPayload(bytes.subarray(0, plain), false)?.error, error);
      assert.equal(reply.decodeErrorPayload(bytes.subarray(0, plain + 1), false), undefined);
      const size = reply.encodeErrorOffset(view, 0, error, message, offset);
      const decoded = reply.decodeErrorPayload(bytes.subarray(0, size), true);
      assert.deepEqual(decoded, { error, message: new TextDecoder().decode(message), offset });
      assert.equal(reply.decodeErrorPayload(bytes.subarray(0, 5), false), undefined);
    }),
  );
});

test('block status payloads round-trip in both widths; empty, cut or zero-length extents are refused', () => {
  const extent = fc.record({ length: fc.integer({ min: 1, max: 0xffffffff }), flags: u32 }, { noNullPrototype: true });
  const extents = fc.array(extent, { minLength: 1, maxLength: 20 });
  const bytes = new Uint8Array(8 + 20 * 16);
  const view = viewOf(bytes);
  fc.assert(
    fc.property(u32, extents, fc.boolean(), (contextId, list, extended) => {
      let size = extended
        ? reply.encodeBlockStatusExt(view, 0, contextId, list.length)
        : reply.encodeBlockStatus(view, 0, contextId);
      const put = extended ? reply.encodeExtentExt : reply.encodeExtent;
      for (const extent of list) size += put(view, size, extent.length, extent.flags);
      const payload = bytes.subarray(0, size);
      assert.deepEqual(reply.decodeStatusPayload(payload, extended), { contextId, extents: list });
      assert.equal(reply.decodeStatusPayload(payload.subarray(0, size - 1), extended), undefined);
      // The beginning of a payload that says more.
      const part = payload.subarray(0, extended ? 24 : 12);
      const first = { contextId, extents: list.slice(0, 1) };
      assert.deepEqual(reply.decodeStatusPayload(part, extended, size), first);
      assert.equal(reply.decodeStatusPayload(part, extended, size + 1), undefined);
      assert.equal(reply.decodeStatusPayload(payload.subarray(0, extended ? 8 : 4), extended), undefined);
      put(view, extended ? 8 : 4, 0, 0);
      assert.equal(reply.decodeStatusPayload(payload, extended), undefined);
    }),
  );
});

test('every errno becomes one of the eight NBD errors, and those come back as themselves', () => {
  const known: number[] = Object.values(NbdError);
  for (const errno of Object.values(Errno)) {
    assert.ok(known.includes(toNbdError(errno)), `errno ${errno}`);
    assert.equal(toNbdError(-errno), toNbdError(errno));
  }
  for (const error of known) assert.equal(toNbdError(fromNbdError(error)), error);
  assert.equal(toNbdError(0), 0);
  assert.equal(fromNbdError(0), 0);
  assert.equal(toNbdError(Errno.EROFS), NbdError.EPERM);
  assert.equal(toNbdError(Errno.EFBIG), NbdError.ENOSPC);
  assert.equal(toNbdError(122), NbdError.ENOSPC);
  assert.equal(toNbdError(Errno.ECONNRESET), NbdError.EIO);
  assert.equal(fromNbdError(4711), Errno.EINVAL);
});

test('handshake messages round-trip', () => {
  assert.deepEqual(option.encodeGreeting(3), hex('4e42444d41474943 49484156454f5054 0003'));
  assert.equal(option.decodeGreeting(option.encodeGreeting(3)), 3);
  assert.equal(option.decodeGreeting(hex('4e42444d41474943 00420281861253 0000000000')), undefined);
  assert.deepEqual(option.encodeClientFlags(2), hex('00000002'));
  fc.assert(
    fc.property(
      name,
      fc.array(name, { maxLength: 6 }),
      fc.array(u16, { maxLength: 9 }),
      u32,
      (text, list, infos, n) => {
        const header = option.encodeOption(n, option.encodeString(text));
        assert.deepEqual(option.decodeOptionHeader(viewOf(header), 0), { option: n, length: header.length - 16 });
        const answer = option.encodeOptionReply(n, OptionReply.ERR_UNKNOWN, option.encodeString(text));
        const decoded = option.decodeOptionReplyHeader(viewOf(answer), 0);
        assert.deepEqual(decoded, { option: n, type: OptionReply.ERR_UNKNOWN, length: answer.length - 20 });
        assert.deepEqual(option.decodeInfoRequest(option.encodeInfoRequest(text, infos)), { name: text, infos });
        const meta = option.encodeMetaContextRequest(text, list);
        assert.deepEqual(option.decodeMetaContextRequest(meta), { name: text, queries: list });
        assert.deepEqual(option.decodeMetaContext(option.encodeMetaContext(n, text)), { id: n, name: text });
        const server = option.encodeServer(text, list.join(''));
        assert.deepEqual(option.decodeServer(server), { name: text, description: list.join('') });
      },
    ),
  );
});

test('information payloads round-trip', () => {
  fc.assert(
    fc.property(u53, u16, name, u32, (size, flags, text, n) => {
      assert.deepEqual(option.decodeInfo(option.encodeInfoExport(size, flags)), { type: 'export', size, flags });
      assert.deepEqual(option.decodeInfo(option.encodeInfoText(Info.NAME, text)), { type: 'name', text });
      assert.deepEqual(option.decodeInfo(option.encodeInfoBlockSize(1, n, 7)), {
        type: 'block-size',
        minimum: 1,
        preferred: n,
        maximum: 7,
      });
    }),
  );
  assert.deepEqual(option.decodeInfo(hex('0009 01')), { type: 'unknown', info: 9 });
  assert.equal(option.decodeInfo(hex('0000 0000')), undefined);
  assert.equal(option.decodeInfo(hex('00')), undefined);
  assert.deepEqual(option.encodeExportNameReply(1024, 0x0123, true), hex('0000000000000400 0123'));
  assert.equal(option.encodeExportNameReply(1024, 0x0123, false).length, 134);
});

test('2022-26495 2022-26496 a name length beyond the payload is refused, up to 0xffffffff', () => {
  for (const length of ['ffffffff', 'fffffffe', '80000000', '00000004']) {
    assert.equal(option.decodeInfoRequest(hex(`${length} 616263`)), 'invalid');
    assert.equal(option.decodeMetaContextRequest(hex(`${length} 616263`)), 'invalid');
    assert.equal(option.decodeServer(hex(`${length} 616263`)), undefined);
  }
  assert.equal(option.decodeMetaContextRequest(hex('00000000 ffffffff')), 'invalid');
  assert.equal(option.decodeMetaContextRequest(hex('00000000 00000001 ffffffff')), 'invalid');
});

test('2017-15118 names of 257 to 4096 bytes are read, and longer ones are too big', () => {
  for (const length of [257, 4095, 4096]) {
    const request = option.decodeInfoRequest(option.encodeInfoRequest('x'.repeat(length), []));
    assert.equal(typeof request === 'object' && request.name.length, length);
  }
  const long = 'x'.repeat(4097);
  assert.equal(option.decodeInfoRequest(option.encodeInfoRequest(long, [])), 'too-big');
  assert.equal(option.decodeMetaContextRequest(option.encodeMetaContextRequest('', [long])), 'too-big');
  assert.equal(option.decodeExportName(option.encodeString(long)), undefined);
  assert.equal(option.isWireString(long), false);
  assert.equal(option.isWireString('\ud800'), false);
  assert.equal(option.isWireString('a\0b'), false);
  assert.equal(option.isWireString('\ufeffdisk é'), true);
});

test('text that is not UTF-8 is refused, and a byte order mark is kept', () => {
  assert.equal(option.decodeString(hex('ff')), undefined);
  assert.equal(option.decodeString(hex('eda080')), undefined);
  assert.equal(option.decodeString(hex('efbbbf61')), '\ufeffa');
  assert.equal(option.decodeInfoRequest(hex('00000001 ff 0000')), 'invalid');
});

test('no payload, however malformed, makes a decoder throw', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      option.decodeInfoRequest(bytes);
      option.decodeMetaContextRequest(bytes);
      option.decodeMetaContext(bytes);
      option.decodeServer(bytes);
      option.decodeInfo(bytes);
      option.decodeExportName(bytes);
      option.decodeGreeting(bytes);
      reply.decodeErrorPayload(bytes, true);
      reply.decodeStatusPayload(bytes, true);
      reply.decodeStatusPayload(bytes, false);
    }),
    { numRuns: 2000 },
  );
  assert.equal(Option.EXTENDED_HEADERS, 11);
});
