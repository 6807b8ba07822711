/** One end of a simulated connection. Bytes wait in the receiver's bounded buffer; a full one holds the sender up. */
import { assert } from '../../base/assert.ts';
import { Errno } from '../../base/errors.ts';
import { Fifo } from '../../base/fifo.ts';
import type { Iov, Memory } from '../../base/memory.ts';
import { type Bytes, KiB } from '../../base/units.ts';
import type { AioSocket } from '../backend.ts';
import type { AioOp } from '../op.ts';
import type { SimBackend, SimOwner } from './backend.ts';

const SMALLEST_BUFFER = 4 * KiB;
const LARGEST_BUFFER = 256 * KiB;

export class SimSocket implements AioSocket, SimOwner {
  readonly peer: string;
  readonly fd: number;
  readonly #backend: SimBackend;
  readonly #capacity: Bytes;
  readonly #inbox = new Fifo<Uint8Array>();
  #buffered: Bytes = 0;
  #other!: SimSocket;
  /** Negative errno once the connection is broken. */
  #broken = 0;
  #shut = false;
  /** How many have it: it ends with the last of them. */
  #holders = 1;
  #closed = false;
  /** The other end will send no more. */
  #ended = false;
  #moving = false;
  #delivering = false;

  #receiver: AioOp | undefined;
  /** Of whoever receives, or sends. */
  #receiving: SimBackend;
  #sending: SimBackend;
  #memory: Memory | undefined;
  #at = 0;
  #wanted = 0;
  #received = 0;
  #all = false;

  #sender: AioOp | undefined;
  #iov: Iov | undefined;
  #sent = 0;

  constructor(backend: SimBackend, peer: string) {
    this.#backend = backend;
    this.#receiving = backend;
    this.#sending = backend;
    this.peer = peer;
    this.fd = backend.sim.network.number(this);
    this.#capacity = backend.sim.prng.between(SMALLEST_BUFFER, LARGEST_BUFFER);
  }

  /** @internal */
  join(other: SimSocket): void {
    this.#other = other;
  }

  recv(op: AioOp, memory: Memory, at: number, length: number, all: boolean): void {
    assert(!this.#closed, 'a socket has no recv after it was closed');
    this.recvIn(this.#backend, op, memory, at, length, all);
  }

  /** @internal */
  recvIn(backend: SimBackend, op: AioOp, memory: Memory, at: number, length: number, all: boolean): void {
    assert(!this.#receiver, 'a socket has one recv at a time');
    if (!backend.begin(op, this)) return;
    this.#receiver = op;
    this.#receiving = backend;
    this.#memory = memory;
    this.#at = at;
    this.#wanted = length;
    this.#received = 0;
    this.#all = all;
    this.#deliverIn(this.#fate('recv'));
  }

  send(op: AioOp, iov: Iov): void {
    assert(!this.#closed, 'a socket has no send after it was closed');
    this.sendIn(this.#backend, op, iov);
  }

  /** @internal */
  sendIn(backend: SimBackend, op: AioOp, iov: Iov): void {
    assert(!this.#sender, 'a socket has one send at a time');
    if (!backend.begin(op, this)) return;
    this.#sender = op;
    this.#sending = backend;
    this.#iov = iov;
    this.#sent = 0;
    this.#moveIn(this.#fate('send'));
  }

  /** Breaks the connection if it is time for that; else how long the operation is held up. */
  #fate(op: 'recv' | 'send'): number {
    const { errno, delayNs } = this.#backend.sim.faults.decide(op, 0);
    if (errno !== 0) {
      this.#break(-errno);
      this.#other.#break(-errno);
    }
    return delayNs;
  }

  #break(errno: number): void {
    if (this.#broken !== 0 || this.#shut) return;
    this.#broken = errno;
    this.#clear();
    this.#moveIn(0);
    this.#deliverIn(0);
  }

  /** There is nothing to chain with: the caller sends when the first operation has ended. */
  sendAfter(): boolean {
    return false;
  }

  shutdown(): void {
    if (this.#shut) return;
    this.#shut = true;
    this.#clear();
    this.#endSend(-Errno.EPIPE);
    this.#endRecv(this.#received);
    const other = this.#other;
    const { sim } = this.#backend;
    sim.after(sim.latency('send'), () => {
      other.#ended = true;
      other.#deliverIn(0);
      other.#moveIn(0);
    });
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.letGo(this.#backend);
  }

  /** @internal One more has it. */
  hold(): void {
    this.#holders++;
  }

  /** @internal */
  letGo(backend: SimBackend): void {
    const busy = (this.#receiver && this.#receiving === backend) || (this.#sender && this.#sending === backend);
    assert(!busy, 'a socket was closed with operations in flight');
    if (--this.#holders > 0) return;
    this.#backend.sim.network.forget(this.fd);
    this.shutdown();
  }

  cancel(op: AioOp): void {
    // What has been received is not taken back; a send under way cannot be.
    if (op === this.#receiver) this.#endRecv(this.#received || -Errno.ECANCELED);
  }

  hurry(op: AioOp): void {
    if (op === this.#receiver) this.#endRecv(this.#received || -Errno.ECANCELED);
    else this.#endSend(-Errno.ECANCELED);
  }

  describe(op: AioOp): string {
    const done =
      op === this.#receiver ? `${this.#received} of ${this.#wanted}` : `${this.#sent} of ${this.#iov?.length}`;
    return `${op === this.#receiver ? 'recv from' : 'send to'} ${this.peer} (${done})`;
  }

  #moveIn(delayNs: number): void {
    if (this.#moving) return;
    this.#moving = true;
    const { sim } = this.#backend;
    sim.after(sim.latency('send') + delayNs, () => {
      this.#moving = false;
      this.#move();
    });
  }

  /** Carries one piece of what is being sent to the other end's buffer. */
  #move(): void {
    const iov = this.#iov;
    if (!iov) return;
    const other = this.#other;
    if (this.#broken < 0 || this.#shut || other.#shut) {
      this.#endSend(this.#broken || -Errno.EPIPE);
      return;
    }
    const left = iov.length - this.#sent;
    const count = Math.min(left, other.#capacity - other.#buffered, this.#pieceSize());
    if (count > 0) {
      const piece = new Uint8Array(count);
      iov.slice(this.#sent, count).copyTo(piece);
      other.#inbox.push(piece);
      other.#buffered += count;
      this.#sent += count;
      other.#deliverIn(0);
    }
    if (this.#sent === iov.length) this.#endSend(this.#sent);
    // With the buffer full the receiver calls back.
    else if (count > 0) this.#moveIn(0);
  }

  #pieceSize(): Bytes {
    const { prng } = this.#backend.sim;
    return prng.chance(0.2) ? prng.between(1, 64) : prng.between(1, 128 * KiB);
  }

  #deliverIn(delayNs: number): void {
    if (this.#delivering) return;
    this.#delivering = true;
    const { sim } = this.#backend;
    sim.after(sim.latency('recv') + delayNs, () => {
      this.#delivering = false;
      this.#deliver();
    });
  }

  /** Gives what has arrived to the recv that waits. */
  #deliver(): void {
    if (!this.#receiver) return;
    if (this.#shut) {
      this.#endRecv(0);
      return;
    }
    const { prng } = this.#backend.sim;
    let limit = this.#wanted - this.#received;
    if (!this.#all && limit > 1 && prng.chance(0.2)) limit = prng.between(1, limit);
    while (limit > 0) {
      const piece = this.#inbox.shift();
      if (!piece) break;
      const take = Math.min(piece.length, limit);
      if (take < piece.length) this.#inbox.unshift(piece.subarray(take));
      this.#memory!.bytes.set(piece.subarray(0, take), this.#at + this.#received);
      this.#received += take;
      this.#buffered -= take;
      limit -= take;
      this.#other.#moveIn(0);
    }
    const enough = this.#received === this.#wanted || (!this.#all && this.#received > 0);
    if (enough) this.#endRecv(this.#received);
    else if (this.#broken < 0) this.#endRecv(this.#broken);
    else if (this.#ended && this.#buffered === 0) this.#endRecv(this.#received);
  }

  #clear(): void {
    while (this.#inbox.shift());
    this.#buffered = 0;
  }

  #endRecv(result: number): void {
    const op = this.#receiver;
    if (!op) return;
    this.#receiver = undefined;
    this.#memory = undefined;
    this.#received = 0;
    this.#receiving.end(op, result);
  }

  #endSend(result: number): void {
    const op = this.#sender;
    if (!op) return;
    this.#sender = undefined;
    this.#iov = undefined;
    this.#sending.end(op, result);
  }
}

/** One more descriptor of a socket, in whichever context. */
export class SharedSocket implements AioSocket {
  readonly peer: string;
  readonly fd: number;
  readonly #backend: SimBackend;
  readonly #socket: SimSocket;
  #closed = false;

  constructor(backend: SimBackend, socket: SimSocket) {
    this.#backend = backend;
    this.#socket = socket;
    this.peer = socket.peer;
    this.fd = socket.fd;
    socket.hold();
  }

  recv(op: AioOp, memory: Memory, at: number, length: number, all: boolean): void {
    assert(!this.#closed, 'a socket has no recv after it was closed');
    this.#socket.recvIn(this.#backend, op, memory, at, length, all);
  }

  send(op: AioOp, iov: Iov): void {
    assert(!this.#closed, 'a socket has no send after it was closed');
    this.#socket.sendIn(this.#backend, op, iov);
  }

  sendAfter(): boolean {
    return false;
  }

  shutdown(): void {
    this.#socket.shutdown();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.letGo(this.#backend);
  }
}
