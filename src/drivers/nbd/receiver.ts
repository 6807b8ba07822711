/**
 * What the server says, on one connection: received in large pieces and parsed to the end of each, in callbacks.
 * Nothing is believed: a reply belongs to a request that is in flight, its data lie inside of what was asked for and
 * come once, and nothing counts as read that has not come. Whatever breaks the protocol ends the connection.
 *
 * Memory is this buffer, whatever the server sends: payloads that are not data are looked at up to a limit, data goes
 * to the memory of the request.
 */
import type { AioSocket } from '../../aio/backend.ts';
import { AioOp } from '../../aio/op.ts';
import { Errno } from '../../base/errors.ts';
import { forCopying, type Memory } from '../../base/memory.ts';
import { type Bytes, KiB } from '../../base/units.ts';
import { Chunk, Command, MAX_EXTENTS, MAX_STRING, ReplyFlag } from '../../proto/nbd/constants.ts';
import {
  BLOCK_STATUS_EXT_PREFIX,
  BLOCK_STATUS_PREFIX,
  decodeErrorPayload,
  decodeReply,
  decodeStatusPayload,
  ERROR_OFFSET_SUFFIX,
  ERROR_PREFIX,
  EXTENT_EXT_SIZE,
  EXTENT_SIZE,
  OFFSET_DATA_PREFIX,
  OFFSET_HOLE_SIZE,
  ReplyHeader,
  replyHeaderSize,
} from '../../proto/nbd/reply.ts';
import { getU64 } from '../../proto/nbd/words.ts';
import type { NbdCommand } from './command.ts';
import type { ServerInfo } from './handshake.ts';

export const RECEIVE_BYTES = 256 * KiB;
/** From here on, data is received into the request's own memory, without a copy. */
const DIRECT_MIN = 32 * KiB;
/** And so much at a time: what comes within the time that a context spins for. Waiting for 1 MiB at once is a sleep in
 *  which the server has to wake us for each of its packets: 2.2 GiB/s instead of 3.2 on a unix socket. */
const DIRECT_MAX = 256 * KiB;
/** How much of a block status is looked at; the rest is asked for again when it is wanted. A multiple of 16, and 8. */
const STATUS_BYTES = 64 * KiB;
/** Chunks of one answer that bring no data. */
const CHUNKS_MAX = 4096;
const ERROR_BYTES_MAX = ERROR_PREFIX + MAX_STRING + ERROR_OFFSET_SUFFIX;
/** Above all of NBD's own error numbers. */
const ERROR_BIT = 0x8000;

export interface ReplySink {
  /** The request with this cookie, if it is in flight. */
  find(cookieHi: number, cookieLo: number): NbdCommand | null;
  answered(command: NbdCommand): void;
  /** The average length of reads in flight, in bytes. */
  readonly readSize: Bytes;
  /** The server broke the protocol. Nothing is received after it. */
  broken(why: string): void;
  /** The stream has ended: 0 or a negative errno. */
  ended(result: number): void;
}

/** What comes next in the stream. */
const Expect = { HEADER: 0, PAYLOAD: 1, DATA: 2, SKIP: 3 } as const;

export class Receiver extends AioOp {
  readonly #socket: AioSocket;
  readonly #memory: Memory;
  readonly #server: ServerInfo;
  readonly #sink: ReplySink;
  readonly #header = new ReplyHeader();
  /** What was received and not parsed: [pos, fill) of the memory. */
  #pos = 0;
  #fill = 0;
  #expect: number = Expect.HEADER;
  #command: NbdCommand | null = null;
  /** Of the data, or of what is skipped, that has not come; and where in the request the data goes on. */
  #left = 0;
  #dataAt = 0;
  #direct = false;
  #stopped = false;
  /** A receive is under way: the buffer, or the memory of a request, is in use. */
  receiving = false;

  /** Uses the first {@link RECEIVE_BYTES} of `memory`. */
  constructor(socket: AioSocket, memory: Memory, server: ServerInfo, sink: ReplySink) {
    super();
    this.#socket = socket;
    this.#memory = memory;
    this.#server = server;
    this.#sink = sink;
  }

  start(): void {
    this.#receive();
  }

  /** Nothing is parsed any more. */
  stop(): void {
    this.#stopped = true;
  }

  complete(result: number): void {
    this.receiving = false;
    if (result <= 0 && !this.#stopped && (result === -Errno.EINTR || result === -Errno.EAGAIN)) {
      this.#receive();
      return;
    }
    if (result <= 0 || this.#stopped) {
      this.#sink.ended(result > 0 ? 0 : result);
      return;
    }
    if (this.#direct) {
      this.#dataAt += result;
      this.#left -= result;
    } else this.#fill += result;
    while (!this.#stopped && this.#parseOne()) {
      // One message after the other.
    }
    if (this.#stopped) this.#sink.ended(0);
    else this.#receive();
  }

  #receive(): void {
    this.receiving = true;
    this.#direct = this.#expect === Expect.DATA && this.#left >= DIRECT_MIN && this.#receiveDirect();
    if (this.#direct) return;
    if (this.#pos > 0) {
      forCopying(this.#memory).copyWithin(0, this.#pos, this.#fill);
      this.#fill -= this.#pos;
      this.#pos = 0;
    }
    // Where reads are long, what comes behind the header is better received where it belongs.
    const most = this.#expect === Expect.HEADER && this.#sink.readSize >= DIRECT_MIN ? 4 * KiB : RECEIVE_BYTES;
    const room = Math.min(RECEIVE_BYTES - this.#fill, Math.max(most, 64));
    this.#socket.recv(this, this.#memory, this.#fill, room, false);
  }

  /** Into the run of the request's memory that comes next, where that is long enough. */
  #receiveDirect(): boolean {
    const iov = this.#command!.iov!;
    let skip = this.#dataAt;
    for (let i = 0; i < iov.count; i++) {
      const run = iov.lengths[i]!;
      if (skip < run) {
        const length = Math.min(run - skip, this.#left, DIRECT_MAX);
        if (length < 4 * KiB) return false;
        this.#socket.recv(this, iov.memories[i]!, iov.offsets[i]! + skip, length, true);
        return true;
      }
      skip -= run;
    }
    return false;
  }

  #broken(why: string): boolean {
    this.#stopped = true;
    this.#sink.broken(why);
    return false;
  }

  /** True when something was taken and there may be more. */
  #parseOne(): boolean {
    switch (this.#expect) {
      case Expect.HEADER:
        return this.#takeHeader();
      case Expect.PAYLOAD:
        return this.#takePayload();
      case Expect.DATA:
        return this.#takeData();
      default: {
        const count = Math.min(this.#left, this.#fill - this.#pos);
        this.#pos += count;
        this.#left -= count;
        return this.#left === 0 && this.#endChunk();
      }
    }
  }

  #takeHeader(): boolean {
    const { view } = this.#memory;
    const available = this.#fill - this.#pos;
    if (available < 4) return false;
    const size = replyHeaderSize(view.getUint32(this.#pos));
    if (size === 0) return this.#broken('a reply begins with a wrong number');
    if (available < size) return false;
    const header = this.#header;
    decodeReply(view, this.#pos, header);
    this.#pos += size;
    const { structured, extended } = this.#server;
    const command = this.#sink.find(header.cookieHi, header.cookieLo);
    if (command === null) return this.#broken('a reply belongs to no request');
    this.#command = command;
    if (header.kind === 'simple') {
      const chunks =
        extended || (structured && (command.type === Command.READ || command.type === Command.BLOCK_STATUS));
      return chunks ? this.#broken('a simple reply came where a structured one has to') : this.#simple(command);
    }
    if (!structured || (header.kind === 'extended') !== extended) {
      return this.#broken(`a reply is ${header.kind}, which was not agreed on`);
    }
    return this.#chunk(command);
  }

  #simple(command: NbdCommand): boolean {
    this.#header.flags = ReplyFlag.DONE;
    if (this.#header.error !== 0) command.fail(this.#header.error);
    else if (command.type === Command.READ) return this.#beginData(command, 0, command.length);
    return this.#endChunk();
  }

  /** A chunk's header: what its payload may be. */
  #chunk(command: NbdCommand): boolean {
    const { type, length, flags } = this.#header;
    const { extended } = this.#server;
    const reading = command.type === Command.READ;
    if (type === Chunk.OFFSET_DATA && reading) {
      const fits = length > OFFSET_DATA_PREFIX && length <= OFFSET_DATA_PREFIX + command.length;
      return fits ? this.#payload() : this.#broken(`a chunk of data has ${length} bytes`);
    }
    if (++command.chunks > CHUNKS_MAX && !reading) return this.#broken('an answer has too many chunks');
    if (type === Chunk.NONE) {
      const ends = length === 0 && (flags & ReplyFlag.DONE) !== 0;
      return ends ? this.#endChunk() : this.#broken('an empty chunk is not empty, or does not end its answer');
    }
    if (type === Chunk.OFFSET_HOLE && reading) {
      return length === OFFSET_HOLE_SIZE ? this.#payload() : this.#broken(`a hole has ${length} bytes`);
    }
    if (type === (extended ? Chunk.BLOCK_STATUS_EXT : Chunk.BLOCK_STATUS) && command.type === Command.BLOCK_STATUS) {
      const [prefix, each] = extended ? [BLOCK_STATUS_EXT_PREFIX, EXTENT_EXT_SIZE] : [BLOCK_STATUS_PREFIX, EXTENT_SIZE];
      const count = (length - prefix) / each;
      const fits = Number.isInteger(count) && count >= 1 && count <= MAX_EXTENTS;
      return fits ? this.#payload() : this.#broken(`a block status has ${length} bytes`);
    }
    if ((type & ERROR_BIT) === 0)
      return this.#broken(`a chunk of type ${type} answers a request of type ${command.type}`);
    if (command.chunks > CHUNKS_MAX) return this.#broken('an answer has too many errors');
    const fits = length >= ERROR_PREFIX && length <= ERROR_BYTES_MAX;
    return fits ? this.#payload() : this.#broken(`an error has ${length} bytes`);
  }

  #payload(): boolean {
    this.#expect = Expect.PAYLOAD;
    return true;
  }

  /** How many bytes of the payload have to be there for a look at it. */
  #payloadNeeds(): Bytes {
    const { type, length } = this.#header;
    if (type === Chunk.OFFSET_DATA) return OFFSET_DATA_PREFIX;
    if (type === Chunk.BLOCK_STATUS) return Math.min(length, BLOCK_STATUS_PREFIX + STATUS_BYTES);
    return type === Chunk.BLOCK_STATUS_EXT ? Math.min(length, BLOCK_STATUS_EXT_PREFIX + STATUS_BYTES) : length;
  }

  #takePayload(): boolean {
    const { type, length } = this.#header;
    const needs = this.#payloadNeeds();
    if (this.#fill - this.#pos < needs) return false;
    const command = this.#command!;
    const at = this.#pos;
    const { view } = this.#memory;
    this.#pos += needs;
    if (type === Chunk.OFFSET_DATA) {
      return this.#beginData(command, getU64(view, at) - command.at, length - OFFSET_DATA_PREFIX);
    }
    if (type === Chunk.OFFSET_HOLE) {
      const from = getU64(view, at) - command.at;
      const bytes = view.getUint32(at + 8);
      if (!command.expects(from, bytes)) return this.#broken('a hole lies outside of what was asked for');
      command.iov!.fill(0, from, bytes);
      return this.#endChunk();
    }
    const payload = this.#memory.bytes.subarray(at, at + needs);
    if ((type & ERROR_BIT) !== 0) return this.#takeError(command, type, payload);
    return this.#takeStatus(command, payload, length);
  }

  #takeError(command: NbdCommand, type: number, payload: Uint8Array): boolean {
    const decoded = decodeErrorPayload(payload, type === Chunk.ERROR_OFFSET);
    // Of a type that nobody knows only this is known, that it is an error.
    const known = type === Chunk.ERROR || type === Chunk.ERROR_OFFSET;
    if (decoded === undefined && known) return this.#broken('an error is malformed');
    command.fail(decoded?.error ?? Errno.EIO);
    return this.#endChunk();
  }

  #takeStatus(command: NbdCommand, payload: Uint8Array, length: Bytes): boolean {
    const status = decodeStatusPayload(payload, this.#server.extended, length);
    if (status === undefined) return this.#broken('a block status is malformed');
    if (status.contextId !== this.#server.contextId) return this.#broken('a block status is of an unknown context');
    if (command.extents !== null) return this.#broken('a block status comes twice');
    command.extents = status.extents;
    this.#left = length - payload.length;
    this.#expect = Expect.SKIP;
    return true;
  }

  #beginData(command: NbdCommand, from: number, length: Bytes): boolean {
    if (!command.expects(from, length)) return this.#broken('data lies outside of what was asked for, or comes twice');
    this.#dataAt = from;
    this.#left = length;
    this.#expect = Expect.DATA;
    return true;
  }

  #takeData(): boolean {
    const count = Math.min(this.#left, this.#fill - this.#pos);
    if (count > 0) {
      const iov = this.#command!.iov!;
      iov.copyFrom(forCopying(this.#memory).subarray(this.#pos, this.#pos + count), this.#dataAt);
      this.#pos += count;
      this.#dataAt += count;
      this.#left -= count;
    }
    return this.#left === 0 && this.#endChunk();
  }

  #endChunk(): boolean {
    const command = this.#command!;
    this.#command = null;
    this.#expect = Expect.HEADER;
    if ((this.#header.flags & ReplyFlag.DONE) === 0) return true;
    if (!command.complete) return this.#broken('an answer ends before all of it has come');
    this.#sink.answered(command);
    return true;
  }
}
