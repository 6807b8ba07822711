/**
 * Compression of one block of bytes at a time, in Node's worker threads. Small blocks are done at once: handing them
 * over would cost more.
 */
import { deflateRaw, deflateRawSync, inflateRaw, inflateRawSync, constants as zlib } from 'node:zlib';
import { type Bytes, KiB } from '../base/units.ts';
import { type Deflate, nativeDeflate } from './deflate.ts';
import { zstd, zstdFrameLength } from './zstd.ts';

export type CompressionType = 'zlib' | 'zstd';
/** Called once, maybe before the call returns: how many bytes were put into `to`; -1 where that cannot be done. */
export type CodecDone = (length: number) => void;

/** The window that writers of the format use: 4 KiB. Readers must not count on it. */
const WINDOW_BITS = 12;
const SMALL = 4 * KiB;

/** ENOTSUP for what cannot be done here. */
export function assertCodec(type: CompressionType): void {
  if (type === 'zstd') zstd();
}

/** Compresses `from` into `to`; -1 where it does not fit: it was not worth it. */
export function compress(type: CompressionType, from: Uint8Array, to: Uint8Array, done: CodecDone): void {
  if (type === 'zstd') {
    zstd().compress(from, to, done);
    return;
  }
  const options = { windowBits: WINDOW_BITS };
  const native = nativeFor(from, to);
  if (native) native.compress(from, to, done);
  else if (from.length <= SMALL) done(put(deflateRawSync(from, options), to));
  else deflateRaw(from, options, (error, result) => done(error ? -1 : put(result, to)));
}

/** Decompresses `from` until `to` is full; -1 where it is less than that, more, or no such stream at all. */
export function decompress(type: CompressionType, from: Uint8Array, to: Uint8Array, done: CodecDone): void {
  const whole: CodecDone = (length) => done(length === to.length ? length : -1);
  if (type === 'zstd') {
    const length = zstdFrameLength(from);
    if (length === 0) done(-1);
    else zstd().decompress(from.subarray(0, length), to, whole);
    return;
  }
  // Sectors are padded: what follows the end of the stream is left alone, and a missing end is noticed by the length.
  const options = { finishFlush: zlib.Z_SYNC_FLUSH, maxOutputLength: to.length };
  const native = nativeFor(from, to);
  if (native) {
    native.decompress(from, to, whole);
    return;
  }
  if (to.length > SMALL) {
    inflateRaw(from, options, (error, result) => whole(error ? -1 : put(result, to)));
    return;
  }
  let length: Bytes = -1;
  try {
    length = put(inflateRawSync(from, options), to);
  } catch {
    // Whatever it is, it is not such a stream.
  }
  whole(length);
}

/** For blocks that are worth handing over, in memory that does not move. */
function nativeFor(from: Uint8Array, to: Uint8Array): Deflate | undefined {
  if (Math.max(from.length, to.length) <= SMALL) return undefined;
  const shared = from.buffer instanceof SharedArrayBuffer && to.buffer instanceof SharedArrayBuffer;
  return shared ? nativeDeflate() : undefined;
}

function put(result: Uint8Array, to: Uint8Array): number {
  if (result.length > to.length) return -1;
  to.set(result);
  return result.length;
}
