/** Messages that carry file descriptors over unix sockets: SCM_RIGHTS (unix(7), cmsg(3)). */
import { assert } from '../base/assert.ts';
import type { Memory } from '../base/memory.ts';
import { addressOf, check, libc } from './lib.ts';

/** The kernel's SCM_MAX_FD. */
export const MAX_FDS = 253;
export const MAX_MESSAGE_BYTES = 65536;

const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_CTRUNC = 8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;

/** Layout of the area of this file: struct msghdr, struct iovec, control messages, bytes. */
const IOVEC_AT = 64;
const CONTROL_AT = 128;
const BYTES_AT = 2048;
const CMSG_HEADER = 16;

let shared: Memory | undefined;

function area(): Memory {
  if (!shared) {
    const bytes = new Uint8Array(new SharedArrayBuffer(BYTES_AT + MAX_MESSAGE_BYTES));
    shared = { bytes, view: new DataView(bytes.buffer), address: addressOf(bytes) };
  }
  return shared;
}

/** Sends at most 64 KiB with at most 253 descriptors, which stay open here. Never waits: the bytes sent (the
 *  descriptors go with the first) or a negative errno, -EAGAIN when the socket is full. Descriptors need at least
 *  one byte. */
export function sendFds(fd: number, bytes: Uint8Array, fds: readonly number[]): number {
  assert(bytes.length <= MAX_MESSAGE_BYTES && fds.length <= MAX_FDS, 'the message is too long');
  assert(fds.length === 0 || bytes.length > 0, 'descriptors travel with at least one byte');
  const message = area();
  message.bytes.set(bytes, BYTES_AT);
  const control = fds.length === 0 ? 0 : CMSG_HEADER + 4 * fds.length;
  header(message, bytes.length, control);
  if (control > 0) {
    message.view.setUint32(CONTROL_AT, control, true);
    message.view.setUint32(CONTROL_AT + 4, 0, true);
    message.view.setInt32(CONTROL_AT + 8, SOL_SOCKET, true);
    message.view.setInt32(CONTROL_AT + 12, SCM_RIGHTS, true);
    fds.forEach((passed, i) => {
      message.view.setInt32(CONTROL_AT + CMSG_HEADER + 4 * i, passed, true);
    });
  }
  return check(libc().sendmsg(fd, message.address, MSG_DONTWAIT | MSG_NOSIGNAL));
}

export interface Received {
  /** Empty at the end of the stream. */
  readonly bytes: Uint8Array;
  /** The caller's to close. */
  readonly fds: readonly number[];
  /** The peer sent more descriptors than asked for; the kernel has closed the rest. */
  readonly truncated: boolean;
}

/** Receives at most `maxBytes` (64 KiB) with at most `maxFds` (253) descriptors, close-on-exec. Never waits: -EAGAIN
 *  when there is nothing yet. */
export function recvFds(fd: number, maxBytes: number, maxFds: number): Received | number {
  assert(maxBytes > 0 && maxBytes <= MAX_MESSAGE_BYTES && maxFds >= 0 && maxFds <= MAX_FDS, 'the message is too long');
  const message = area();
  // Without the padding of CMSG_SPACE: the kernel would fill it with one descriptor more.
  header(message, maxBytes, maxFds === 0 ? 0 : CMSG_HEADER + 4 * maxFds);
  const result = check(libc().recvmsg(fd, message.address, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
  if (result < 0) return result;
  return {
    bytes: Uint8Array.from(message.bytes.subarray(BYTES_AT, BYTES_AT + result)),
    fds: receivedFds(message.view),
    truncated: (message.view.getInt32(48, true) & MSG_CTRUNC) !== 0,
  };
}

function receivedFds(view: DataView): number[] {
  const fds: number[] = [];
  const end = CONTROL_AT + view.getUint32(40, true);
  let at = CONTROL_AT;
  while (at + CMSG_HEADER <= end) {
    const length = view.getUint32(at, true);
    if (length < CMSG_HEADER) break;
    if (view.getInt32(at + 8, true) === SOL_SOCKET && view.getInt32(at + 12, true) === SCM_RIGHTS) {
      for (let i = at + CMSG_HEADER; i + 4 <= at + length; i += 4) fds.push(view.getInt32(i, true));
    }
    at += length + ((8 - (length % 8)) % 8);
  }
  return fds;
}

/** Fills struct msghdr and struct iovec; both are 64-bit layouts that glibc and musl share on little-endian
 *  machines. */
function header({ bytes, view, address }: Memory, length: number, control: number): void {
  bytes.fill(0, 0, CONTROL_AT);
  putAddress(view, 16, address + IOVEC_AT);
  view.setUint32(24, 1, true);
  if (control > 0) putAddress(view, 32, address + CONTROL_AT);
  view.setUint32(40, control, true);
  putAddress(view, IOVEC_AT, address + BYTES_AT);
  view.setUint32(IOVEC_AT + 8, length, true);
}

function putAddress(view: DataView, at: number, address: number): void {
  view.setUint32(at, address % 2 ** 32, true);
  view.setUint32(at + 4, Math.floor(address / 2 ** 32), true);
}
