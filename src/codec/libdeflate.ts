/**
 * Raw deflate streams that are there as a whole, through the system's libdeflate, where there is one: twice as quick as
 * zlib, which can take a stream in pieces. It says nothing of a stream that is not as it should be but that it is not.
 * It cannot write streams with a small window. [RFC 1951; libdeflate.h]
 */
import { addressOf, systemLibrary } from '../native/lib.ts';

/** Ends with true when `from` begins with a whole stream whose bytes fill `to`. Both are shared memory, and stay the
 *  caller's until then. */
export type WholeInflate = (from: Uint8Array, to: Uint8Array, done: (filled: boolean) => void) => void;

type Words = readonly number[];
type Async = (...words: readonly [...Words, (error: unknown, result: number) => void]) => void;

/** Decompressors that are kept for the next: of 12 KiB each. */
const KEPT = 8;
const SUCCESS = 0;

/** Throws where there is no such library. */
export function wholeInflate(): WholeInflate {
  const library = systemLibrary('libdeflate.so.0');
  const words = ['uintptr_t', 'uintptr_t', 'size_t', 'uintptr_t', 'size_t', 'uintptr_t', 'uintptr_t'];
  const allocate = library.func('libdeflate_alloc_decompressor', 'uintptr_t', []) as () => number;
  const release = library.func('libdeflate_free_decompressor', 'void', ['uintptr_t']) as (at: number) => void;
  const inflate = library.func('libdeflate_deflate_decompress_ex', 'int', words).async as Async;
  const free: number[] = [];
  // It writes here how much of its input it has used: what follows a stream is none of its business.
  const used = new Uint8Array(new SharedArrayBuffer(8));
  const usedAt = addressOf(used);
  return (from, to, done) => {
    const at = free.pop() ?? allocate();
    if (at === 0 || from.length === 0) {
      done(false);
      return;
    }
    inflate(at, addressOf(from), from.length, addressOf(to), to.length, usedAt, 0, (error, result) => {
      if (free.length < KEPT) free.push(at);
      else release(at);
      // Named here, so that they stay referenced.
      done(!error && result === SUCCESS && from.length + to.length + used.length > 0);
    });
  };
}
