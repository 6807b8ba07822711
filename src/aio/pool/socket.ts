/**
 * Stream sockets through node:net. The stream flows while somebody receives, and is paused with the first bytes that
 * nobody wants yet: node then reads ahead no more than {@link READ_AHEAD} bytes. Received bytes are copied once, sent
 * bytes are not. A receive that has something ends in the next dispatch, and takes what comes until then.
 */
import * as net from 'node:net';
import { assert } from '../../base/assert.ts';
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import { forCopying, type Iov, type Memory } from '../../base/memory.ts';
import type { Bytes } from '../../base/units.ts';
import { duplicate } from '../../native/file.ts';
import type { AioSocket, SocketAddress } from '../backend.ts';
import { AioOp, Gate } from '../op.ts';
import type { OpOwner } from '../op-table.ts';
import { describeAddress } from '../socket-address.ts';
import type { PoolLoop, PoolResource } from './loop.ts';
import { nodeErrno, nodeError } from './node-errors.ts';
import { receiveInto, STAGED_MAX, STAGING_BYTES, STAGING_ROOM } from './staging.ts';

export const READ_AHEAD = 256 * 1024;
/** A TLS stream gets so much at a time, and has it encrypted at once: that is what it holds. */
const SEND_PIECE = 256 * 1024;
const NOTHING = new Uint8Array();

/** What a stream's operations go through: the pool's loop, or that of another backend with streams beside it. */
export interface StreamLoop {
  readonly resources: Set<PoolResource>;
  /** Takes `op` over; false when the loop is stopping and has ended it. */
  begin(op: AioOp, owner: OpOwner): boolean;
  /** The end of `op`, in the next dispatch. */
  end(op: AioOp, result: number): void;
  /** The end of `op` at once: in a dispatch only. */
  endNow(op: AioOp, result: number): void;
  /** Completes `op`, which is not one that was taken over, in the next dispatch. */
  later(op: AioOp): void;
}

export function connectPool(loop: PoolLoop, address: SocketAddress): Promise<AioSocket> {
  const gate = new Gate<AioSocket>();
  const socket = new net.Socket({ allowHalfOpen: true, ...readAhead() });
  const onError = (error: Error): void => {
    gate.fail(nodeError(error, `connect to '${describeAddress(address)}'`));
  };
  socket.once('error', onError);
  socket.once('connect', () => {
    socket.off('error', onError);
    gate.open(new PoolSocket(loop, socket));
  });
  if (address.kind === 'unix') socket.connect({ path: address.path });
  else socket.connect({ host: address.host, port: address.port, noDelay: true });
  return gate.promise;
}

export function adoptPoolSocket(loop: PoolLoop, given: number, shared: boolean): AioSocket {
  const fd = shared ? duplicate(given) : given;
  if (fd < 0) throw new BlockError(fd, `Could not take over socket ${given}: ${errnoText(fd)}`);
  try {
    const socket = new net.Socket({ fd, readable: true, writable: true, allowHalfOpen: true, ...readAhead() });
    socket.setNoDelay(true);
    // A peer whose machine or route is gone is found out.
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    return new PoolSocket(loop, socket);
  } catch (error) {
    throw nodeError(error, `take over socket ${fd}`);
  }
}

/** A stream that Node has made itself, for TLS: it receives into memory of ours, and is sent pieces. */
export function socketOverStream(loop: StreamLoop, stream: net.Socket): AioSocket {
  return new PoolSocket(loop, stream, true);
}

/** net.Socket hands these on to its stream; the types do not say so. */
export function readAhead(): object {
  return { readableHighWaterMark: READ_AHEAD };
}

function peerName(socket: net.Socket): string {
  const { remoteAddress, remotePort } = socket;
  if (remoteAddress === undefined || remotePort === undefined) return 'unix';
  return describeAddress({ kind: 'inet', host: remoteAddress, port: remotePort });
}

const KEEP_ALIVE_MS = 60_000;

/** Ends a receive that has something, in the dispatch. */
class ReceivedOp extends AioOp {
  readonly #socket: PoolSocket;
  constructor(socket: PoolSocket) {
    super();
    this.#socket = socket;
  }
  complete(): void {
    this.#socket.endReceived();
  }
}

export class PoolSocket implements AioSocket, OpOwner, PoolResource {
  readonly peer: string;
  readonly #loop: StreamLoop;
  readonly #socket: net.Socket;
  /** What is sent goes through here, where it is encrypted. */
  readonly #outgoing: Uint8Array | undefined;
  readonly #closed = new Gate();
  /** What ended the connection: 0 for nothing or an orderly end, else a negative errno. */
  #error = 0;
  #ended = false;
  #shut = false;

  #receiver: AioOp | undefined;
  #memory: Memory | undefined;
  #at = 0;
  #wanted = 0;
  #received = 0;
  #all = false;
  /** Received, and not asked for: the bytes from `#from` to `#to` in `#source`. */
  #source: Uint8Array = NOTHING;
  #from = 0;
  #to = 0;
  readonly #receivedOp = new ReceivedOp(this);
  /** The receiver has what it needs; and {@link #receivedOp} is on its way. */
  #settled = false;
  #settling = false;

  #sender: AioOp | undefined;
  #iov: Iov | undefined;
  /** How much of it is given to the stream. */
  #sent = 0;
  /** Tells the write callbacks of a send from those of one that ended early. */
  #sends = 0;

  /** `encrypted`: a TLS stream. */
  constructor(loop: StreamLoop, socket: net.Socket, encrypted = false) {
    this.#loop = loop;
    this.#socket = socket;
    this.#outgoing = encrypted ? new Uint8Array(SEND_PIECE) : undefined;
    this.peer = peerName(socket);
    if (!encrypted || !this.#stage()) socket.on('data', this.#onData);
    socket.on('end', this.#onEnd);
    socket.on('error', this.#onError);
    socket.on('close', this.#onClose);
    loop.resources.add(this);
    // It may have ended while it waited to be accepted, or for its other side.
    this.#ended = socket.readableEnded;
    if (socket.errored) this.#error = -nodeErrno(socket.errored);
    if (socket.closed) this.#onClose();
  }

  recv(op: AioOp, memory: Memory, at: number, length: number, all: boolean): void {
    assert(!this.#receiver, 'a socket has one recv at a time');
    if (!this.#loop.begin(op, this)) return;
    this.#receiver = op;
    this.#memory = memory;
    this.#at = at;
    this.#wanted = length;
    this.#received = 0;
    this.#all = all;
    this.#settled = false;
    if (this.#shut) this.#endRecv(0);
    else this.#fill();
    if (!this.#receiver || this.#from < this.#to || this.#settled) return;
    if (this.#error < 0) this.#endRecv(this.#error);
    else if (this.#ended) this.#endRecv(this.#received);
    else this.#socket.resume();
  }

  send(op: AioOp, iov: Iov): void {
    assert(!this.#sender, 'a socket has one send at a time');
    if (!this.#loop.begin(op, this)) return;
    this.#sender = op;
    this.#iov = iov;
    this.#sent = 0;
    const send = ++this.#sends;
    if (this.#shut || this.#error < 0 || this.#over) this.#endSend(this.#error || -Errno.EPIPE);
    else if (iov.length === 0) this.#endSend(0);
    else if (this.#outgoing) this.#sendPiece(send, this.#outgoing);
    else this.#sendRuns(send);
  }

  /** In one gather write. */
  #sendRuns(send: number): void {
    const iov = this.#iov!;
    const socket = this.#socket;
    let last = iov.count - 1;
    while (iov.lengths[last] === 0) last--;
    socket.cork();
    for (let i = 0; i < last; i++) if (iov.lengths[i]! > 0) socket.write(iov.run(i));
    this.#sent = iov.length;
    socket.write(iov.run(last), (error) => this.#onSent(send, error));
    socket.uncork();
  }

  /** As much as `outgoing` holds, in one piece: what is encrypted is copied once, however many runs it is in. */
  #sendPiece(send: number, outgoing: Uint8Array): void {
    const iov = this.#iov!;
    const piece = outgoing.subarray(0, iov.length - this.#sent);
    this.#sent += iov.copyTo(piece, this.#sent);
    this.#socket.write(piece, (error) => this.#onSent(send, error));
  }

  /** There is nothing to chain with: the caller sends when the first operation has ended. */
  sendAfter(): boolean {
    return false;
  }

  async toStream(): Promise<net.Socket> {
    assert(!this.#receiver && !this.#sender, 'a socket that is given up has no operation pending');
    const socket = this.#socket;
    socket.off('data', this.#onData);
    socket.pause();
    if (this.#from < this.#to) socket.unshift(this.#source.subarray(this.#from, this.#to));
    socket.off('end', this.#onEnd);
    socket.off('close', this.#onClose);
    // The listener for errors stays: without one, an early reset would end the process.
    this.#loop.resources.delete(this);
    return socket;
  }

  shutdown(): void {
    if (this.#shut) return;
    this.#shut = true;
    // Bytes of a send that has not ended cannot be called back except by breaking the connection.
    if (this.#sender) this.#socket.destroy();
    else this.#socket.end();
    this.#endSend(-Errno.EPIPE);
    this.#endRecv(this.#received);
  }

  endWaiting(): void {
    this.shutdown();
  }

  async close(): Promise<void> {
    this.shutdown();
    this.#socket.destroy();
    await this.#closed.promise;
  }

  cancel(op: AioOp): void {
    // What has been received is not taken back; a send under way cannot be.
    if (op === this.#receiver) this.#endRecv(this.#received || -Errno.ECANCELED);
  }

  describe(op: AioOp): string {
    return `${op === this.#receiver ? 'recv from' : 'send to'} ${this.peer}`;
  }

  /** False where the stream cannot: what it has comes as 'data' then. */
  #stage(): boolean {
    const first = this.#socket.read() as Uint8Array | null;
    this.#source = new Uint8Array(STAGING_BYTES);
    if (first) this.#source.set(first);
    this.#to = first?.length ?? 0;
    return receiveInto(this.#socket, this.#source, this.#onStaged, () => this.#to);
  }

  readonly #onStaged = (length: Bytes): boolean => {
    if (this.#shut) return false;
    this.#to += length;
    this.#fill();
    // Only here, since the stream has been told where to put what comes next.
    if (this.#from === this.#to || this.#to > STAGING_BYTES - STAGING_ROOM) {
      this.#source.copyWithin(0, this.#from, this.#to);
      this.#to -= this.#from;
      this.#from = 0;
    }
    return this.#to - this.#from < STAGED_MAX;
  };

  readonly #onData = (chunk: Uint8Array): void => {
    if (this.#shut) return;
    this.#source = chunk;
    this.#from = 0;
    this.#to = chunk.length;
    this.#fill();
    if (this.#from < this.#to) this.#socket.pause();
    else this.#source = NOTHING;
  };

  /** Gives the receiver what is there. */
  #fill(): void {
    const count = Math.min(this.#to - this.#from, this.#wanted - this.#received);
    if (count === 0 || !this.#receiver) return;
    const bytes = this.#source.subarray(this.#from, this.#from + count);
    forCopying(this.#memory!).set(bytes, this.#at + this.#received);
    this.#from += count;
    this.#received += count;
    if (this.#all && this.#received < this.#wanted) return;
    this.#settled = true;
    if (this.#settling) return;
    this.#settling = true;
    this.#loop.later(this.#receivedOp);
  }

  /** @internal */
  endReceived(): void {
    this.#settling = false;
    const op = this.#receiver;
    if (!op || !this.#settled) return;
    const received = this.#received;
    this.#receiver = undefined;
    this.#memory = undefined;
    this.#loop.endNow(op, received);
  }

  readonly #onEnd = (): void => {
    this.#ended = true;
    this.#endRecv(this.#received);
    if (this.#over) this.#endSend(-Errno.EPIPE);
  };

  /** The other side's end of a TLS connection is the end of both directions: Node may keep a write for ever when the
   *  connection broke under what OpenSSL had to say itself (session tickets). */
  get #over(): boolean {
    return this.#ended && this.#outgoing !== undefined;
  }

  readonly #onError = (error: Error): void => {
    if (this.#error === 0) this.#error = -nodeErrno(error);
    this.#endRecv(this.#settled ? this.#received : this.#error);
    this.#endSend(this.#error);
  };

  readonly #onClose = (): void => {
    this.#ended = true;
    this.#endRecv(this.#received);
    this.#endSend(-Errno.EPIPE);
    this.#loop.resources.delete(this);
    this.#closed.open();
  };

  #onSent(send: number, error: Error | null | undefined): void {
    if (send !== this.#sends) return;
    // node reports success for writes that destroy() cut off.
    if (error) this.#endSend(this.#error || -nodeErrno(error));
    else if (this.#socket.destroyed) this.#endSend(this.#error || -Errno.EPIPE);
    else if (this.#sent < this.#iov!.length) this.#sendPiece(send, this.#outgoing!);
    else this.#endSend(this.#sent);
  }

  #endRecv(result: number): void {
    const op = this.#receiver;
    if (!op) return;
    this.#receiver = undefined;
    this.#memory = undefined;
    this.#loop.end(op, result);
  }

  #endSend(result: number): void {
    const op = this.#sender;
    if (!op) return;
    this.#sender = undefined;
    this.#iov = undefined;
    this.#sends++;
    this.#loop.end(op, result);
  }
}
