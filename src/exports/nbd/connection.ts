/**
 * The transmission phase of one connection: receive, parse, submit, reply, all in callbacks in the home context of the
 * export. One receive is parsed to its end before anything is submitted to the kernel; replies that are ready together
 * leave together. A read or write that the block layer can do at once allocates nothing.
 *
 * Back-pressure is one rule: while there is a reason to pause (requests or bytes at their limit, all receive chunks in
 * use, a drained export, a stop), nothing is parsed and nothing is received, and the client's socket fills up.
 *
 * A connection whose client is to be served elsewhere (docs/CHANNELS.md, "NBD connections follow") parses no request
 * either, and ends between two of them, with what it has received of the next.
 */
import type { AioSocket } from '../../aio/backend.ts';
import type { BottomHalf } from '../../aio/bottom-half.ts';
import type { AioContext } from '../../aio/context.ts';
import { AioOp, Gate, spawn } from '../../aio/op.ts';
import { Errno } from '../../base/errors.ts';
import { FreeList } from '../../base/free-list.ts';
import type { Memory } from '../../base/memory.ts';
import { RequestKind } from '../../block/request.ts';
import { Command, CommandFlag, EXTENDED_REQUEST_SIZE, REQUEST_SIZE } from '../../proto/nbd/constants.ts';
import { decodeExtendedRequest, decodeRequest, RequestHeader } from '../../proto/nbd/request.ts';
import { blockStatus, STATUS_BYTES } from './block-status.ts';
import type { ByteBudget } from './budget.ts';
import { checkCommand } from './command.ts';
import type { HandedOver } from './export-list.ts';
import type { Negotiated } from './handshake.ts';
import type { ConnectionHooks, NbdLimits } from './limits.ts';
import { CHUNK_BYTES, CHUNK_PAYLOAD_MAX, CHUNKS, ReceiveBuffer } from './receive-buffer.ts';
import { ReplyQueue } from './reply.ts';
import { HEADER_ROOM, NbdRequest, type RequestOwner } from './request.ts';
import { BudgetShare } from './share.ts';

/** Serves one client in the transmission phase; resolves when nothing of its is in flight: to undefined when it has
 *  gone, or to what another server goes on from (StopSignal.leaving), with the socket as it was. */
export function transmit(...of: ConstructorParameters<typeof Connection>): Promise<HandedOver | undefined> {
  return new Connection(...of).run();
}

class ReceiveOp extends AioOp {
  readonly #connection: Connection;
  constructor(connection: Connection) {
    super();
    this.#connection = connection;
  }
  complete(result: number): void {
    this.#connection.received(result);
  }
}

/** A client may have a quarter of the byte budget, and one payload of the largest size in any case. */
const SHARES = 4;

/** What comes next in the stream. */
const Expect = { HEADER: 0, PAYLOAD: 1, SKIP: 2, BLOCK: 3 } as const;

export class Connection implements RequestOwner {
  readonly negotiated: Negotiated;
  readonly budget: ByteBudget;
  readonly #context: AioContext;
  readonly #socket: AioSocket;
  readonly #limits: NbdLimits;
  readonly #hooks: ConnectionHooks;
  readonly #buffer: ReceiveBuffer;
  /** The receive chunks, then the headers of replies. */
  readonly #memory: Memory;
  readonly #header = new RequestHeader();
  readonly #headerSize: number;
  readonly #receive: ReceiveOp;
  readonly #replies: ReplyQueue;
  readonly #replyBh: BottomHalf;
  readonly #idle = new FreeList<NbdRequest>();
  readonly #ended = new Gate();
  #requests = 0;
  #busy = 0;
  #expect: number = Expect.HEADER;
  /** The write whose payload is expected, and how much of it is not there yet. */
  #writing: NbdRequest | null = null;
  #missing = 0;
  #skip = 0;
  #receiving = false;
  /** The receive under way was taken back. */
  #cancelled = false;
  #parsing = false;
  /** The read that was parsed last, in this call; the only request in flight when the client waits for each answer. */
  #lone: NbdRequest | null = null;
  readonly #share: BudgetShare;
  /** Receives that brought something, and how much had moved when others last asked for memory. */
  #moves = 0;
  #movesSeen = -1;
  /** No more requests are read: the client has said so, or left, or we stop. */
  #closing = false;
  /** The socket is of no use any more. */
  #dead = false;

  constructor(
    context: AioContext,
    socket: AioSocket,
    negotiated: Negotiated,
    limits: NbdLimits,
    budget: ByteBudget,
    hooks: ConnectionHooks,
  ) {
    this.#context = context;
    this.#socket = socket;
    this.negotiated = negotiated;
    this.#limits = limits;
    this.budget = budget;
    this.#hooks = hooks;
    const share = Math.max(limits.maxPayload, budget.size / SHARES);
    this.#share = new BudgetShare(budget, share, () => this.#advance());
    this.#headerSize = negotiated.extended ? EXTENDED_REQUEST_SIZE : REQUEST_SIZE;
    this.#memory = budget.takeReceiveMemory(CHUNKS * CHUNK_BYTES + limits.maxRequests * HEADER_ROOM);
    this.#buffer = new ReceiveBuffer(this.#memory);
    this.#receive = new ReceiveOp(this);
    this.#replies = new ReplyQueue(negotiated, socket, this.#memory, budget, {
      sent: (request) => this.#release(request),
      unsent: (request, error) => this.#reply(request, error),
      idle: () => this.#advance(),
      failed: () => this.#fail(),
    });
    this.#replyBh = context.bottomHalf(() => this.#replies.flush(), 'nbd replies');
  }

  async run(): Promise<HandedOver | undefined> {
    const { stop } = this.#hooks;
    stop.onRaise = () => this.#close();
    stop.onLeaving = () => this.#advance();
    stop.onResume = () => this.#advance();
    stop.onCut = () => this.#fail();
    stop.onStarved = () => this.#yieldMemory();
    this.#buffer.preload(this.negotiated.buffered);
    if (stop.raised) this.#closing = true;
    this.#advance();
    await this.#ended.promise;
    this.#share.close();
    stop.forget();
    this.#replyBh.delete();
    const { export: _, ...agreed } = this.negotiated;
    const onward = this.#closing ? undefined : { ...agreed, buffered: this.#buffer.takeRest() };
    this.budget.giveReceiveMemory(this.#memory);
    return onward;
  }

  /** True while the export is drained: nothing is read (SEMANTICS D4). */
  get #paused(): boolean {
    return this.negotiated.export.blk.quiesce > 0;
  }

  // Receiving.

  received(result: number): void {
    this.#receiving = false;
    const cancelled = this.#cancelled && result === -Errno.ECANCELED;
    this.#cancelled = false;
    if (this.#dead) {
      // What came in with the end is of no use: there is nobody to answer.
      this.#lost();
      return;
    }
    if (result <= 0) {
      if (cancelled || result === -Errno.EINTR || result === -Errno.EAGAIN) this.#advance();
      else this.#lost();
      return;
    }
    this.#moves++;
    this.#hooks.traffic.bytesIn += result;
    if (this.#expect === Expect.BLOCK) this.#blockReceived(result);
    else this.#buffer.fill += result;
    this.#advance();
  }

  #blockReceived(result: number): void {
    this.#missing -= result;
    if (this.#missing > 0) return;
    const request = this.#writing!;
    this.#writing = null;
    this.#expect = Expect.HEADER;
    this.#submit(request);
  }

  /** Level-triggered: parses what can be parsed, receives when there is room, ends when all is done. */
  #advance(): void {
    if (this.#parsing || this.#ended.opened) return;
    this.#parsing = true;
    this.#lone = null;
    while (!this.#dead && this.#parseOne()) {
      // One message after the other.
    }
    this.#parsing = false;
    if (this.#lone !== null && this.#busy === 1) this.#replies.sendWith(this.#lone);
    if (!this.#receiving && !this.#dead && this.#wantsInput()) this.#startReceive();
    this.#endIfDone();
  }

  /** A payload that was begun is taken in even while we close: its write may still be done. */
  #wantsInput(): boolean {
    if (this.#share.waiting) return false;
    if (this.#expect === Expect.PAYLOAD || this.#expect === Expect.BLOCK) return true;
    if (this.#hooks.stop.leaving && this.#expect === Expect.HEADER) return false;
    return !this.#closing && !this.#paused && this.#busy < this.#limits.maxRequests;
  }

  #startReceive(): void {
    if (this.#expect === Expect.BLOCK) {
      const request = this.#writing!;
      const at = request.blockAt + request.blockLength - this.#missing;
      this.#receiving = true;
      this.#socket.recv(this.#receive, this.budget.memory, at, this.#missing, true);
      return;
    }
    const buffer = this.#buffer;
    const need = this.#expect === Expect.PAYLOAD ? this.#writing!.length : this.#headerSize;
    const room = buffer.room(need);
    if (room === 0) return;
    this.#receiving = true;
    this.#socket.recv(this.#receive, buffer.memory, buffer.fill, room, false);
  }

  // Parsing.

  /** True when something was taken from the buffer and there may be more. */
  #parseOne(): boolean {
    const buffer = this.#buffer;
    switch (this.#expect) {
      case Expect.SKIP: {
        const count = Math.min(this.#skip, buffer.available);
        buffer.pos += count;
        this.#skip -= count;
        if (this.#skip > 0) return false;
        this.#expect = Expect.HEADER;
        return true;
      }
      case Expect.PAYLOAD:
        return this.#takePayload();
      case Expect.BLOCK:
        return false;
      default:
        return this.#takeHeader();
    }
  }

  #takeHeader(): boolean {
    const buffer = this.#buffer;
    if (buffer.available < this.#headerSize || this.#closing || this.#paused || this.#share.waiting) return false;
    if (this.#busy >= this.#limits.maxRequests || this.#hooks.stop.leaving) return false;
    const header = this.#header;
    const decode = this.negotiated.extended ? decodeExtendedRequest : decodeRequest;
    if (!decode(buffer.memory.view, buffer.pos, header)) {
      this.#fail();
      return false;
    }
    const blockLength = this.#answerBytes(header);
    const blockAt = blockLength > 0 ? this.#share.allocate(blockLength) : 0;
    if (blockAt < 0) return false;
    buffer.pos += this.#headerSize;
    this.#command(header, blockAt, blockLength);
    return true;
  }

  /** How much memory the answer needs. */
  #answerBytes(header: RequestHeader): number {
    if (header.type === Command.BLOCK_STATUS) return STATUS_BYTES;
    if (header.type !== Command.READ || header.length > this.#limits.maxPayload) return 0;
    return Math.max(0, header.length);
  }

  #command(header: RequestHeader, blockAt: number, blockLength: number): void {
    if (header.type === Command.DISC) {
      this.#close();
      return;
    }
    const request = this.#take();
    request.command = header.type;
    request.commandFlags = header.flags;
    request.cookieHi = header.cookieHi;
    request.cookieLo = header.cookieLo;
    request.offset = header.offset;
    request.at = header.offset;
    request.length = header.length;
    request.blockAt = blockAt;
    request.blockLength = blockLength;
    this.#hooks.traffic.requests++;
    const { extended, export: entry } = this.negotiated;
    const payload = header.type === Command.WRITE || (extended && (header.flags & CommandFlag.PAYLOAD_LEN) !== 0);
    const error = checkCommand(request, this.negotiated, entry.blk.length, this.#limits.maxPayload);
    if (error !== 0) {
      if (payload) this.#skipPayload(header.length);
      this.requestDone(request, error);
      return;
    }
    if (header.type === Command.WRITE && header.length > 0) {
      this.#writing = request;
      this.#expect = Expect.PAYLOAD;
      return;
    }
    this.#submit(request);
  }

  /** A refused payload is read and thrown away while that is sensible; beyond it the stream is given up. */
  #skipPayload(length: number): void {
    if (length < 0 || length > 2 * this.#limits.maxPayload) {
      this.#close();
      return;
    }
    this.#skip = length;
    this.#expect = Expect.SKIP;
  }

  #takePayload(): boolean {
    const request = this.#writing!;
    const buffer = this.#buffer;
    const length = request.length;
    if (buffer.available >= length) {
      request.iov.push(buffer.memory, buffer.pos, length);
      request.chunk = buffer.pin();
      buffer.pos += length;
      this.#writing = null;
      this.#expect = Expect.HEADER;
      this.#submit(request);
      return true;
    }
    if (length <= CHUNK_PAYLOAD_MAX || this.#share.waiting) return false;
    return this.#splitPayload(request);
  }

  /** A long payload: what has come stays in its chunk, the rest is received into a block of its own. */
  #splitPayload(request: NbdRequest): boolean {
    const buffer = this.#buffer;
    const here = buffer.available;
    const rest = request.length - here;
    const blockAt = this.#share.allocate(rest);
    if (blockAt < 0) return false;
    request.blockAt = blockAt;
    request.blockLength = rest;
    if (here > 0) {
      request.iov.push(buffer.memory, buffer.pos, here);
      request.chunk = buffer.pin();
      buffer.pos += here;
    }
    request.iov.push(this.budget.memory, blockAt, rest);
    this.#missing = rest;
    this.#expect = Expect.BLOCK;
    return false;
  }

  // Working.

  #submit(request: NbdRequest): void {
    const { blk } = this.negotiated.export;
    switch (request.command) {
      case Command.READ:
        request.kind = RequestKind.READ;
        request.flags = 0;
        if (request.length > 0) request.iov.push(this.budget.memory, request.blockAt, request.length);
        break;
      case Command.WRITE:
        request.kind = RequestKind.WRITE;
        request.setFlags(false);
        break;
      case Command.FLUSH:
        request.kind = RequestKind.FLUSH;
        request.flags = 0;
        break;
      case Command.TRIM:
        request.kind = RequestKind.DISCARD;
        request.flags = 0;
        break;
      case Command.CACHE:
        request.kind = RequestKind.CACHE;
        request.flags = 0;
        break;
      case Command.WRITE_ZEROES:
        request.kind = RequestKind.ZERO;
        request.setFlags(true);
        break;
      default:
        spawn(this.#blockStatus(request));
        return;
    }
    if (request.length === 0 && request.kind !== RequestKind.FLUSH) {
      this.requestDone(request, 0);
      return;
    }
    blk.submit(request);
    if (request.kind === RequestKind.READ) this.#lone = request;
  }

  async #blockStatus(request: NbdRequest): Promise<void> {
    this.requestDone(request, await blockStatus(request, this.negotiated, this.budget));
  }

  requestDone(request: NbdRequest, error: number): void {
    if (request.chunk >= 0) {
      this.#buffer.unpin(request.chunk);
      request.chunk = -1;
    }
    if (error !== 0) {
      this.#hooks.traffic.errors++;
      request.failure = null;
    }
    if (!this.#replies.takes(request, error)) this.#reply(request, error);
  }

  #reply(request: NbdRequest, error: number): void {
    if (this.#dead) {
      this.#release(request);
      this.#endIfDone();
      return;
    }
    this.#replies.push(request, error);
    this.#replyBh.schedule();
  }

  #take(): NbdRequest {
    this.#busy++;
    const idle = this.#idle.take();
    if (idle) {
      idle.headerLength = 0;
      idle.payloadLength = 0;
      return idle;
    }
    return new NbdRequest(this, CHUNKS * CHUNK_BYTES + this.#requests++ * HEADER_ROOM);
  }

  submitAgain(request: NbdRequest): void {
    this.negotiated.export.blk.submit(request);
  }

  #release(request: NbdRequest): void {
    if (request.blockLength > 0) {
      const { blockAt, blockLength } = request;
      request.blockLength = 0;
      this.#share.free(blockAt, blockLength);
    }
    request.iov.reset();
    this.#busy--;
    this.#idle.give(request);
    this.#hooks.traffic.bytesOut += request.headerLength + request.payloadLength;
  }

  // Ending.

  /** Reads no more requests; those under way are answered. */
  #close(): void {
    this.#closing = true;
    this.#advance();
  }

  /** The client has gone: what it has sent whole is still worked on, and answered as far as it can be. */
  #lost(): void {
    this.#closing = true;
    if (this.#writing) {
      // A payload that was cut off: nothing of it is written.
      const request = this.#writing;
      this.#writing = null;
      this.#expect = Expect.HEADER;
      if (request.chunk >= 0) this.#buffer.unpin(request.chunk);
      request.chunk = -1;
      this.#release(request);
    }
    this.#endIfDone();
  }

  /** Others wait for memory: a client that has some, and has moved nothing since it was last asked, is given up. */
  #yieldMemory(): void {
    const moves = this.#moves + this.#replies.sends;
    const stuck = moves === this.#movesSeen && (!this.#replies.idle || this.#writing !== null);
    this.#movesSeen = moves;
    if (stuck && this.#share.holds) this.#fail();
  }

  /** The stream cannot go on: no more replies either. */
  #fail(): void {
    if (this.#dead) return;
    this.#dead = true;
    this.#closing = true;
    this.#socket.shutdown();
    this.#share.forget();
    this.#replies.drop();
    if (!this.#receiving) this.#lost();
  }

  #endIfDone(): void {
    const leaving = this.#hooks.stop.leaving && this.#expect === Expect.HEADER;
    if (!(this.#closing || leaving) || this.#parsing || this.#ended.opened) return;
    if (this.#busy > 0 || !this.#replies.idle) return;
    if (!this.#receiving) this.#ended.open();
    // The last reply has gone out; a receive that is still waiting for the client ends with the socket.
    else if (this.#closing) this.#socket.shutdown();
    else if (!this.#cancelled) {
      this.#cancelled = true;
      this.#context.backend.cancel(this.#receive);
    }
  }
}
