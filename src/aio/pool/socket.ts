/**
 * Stream sockets through node:net. The stream flows while somebody receives, and is paused with the first bytes that
 * nobody wants yet: node then reads ahead no more than {@link READ_AHEAD} bytes. Received bytes are copied once, sent
 * bytes are not. A receive that has something ends in the next dispatch, and takes what comes until then.
 */
import * as net from 'node:net';
import { assert } from '../../base/assert.ts';
import { Errno } from '../../base/errors.ts';
import type { Iov, Memory } from '../../base/memory.ts';
import type { AioSocket, SocketAddress } from '../backend.ts';
import { AioOp, Gate } from '../op.ts';
import type { OpOwner } from '../op-table.ts';
import { describeAddress } from '../socket-address.ts';
import type { PoolLoop, PoolResource } from './loop.ts';
import { nodeErrno, nodeError } from './node-errors.ts';

export const READ_AHEAD = 256 * 1024;
/** A stream that makes something of what it sends (ciphertext) gets so much at a time: that is what it holds. */
const SEND_PIECE = 256 * 1024;

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

export function adoptPoolSocket(loop: PoolLoop, fd: number): AioSocket {
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

/** A stream that Node has made itself, for TLS: it reads ahead as far as our own, and is sent pieces. */
export function socketOverStream(loop: StreamLoop, stream: net.Socket): AioSocket {
  // To ask for more than there is raises the mark up to which it reads; after the end it answers what is left.
  const rest = stream.read(READ_AHEAD) as Uint8Array | null;
  if (rest) stream.unshift(rest);
  return new PoolSocket(loop, stream, SEND_PIECE);
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
  readonly #piece: number;
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
  /** Received, and not asked for: while it is there the stream is paused. */
  #rest: Uint8Array | undefined;
  readonly #receivedOp = new ReceivedOp(this);
  /** The receiver has what it needs; and {@link #receivedOp} is on its way. */
  #settled = false;
  #settling = false;

  #sender: AioOp | undefined;
  #iov: Iov | undefined;
  /** How far it is given to the stream: a run, and a place in it. */
  #run = 0;
  #runAt = 0;
  /** Tells the write callbacks of a send from those of one that ended early. */
  #sends = 0;

  /** `piece`: the stream is given so many bytes at a time. */
  constructor(loop: StreamLoop, socket: net.Socket, piece = Number.POSITIVE_INFINITY) {
    this.#loop = loop;
    this.#socket = socket;
    this.#piece = piece;
    this.peer = peerName(socket);
    socket.on('data', this.#onData);
    socket.on('end', this.#onEnd);
    socket.on('error', this.#onError);
    socket.on('close', this.#onClose);
    loop.resources.add(this);
    // It may have ended while it waited to be accepted.
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
    if (!this.#receiver || this.#rest || this.#settled) return;
    if (this.#error < 0) this.#endRecv(this.#error);
    else if (this.#ended) this.#endRecv(this.#received);
    else this.#socket.resume();
  }

  send(op: AioOp, iov: Iov): void {
    assert(!this.#sender, 'a socket has one send at a time');
    if (!this.#loop.begin(op, this)) return;
    this.#sender = op;
    this.#iov = iov;
    this.#run = 0;
    this.#runAt = 0;
    if (this.#shut || this.#error < 0) this.#endSend(this.#error || -Errno.EPIPE);
    else this.#sendPiece(++this.#sends);
  }

  /** Gives the stream the next piece; ends the send when there is none. */
  #sendPiece(send: number): void {
    const iov = this.#iov!;
    const socket = this.#socket;
    let room = this.#piece;
    let last: Uint8Array | undefined;
    socket.cork();
    while (this.#run < iov.count && room > 0) {
      const bytes = iov.run(this.#run).subarray(this.#runAt, this.#runAt + room);
      this.#runAt += bytes.length;
      room -= bytes.length;
      if (this.#runAt === iov.lengths[this.#run]) {
        this.#run++;
        this.#runAt = 0;
      }
      if (bytes.length === 0) continue;
      if (last) socket.write(last);
      last = bytes;
    }
    if (last) socket.write(last, (error) => this.#onSent(send, error));
    socket.uncork();
    if (!last) this.#endSend(iov.length);
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
    if (this.#rest) socket.unshift(this.#rest);
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

  readonly #onData = (chunk: Uint8Array): void => {
    if (this.#shut) return;
    this.#rest = chunk;
    this.#fill();
    if (this.#rest) this.#socket.pause();
  };

  /** Gives the receiver what is there. */
  #fill(): void {
    const rest = this.#rest;
    if (!rest || !this.#receiver) return;
    const count = Math.min(rest.length, this.#wanted - this.#received);
    const bytes = count < rest.length ? rest.subarray(0, count) : rest;
    this.#memory!.bytes.set(bytes, this.#at + this.#received);
    this.#received += count;
    this.#rest = count < rest.length ? rest.subarray(count) : undefined;
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
  };

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
    else this.#sendPiece(send);
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
