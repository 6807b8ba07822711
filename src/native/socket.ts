/**
 * Stream sockets below node:net: made, bound and connected here, read and written by the ring. Every function returns
 * its value or a negative errno. All descriptors are close-on-exec.
 */
import type { Memory } from '../base/memory.ts';
import { sendFds } from './fd-passing.ts';
import { check, libc, scratch } from './lib.ts';
import { AF_UNIX, decodeAddress, encodeAddress, familyOf, type NativeAddress, SOCKADDR_MAX } from './sockaddr.ts';

export { MAX_FDS, MAX_MESSAGE_BYTES, type Received, recvFds, sendFds } from './fd-passing.ts';
export type { NativeAddress } from './sockaddr.ts';

const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;

/** Scratch layout: a sockaddr at 0, its length (or another small out value) after it. */
const LENGTH_AT = SOCKADDR_MAX;

const SOL_SOCKET = 1;
const IPPROTO_TCP = 6;
const IPPROTO_IPV6 = 41;

/** The options in use: level and number (asm-generic/socket.h, linux/tcp.h, linux/in6.h). */
const OPTIONS = {
  reuseaddr: [SOL_SOCKET, 2],
  type: [SOL_SOCKET, 3],
  error: [SOL_SOCKET, 4],
  sndbuf: [SOL_SOCKET, 7],
  rcvbuf: [SOL_SOCKET, 8],
  keepalive: [SOL_SOCKET, 9],
  acceptconn: [SOL_SOCKET, 30],
  domain: [SOL_SOCKET, 39],
  nodelay: [IPPROTO_TCP, 1],
  keepidle: [IPPROTO_TCP, 4],
  keepintvl: [IPPROTO_TCP, 5],
  keepcnt: [IPPROTO_TCP, 6],
  v6only: [IPPROTO_IPV6, 26],
} as const;
const SO_PEERCRED = 17;
const EAFNOSUPPORT = 97;

export type SocketOption = keyof typeof OPTIONS;

/** A stream socket of the family that `address` needs. With `nonblock`, calls answer -EAGAIN instead of waiting. An
 *  address that {@link encodeAddress} would refuse is refused here, before there is anything to close:
 *  -ENAMETOOLONG, -EINVAL. */
export function socket(address: NativeAddress, nonblock = false): number {
  const length = encodeAddress(address, scratch().bytes);
  return length < 0 ? length : check(libc().socket(familyOf(address), SOCK_STREAM | flags(nonblock), 0));
}

/** Sends one datagram to the unix socket `path`; a name that begins with '@' is in the abstract namespace. */
export function sendDatagram(path: string, bytes: Uint8Array): number {
  const fd = check(libc().socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (fd < 0) return fd;
  const connected = connect(fd, { kind: 'unix', path: path.replace(/^@/, '\0') });
  const result = connected < 0 ? connected : sendFds(fd, bytes, []);
  check(libc().close(fd));
  return result;
}

/** Two connected unix sockets. */
export function socketpair(nonblock = false): readonly [number, number] | number {
  const { view, address } = scratch();
  const result = check(libc().socketpair(AF_UNIX, SOCK_STREAM | flags(nonblock), 0, address));
  return result < 0 ? result : [view.getInt32(0, true), view.getInt32(4, true)];
}

/** -ENAMETOOLONG for a unix path that does not fit, -EINVAL for an address that is none. */
export function bind(fd: number, address: NativeAddress): number {
  const area = scratch();
  const length = encodeAddress(address, area.bytes);
  return length < 0 ? length : check(libc().bind(fd, area.address, length));
}

export function listen(fd: number, backlog = 128): number {
  return check(libc().listen(fd, backlog));
}

/** Connects; on a non-blocking inet socket answers -EINPROGRESS (-115): wait for POLLOUT, then ask option 'error'. */
export function connect(fd: number, address: NativeAddress): number {
  const area = scratch();
  const length = encodeAddress(address, area.bytes);
  return length < 0 ? length : check(libc().connect(fd, area.address, length));
}

/** The fd of a new connection, or -EAGAIN. */
export function accept4(fd: number, nonblock = false): number {
  return check(libc().accept4(fd, 0, 0, flags(nonblock)));
}

/** Where a socket is bound; the path '' when it is not. -EAFNOSUPPORT (-97) for a family that is not ours. */
export function getsockname(fd: number): NativeAddress | number {
  const { address } = nameRoom();
  return nameFrom(libc().getsockname(fd, address, address + LENGTH_AT));
}

/** Who is at the other end; a unix client has the path ''. -EAFNOSUPPORT (-97) for a family that is not ours. */
export function getpeername(fd: number): NativeAddress | number {
  const { address } = nameRoom();
  return nameFrom(libc().getpeername(fd, address, address + LENGTH_AT));
}

export function setsockopt(fd: number, option: SocketOption, value: number): number {
  const { view, address } = scratch();
  view.setInt32(0, value, true);
  const [level, number] = OPTIONS[option];
  return check(libc().setsockopt(fd, level, number, address, 4));
}

/** The value of an option. The kernel doubles 'sndbuf' and 'rcvbuf'; 'error' is a positive errno, cleared by
 *  reading. */
export function getsockopt(fd: number, option: SocketOption): number {
  const { view, address } = scratch();
  view.setUint32(LENGTH_AT, 4, true);
  const [level, number] = OPTIONS[option];
  const result = check(libc().getsockopt(fd, level, number, address, address + LENGTH_AT));
  return result < 0 ? result : view.getInt32(0, true);
}

export interface PeerCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** Who connected a unix socket, as the kernel saw it then (SO_PEERCRED). */
export function peerCredentials(fd: number): PeerCredentials | number {
  const { view, address } = scratch();
  view.setUint32(LENGTH_AT, 12, true);
  const result = check(libc().getsockopt(fd, SOL_SOCKET, SO_PEERCRED, address, address + LENGTH_AT));
  if (result < 0) return result;
  return { pid: view.getInt32(0, true), uid: view.getUint32(4, true), gid: view.getUint32(8, true) };
}

const HOW = { read: 0, write: 1, both: 2 } as const;

export function shutdown(fd: number, how: keyof typeof HOW = 'both'): number {
  return check(libc().shutdown(fd, HOW[how]));
}

function flags(nonblock: boolean): number {
  return SOCK_CLOEXEC | (nonblock ? SOCK_NONBLOCK : 0);
}

function nameRoom(): Memory {
  const room = scratch();
  room.view.setUint32(LENGTH_AT, SOCKADDR_MAX, true);
  return room;
}

function nameFrom(result: number): NativeAddress | number {
  const failed = check(result);
  if (failed < 0) return failed;
  const { bytes, view } = scratch();
  return decodeAddress(bytes, Math.min(view.getUint32(LENGTH_AT, true), SOCKADDR_MAX)) ?? -EAFNOSUPPORT;
}
