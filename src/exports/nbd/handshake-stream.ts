/**
 * Bytes in and out during a handshake: a bounded receive buffer and a bounded send buffer in one memory. Replies are
 * gathered and sent when the handshake next waits for the client, or when the send buffer is full.
 */

import type { AioSocket } from '../../aio/backend.ts';
import { WaitOp } from '../../aio/op.ts';
import { assert } from '../../base/assert.ts';
import { errnoText } from '../../base/errors.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { type Bytes, KiB } from '../../base/units.ts';
import { MAX_STRING, OPTION_REPLY_HEADER_SIZE } from '../../proto/nbd/constants.ts';

/** The send half holds at least one of the longest replies: a SERVER reply with name and description. */
const SEND_SIZE = 16 * KiB;
assert(SEND_SIZE >= OPTION_REPLY_HEADER_SIZE + 4 + 2 * MAX_STRING, 'the send buffer holds no SERVER reply');

/** How large a memory a stream needs to receive messages of `longest` bytes. */
export function handshakeMemorySize(longest: Bytes): Bytes {
  return longest + SEND_SIZE;
}

export class HandshakeStream {
  /** Why the stream has ended; undefined while it goes on. */
  ended: string | undefined;
  /** Bytes received so far. */
  received = 0;
  readonly #socket: AioSocket;
  readonly #memory: Memory;
  readonly #capacity: Bytes;
  readonly #op = new WaitOp();
  readonly #iov = new Iov();
  /** What was received and not yet taken: [start, end) of the memory. */
  #start = 0;
  #end = 0;
  #queued = 0;

  /** `memory` belongs to the stream until its last promise has settled. */
  constructor(socket: AioSocket, memory: Memory) {
    this.#socket = socket;
    this.#memory = memory;
    this.#capacity = memory.bytes.length - SEND_SIZE;
  }

  /** Waits until `length` bytes are there; false when the stream ended before. */
  async need(length: Bytes): Promise<boolean> {
    assert(length <= this.#capacity, 'a handshake message does not fit its buffer');
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
    assert(bytes.length <= SEND_SIZE, 'a handshake reply does not fit its buffer');
    if (this.#queued + bytes.length > SEND_SIZE && !(await this.flush())) return false;
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

  /** What was received beyond the handshake, copied: the first requests of a client that does not wait. */
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
    if (result <= 0) this.ended ??= result === 0 ? 'the client has left' : `could not receive: ${errnoText(result)}`;
    else {
      this.#end += result;
      this.received += result;
    }
    return this.ended === undefined;
  }
}
