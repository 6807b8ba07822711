/**
 * Stream sockets of a simulated world. Bytes keep their order and are never lost; how they are cut into pieces, when
 * they arrive and when a buffer is full is up to the seed.
 */
import { assert } from '../../base/assert.ts';
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import { Fifo } from '../../base/fifo.ts';
import type { AioListener, AioSocket, ListenOptions, SocketAddress } from '../backend.ts';
import { type AioOp, Gate } from '../op.ts';
import { describeAddress } from '../socket-address.ts';
import type { SimBackend, SimOwner } from './backend.ts';
import type { Sim } from './sim.ts';
import { SharedSocket, SimSocket } from './socket.ts';

const BACKLOG = 128;
const FIRST_FREE_PORT = 40_000;

export class SimNetwork {
  readonly #sim: Sim;
  readonly #listeners = new Map<string, SimListener>();
  /** By what stands for their descriptors. */
  readonly #sockets = new Map<number, SimSocket>();
  #fds = 0;
  #port = FIRST_FREE_PORT;

  constructor(sim: Sim) {
    this.#sim = sim;
  }

  listen(backend: SimBackend, address: SocketAddress, options: ListenOptions): AioListener {
    const filled: SocketAddress =
      address.kind === 'inet' && address.port === 0 ? { ...address, port: this.#port++ } : address;
    const key = describeAddress(filled);
    if (this.#listeners.has(key)) throw refused(Errno.EADDRINUSE, 'listen on', key);
    const listener = new SimListener(backend, filled, options.backlog ?? BACKLOG, () => this.#listeners.delete(key));
    this.#listeners.set(key, listener);
    return listener;
  }

  /** The descriptor of a new socket, until `forget`. */
  number(socket: SimSocket): number {
    this.#sockets.set(++this.#fds, socket);
    return this.#fds;
  }

  forget(fd: number): void {
    this.#sockets.delete(fd);
  }

  share(backend: SimBackend, fd: number): AioSocket {
    const socket = this.#sockets.get(fd);
    assert(socket, `there is no socket ${fd}`);
    return new SharedSocket(backend, socket);
  }

  connect(backend: SimBackend, address: SocketAddress): Promise<AioSocket> {
    const gate = new Gate<AioSocket>();
    const key = describeAddress(address);
    const fate = this.#sim.faults.decide('connect', 0, key);
    this.#sim.after(this.#sim.latency('connect') + fate.delayNs, () => {
      const listener = this.#listeners.get(key);
      const absent = address.kind === 'unix' ? Errno.ENOENT : Errno.ECONNREFUSED;
      if (fate.errno !== 0) gate.fail(refused(fate.errno, 'connect to', key));
      else if (!listener) gate.fail(refused(absent, 'connect to', key));
      else if (listener.full) gate.fail(refused(Errno.EAGAIN, 'connect to', key));
      else {
        const names = address.kind === 'unix' ? ['unix', 'unix'] : [key, `${address.host}:${this.#port++}`];
        const client = new SimSocket(backend, names[0]!);
        const server = new SimSocket(listener.backend, names[1]!);
        client.join(server);
        server.join(client);
        listener.arrive(server);
        gate.open(client);
      }
    });
    return gate.promise;
  }
}

function refused(errno: number, what: string, key: string): BlockError {
  return new BlockError(errno, `Could not ${what} '${key}': ${errnoText(errno)}`);
}

class SimListener implements AioListener, SimOwner {
  readonly address: SocketAddress;
  readonly backend: SimBackend;
  readonly #backlog: number;
  readonly #forget: () => void;
  readonly #waiting = new Fifo<SimSocket>();
  #acceptor: AioOp | undefined;
  #accepted: SimSocket | undefined;
  #closed = false;

  constructor(backend: SimBackend, address: SocketAddress, backlog: number, forget: () => void) {
    this.backend = backend;
    this.address = address;
    this.#backlog = backlog;
    this.#forget = forget;
  }

  get full(): boolean {
    return this.#waiting.length >= this.#backlog;
  }

  /** A connection comes in. */
  arrive(socket: SimSocket): void {
    this.#waiting.push(socket);
    this.#next();
  }

  accept(op: AioOp): void {
    assert(!this.#acceptor, 'a listener has one accept at a time');
    if (!this.backend.begin(op, this)) return;
    this.#acceptor = op;
    if (this.#closed) this.#end(-Errno.ECANCELED);
    else this.#next();
  }

  takeAccepted(): AioSocket {
    const socket = this.#accepted;
    assert(socket, 'there is no accepted socket to take');
    this.#accepted = undefined;
    return socket;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#forget();
    this.#end(-Errno.ECANCELED);
    this.#accepted?.shutdown();
    for (let socket = this.#waiting.shift(); socket; socket = this.#waiting.shift()) socket.shutdown();
  }

  cancel(op: AioOp): void {
    if (op === this.#acceptor) this.#end(-Errno.ECANCELED);
  }

  hurry(op: AioOp): void {
    this.cancel(op);
  }

  describe(): string {
    return `accept on '${describeAddress(this.address)}'`;
  }

  #next(): void {
    if (!this.#acceptor) return;
    const socket = this.#waiting.shift();
    if (!socket) return;
    this.#accepted?.shutdown();
    this.#accepted = socket;
    this.#end(0);
  }

  #end(result: number): void {
    const op = this.#acceptor;
    if (!op) return;
    this.#acceptor = undefined;
    this.backend.end(op, result);
  }
}
