/**
 * Messages of the handshake (fixed newstyle): greeting, options, option replies. Not a hot path: encoders return new
 * arrays, decoders copy what they keep. Every decoder checks the whole of its input and answers undefined, or a reason,
 * when it is malformed; none trusts a length.
 */
import {
  EXPORT_NAME_PADDING,
  GREETING_SIZE,
  INIT_MAGIC_HI,
  INIT_MAGIC_LO,
  Info,
  MAX_STRING,
  OPTION_HEADER_SIZE,
  OPTION_MAGIC_HI,
  OPTION_MAGIC_LO,
  OPTION_REPLY_HEADER_SIZE,
  OPTION_REPLY_MAGIC_HI,
  OPTION_REPLY_MAGIC_LO,
} from './constants.ts';
import { getU64, setU64 } from './words.ts';

const encoder = new TextEncoder();
// A byte order mark is a part of the name like any other character.
const strictDecoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** UTF-8. */
export function encodeString(text: string): Uint8Array {
  return encoder.encode(text);
}

/** Undefined when `bytes` are not valid UTF-8. They are copied first: shared memory may change under the decoder. */
export function decodeString(bytes: Uint8Array): string | undefined {
  try {
    return strictDecoder.decode(bytes.slice());
  } catch {
    return undefined;
  }
}

/** True when `text` can travel as an NBD string: well-formed, and at most 4096 bytes of UTF-8 with no NUL in it. */
export function isWireString(text: string): boolean {
  if (text.length > MAX_STRING || text.includes('\0')) return false;
  const bytes = encodeString(text);
  return bytes.length <= MAX_STRING && decodeString(bytes) === text;
}

/** The server's first 18 bytes; `flags` of HandshakeFlag. */
export function encodeGreeting(flags: number): Uint8Array {
  const bytes = new Uint8Array(GREETING_SIZE);
  const view = viewOf(bytes);
  view.setUint32(0, INIT_MAGIC_HI);
  view.setUint32(4, INIT_MAGIC_LO);
  view.setUint32(8, OPTION_MAGIC_HI);
  view.setUint32(12, OPTION_MAGIC_LO);
  view.setUint16(16, flags);
  return bytes;
}

/** The flags of a newstyle greeting; undefined for anything else. */
export function decodeGreeting(bytes: Uint8Array): number | undefined {
  if (bytes.length < GREETING_SIZE) return undefined;
  const view = viewOf(bytes);
  const magic = view.getUint32(0) === INIT_MAGIC_HI && view.getUint32(4) === INIT_MAGIC_LO;
  const style = view.getUint32(8) === OPTION_MAGIC_HI && view.getUint32(12) === OPTION_MAGIC_LO;
  return magic && style ? view.getUint16(16) : undefined;
}

/** The client's answer to the greeting. */
export function encodeClientFlags(flags: number): Uint8Array {
  const bytes = new Uint8Array(4);
  viewOf(bytes).setUint32(0, flags);
  return bytes;
}

export interface OptionHeader {
  readonly option: number;
  /** Bytes of payload that follow. */
  readonly length: number;
}

/** The 16 bytes at `at`; undefined when the magic is wrong (the connection cannot go on). */
export function decodeOptionHeader(view: DataView, at: number): OptionHeader | undefined {
  if (view.getUint32(at) !== OPTION_MAGIC_HI || view.getUint32(at + 4) !== OPTION_MAGIC_LO) return undefined;
  return { option: view.getUint32(at + 8), length: view.getUint32(at + 12) };
}

export function encodeOption(option: number, payload: Uint8Array = new Uint8Array(0)): Uint8Array {
  const bytes = new Uint8Array(OPTION_HEADER_SIZE + payload.length);
  const view = viewOf(bytes);
  view.setUint32(0, OPTION_MAGIC_HI);
  view.setUint32(4, OPTION_MAGIC_LO);
  view.setUint32(8, option);
  view.setUint32(12, payload.length);
  bytes.set(payload, OPTION_HEADER_SIZE);
  return bytes;
}

export interface OptionReplyHeader {
  readonly option: number;
  readonly type: number;
  readonly length: number;
}

export function encodeOptionReply(option: number, type: number, payload: Uint8Array = new Uint8Array(0)): Uint8Array {
  const bytes = new Uint8Array(OPTION_REPLY_HEADER_SIZE + payload.length);
  const view = viewOf(bytes);
  view.setUint32(0, OPTION_REPLY_MAGIC_HI);
  view.setUint32(4, OPTION_REPLY_MAGIC_LO);
  view.setUint32(8, option);
  view.setUint32(12, type);
  view.setUint32(16, payload.length);
  bytes.set(payload, OPTION_REPLY_HEADER_SIZE);
  return bytes;
}

export function decodeOptionReplyHeader(view: DataView, at: number): OptionReplyHeader | undefined {
  const magic = view.getUint32(at) === OPTION_REPLY_MAGIC_HI && view.getUint32(at + 4) === OPTION_REPLY_MAGIC_LO;
  if (!magic) return undefined;
  return { option: view.getUint32(at + 8), type: view.getUint32(at + 12), length: view.getUint32(at + 16) };
}

/** What follows EXPORT_NAME: no reply header, and 124 zeroes unless NO_ZEROES was agreed. */
export function encodeExportNameReply(size: number, flags: number, noZeroes: boolean): Uint8Array {
  const bytes = new Uint8Array(10 + (noZeroes ? 0 : EXPORT_NAME_PADDING));
  const view = viewOf(bytes);
  setU64(view, 0, size);
  view.setUint16(8, flags);
  return bytes;
}

/** Why a payload was refused. */
export type Malformed = 'invalid' | 'too-big';

// Strings are results here, so refusals are objects.
const INVALID = { why: 'invalid' } as const;
const TOO_BIG = { why: 'too-big' } as const;
type Refusal = typeof INVALID | typeof TOO_BIG;

/** A bounded walk over a payload. */
class Cursor {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = viewOf(bytes);
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  u16(): number | undefined {
    if (this.left < 2) return undefined;
    this.#at += 2;
    return this.#view.getUint16(this.#at - 2);
  }

  u32(): number | undefined {
    if (this.left < 4) return undefined;
    this.#at += 4;
    return this.#view.getUint32(this.#at - 4);
  }

  text(length: number): string | Refusal {
    if (length > this.left) return INVALID;
    if (length > MAX_STRING) return TOO_BIG;
    this.#at += length;
    return decodeString(this.#bytes.subarray(this.#at - length, this.#at)) ?? INVALID;
  }

  /** A string with a u32 length before it. */
  string(): string | Refusal {
    const length = this.u32();
    return length === undefined ? INVALID : this.text(length);
  }
}

export interface InfoRequest {
  readonly name: string;
  readonly infos: readonly number[];
}

/** INFO and GO: name length u32, name, count u16, count information types u16. */
export function encodeInfoRequest(name: string, infos: readonly number[]): Uint8Array {
  const text = encodeString(name);
  const bytes = new Uint8Array(4 + text.length + 2 + 2 * infos.length);
  const view = viewOf(bytes);
  view.setUint32(0, text.length);
  bytes.set(text, 4);
  view.setUint16(4 + text.length, infos.length);
  for (const [i, info] of infos.entries()) view.setUint16(6 + text.length + 2 * i, info);
  return bytes;
}

export function decodeInfoRequest(payload: Uint8Array): InfoRequest | Malformed {
  const cursor = new Cursor(payload);
  const name = cursor.string();
  if (typeof name !== 'string') return name.why;
  const count = cursor.u16();
  if (count === undefined || cursor.left !== 2 * count) return 'invalid';
  const infos: number[] = [];
  for (let i = 0; i < count; i++) infos.push(cursor.u16()!);
  return { name, infos };
}

/** The payload of EXPORT_NAME: the whole of it is the name. */
export function decodeExportName(payload: Uint8Array): string | undefined {
  return payload.length > MAX_STRING ? undefined : decodeString(payload);
}

export interface MetaContextRequest {
  readonly name: string;
  readonly queries: readonly string[];
}

/** LIST_META_CONTEXT and SET_META_CONTEXT: name, count u32, queries; each string with a u32 length before it. */
export function encodeMetaContextRequest(name: string, queries: readonly string[]): Uint8Array {
  const texts = [name, ...queries].map(encodeString);
  const bytes = new Uint8Array(texts.reduce((sum, text) => sum + 4 + text.length, 4));
  const view = viewOf(bytes);
  let at = 0;
  for (const [i, text] of texts.entries()) {
    view.setUint32(at, text.length);
    bytes.set(text, at + 4);
    at += 4 + text.length;
    if (i > 0) continue;
    view.setUint32(at, queries.length);
    at += 4;
  }
  return bytes;
}

export function decodeMetaContextRequest(payload: Uint8Array): MetaContextRequest | Malformed {
  const cursor = new Cursor(payload);
  const name = cursor.string();
  if (typeof name !== 'string') return name.why;
  const count = cursor.u32();
  // Each query takes 4 bytes at least, so that the count cannot promise more than is there.
  if (count === undefined || count > cursor.left / 4) return 'invalid';
  const queries: string[] = [];
  for (let i = 0; i < count; i++) {
    const query = cursor.string();
    if (typeof query !== 'string') return query.why;
    queries.push(query);
  }
  return cursor.left === 0 ? { name, queries } : 'invalid';
}

/** The payload of a META_CONTEXT reply. */
export function encodeMetaContext(id: number, name: string): Uint8Array {
  const text = encodeString(name);
  const bytes = new Uint8Array(4 + text.length);
  viewOf(bytes).setUint32(0, id);
  bytes.set(text, 4);
  return bytes;
}

export function decodeMetaContext(payload: Uint8Array): { readonly id: number; readonly name: string } | undefined {
  const cursor = new Cursor(payload);
  const id = cursor.u32();
  if (id === undefined) return undefined;
  const name = cursor.text(cursor.left);
  return typeof name === 'string' ? { id, name } : undefined;
}

/** The payload of a SERVER reply to LIST: the name with its length, then the description. */
export function encodeServer(name: string, description: string): Uint8Array {
  const text = encodeString(name);
  const more = encodeString(description);
  const bytes = new Uint8Array(4 + text.length + more.length);
  viewOf(bytes).setUint32(0, text.length);
  bytes.set(text, 4);
  bytes.set(more, 4 + text.length);
  return bytes;
}

export function decodeServer(payload: Uint8Array): { readonly name: string; readonly description: string } | undefined {
  const cursor = new Cursor(payload);
  const name = cursor.string();
  if (typeof name !== 'string') return undefined;
  const description = cursor.text(cursor.left);
  return typeof description === 'string' ? { name, description } : undefined;
}

/** INFO payload EXPORT: size in bytes and transmission flags. */
export function encodeInfoExport(size: number, flags: number): Uint8Array {
  const bytes = new Uint8Array(12);
  const view = viewOf(bytes);
  view.setUint16(0, Info.EXPORT);
  setU64(view, 2, size);
  view.setUint16(10, flags);
  return bytes;
}

/** INFO payload NAME or DESCRIPTION. */
export function encodeInfoText(type: number, text: string): Uint8Array {
  const encoded = encodeString(text);
  const bytes = new Uint8Array(2 + encoded.length);
  viewOf(bytes).setUint16(0, type);
  bytes.set(encoded, 2);
  return bytes;
}

/** INFO payload BLOCK_SIZE: minimum, preferred and maximum, in bytes. */
export function encodeInfoBlockSize(minimum: number, preferred: number, maximum: number): Uint8Array {
  const bytes = new Uint8Array(14);
  const view = viewOf(bytes);
  view.setUint16(0, Info.BLOCK_SIZE);
  view.setUint32(2, minimum);
  view.setUint32(6, preferred);
  view.setUint32(10, maximum);
  return bytes;
}

export type InfoPayload =
  | { readonly type: 'export' /** -1 when 2^53 or more. */; readonly size: number; readonly flags: number }
  | { readonly type: 'name' | 'description'; readonly text: string }
  | { readonly type: 'block-size'; readonly minimum: number; readonly preferred: number; readonly maximum: number }
  | { readonly type: 'unknown'; readonly info: number };

/** The payload of an INFO reply; undefined when it is malformed. */
export function decodeInfo(payload: Uint8Array): InfoPayload | undefined {
  if (payload.length < 2) return undefined;
  const view = viewOf(payload);
  const info = view.getUint16(0);
  switch (info) {
    case Info.EXPORT:
      if (payload.length !== 12) return undefined;
      return { type: 'export', size: getU64(view, 2), flags: view.getUint16(10) };
    case Info.NAME:
    case Info.DESCRIPTION: {
      const text = payload.length - 2 > MAX_STRING ? undefined : decodeString(payload.subarray(2));
      if (text === undefined) return undefined;
      return { type: info === Info.NAME ? 'name' : 'description', text };
    }
    case Info.BLOCK_SIZE: {
      if (payload.length !== 14) return undefined;
      const [minimum, preferred, maximum] = [view.getUint32(2), view.getUint32(6), view.getUint32(10)];
      return { type: 'block-size', minimum, preferred, maximum };
    }
    default:
      return { type: 'unknown', info };
  }
}
