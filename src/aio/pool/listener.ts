/** Listening sockets through node:net. */
import { chmodSync, existsSync, readFileSync, readlinkSync } from 'node:fs';
import * as net from 'node:net';
import { assert } from '../../base/assert.ts';
import { Errno } from '../../base/errors.ts';
import { Fifo } from '../../base/fifo.ts';
import type { AioListener, AioSocket, ListenOptions, SocketAddress } from '../backend.ts';
import { type AioOp, Gate } from '../op.ts';
import type { OpOwner } from '../op-table.ts';
import { describeAddress, isAbstract } from '../socket-address.ts';
import type { PoolLoop, PoolResource } from './loop.ts';
import { nodeErrno, nodeError } from './node-errors.ts';
import { PoolSocket, READ_AHEAD } from './socket.ts';

const BACKLOG = 128;

function newServer(): net.Server {
  const options = { pauseOnConnect: true, allowHalfOpen: true, noDelay: true, highWaterMark: READ_AHEAD };
  return net.createServer(options);
}

export function listenPool(loop: PoolLoop, address: SocketAddress, options: ListenOptions): Promise<AioListener> {
  const backlog = options.backlog ?? BACKLOG;
  const server = newServer();
  const { mode } = options;
  const setMode = (): void => {
    if (address.kind === 'unix' && !isAbstract(address.path) && mode !== undefined) chmodSync(address.path, mode);
  };
  const start = (): void => {
    if (address.kind === 'unix') server.listen({ path: address.path, backlog });
    else server.listen({ host: address.host, port: address.port, ipv6Only: address.only6 ?? false, backlog });
    // node binds and listens inside this call: the mode is set before anything else can run in this thread.
    if (server.listening) setMode();
  };
  return started(loop, server, backlog, `listen on '${describeAddress(address)}'`, start, () => {
    const bound = server.address();
    return bound && typeof bound === 'object' ? { kind: 'inet', host: bound.address, port: bound.port } : address;
  });
}

export function adoptPoolListener(loop: PoolLoop, fd: number): Promise<AioListener> {
  const server = newServer();
  const start = (): void => {
    server.listen({ fd, backlog: BACKLOG });
  };
  return started(loop, server, BACKLOG, `listen on socket ${fd}`, start, () => {
    const bound = server.address();
    if (bound && typeof bound === 'object') return { kind: 'inet', host: bound.address, port: bound.port };
    return { kind: 'unix', path: unixPathOf(fd) };
  });
}

function started(
  loop: PoolLoop,
  server: net.Server,
  backlog: number,
  what: string,
  start: () => void,
  addressOf: () => SocketAddress,
): Promise<AioListener> {
  const gate = new Gate<AioListener>();
  const onError = (error: Error): void => {
    server.close();
    gate.fail(nodeError(error, what));
  };
  server.once('error', onError);
  server.once('listening', () => {
    server.off('error', onError);
    gate.open(new PoolListener(loop, server, backlog, addressOf()));
  });
  try {
    start();
  } catch (error) {
    onError(error as Error);
  }
  return gate.promise;
}

/** The path that an inherited unix socket is bound to; empty where the system does not show it. */
function unixPathOf(fd: number): string {
  if (!existsSync('/proc/net/unix')) return '';
  const inode = /\[(\d+)\]/.exec(readlinkSync(`/proc/self/fd/${fd}`))?.[1];
  for (const line of readFileSync('/proc/net/unix', 'utf8').split('\n')) {
    const fields = line.trim().split(/\s+/);
    if (inode !== undefined && fields[6] === inode) return fields.slice(7).join(' ');
  }
  return '';
}

class PoolListener implements AioListener, OpOwner, PoolResource {
  readonly address: SocketAddress;
  readonly #loop: PoolLoop;
  readonly #server: net.Server;
  readonly #backlog: number;
  /** Connections that nobody has accepted yet. node cannot leave them to the kernel, so the backlog is here. */
  readonly #waiting = new Fifo<net.Socket>();
  #acceptor: AioOp | undefined;
  #accepted: net.Socket | undefined;
  #error = 0;
  #closed = false;

  constructor(loop: PoolLoop, server: net.Server, backlog: number, address: SocketAddress) {
    this.#loop = loop;
    this.#server = server;
    this.#backlog = backlog;
    this.address = address;
    server.on('connection', this.#onConnection);
    server.on('error', this.#onError);
    loop.resources.add(this);
  }

  accept(op: AioOp): void {
    assert(!this.#acceptor, 'a listener has one accept at a time');
    if (!this.#loop.begin(op, this)) return;
    this.#acceptor = op;
    if (this.#closed) this.#end(-Errno.ECANCELED);
    else this.#next();
  }

  takeAccepted(): AioSocket {
    const socket = this.#accepted;
    assert(socket, 'there is no accepted socket to take');
    this.#accepted = undefined;
    socket.off('error', ignore);
    return new PoolSocket(this.#loop, socket);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#end(-Errno.ECANCELED);
    // Its own callback waits for the end of all connections; listening ends, and the path goes, inside this call.
    this.#server.close();
    for (let socket = this.#waiting.shift(); socket; socket = this.#waiting.shift()) socket.destroy();
    this.#accepted?.destroy();
    this.#loop.resources.delete(this);
  }

  endWaiting(): void {
    this.#end(-Errno.ECANCELED);
  }

  cancel(op: AioOp): void {
    if (op === this.#acceptor) this.#end(-Errno.ECANCELED);
  }

  describe(): string {
    return `accept on ${describeAddress(this.address)}`;
  }

  readonly #onConnection = (socket: net.Socket): void => {
    // Without a listener an early reset would end the process.
    socket.on('error', ignore);
    if (this.#closed || this.#waiting.length >= this.#backlog) {
      socket.destroy();
      return;
    }
    this.#waiting.push(socket);
    this.#next();
  };

  readonly #onError = (error: Error): void => {
    this.#error = -nodeErrno(error);
    this.#next();
  };

  #next(): void {
    if (!this.#acceptor) return;
    if (this.#error < 0) {
      this.#end(this.#error);
      this.#error = 0;
      return;
    }
    // An accepted socket that was not taken is dropped, as its descriptor would be.
    const socket = this.#waiting.shift();
    if (!socket) return;
    this.#accepted?.destroy();
    this.#accepted = socket;
    this.#end(0);
  }

  #end(result: number): void {
    const op = this.#acceptor;
    if (!op) return;
    this.#acceptor = undefined;
    this.#loop.end(op, result);
  }
}

function ignore(): void {}
