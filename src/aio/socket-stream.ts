/**
 * Bytes in and out of a socket for a conversation in coroutines (a handshake): a bounded receive buffer and a bounded
 * send buffer in one memory. What is sent is gathered, and leaves when the conversation next waits for the other side,
 * or when the send buffer is full.
 */
import { assert } from '../base/assert.ts';
import { errnoText } from '../base/errors.ts';
import { Iov, type Memory } from '../base/memory.ts';
import type { Bytes } from '../base/units.ts';
import type { AioSocket } from './backend.ts';
import { WaitOp } from './op.ts';

export class SocketStream {
  /** Why the stream has ended; undefined while it goes on. */
  ended: string | undefined;
  /** Bytes received so far. */
  received = 0;
  readonly #socket: AioSocket;
  readonly #memory: Memory;
  readonly #capacity: Bytes;
  readonly #sendSize: Bytes;
  readonly #left: string;
  readonly #op = new WaitOp();
  readonly #iov = new Iov();
  /** What was received and not yet taken: [start, end) of the memory. */
  #start = 0;
  #end = 0;
  #queued = 0;

  /** `memory` belongs to the stream until its last promise has settled; its last `sendSize` bytes are for what is sent.
   *  `left` is the reason of an orderly end by the other side. */
  constructor(socket: AioSocket, memory: Memory, sendSize: Bytes, left: string) {
    this.#socket = socket;
    this.#memory = memory;
    this.#sendSize = sendSize;
    this.#capacity = memory.bytes.length - sendSize;
    this.#left = left;
  }

  /** Waits until `length` bytes are there; false when the stream ended before. */
  async need(length: Bytes): Promise<boolean> {
    assert(length <= this.#capacity, 'a message does not fit the receive buffer');
    while (this.#end - this.#start < length) if (!(await this.#receive())) return false;
    return true;
  }

  /** The next bytes, copied: the buffer is used again. {@link need} came before. */
  take(length: Bytes): Uint8Array {
    const bytes = this.#memory.bytes.slice(this.#start, this.#start + length);
    this.#start += length;
    return bytes;
  }

  /** Drops the next `length` bytes as they come; false when the stream ended before. */
  async skip(length: Bytes): Promise<boolean> {
    let left = length;
    for (;;) {
      const now = Math.min(left, this.#end - this.#start);
      this.#start += now;
      left -= now;
      if (left === 0) return true;
      if (!(await this.#receive())) return false;
    }
  }

  /** Queues `bytes`; false when the stream has ended. */
  async send(bytes: Uint8Array): Promise<boolean> {
    assert(bytes.length <= this.#sendSize, 'a message does not fit the send buffer');
    if (this.#queued + bytes.length > this.#sendSize && !(await this.flush())) return false;
    this.#memory.bytes.set(bytes, this.#capacity + this.#queued);
    this.#queued += bytes.length;
    return this.ended === undefined;
  }

  /** Sends what is queued; false when the stream has ended. */
  async flush(): Promise<boolean> {
    if (this.#queued > 0 && this.ended === undefined) {
      this.#iov.reset().push(this.#memory, this.#capacity, this.#queued);
      this.#queued = 0;
      const done = this.#op.wait();
      this.#socket.send(this.#op, this.#iov);
      const result = await done;
      if (result < 0) this.ended ??= `could not send: ${errnoText(result)}`;
    }
    return this.ended === undefined;
  }

  /** What was received and not taken, copied. */
  rest(): Uint8Array {
    return this.take(this.#end - this.#start);
  }

  async #receive(): Promise<boolean> {
    if (!(await this.flush())) return false;
    if (this.#start === this.#end) {
      this.#start = 0;
      this.#end = 0;
    } else if (this.#end === this.#capacity) {
      this.#memory.bytes.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    const done = this.#op.wait();
    this.#socket.recv(this.#op, this.#memory, this.#end, this.#capacity - this.#end, false);
    const result = await done;
    // A reason that was given meanwhile (a deadline, a server that stops) says more than the socket does.
    if (result <= 0) this.ended ??= result === 0 ? this.#left : `could not receive: ${errnoText(result)}`;
    else {
      this.#end += result;
      this.received += result;
    }
    return this.ended === undefined;
  }
}
