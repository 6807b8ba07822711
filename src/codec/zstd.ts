/**
 * Zstandard: Node's own where it has it (22.15 and later), else the system's library, where there is one. [RFC 8878]
 */
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import { addressOf, native } from '../native/lib.ts';

/** Ends with the number of bytes put into `to`, or -1 where `from` is not good or `to` too small. */
export interface Zstd {
  compress(from: Uint8Array, to: Uint8Array, done: (length: number) => void): void;
  decompress(from: Uint8Array, to: Uint8Array, done: (length: number) => void): void;
}

type Done = (error: Error | null, result: Uint8Array) => void;
type Options = { readonly maxOutputLength?: number };

/** What newer releases of Node have and the types of the oldest do not. */
interface ZstdOfNode {
  readonly zstdCompress?: (from: Uint8Array, options: Options, done: Done) => void;
  readonly zstdDecompress?: (from: Uint8Array, options: Options, done: Done) => void;
}

let found: Zstd | undefined;

/** ENOTSUP where there is none. */
export function zstd(): Zstd {
  found ??= ofNode(process.getBuiltinModule('node:zlib') as ZstdOfNode) ?? ofSystem();
  if (found) return found;
  throw new BlockError(Errno.ENOTSUP, 'Could not use zstd: it takes Node.js 22.15 or the library libzstd.so.1');
}

function ofNode({ zstdCompress, zstdDecompress }: ZstdOfNode): Zstd | undefined {
  if (!zstdCompress || !zstdDecompress) return undefined;
  const into = (to: Uint8Array, done: (length: number) => void): Done => {
    return (error, result) => {
      if (error || result.length > to.length) {
        done(-1);
        return;
      }
      to.set(result);
      done(result.length);
    };
  };
  return {
    compress: (from, to, done) => zstdCompress(from, {}, into(to, done)),
    decompress: (from, to, done) => zstdDecompress(from, { maxOutputLength: to.length }, into(to, done)),
  };
}

const LEVEL = 3;

/** The library that package managers of Linux systems themselves need. */
function ofSystem(): Zstd | undefined {
  const koffi = native()?.koffi;
  if (!koffi) return undefined;
  try {
    const library = koffi.load('libzstd.so.1');
    const compress = library.func('ZSTD_compress', 'size_t', ['uintptr_t', 'size_t', 'uintptr_t', 'size_t', 'int']);
    const decompress = library.func('ZSTD_decompress', 'size_t', ['uintptr_t', 'size_t', 'uintptr_t', 'size_t']);
    const memory = (bytes: Uint8Array): Uint8Array => {
      if (bytes.buffer instanceof SharedArrayBuffer) return bytes;
      const shared = new Uint8Array(new SharedArrayBuffer(bytes.length));
      shared.set(bytes);
      return shared;
    };
    const call = (
      start: (from: Uint8Array, to: Uint8Array, end: (error: unknown, result: number | bigint) => void) => void,
      from: Uint8Array,
      to: Uint8Array,
      done: (length: number) => void,
    ): void => {
      // Both stay referenced by the callback until it has run.
      const source = memory(from);
      const target = to.buffer instanceof SharedArrayBuffer ? to : new Uint8Array(new SharedArrayBuffer(to.length));
      start(source, target, (error, result) => {
        // Errors are the negative codes of a size_t.
        const length: Bytes = error || source.length === 0 ? -1 : Number(result);
        if (length < 0 || length > target.length) {
          done(-1);
          return;
        }
        if (target !== to) to.set(target.subarray(0, length));
        done(length);
      });
    };
    return {
      compress: (from, to, done) =>
        call(
          (source, target, end) =>
            compress.async(addressOf(target), target.length, addressOf(source), source.length, LEVEL, end),
          ...([from, to, done] as const),
        ),
      decompress: (from, to, done) =>
        call(
          (source, target, end) =>
            decompress.async(addressOf(target), target.length, addressOf(source), source.length, end),
          ...([from, to, done] as const),
        ),
    };
  } catch {
    return undefined;
  }
}

const MAGIC = 0xfd2fb528;

/** Bytes of the frame that `bytes` begin with; 0 where they do not begin with a whole one. What follows it is none of
 *  its business: compressed clusters are padded to sectors. */
export function zstdFrameLength(bytes: Uint8Array): Bytes {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length < 6 || view.getUint32(0, true) !== MAGIC) return 0;
  const descriptor = bytes[4]!;
  const single = (descriptor & 0x20) !== 0;
  const dictionary = [0, 1, 2, 4][descriptor & 3]!;
  const sizeFlag = descriptor >>> 6;
  const size = sizeFlag === 0 ? (single ? 1 : 0) : 2 ** sizeFlag;
  let at = 5 + (single ? 0 : 1) + dictionary + size;
  for (let last = false; !last; ) {
    if (at + 3 > bytes.length) return 0;
    const head = bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16);
    last = (head & 1) !== 0;
    const kind = (head >>> 1) & 3;
    if (kind === 3) return 0;
    at += 3 + (kind === 1 ? 1 : head >>> 3);
  }
  at += (descriptor & 4) !== 0 ? 4 : 0;
  return at <= bytes.length ? at : 0;
}
