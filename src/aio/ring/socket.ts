/** Stream sockets on the ring. Receiving, sending, accepting and connecting are ring operations. */
import { chmodSync, unlinkSync } from 'node:fs';
import type { Socket as NodeSocket } from 'node:net';
import { assert } from '../../base/assert.ts';
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { close, duplicate, setBlocking } from '../../native/file.ts';
import { encodeAddress, SOCKADDR_MAX } from '../../native/sockaddr.ts';
import * as net from '../../native/socket.ts';
import { Op } from '../../native/uring.ts';
import type { AioListener, AioSocket, ListenOptions, SocketAddress } from '../backend.ts';
import { AioOp, WaitOp } from '../op.ts';
import { describeAddress, isAbstract } from '../socket-address.ts';
import type { RingBackend } from './backend.ts';
import { IOV_MAX } from './iov-table.ts';

const MSG_WAITALL = 0x100;
const MSG_NOSIGNAL = 0x4000;
const SOCK_CLOEXEC = 0x80000;
/** Asked for on unix sockets; the kernel grants what its limits allow. With TCP it finds the size itself, as long as
 *  nobody has asked: up to some MiB, which a line with latency needs. */
const SOCKET_BUFFER = 1 << 20;

function check(result: number, what: string): number {
  if (result < 0) throw new BlockError(result, `${what}: ${errnoText(result)}`);
  return result;
}

/** Ends a send that the kernel cut short by sending the rest. */
class SendOp extends AioOp {
  readonly #socket: RingSocket;
  readonly #rest = new Iov();
  #user: AioOp | undefined;
  #iov: Iov | undefined;
  #done = 0;
  #linked = false;

  constructor(socket: RingSocket) {
    super();
    this.#socket = socket;
  }

  go(user: AioOp, iov: Iov): void {
    assert(!this.#user, 'a socket has one send at a time');
    this.#user = user;
    user.proxy = this;
    this.#iov = iov;
    this.#done = 0;
    this.#socket.sendMessage(this, iov);
  }

  goAfter(user: AioOp, iov: Iov, first: AioOp): boolean {
    assert(!this.#user, 'a socket has one send at a time');
    if (!this.#socket.sendLinked(this, iov, first)) return false;
    this.#linked = true;
    this.#user = user;
    user.proxy = this;
    this.#iov = iov;
    this.#done = 0;
    return true;
  }

  complete(result: number): void {
    const user = this.#user!;
    const iov = this.#iov!;
    const linked = this.#linked;
    this.#linked = false;
    if (result > 0) this.#done += result;
    // Once the chain is broken nothing says that what it was to wait for has ended.
    if (linked && (result === -Errno.EAGAIN || result === -Errno.EINTR)) result = -Errno.ECANCELED;
    if (result > 0 ? this.#done < iov.length : result === -Errno.EAGAIN || result === -Errno.EINTR) {
      this.#socket.sendMessage(this, this.#rest.sliceOf(iov, this.#done, iov.length - this.#done));
      return;
    }
    this.#user = undefined;
    user.proxy = null;
    this.#iov = undefined;
    user.complete(result < 0 ? result : this.#done);
  }
}

class RingSocket implements AioSocket {
  readonly peer: string;
  readonly #backend: RingBackend;
  readonly fd: number;
  readonly #send: SendOp;
  #shut = false;
  #closed = false;

  constructor(backend: RingBackend, fd: number, peer: string) {
    this.#backend = backend;
    this.fd = fd;
    backend.fds.add(fd);
    this.peer = peer;
    this.#send = new SendOp(this);
  }

  recv(op: AioOp, memory: Memory, at: number, length: number, all: boolean): void {
    this.#backend.begin(op, Op.RECV, this.fd, memory, at, length, 0, all ? MSG_WAITALL : 0);
  }

  send(op: AioOp, iov: Iov): void {
    assert(iov.count <= IOV_MAX, 'a send has at most IOV_MAX runs');
    this.#send.go(op, iov);
  }

  sendAfter(op: AioOp, iov: Iov, first: AioOp): boolean {
    return this.#send.goAfter(op, iov, first);
  }

  /** @internal */
  sendLinked(op: AioOp, iov: Iov, first: AioOp): boolean {
    const { iovs, ring } = this.#backend;
    if (first.slot < 0 || iov.count > IOV_MAX || !ring.room || !this.#backend.hasSlot) return false;
    const message = iovs.putMessage(iov);
    // Putting it there may have submitted what was prepared.
    if (message < 0 || !ring.isLast(first.slot)) return false;
    ring.linkLast();
    this.#backend.begin(op, Op.SENDMSG, this.fd, iovs.memory, message, 1, 0, MSG_WAITALL | MSG_NOSIGNAL);
    return true;
  }

  /** @internal */
  sendMessage(op: AioOp, iov: Iov): void {
    if (iov.count === 1) {
      const flags = MSG_WAITALL | MSG_NOSIGNAL;
      this.#backend.begin(op, Op.SEND, this.fd, iov.memories[0]!, iov.offsets[0]!, iov.lengths[0]!, 0, flags);
      return;
    }
    const { iovs } = this.#backend;
    const message = iovs.putMessage(iov);
    if (message < 0) this.#backend.later(op, -Errno.EAGAIN);
    else this.#backend.begin(op, Op.SENDMSG, this.fd, iovs.memory, message, 1, 0, MSG_WAITALL | MSG_NOSIGNAL);
  }

  async toStream(): Promise<NodeSocket> {
    assert(!this.#closed, 'a socket that is given up is open');
    this.#closed = true;
    this.#backend.fds.delete(this.fd);
    const { Socket } = await import('node:net');
    return new Socket({ fd: this.fd, readable: true, writable: true, allowHalfOpen: true });
  }

  shutdown(): void {
    if (this.#shut || this.#closed) return;
    this.#shut = true;
    net.shutdown(this.fd);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#backend.fds.delete(this.fd);
    close(this.fd);
  }
}

class AcceptOp extends AioOp {
  readonly #listener: RingListener;
  constructor(listener: RingListener) {
    super();
    this.#listener = listener;
  }
  complete(result: number): void {
    this.#listener.acceptEnded(result);
  }
}

class RingListener implements AioListener {
  readonly address: SocketAddress;
  readonly #backend: RingBackend;
  readonly #fd: number;
  readonly #unlink: string;
  readonly #op: AcceptOp;
  #user: AioOp | undefined;
  #accepted: RingSocket | undefined;
  #closing: WaitOp | undefined;
  #closed = false;

  constructor(backend: RingBackend, fd: number, address: SocketAddress, unlink: string) {
    this.#backend = backend;
    this.#fd = fd;
    backend.fds.add(fd);
    this.address = address;
    this.#unlink = unlink;
    this.#op = new AcceptOp(this);
  }

  accept(op: AioOp): void {
    assert(!this.#user, 'a listener has one accept at a time');
    if (this.#closed) {
      this.#backend.later(op, -Errno.ECANCELED);
      return;
    }
    this.#user = op;
    op.proxy = this.#op;
    this.#backend.begin(this.#op, Op.ACCEPT, this.#fd, null, 0, 0, 0, SOCK_CLOEXEC);
  }

  share(): number {
    return duplicate(this.#fd);
  }

  /** @internal */
  acceptEnded(result: number): void {
    const user = this.#user!;
    this.#user = undefined;
    user.proxy = null;
    if (this.#closed) {
      if (result >= 0) close(result);
      user.complete(-Errno.ECANCELED);
      this.#closing?.complete(0);
      return;
    }
    if (result < 0) {
      user.complete(result);
      return;
    }
    this.#accepted = adopt(this.#backend, result);
    user.complete(0);
  }

  takeAccepted(): AioSocket {
    const socket = this.#accepted;
    assert(socket, 'takeAccepted without an accepted connection');
    this.#accepted = undefined;
    return socket;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#user) {
      this.#closing = new WaitOp();
      const ended = this.#closing.wait();
      this.#backend.cancel(this.#op);
      await ended;
    }
    this.#backend.fds.delete(this.#fd);
    close(this.#fd);
    if (this.#unlink !== '') {
      try {
        unlinkSync(this.#unlink);
      } catch {
        // Somebody else has removed it: what we wanted.
      }
    }
  }
}

function adopt(backend: RingBackend, fd: number): RingSocket {
  const peer = net.getpeername(fd);
  if (typeof peer === 'number' || peer.kind !== 'inet') {
    net.setsockopt(fd, 'sndbuf', SOCKET_BUFFER);
    net.setsockopt(fd, 'rcvbuf', SOCKET_BUFFER);
    return new RingSocket(backend, fd, (typeof peer !== 'number' && describeAddress(peer)) || 'unix');
  }
  net.setsockopt(fd, 'nodelay', 1);
  // A peer whose machine or route is gone is found out.
  net.setsockopt(fd, 'keepalive', 1);
  net.setsockopt(fd, 'keepidle', 60);
  net.setsockopt(fd, 'keepintvl', 10);
  net.setsockopt(fd, 'keepcnt', 6);
  return new RingSocket(backend, fd, describeAddress(peer));
}

export async function listenRing(
  backend: RingBackend,
  address: SocketAddress,
  options: ListenOptions = {},
): Promise<AioListener> {
  const what = `Could not listen on '${describeAddress(address)}'`;
  const fd = check(net.socket(address), what);
  try {
    if (address.kind === 'inet') {
      net.setsockopt(fd, 'reuseaddr', 1);
      if (address.only6) net.setsockopt(fd, 'v6only', 1);
    }
    check(net.bind(fd, address), what);
    const own = address.kind === 'unix' && !isAbstract(address.path) ? address.path : '';
    // Nobody can connect before listen(), so the mode is in place in time.
    if (own !== '' && options.mode !== undefined) chmodSync(own, options.mode);
    check(net.listen(fd, options.backlog ?? 128), what);
    const bound = address.kind === 'inet' ? net.getsockname(fd) : address;
    return new RingListener(backend, fd, typeof bound === 'number' ? address : bound, own);
  } catch (error) {
    close(fd);
    throw error;
  }
}

export async function connectRing(backend: RingBackend, address: SocketAddress): Promise<AioSocket> {
  const what = `Could not connect to '${describeAddress(address)}'`;
  const name = new Uint8Array(new SharedArrayBuffer(SOCKADDR_MAX));
  const length = check(encodeAddress(address, name), what);
  const fd = check(net.socket(address), what);
  const memory = backend.memory(name);
  const op = new WaitOp();
  const ended = op.wait();
  // CONNECT takes the length of the address in the offset field.
  backend.begin(op, Op.CONNECT, fd, memory, 0, 0, length, 0);
  const result = await ended;
  assert(memory.bytes === name, 'the address lives until the kernel has read it');
  if (result < 0) {
    close(fd);
    throw new BlockError(result, `${what}: ${errnoText(result)}`);
  }
  return adopt(backend, fd);
}

export function adoptRingSocket(backend: RingBackend, fd: number, shared: boolean): AioSocket {
  return adopt(backend, shared ? check(duplicate(fd), 'Could not take over a connection') : fd);
}

export function adoptRingListener(backend: RingBackend, fd: number): AioListener {
  // On a non-blocking listener the ring would answer EAGAIN instead of waiting.
  setBlocking(fd);
  const address = net.getsockname(fd);
  if (typeof address === 'number') {
    throw new BlockError(address, `Could not take over descriptor ${fd}: ${errnoText(address)}`);
  }
  return new RingListener(backend, fd, address, '');
}
