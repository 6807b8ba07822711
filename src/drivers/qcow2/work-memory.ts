/**
 * Memory for data that goes through the processor on its way, of all requests on an image: one region of a fixed size.
 * Who finds no room in it waits, first come, first served. Who has some must not ask for more, nor wait for somebody
 * who may: what is read or written with it is in the layers below.
 */
import type { AioContext } from '../../aio/context.ts';
import { Gate } from '../../aio/op.ts';
import { Buddy } from '../../base/buddy.ts';
import { Fifo } from '../../base/fifo.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { alignUp, type Bytes, KiB, MiB, type Offset } from '../../base/units.ts';
import { kernelBytes } from './metadata-io.ts';

/** Two of the longest pieces (a cluster of 2 MiB and what lies beside it, rounded up to a power of two), and 128 writes
 *  that each take a cluster of the usual 64 KiB. */
const BYTES = 8 * MiB;
const UNIT = 4 * KiB;

export class WorkMemory {
  readonly #aio: AioContext;
  readonly #room = new Buddy(BYTES, UNIT);
  readonly #waiting = new Fifo<{ readonly length: Bytes; readonly gate: Gate<Offset> }>();
  #memory: Memory | undefined;
  /** Where the region begins in it: pieces are to begin at multiples of their unit, for direct I/O. */
  #first = 0;

  constructor(aio: AioContext) {
    this.#aio = aio;
  }

  /** Runs `body` with `length` bytes in one run, whatever they hold. */
  async use(length: Bytes, body: (iov: Iov) => Promise<void>): Promise<void> {
    const memory = this.#memory ?? this.#open();
    const free = this.#waiting.length === 0 ? this.#room.allocate(length) : -1;
    const at = free >= 0 ? free : await this.#wait(length);
    try {
      await body(Iov.of(memory, this.#first + at, length));
    } finally {
      this.#room.free(at);
      this.#wake();
    }
  }

  #open(): Memory {
    this.#memory = this.#aio.backend.memory(kernelBytes(BYTES + UNIT));
    this.#first = alignUp(this.#memory.address, UNIT) - this.#memory.address;
    return this.#memory;
  }

  #wait(length: Bytes): Promise<Offset> {
    const gate = new Gate<Offset>();
    this.#waiting.push({ length, gate });
    return gate.promise;
  }

  #wake(): void {
    for (let first = this.#waiting.peek(); first; first = this.#waiting.peek()) {
      const at = this.#room.allocate(first.length);
      if (at < 0) return;
      this.#waiting.shift();
      first.gate.open(at);
    }
  }
}
