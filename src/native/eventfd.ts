/** Eventfds: a counter in the kernel that any thread may raise and a ring or epoll may wait for (eventfd(2)). */
import { readlinkSync } from 'node:fs';
import { Errno } from '../base/errors.ts';
import { check, libc, scratch } from './lib.ts';

export { close } from './file.ts';

const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;

/** A new eventfd at 0, close-on-exec. The fd or a negative errno. One that is not `nonblock` is for reads on a ring,
 *  which fail on non-blocking descriptors instead of waiting; {@link drain} would then wait. */
export function create(nonblock = true): number {
  return check(libc().eventfd(0, EFD_CLOEXEC | (nonblock ? EFD_NONBLOCK : 0)));
}

/** Adds 1. A counter that is full is signalled already, so that is 0 too: a hostile peer cannot make us wait. */
export function signal(fd: number): number {
  const { view, address } = scratch();
  view.setUint32(0, 1, true);
  view.setUint32(4, 0, true);
  const result = check(libc().write(fd, address, 8));
  return result === 8 || result === -Errno.EAGAIN ? 0 : result;
}

/** Takes the whole count, which makes the fd unreadable: the count, 0 when there was none, or a negative errno. */
export function drain(fd: number): number {
  const { view, address } = scratch();
  const result = check(libc().read(fd, address, 8));
  if (result === -Errno.EAGAIN) return 0;
  return result === 8 ? view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32 : result;
}

/** True when `fd` is an eventfd, and not something else that a peer has passed to us. */
export function isEventfd(fd: number): boolean {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`) === 'anon_inode:[eventfd]';
  } catch {
    return false;
  }
}
