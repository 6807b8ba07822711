/**
 * Replies of the transmission phase. Encoders write at an offset of a DataView and return the bytes written; nothing is
 * allocated. A chunk is a header, then a payload whose length the header carries:
 *
 *     simple      0 magic u32 | 4 error u32 | 8 cookie u64
 *     structured  0 magic u32 | 4 flags u16 | 6 type u16 | 8 cookie u64 | 16 length u32
 *     extended    0 magic u32 | 4 flags u16 | 6 type u16 | 8 cookie u64 | 16 offset u64 | 24 length u64
 *
 * `offset` of an extended header repeats the request's. The sizes of payload prefixes: see the constants below.
 */
import {
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REPLY_SIZE,
  SIMPLE_REPLY_MAGIC,
  SIMPLE_REPLY_SIZE,
  STRUCTURED_REPLY_MAGIC,
  STRUCTURED_REPLY_SIZE,
} from './constants.ts';
import { getU64, setU64 } from './words.ts';

/** OFFSET_DATA's payload before the data: the offset. */
export const OFFSET_DATA_PREFIX = 8;
/** OFFSET_HOLE's whole payload: offset u64, size u32. */
export const OFFSET_HOLE_SIZE = 12;
/** ERROR's payload before the message: error u32, message length u16. */
export const ERROR_PREFIX = 6;
/** ERROR_OFFSET's payload after the message. */
export const ERROR_OFFSET_SUFFIX = 8;
/** BLOCK_STATUS: context id u32, then extents {length u32, flags u32}. */
export const BLOCK_STATUS_PREFIX = 4;
export const EXTENT_SIZE = 8;
/** BLOCK_STATUS_EXT: context id u32, count u32, then extents {length u64, flags u64}. */
export const BLOCK_STATUS_EXT_PREFIX = 8;
export const EXTENT_EXT_SIZE = 16;

export function encodeSimpleReply(
  view: DataView,
  at: number,
  error: number,
  cookieHi: number,
  cookieLo: number,
): number {
  view.setUint32(at, SIMPLE_REPLY_MAGIC);
  view.setUint32(at + 4, error);
  view.setUint32(at + 8, cookieHi);
  view.setUint32(at + 12, cookieLo);
  return SIMPLE_REPLY_SIZE;
}

/** A structured chunk's header; `length` is the payload's, in bytes. */
export function encodeChunk(
  view: DataView,
  at: number,
  flags: number,
  type: number,
  cookieHi: number,
  cookieLo: number,
  length: number,
): number {
  view.setUint32(at, STRUCTURED_REPLY_MAGIC);
  view.setUint16(at + 4, flags);
  view.setUint16(at + 6, type);
  view.setUint32(at + 8, cookieHi);
  view.setUint32(at + 12, cookieLo);
  view.setUint32(at + 16, length);
  return STRUCTURED_REPLY_SIZE;
}

/** An extended chunk's header; `offset` is the request's, `length` the payload's, in bytes. */
export function encodeExtendedChunk(
  view: DataView,
  at: number,
  flags: number,
  type: number,
  cookieHi: number,
  cookieLo: number,
  offset: number,
  length: number,
): number {
  view.setUint32(at, EXTENDED_REPLY_MAGIC);
  view.setUint16(at + 4, flags);
  view.setUint16(at + 6, type);
  view.setUint32(at + 8, cookieHi);
  view.setUint32(at + 12, cookieLo);
  setU64(view, at + 16, offset);
  setU64(view, at + 24, length);
  return EXTENDED_REPLY_SIZE;
}

/** The start of OFFSET_DATA's payload; the data follows. */
export function encodeOffsetData(view: DataView, at: number, offset: number): number {
  setU64(view, at, offset);
  return OFFSET_DATA_PREFIX;
}

/** OFFSET_HOLE's payload; `length` < 2^32. */
export function encodeOffsetHole(view: DataView, at: number, offset: number, length: number): number {
  setU64(view, at, offset);
  view.setUint32(at + 8, length);
  return OFFSET_HOLE_SIZE;
}

/** ERROR's payload: the NBD error and a message for people (already UTF-8, at most 4096 bytes). */
export function encodeError(view: DataView, at: number, error: number, message: Uint8Array): number {
  view.setUint32(at, error);
  view.setUint16(at + 4, message.length);
  for (let i = 0; i < message.length; i++) view.setUint8(at + ERROR_PREFIX + i, message[i]!);
  return ERROR_PREFIX + message.length;
}

/** ERROR_OFFSET's payload. */
export function encodeErrorOffset(
  view: DataView,
  at: number,
  error: number,
  message: Uint8Array,
  offset: number,
): number {
  const size = encodeError(view, at, error, message);
  setU64(view, at + size, offset);
  return size + ERROR_OFFSET_SUFFIX;
}

/** The start of BLOCK_STATUS's payload; `count` extents follow, each by {@link encodeExtent}. */
export function encodeBlockStatus(view: DataView, at: number, contextId: number): number {
  view.setUint32(at, contextId);
  return BLOCK_STATUS_PREFIX;
}

/** `length` 1..2^32-1. */
export function encodeExtent(view: DataView, at: number, length: number, flags: number): number {
  view.setUint32(at, length);
  view.setUint32(at + 4, flags);
  return EXTENT_SIZE;
}

/** The start of BLOCK_STATUS_EXT's payload; `count` extents follow, each by {@link encodeExtentExt}. */
export function encodeBlockStatusExt(view: DataView, at: number, contextId: number, count: number): number {
  view.setUint32(at, contextId);
  view.setUint32(at + 4, count);
  return BLOCK_STATUS_EXT_PREFIX;
}

/** `length` 1..2^53-1; `flags` below 2^32. */
export function encodeExtentExt(view: DataView, at: number, length: number, flags: number): number {
  setU64(view, at, length);
  view.setUint32(at + 8, 0);
  view.setUint32(at + 12, flags);
  return EXTENT_EXT_SIZE;
}

/** One decoded reply header, of any kind; the client's side. Reused, so that decoding allocates nothing. */
export class ReplyHeader {
  kind: 'simple' | 'structured' | 'extended' = 'simple';
  /** Simple replies only: the NBD error. */
  error = 0;
  flags = 0;
  type = 0;
  cookieHi = 0;
  cookieLo = 0;
  /** Extended only; -1 when 2^53 or more. */
  offset = 0;
  /** The payload, in bytes; -1 when 2^53 or more. 0 for a simple reply (a READ's data follows all the same). */
  length = 0;
}

/** How many bytes the header that begins with this magic has; 0 when it begins no reply. */
export function replyHeaderSize(magic: number): number {
  if (magic === SIMPLE_REPLY_MAGIC) return SIMPLE_REPLY_SIZE;
  if (magic === STRUCTURED_REPLY_MAGIC) return STRUCTURED_REPLY_SIZE;
  return magic === EXTENDED_REPLY_MAGIC ? EXTENDED_REPLY_SIZE : 0;
}

/** Fills `out`; returns the header's size, or 0 when the magic is wrong. All its bytes must be there. */
export function decodeReply(view: DataView, at: number, out: ReplyHeader): number {
  const magic = view.getUint32(at);
  const size = replyHeaderSize(magic);
  if (size === 0) return 0;
  out.kind = size === SIMPLE_REPLY_SIZE ? 'simple' : size === STRUCTURED_REPLY_SIZE ? 'structured' : 'extended';
  out.cookieHi = view.getUint32(at + 8);
  out.cookieLo = view.getUint32(at + 12);
  out.error = 0;
  out.flags = 0;
  out.type = 0;
  out.offset = 0;
  out.length = 0;
  if (size === SIMPLE_REPLY_SIZE) {
    out.error = view.getUint32(at + 4);
    return size;
  }
  out.flags = view.getUint16(at + 4);
  out.type = view.getUint16(at + 6);
  if (size === STRUCTURED_REPLY_SIZE) {
    out.length = view.getUint32(at + 16);
  } else {
    out.offset = getU64(view, at + 16);
    out.length = getU64(view, at + 24);
  }
  return size;
}

/** What an ERROR or ERROR_OFFSET payload says; `offset` is -1 where there is none. */
export interface ErrorPayload {
  readonly error: number;
  readonly message: string;
  readonly offset: number;
}

const decoder = new TextDecoder();

/** Undefined when the payload is malformed. */
export function decodeErrorPayload(payload: Uint8Array, withOffset: boolean): ErrorPayload | undefined {
  const suffix = withOffset ? ERROR_OFFSET_SUFFIX : 0;
  if (payload.length < ERROR_PREFIX + suffix) return undefined;
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
  const length = view.getUint16(4);
  if (payload.length !== ERROR_PREFIX + length + suffix) return undefined;
  const message = decoder.decode(payload.slice(ERROR_PREFIX, ERROR_PREFIX + length));
  return { error: view.getUint32(0), message, offset: withOffset ? getU64(view, ERROR_PREFIX + length) : -1 };
}

export interface StatusExtent {
  readonly length: number;
  readonly flags: number;
}

export interface StatusPayload {
  readonly contextId: number;
  readonly extents: readonly StatusExtent[];
}

/** A BLOCK_STATUS (or, `extended`, BLOCK_STATUS_EXT) payload of `whole` bytes, or its beginning with as many extents as
 *  are there; undefined when it is malformed. */
export function decodeStatusPayload(
  payload: Uint8Array,
  extended: boolean,
  whole = payload.length,
): StatusPayload | undefined {
  const prefix = extended ? BLOCK_STATUS_EXT_PREFIX : BLOCK_STATUS_PREFIX;
  const each = extended ? EXTENT_EXT_SIZE : EXTENT_SIZE;
  const count = (payload.length - prefix) / each;
  const promised = (whole - prefix) / each;
  if (count < 1 || !Number.isInteger(count) || !Number.isInteger(promised)) return undefined;
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
  if (extended && view.getUint32(4) !== 0 && view.getUint32(4) !== promised) return undefined;
  const extents: StatusExtent[] = [];
  for (let i = 0, at = prefix; i < count; i++, at += each) {
    const length = extended ? getU64(view, at) : view.getUint32(at);
    const flags = extended ? getU64(view, at + 8) : view.getUint32(at + 4);
    if (length <= 0 || flags < 0) return undefined;
    extents.push({ length, flags });
  }
  return { contextId: view.getUint32(0), extents };
}
