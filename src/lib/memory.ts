/**
 * The memory that a thread's disks are read into and written from. It is one SharedArrayBuffer, given to the IOThread
 * once; requests carry offsets into it. A caller's own bytes are copied in and out, because they may move or go away
 * while the kernel works on them. It never grows: requests wait, those of one disk in the order they came, and the
 * disks take turns. A disk holds no more than it leaves free: one whose server is silent does not stop the others.
 */
import { Gate } from '../aio/op.ts';
import { Buddy } from '../base/buddy.ts';
import { Fifo } from '../base/fifo.ts';
import { type Bytes, KiB, MiB, type Offset } from '../base/units.ts';

/** The largest piece that one message carries. */
export const PIECE: Bytes = MiB;
const DEFAULT_BYTES = 32 * MiB;
const UNIT = 4 * KiB;

/** What one disk holds, and its requests that wait. */
export class ArenaShare {
  held: Bytes = 0;
  readonly waiting = new Fifo<{ readonly bytes: Bytes; readonly gate: Gate<Offset> }>();
}

export class Arena {
  readonly buffer: SharedArrayBuffer;
  readonly bytes: Uint8Array;
  readonly #buddy: Buddy;
  /** The disks with requests that wait, each once. */
  readonly #turns = new Fifo<ArenaShare>();

  /** `bytes` is a power of two, at least {@link PIECE}. */
  constructor(bytes: Bytes = DEFAULT_BYTES) {
    this.buffer = new SharedArrayBuffer(bytes);
    this.bytes = new Uint8Array(this.buffer);
    this.#buddy = new Buddy(bytes, UNIT);
  }

  get used(): Bytes {
    return this.#buddy.used;
  }

  /** Room for `bytes` (at most {@link PIECE}), for the disk of `share`; waits until there is some. */
  acquire(share: ArenaShare, bytes: Bytes): Offset | Promise<Offset> {
    if (this.#turns.length === 0 && this.#allows(share, bytes)) {
      const at = this.#allocate(share, bytes);
      if (at >= 0) return at;
    }
    const gate = new Gate<Offset>();
    share.waiting.push({ bytes, gate });
    if (share.waiting.length === 1) this.#turns.push(share);
    this.#serve();
    return gate.promise;
  }

  release(share: ArenaShare, at: Offset): void {
    const before = this.#buddy.used;
    this.#buddy.free(at);
    share.held -= before - this.#buddy.used;
    this.#serve();
  }

  #allows(share: ArenaShare, bytes: Bytes): boolean {
    return share.held === 0 || share.held + bytes <= this.#buddy.bytes - this.#buddy.used;
  }

  #allocate(share: ArenaShare, bytes: Bytes): Offset {
    const before = this.#buddy.used;
    const at = this.#buddy.allocate(bytes);
    share.held += this.#buddy.used - before;
    return at;
  }

  /** A disk that holds enough lets others pass; one that finds no room does not. */
  #serve(): void {
    for (let passed = 0; passed < this.#turns.length; ) {
      const share = this.#turns.shift()!;
      const { bytes, gate } = share.waiting.peek()!;
      if (!this.#allows(share, bytes)) {
        this.#turns.push(share);
        passed++;
        continue;
      }
      const at = this.#allocate(share, bytes);
      if (at < 0) {
        this.#turns.unshift(share);
        return;
      }
      share.waiting.shift();
      if (share.waiting.length > 0) this.#turns.push(share);
      passed = 0;
      gate.open(at);
    }
  }
}
