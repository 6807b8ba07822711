/**
 * Open file description locks (fcntl(2), F_OFD_*): they belong to the open file, not to the process, so two opens in
 * one process exclude each other and closing an unrelated descriptor loses nothing. They never wait here.
 */
import type { Bytes, Offset } from '../base/units.ts';
import { check, libc, scratch } from './lib.ts';

export type LockKind = 'read' | 'write' | 'none';

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const TYPE = { read: 0, write: 1, none: 2 } as const;
const FLOCK_BYTES = 32;

/** Takes, changes or gives back the lock on `length` bytes (0: to the end of all offsets) from `at`. 0, or a
 *  negative errno: -EAGAIN when somebody else holds a conflicting one. 'read' needs a readable fd, 'write' a
 *  writable one (-EBADF). */
export function lock(fd: number, kind: LockKind, at: Offset, length: Bytes): number {
  return check(libc().fcntl(fd, F_OFD_SETLK, flock(kind, at, length)));
}

/** True when another open file holds a lock that `kind` would conflict with; false where locks cannot be had at all. */
export function testLock(fd: number, kind: 'read' | 'write', at: Offset, length: Bytes): boolean {
  const result = check(libc().fcntl(fd, F_OFD_GETLK, flock(kind, at, length)));
  return result === 0 && scratch().view.getInt16(0, true) !== TYPE.none;
}

/** True when the file system of `fd` has such locks. */
export function canLock(fd: number): boolean {
  return check(libc().fcntl(fd, F_OFD_GETLK, flock('read', 0, 1))) === 0;
}

/** Packs a struct flock and returns its address. */
function flock(kind: LockKind, at: Offset, length: Bytes): number {
  const { bytes, view, address } = scratch();
  bytes.fill(0, 0, FLOCK_BYTES); // l_whence SEEK_SET and l_pid must be 0
  view.setInt16(0, TYPE[kind], true);
  view.setUint32(8, at % 2 ** 32, true);
  view.setUint32(12, Math.floor(at / 2 ** 32), true);
  view.setUint32(16, length % 2 ** 32, true);
  view.setUint32(20, Math.floor(length / 2 ** 32), true);
  return address;
}
