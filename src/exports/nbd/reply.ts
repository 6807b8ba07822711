/**
 * Replies of one connection: those that are ready leave together, in one gather send; while it is under way the next
 * ones collect. The order is that in which requests ended, as the protocol allows.
 */
import type { AioSocket } from '../../aio/backend.ts';
import { AioOp } from '../../aio/op.ts';
import { Errno, errnoText } from '../../base/errors.ts';
import { Fifo } from '../../base/fifo.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { type Bytes, KiB, MiB } from '../../base/units.ts';
import { Chunk, Command, CommandFlag, ReplyFlag } from '../../proto/nbd/constants.ts';
import { toNbdError } from '../../proto/nbd/errno.ts';
import {
  encodeChunk,
  encodeError,
  encodeExtendedChunk,
  encodeOffsetData,
  encodeOffsetHole,
  encodeSimpleReply,
  OFFSET_DATA_PREFIX,
  OFFSET_HOLE_SIZE,
} from '../../proto/nbd/reply.ts';
import type { ByteBudget } from './budget.ts';
import type { Negotiated } from './handshake.ts';
import { HEADER_ROOM, type NbdRequest } from './request.ts';

/** Replies in one send; two runs each, well below IOV_MAX. */
const REPLIES_MAX = 256;
/** No reply is added to a send that has this many bytes already: memory comes free as the client reads. */
const SEND_BYTES = 1 * MiB;
/** Reads from this length on are searched for zeroes; shorter ones may be answered in one go with the read itself. */
const HOLE_MIN: Bytes = 16 * KiB;
/** Not ended yet; no errno. */
const PENDING = 1;
const encoder = new TextEncoder();

export interface ReplyEvents {
  /** The reply has been sent, or never will be: the request is free. */
  sent(request: NbdRequest): void;
  /** The read ended with `error`, and its reply that was chained to it was not sent: reply to it. */
  unsent(request: NbdRequest, error: number): void;
  /** All that was in one send has been told of. */
  idle(): void;
  /** The socket cannot send. */
  failed(): void;
}

export class ReplyQueue extends AioOp {
  readonly #negotiated: Negotiated;
  readonly #socket: AioSocket;
  readonly #headers: Memory;
  readonly #budget: ByteBudget;
  readonly #events: ReplyEvents;
  readonly #ready = new Fifo<NbdRequest>(64);
  readonly #sending: NbdRequest[] = [];
  #sendingCount = 0;
  readonly #iov = new Iov();
  /** The read whose reply is chained to it, and how it has ended. */
  #linked: NbdRequest | null = null;
  #linkedEnd = PENDING;
  /** Sends that have ended. */
  sends = 0;

  constructor(negotiated: Negotiated, socket: AioSocket, headers: Memory, budget: ByteBudget, events: ReplyEvents) {
    super();
    this.#negotiated = negotiated;
    this.#socket = socket;
    this.#headers = headers;
    this.#budget = budget;
    this.#events = events;
  }

  get idle(): boolean {
    return this.#sendingCount === 0 && this.#ready.length === 0;
  }

  /**
   * Has the kernel send the reply to a short read as soon as it has read, without coming back to us in between: for a
   * client that waits for each answer, that is one system call less. `request` has just been given to the backend, and
   * nothing else is to be sent. If the read does not go as expected, its reply goes the usual way.
   */
  sendWith(request: NbdRequest): void {
    if (!this.idle || request.length >= HOLE_MIN || request.slot < 0) return;
    this.#encodeSuccess(request);
    const iov = this.#iov.reset();
    iov.push(this.#headers, request.headerAt, request.headerLength);
    iov.push(this.#budget.memory, request.blockAt, request.payloadLength);
    if (!this.#socket.sendAfter(this, iov, request)) return;
    this.#linked = request;
    this.#linkedEnd = PENDING;
    this.#sending[0] = request;
    this.#sendingCount = 1;
  }

  /** True when the end of `request` is dealt with here: its reply is on its way already, or is sent when it is known
   *  that it is not. */
  takes(request: NbdRequest, error: number): boolean {
    if (request !== this.#linked) return false;
    this.#linkedEnd = error;
    return true;
  }

  /** Encodes the reply to `request`, which ended with `error` (0 or a negative errno). */
  push(request: NbdRequest, error: number): void {
    request.error = error;
    if (error !== 0) this.#encodeError(request);
    else this.#encodeSuccess(request);
    this.#ready.push(request);
  }

  #encodeSuccess(request: NbdRequest): void {
    const { extended, structured } = this.#negotiated;
    if (request.command === Command.READ && structured) this.#encodeRead(request);
    else if (request.command === Command.BLOCK_STATUS) {
      // Its chunks, headers and all, are in the request's block.
      request.headerLength = 0;
    } else {
      request.payloadLength = request.command === Command.READ ? request.length : 0;
      request.headerLength = extended
        ? this.#chunk(request, Chunk.NONE, 0)
        : encodeSimpleReply(this.#headers.view, request.headerAt, 0, request.cookieHi, request.cookieLo);
    }
  }

  /** Starts a send when none is under way. */
  flush(): void {
    if (this.#sendingCount > 0 || this.#ready.length === 0) return;
    const iov = this.#iov.reset();
    while (this.#ready.length > 0 && this.#sendingCount < REPLIES_MAX && iov.length < SEND_BYTES) {
      const request = this.#ready.shift()!;
      this.#sending[this.#sendingCount++] = request;
      if (request.headerLength > 0) iov.push(this.#headers, request.headerAt, request.headerLength);
      if (request.payloadLength > 0) iov.push(this.#budget.memory, request.blockAt, request.payloadLength);
    }
    this.#socket.send(this, iov);
  }

  complete(result: number): void {
    this.sends++;
    const linked = this.#linked;
    this.#linked = null;
    if (linked !== null && (result === -Errno.ECANCELED || this.#linkedEnd !== 0)) {
      // The read came up short or failed, so nothing was sent. Its reply follows when it has ended.
      this.#sendingCount = 0;
      if (this.#linkedEnd !== PENDING) this.#events.unsent(linked, this.#linkedEnd);
      this.flush();
      this.#events.idle();
      return;
    }
    const failed = result < 0;
    const count = this.#sendingCount;
    this.#sendingCount = 0;
    for (let i = 0; i < count; i++) this.#events.sent(this.#sending[i]!);
    if (failed) this.#events.failed();
    else this.flush();
    this.#events.idle();
  }

  /** Forgets the replies that wait. */
  drop(): void {
    for (let request = this.#ready.shift(); request; request = this.#ready.shift()) this.#events.sent(request);
  }

  #chunk(request: NbdRequest, type: number, payload: Bytes): number {
    const { view } = this.#headers;
    const { headerAt, cookieHi, cookieLo } = request;
    if (!this.#negotiated.extended)
      return encodeChunk(view, headerAt, ReplyFlag.DONE, type, cookieHi, cookieLo, payload);
    const offset = Math.max(0, request.offset);
    return encodeExtendedChunk(view, headerAt, ReplyFlag.DONE, type, cookieHi, cookieLo, offset, payload);
  }

  #encodeRead(request: NbdRequest): void {
    const { view } = this.#headers;
    if (request.length === 0) {
      request.payloadLength = 0;
      request.headerLength = this.#chunk(request, Chunk.NONE, 0);
      return;
    }
    const whole = (request.commandFlags & CommandFlag.DF) !== 0;
    if (!whole && request.length >= HOLE_MIN && this.#isHole(request)) {
      request.payloadLength = 0;
      const size = this.#chunk(request, Chunk.OFFSET_HOLE, OFFSET_HOLE_SIZE);
      request.headerLength = size + encodeOffsetHole(view, request.headerAt + size, request.offset, request.length);
      return;
    }
    request.payloadLength = request.length;
    const size = this.#chunk(request, Chunk.OFFSET_DATA, OFFSET_DATA_PREFIX + request.length);
    request.headerLength = size + encodeOffsetData(view, request.headerAt + size, request.offset);
  }

  /** Looks at what was read: data that is not zero is found out with its first word as a rule. */
  #isHole(request: NbdRequest): boolean {
    const { words } = this.#budget;
    const first = request.blockAt / 4;
    const last = first + Math.floor(request.length / 4);
    for (let i = first; i < last; i++) if (words[i] !== 0) return false;
    const { bytes } = this.#budget.memory;
    for (let i = last * 4; i < request.blockAt + request.length; i++) if (bytes[i] !== 0) return false;
    return true;
  }

  #encodeError(request: NbdRequest): void {
    const error = toNbdError(request.error);
    const { view } = this.#headers;
    request.payloadLength = 0;
    if (!this.#negotiated.structured) {
      request.headerLength = encodeSimpleReply(view, request.headerAt, error, request.cookieHi, request.cookieLo);
      return;
    }
    // Short and always the same: what a failure says here, names of files among it, is not for every client.
    const text = encoder.encode(errnoText(request.error)).subarray(0, HEADER_ROOM - 32 - 6);
    const size = this.#chunk(request, Chunk.ERROR, 6 + text.length);
    request.headerLength = size + encodeError(view, request.headerAt + size, error, text);
  }
}
