/**
 * Raw deflate streams, through the zlib that is in the process already: Node's own, which it exports. A stream is
 * reused, and what is decompressed goes where it is wanted; with node:zlib a block costs a stream object, its buffers
 * and a copy, which for 64 KiB is more than the decompressing itself. Where the system has libraries that do the same
 * quicker, they do it. [RFC 1951; zlib.h]
 */
import { deflateRawSync } from 'node:zlib';
import type { Bytes } from '../base/units.ts';
import { addressOf, type Library, native, systemLibrary } from '../native/lib.ts';
import { wholeInflate } from './libdeflate.ts';

type Done = (length: number) => void;

/** Ends with the bytes put into `to`: -1 where they do not fit, or are no such stream. Both are shared memory, and stay
 *  the caller's until then. */
export interface Deflate {
  compress(from: Uint8Array, to: Uint8Array, done: Done): void;
  decompress(from: Uint8Array, to: Uint8Array, done: Done): void;
}

/** 4 KiB: what writers of the format use. Readers of that need no more, but do not know. */
const WRITE_WINDOW = 12;
const READ_WINDOW = 15;
const DEFAULT_LEVEL = -1;
const DEFLATED = 8;
const MEMORY_LEVEL = 8;
/** Flush modes, and what zlib's functions answer. */
const [SYNC_FLUSH, FINISH, OK, STREAM_END] = [2, 4, 0, 1];

/** sizeof(z_stream) and its fields where pointers and longs have 8 bytes. */
const STREAM_BYTES = 112;
const AT = { nextIn: 0, availIn: 8, nextOut: 24, availOut: 32 } as const;

/** Streams that are kept for the next. */
const KEPT = 8;

type Call = (...words: readonly (number | string)[]) => number;
type Async = (stream: number, flush: number, end: (error: unknown, result: number) => void) => void;
interface Foreign {
  readonly init: (stream: number) => number;
  readonly run: Call & { readonly async: Async };
  readonly reset: Call;
  readonly end: Call;
}

let found: Deflate | undefined | null;

/** Undefined where Node does not export zlib, or there is no native layer: node:zlib is then what there is. */
export function nativeDeflate(): Deflate | undefined {
  if (found === undefined) found = look() ?? null;
  return found ?? undefined;
}

function look(): Deflate | undefined {
  const library = native()?.library;
  if (!library) return undefined;
  const own = attempt(() => zlibOf(library, 'Cr_z_')) ?? attempt(() => zlibOf(library, ''));
  if (!own || !works(own.inflate)) return undefined;
  // The same streams in three quarters of the time: Node's build is slow where the window is as small as the format's.
  const { deflate } = attempt(() => zlibOf(systemLibrary('libz.so.1'), '')) ?? own;
  const { inflate } = own;
  const read: Deflate['decompress'] = (from, to, done) =>
    inflate.run(from, to, SYNC_FLUSH, (stream, length) => done(stream.good && !stream.goesOn() ? length : -1));
  const quick = attempt(() => wholeInflate());
  return {
    compress: (from, to, done) => deflate.run(from, to, FINISH, ({ ended }, length) => done(ended ? length : -1)),
    decompress: quick
      ? (from, to, done) => quick(from, to, (filled) => (filled ? done(to.length) : read(from, to, done)))
      : read,
  };
}

/** Undefined where the library is not there, or has no such names. */
function attempt<T>(make: () => T): T | undefined {
  try {
    return make();
  } catch {
    return undefined;
  }
}

function zlibOf(library: Library, prefix: string): { readonly deflate: Streams; readonly inflate: Streams } {
  const declare = (name: string, result: string, words: string[]): never =>
    library.func(`${prefix}${name}`, result, words) as never;
  const version = (declare('zlibVersion', 'str', []) as () => string)();
  const initDeflate: Call = declare('deflateInit2_', 'int', ['uintptr_t', ...Array(5).fill('int'), 'str', 'int']);
  const initInflate: Call = declare('inflateInit2_', 'int', ['uintptr_t', 'int', 'str', 'int']);
  const of = (name: string, init: Foreign['init']): Foreign => ({
    init,
    run: declare(name, 'int', ['uintptr_t', 'int']),
    reset: declare(`${name}Reset`, 'int', ['uintptr_t']),
    end: declare(`${name}End`, 'int', ['uintptr_t']),
  });
  const level = [DEFAULT_LEVEL, DEFLATED, -WRITE_WINDOW, MEMORY_LEVEL, 0];
  return {
    deflate: new Streams(of('deflate', (at) => initDeflate(at, ...level, version, STREAM_BYTES))),
    inflate: new Streams(of('inflate', (at) => initInflate(at, -READ_WINDOW, version, STREAM_BYTES))),
  };
}

/** That the structure is what we take it for shows where it is used. */
function works(inflate: Streams): boolean {
  const plain = new TextEncoder().encode('what goes in comes out '.repeat(20));
  const packed = deflateRawSync(plain);
  const [from, to] = [packed.length, plain.length].map((bytes) => new Uint8Array(new SharedArrayBuffer(bytes)));
  from!.set(packed);
  return inflate.runNow(from!, to!, SYNC_FLUSH) === plain.length && to!.every((byte, i) => byte === plain[i]);
}

/** Streams of one direction. */
class Streams {
  readonly #foreign: Foreign;
  readonly #free: Stream[] = [];

  constructor(foreign: Foreign) {
    this.#foreign = foreign;
  }

  run(from: Uint8Array, to: Uint8Array, flush: number, done: (stream: Stream, length: number) => void): void {
    const stream = this.#take();
    if (stream === undefined) throw new Error('zlib has no memory');
    stream.set(from, to);
    this.#foreign.run.async(stream.address, flush, (error, result) => {
      stream.result = error ? -1 : result;
      // Named here, so that both stay referenced.
      const length = from.length === 0 ? -1 : to.length - stream.left;
      done(stream, length);
      this.#giveBack(stream);
    });
  }

  /** The bytes that came out, or -1. */
  runNow(from: Uint8Array, to: Uint8Array, flush: number): number {
    const stream = this.#take();
    if (stream === undefined) return -1;
    stream.set(from, to);
    stream.result = this.#foreign.run(stream.address, flush);
    const length = stream.good ? to.length - stream.left : -1;
    this.#giveBack(stream);
    return length;
  }

  #take(): Stream | undefined {
    const kept = this.#free.pop();
    if (kept) return kept;
    const stream = new Stream(this.#foreign);
    return this.#foreign.init(stream.address) === OK ? stream : undefined;
  }

  #giveBack(stream: Stream): void {
    if (this.#free.length < KEPT && this.#foreign.reset(stream.address) === OK) this.#free.push(stream);
    else this.#foreign.end(stream.address);
  }
}

class Stream {
  readonly address: number;
  result = 0;
  readonly #foreign: Foreign;
  readonly #bytes = new Uint8Array(new SharedArrayBuffer(STREAM_BYTES));
  readonly #view = new DataView(this.#bytes.buffer);

  constructor(foreign: Foreign) {
    this.#foreign = foreign;
    this.address = addressOf(this.#bytes);
  }

  set(from: Uint8Array, to: Uint8Array): void {
    this.#point(AT.nextIn, addressOf(from));
    this.#view.setUint32(AT.availIn, from.length, true);
    this.#point(AT.nextOut, addressOf(to));
    this.#view.setUint32(AT.availOut, to.length, true);
  }

  get ended(): boolean {
    return this.result === STREAM_END;
  }

  get good(): boolean {
    return this.result === STREAM_END || this.result === OK;
  }

  /** Bytes of room that are left. */
  get left(): Bytes {
    return this.#view.getUint32(AT.availOut, true);
  }

  /** True where there is more than there was room for. */
  goesOn(): boolean {
    if (this.ended || this.left > 0) return false;
    const more = new Uint8Array(new SharedArrayBuffer(1));
    this.#point(AT.nextOut, addressOf(more));
    this.#view.setUint32(AT.availOut, more.length, true);
    this.#foreign.run(this.address, SYNC_FLUSH);
    return this.left === 0;
  }

  #point(at: number, address: number): void {
    this.#view.setUint32(at, address % 2 ** 32, true);
    this.#view.setUint32(at + 4, Math.floor(address / 2 ** 32), true);
  }
}
