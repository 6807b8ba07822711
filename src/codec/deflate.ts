/**
 * Raw deflate streams, through the zlib that is in the process already: Node's own, which it exports. A stream is
 * reused, and what is decompressed goes where it is wanted; with node:zlib a block costs a stream object, its buffers
 * and a copy, which for 64 KiB is more than the decompressing itself. [RFC 1951; zlib.h]
 */
import { deflateRawSync } from 'node:zlib';
import type { Bytes } from '../base/units.ts';
import { addressOf, native } from '../native/lib.ts';

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
  for (const prefix of ['Cr_z_', '']) {
    try {
      const deflate = ofPrefix(prefix);
      if (deflate) return deflate;
    } catch {
      // No such names.
    }
  }
  return undefined;
}

function ofPrefix(prefix: string): Deflate | undefined {
  const library = native()?.library;
  if (!library) return undefined;
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
  const deflate = new Streams(of('deflate', (at) => initDeflate(at, ...level, version, STREAM_BYTES)));
  const inflate = new Streams(of('inflate', (at) => initInflate(at, -READ_WINDOW, version, STREAM_BYTES)));
  if (!works(inflate)) return undefined;
  return {
    compress: (from, to, done) => deflate.run(from, to, FINISH, ({ ended }, length) => done(ended ? length : -1)),
    decompress: (from, to, done) =>
      inflate.run(from, to, SYNC_FLUSH, (stream, length) => done(stream.good && !stream.goesOn() ? length : -1)),
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
