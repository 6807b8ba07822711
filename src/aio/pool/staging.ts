/**
 * Where a stream that decrypts receives: one piece of memory for each connection. By itself Node makes a buffer outside
 * of the heap for every record of 16 KiB, and V8 goes through its whole heap after 64 MiB of them.
 *
 *     | taken | rest: there, and not asked for | end: the next record |
 *
 * The stream is paused when the rest has grown to {@link READ_AHEAD}, and goes on when there is none: what came in the
 * meantime is worked on without a visit to libuv.
 */
import type { Socket } from 'node:net';
import { type Bytes, KiB } from '../../base/units.ts';

/** What still comes after a stream is paused: what libuv had read, and a record that had begun before. */
const BATCH: Bytes = (64 + 16) * KiB;
const READ_AHEAD: Bytes = 256 * KiB;
/** Behind any rest there is room for a batch, and moving a rest to the front is rare. */
const CAPACITY: Bytes = 768 * KiB;

/** What the option `onread` sets up in a socket that net.Socket connects itself. */
interface Receiving {
  readonly _handle?: { useUserBuffer?(buffer: Uint8Array): void } | null;
  [symbol: symbol]: unknown;
}

export class Staging {
  readonly #memory = new Uint8Array(CAPACITY);
  #end = 0;

  /** Has `socket` receive here instead of emitting 'data'. `received` is told how many bytes came, and answers with the
   *  rest. False where this Node.js does not have what that takes: nothing has changed then. */
  attach(socket: Socket, received: (length: Bytes) => Uint8Array | undefined): boolean {
    const target = socket as unknown as Receiving;
    const symbols = Object.getOwnPropertySymbols(socket);
    const [buffer, callback, next] = ['kBuffer', 'kBufferCb', 'kBufferGen'].map((name) =>
      symbols.find(({ description }) => description === name),
    );
    if (!buffer || !callback || !next || target[buffer] !== null || !target._handle?.useUserBuffer) return false;
    const room = (): Uint8Array => this.#memory.subarray(this.#end);
    target[buffer] = room();
    target[callback] = (length: Bytes) => (received(length)?.length ?? 0) < READ_AHEAD;
    target[next] = room;
    target._handle.useUserBuffer(room());
    return true;
  }

  /** Bytes that came before, as the first rest. */
  load(bytes: Uint8Array): Uint8Array {
    this.#memory.set(bytes);
    return this.grow(undefined, bytes.length);
  }

  /** `length` more bytes are there: the rest with them. */
  grow(rest: Uint8Array | undefined, length: Bytes): Uint8Array {
    const start = this.#end - (rest?.length ?? 0);
    this.#end += length;
    return this.#memory.subarray(start, this.#end);
  }

  /** Makes room behind `rest`, what is left of {@link grow}'s answer; answers where it is then. To be called for each,
   *  before anything else is received. */
  settle(rest: Uint8Array | undefined): Uint8Array | undefined {
    if (!rest) this.#end = 0;
    else if (this.#end > CAPACITY - BATCH) {
      this.#memory.copyWithin(0, this.#end - rest.length, this.#end);
      this.#end = rest.length;
      return this.#memory.subarray(0, this.#end);
    }
    return rest;
  }
}
