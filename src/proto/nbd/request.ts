/**
 * Request headers of the transmission phase: 28 bytes, or 32 with extended headers.
 *
 *     0 magic u32 | 4 flags u16 | 6 type u16 | 8 cookie u64 | 16 offset u64 | 24 length u32 (extended: u64)
 */
import { EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC } from './constants.ts';
import { getU64, setU64 } from './words.ts';

/** One decoded header; reused, so that decoding allocates nothing. */
export class RequestHeader {
  flags = 0;
  type = 0;
  cookieHi = 0;
  cookieLo = 0;
  /** Bytes; -1 when the wire says 2^53 or more. */
  offset = 0;
  /** Bytes; -1 when the wire says 2^53 or more (extended headers only). */
  length = 0;
}

/** Fills `out` from the 28 bytes at `at`; false when the magic is wrong (the connection cannot go on). */
export function decodeRequest(view: DataView, at: number, out: RequestHeader): boolean {
  if (view.getUint32(at) !== REQUEST_MAGIC) return false;
  decodeCommon(view, at, out);
  out.length = view.getUint32(at + 24);
  return true;
}

/** Fills `out` from the 32 bytes at `at`; false when the magic is wrong (the connection cannot go on). */
export function decodeExtendedRequest(view: DataView, at: number, out: RequestHeader): boolean {
  if (view.getUint32(at) !== EXTENDED_REQUEST_MAGIC) return false;
  decodeCommon(view, at, out);
  out.length = getU64(view, at + 24);
  return true;
}

function decodeCommon(view: DataView, at: number, out: RequestHeader): void {
  out.flags = view.getUint16(at + 4);
  out.type = view.getUint16(at + 6);
  out.cookieHi = view.getUint32(at + 8);
  out.cookieLo = view.getUint32(at + 12);
  out.offset = getU64(view, at + 16);
}

/** Writes 28 bytes at `at`: the client's side. */
export function encodeRequest(view: DataView, at: number, request: RequestHeader): void {
  view.setUint32(at, REQUEST_MAGIC);
  encodeCommon(view, at, request);
  view.setUint32(at + 24, request.length);
}

/** Writes 32 bytes at `at`: the client's side. */
export function encodeExtendedRequest(view: DataView, at: number, request: RequestHeader): void {
  view.setUint32(at, EXTENDED_REQUEST_MAGIC);
  encodeCommon(view, at, request);
  setU64(view, at + 24, request.length);
}

function encodeCommon(view: DataView, at: number, request: RequestHeader): void {
  view.setUint16(at + 4, request.flags);
  view.setUint16(at + 6, request.type);
  view.setUint32(at + 8, request.cookieHi);
  view.setUint32(at + 12, request.cookieLo);
  setU64(view, at + 16, request.offset);
}
