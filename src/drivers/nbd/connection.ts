/**
 * The transmission phase of one connection, in callbacks: requests leave together in one gather send; while it is under
 * way the next ones collect. A cookie is a place among the requests in flight and a serial number, so that an answer to
 * nothing, to something long answered, or a second one is found out.
 *
 * What a request holds belongs to the kernel until the send has ended, and until no receive goes to its memory: only
 * then does it end, or go to another connection.
 */
import type { AioSocket } from '../../aio/backend.ts';
import { AioOp } from '../../aio/op.ts';
import { errnoText } from '../../base/errors.ts';
import { Fifo } from '../../base/fifo.ts';
import { FreeList } from '../../base/free-list.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { type Bytes, KiB, MiB } from '../../base/units.ts';
import { Command, CommandFlag, EXTENDED_REQUEST_SIZE, NbdError, REQUEST_SIZE } from '../../proto/nbd/constants.ts';
import { fromNbdError } from '../../proto/nbd/errno.ts';
import { encodeExtendedRequest, encodeRequest, RequestHeader } from '../../proto/nbd/request.ts';
import type { NbdCommand } from './command.ts';
import type { ServerInfo } from './handshake.ts';
import { HANDSHAKE_RECEIVE, HANDSHAKE_SEND } from './option-talk.ts';
import { RECEIVE_BYTES, Receiver, type ReplySink } from './receiver.ts';

/** Requests in flight on one connection. */
export const IN_FLIGHT_MAX = 256;
/** Requests in one send: their headers and payloads together stay below IOV_MAX, 1024 runs. */
const BATCH_MAX = 128;
const RUNS_MAX = 1000;
/** No request is added to a batch that has, or asks for, so many bytes: other connections get some, too. */
const BATCH_BYTES = 512 * KiB;
const HEADERS_AT = RECEIVE_BYTES;

/** What a connection works in: where it receives, and the headers of one batch. The handshake has it first. */
export const CONNECTION_BYTES = Math.max(
  RECEIVE_BYTES + BATCH_MAX * EXTENDED_REQUEST_SIZE,
  HANDSHAKE_RECEIVE + HANDSHAKE_SEND,
);

export interface ConnectionOwner {
  /** The server has answered: `command.result` is what it is. */
  answered(connection: Connection, command: NbdCommand): void;
  /** There may be room for more requests. */
  ready(): void;
  /** It is over, for what `connection.reason` says. `commands` were not answered, in the order they were sent; nothing
   *  of theirs is in use any more. */
  lost(connection: Connection, commands: NbdCommand[]): void;
}

class SendOp extends AioOp {
  readonly #connection: Connection;
  constructor(connection: Connection) {
    super();
    this.#connection = connection;
  }
  complete(result: number): void {
    this.#connection.sendEnded(result);
  }
}

export class Connection implements ReplySink {
  readonly server: ServerInfo;
  /** Which writes had been acknowledged when it came to be; see session.ts. */
  readonly born: number;
  /** Why it has ended, and whether the server broke the protocol. */
  reason = '';
  violated = false;
  /** Requests that are in flight, and the bytes they move. */
  inFlight = 0;
  bytesInFlight: Bytes = 0;
  #reads = 0;
  #readBytes: Bytes = 0;
  readonly #owner: ConnectionOwner;
  readonly #socket: AioSocket;
  readonly #memory: Memory;
  readonly #receiver: Receiver;
  readonly #send = new SendOp(this);
  readonly #iov = new Iov();
  readonly #header = new RequestHeader();
  readonly #commands: (NbdCommand | null)[] = new Array<NbdCommand | null>(IN_FLIGHT_MAX).fill(null);
  readonly #free = new FreeList<number>();
  /** Requests that must go over this connection: flushes. */
  readonly #own = new Fifo<NbdCommand>(4);
  readonly #sending: NbdCommand[] = [];
  #sendingCount = 0;
  #serial = 0;
  #leaving = false;
  #dead = false;
  #over = false;

  /** `memory`: {@link CONNECTION_BYTES}. */
  constructor(socket: AioSocket, memory: Memory, server: ServerInfo, born: number, owner: ConnectionOwner) {
    this.#socket = socket;
    this.#memory = memory;
    this.server = server;
    this.born = born;
    this.#owner = owner;
    for (let slot = IN_FLIGHT_MAX - 1; slot >= 0; slot--) this.#free.give(slot);
    this.#receiver = new Receiver(socket, memory, server, this);
  }

  start(): void {
    this.#receiver.start();
  }

  /** True when a batch can be sent. */
  get takes(): boolean {
    return this.#sendingCount === 0 && !this.#dead && this.#free.length > 0;
  }

  get readSize(): Bytes {
    return this.#reads === 0 ? 0 : this.#readBytes / this.#reads;
  }

  /** To be sent on this connection and no other. */
  push(command: NbdCommand): void {
    this.#own.push(command);
  }

  get hasOwn(): boolean {
    return this.#own.length > 0;
  }

  /** Sends a batch of what waits; {@link takes} came before. */
  sendFrom(ready: Fifo<NbdCommand>): void {
    const iov = this.#iov.reset();
    const size = this.server.extended ? EXTENDED_REQUEST_SIZE : REQUEST_SIZE;
    let bytes = 0;
    let headerAt = HEADERS_AT;
    let headersFrom = headerAt;
    while (this.#sendingCount < BATCH_MAX && this.#free.length > 0 && bytes < BATCH_BYTES) {
      const from = this.#own.length > 0 ? this.#own : ready;
      const next = from.peek();
      if (next === undefined) break;
      const payload = next.type === Command.WRITE ? next.iov : null;
      if (payload !== null && iov.count + payload.count + 2 > RUNS_MAX && iov.count > 0) break;
      from.shift();
      this.#encode(next, headerAt);
      headerAt += size;
      bytes += next.length;
      if (payload === null) continue;
      // Headers that follow each other are one run.
      iov.push(this.#memory, headersFrom, headerAt - headersFrom);
      headersFrom = headerAt;
      for (let i = 0; i < payload.count; i++) iov.push(payload.memories[i]!, payload.offsets[i]!, payload.lengths[i]!);
    }
    if (headerAt > headersFrom) iov.push(this.#memory, headersFrom, headerAt - headersFrom);
    if (iov.count > 0) this.#socket.send(this.#send, iov);
  }

  #encode(command: NbdCommand, at: number): void {
    const slot = this.#free.take()!;
    this.#serial = (this.#serial + 1) % 2 ** 31;
    command.begin(slot, this.#serial);
    this.#commands[slot] = command;
    this.#sending[this.#sendingCount++] = command;
    this.inFlight++;
    this.#count(command, 1);
    const header = this.#header;
    const { extended } = this.server;
    header.flags = extended && command.type === Command.WRITE ? command.flags | CommandFlag.PAYLOAD_LEN : command.flags;
    header.type = command.type;
    header.cookieHi = command.serial;
    header.cookieLo = slot;
    header.offset = command.at;
    header.length = command.length;
    if (extended) encodeExtendedRequest(this.#memory.view, at, header);
    else encodeRequest(this.#memory.view, at, header);
  }

  #count(command: NbdCommand, sign: number): void {
    if (command.type === Command.READ) {
      this.#reads += sign;
      this.#readBytes += sign * command.length;
    } else if (command.type !== Command.WRITE) return;
    this.bytesInFlight += sign * command.length;
  }

  sendEnded(result: number): void {
    const count = this.#sendingCount;
    this.#sendingCount = 0;
    for (let i = 0; i < count; i++) {
      const command = this.#sending[i]!;
      command.sent = true;
      // Answers may overtake the news that the request has left.
      if (command.answered) this.#owner.answered(this, command);
    }
    if (result < 0 || this.#leaving) this.close(result < 0 ? `could not send: ${errnoText(result)}` : 'closed');
    else if (!this.#dead) this.#owner.ready();
    this.#endIfDone();
  }

  // What the receiver finds.

  find(cookieHi: number, cookieLo: number): NbdCommand | null {
    if (cookieLo >= IN_FLIGHT_MAX) return null;
    const command = this.#commands[cookieLo]!;
    return command !== null && command.serial === cookieHi && !command.answered ? command : null;
  }

  answered(command: NbdCommand): void {
    if (command.error === -fromNbdError(NbdError.ESHUTDOWN)) {
      // Not done: maybe another server does it.
      this.close('the server is about to end');
      return;
    }
    const { slot } = command;
    this.#commands[slot] = null;
    this.#free.give(slot);
    this.inFlight--;
    this.#count(command, -1);
    command.answered = true;
    if (command.sent) this.#owner.answered(this, command);
  }

  broken(why: string): void {
    this.violated = true;
    this.close(why);
  }

  ended(result: number): void {
    this.close(result < 0 ? errnoText(result) : 'the server has ended the connection');
    this.#endIfDone();
  }

  // The end.

  /** Ends it; `lost` follows when the kernel has let go of everything. Idempotent. */
  close(reason: string): void {
    if (this.#dead) return;
    this.#dead = true;
    this.reason = reason;
    this.#receiver.stop();
    this.#socket.shutdown();
  }

  /** Says good-bye with `command`, a DISC; no request is in flight. Then as {@link close}. */
  disconnect(command: NbdCommand): void {
    this.#leaving = true;
    if (!this.takes) {
      this.close('closed');
      return;
    }
    const iov = this.#iov.reset();
    this.#encode(command, HEADERS_AT);
    iov.push(this.#memory, HEADERS_AT, this.server.extended ? EXTENDED_REQUEST_SIZE : REQUEST_SIZE);
    this.#socket.send(this.#send, iov);
  }

  #endIfDone(): void {
    if (!this.#dead || this.#over || this.#receiver.receiving || this.#sendingCount > 0) return;
    this.#over = true;
    const left = this.#commands.filter((command) => command !== null);
    left.sort((a, b) => a.serial - b.serial);
    for (let own = this.#own.shift(); own !== undefined; own = this.#own.shift()) left.push(own);
    this.#commands.fill(null);
    this.#owner.lost(this, left);
  }

  /** Gives the descriptor back; after `lost`. */
  async release(): Promise<void> {
    await this.#socket.close();
  }
}

/** More than this on a connection, and another is better off with the next request. */
export const BUSY_BYTES = 1 * MiB;
