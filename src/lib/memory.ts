/**
 * The memory that a thread's disks are read into and written from. It is one SharedArrayBuffer, given to the IOThread
 * once; requests carry offsets into it. A caller's own bytes are copied in and out, because they may move or go away
 * while the kernel works on them. When it is full, requests wait in the order they came; it never grows.
 */
import { Gate } from '../aio/op.ts';
import { Buddy } from '../base/buddy.ts';
import { Fifo } from '../base/fifo.ts';
import { type Bytes, KiB, MiB, type Offset } from '../base/units.ts';

/** The largest piece that one message carries. */
export const PIECE: Bytes = MiB;
const DEFAULT_BYTES = 32 * MiB;
const UNIT = 4 * KiB;

export class Arena {
  readonly buffer: SharedArrayBuffer;
  readonly bytes: Uint8Array;
  readonly #buddy: Buddy;
  readonly #waiting = new Fifo<{ readonly bytes: Bytes; readonly gate: Gate<Offset> }>();

  /** `bytes` is a power of two, at least {@link PIECE}. */
  constructor(bytes: Bytes = DEFAULT_BYTES) {
    this.buffer = new SharedArrayBuffer(bytes);
    this.bytes = new Uint8Array(this.buffer);
    this.#buddy = new Buddy(bytes, UNIT);
  }

  get used(): Bytes {
    return this.#buddy.used;
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  /** Room for `bytes` (at most {@link PIECE}); waits until there is some. */
  acquire(bytes: Bytes): Offset | Promise<Offset> {
    const at = this.#waiting.length === 0 ? this.#buddy.allocate(bytes) : -1;
    if (at >= 0) return at;
    const gate = new Gate<Offset>();
    this.#waiting.push({ bytes, gate });
    return gate.promise;
  }

  release(at: Offset): void {
    this.#buddy.free(at);
    for (let next = this.#waiting.peek(); next; next = this.#waiting.peek()) {
      const room = this.#buddy.allocate(next.bytes);
      if (room < 0) return;
      this.#waiting.shift();
      next.gate.open(room);
    }
  }
}
