/** Threads as the kernel numbers them (gettid(2), tgkill(2)). */
import { native } from './lib.ts';
import { syscall, syscallNumber } from './syscall.ts';

/** linux/errno-base.h */
const ESRCH = 3;

/** The kernel's number of the calling thread; 0 where there is no native layer. */
export function kernelThreadId(): number {
  return native() ? syscall(syscallNumber('gettid')) : 0;
}

/** False when this process has no such thread any more. True where that cannot be told. */
export function isThreadAlive(id: number): boolean {
  return !native() || syscall(syscallNumber('tgkill'), process.pid, id, 0) !== -ESRCH;
}
