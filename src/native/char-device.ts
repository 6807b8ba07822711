/**
 * What node:fs and node:tty lack for terminals and parallel ports. Every function returns its value or a negative
 * errno, and none waits. Numbers: asm-generic/ioctls.h, asm-generic/termbits.h, linux/ppdev.h.
 */
import { close, OpenFlag, open } from './file.ts';
import { check, libc, scratch } from './lib.ts';

const TCGETS = 0x5401;
const TCSETS = 0x5402;
const TIOCSBRK = 0x5427;
const TIOCCBRK = 0x5428;
const TIOCGPTN = 0x80045430;
const TIOCSPTLCK = 0x40045431;
const PPCLAIM = 0x708b;

/** struct termios: four words of flags, then the line discipline and the control characters. */
const IFLAG_AT = 0;
const OFLAG_AT = 4;
const CFLAG_AT = 8;
const LFLAG_AT = 12;
const VTIME_AT = 17 + 5;
const VMIN_AT = 17 + 6;
/** IGNBRK, BRKINT, PARMRK, ISTRIP, INLCR, IGNCR, ICRNL, IXON. */
const IFLAGS_COOKED = 0o1 | 0o2 | 0o10 | 0o40 | 0o100 | 0o200 | 0o400 | 0o2000;
const OPOST = 0o1;
/** ECHO, ECHONL, ICANON, ISIG, IEXTEN. */
const LFLAGS_COOKED = 0o10 | 0o100 | 0o2 | 0o1 | 0o100000;
/** CBAUD, CSIZE, CSTOPB, PARENB. */
const CFLAGS_LINE = 0o10017 | 0o60 | 0o100 | 0o400;
const B115200 = 0o10002;
/** CS8, CREAD, CLOCAL. */
const EIGHT_BITS = 0o60 | 0o200 | 0o4000;

const O_NOCTTY = 0o400;
const POLLHUP = 0x10;

export interface PseudoTerminal {
  /** Our end. It does not block. */
  readonly fd: number;
  /** What others open. */
  readonly path: string;
}

/** A new pseudo-terminal that passes bytes as they are, and that nobody has open: {@link hungUp} says when one has. */
export function openPseudoTerminal(): PseudoTerminal | number {
  const fd = open('/dev/ptmx', OpenFlag.RDWR | O_NOCTTY | OpenFlag.NONBLOCK);
  if (fd < 0) return fd;
  const path = unlocked(fd);
  // Before its other end was open once, it is not told of its end either.
  const other = typeof path === 'string' ? open(path, OpenFlag.RDWR | O_NOCTTY) : path;
  if (other < 0 || typeof path !== 'string') {
    close(fd);
    return other;
  }
  makeRaw(other);
  close(other);
  return { fd, path };
}

/** The name of the other end, which may be opened from now on. */
function unlocked(fd: number): string | number {
  const { view, address } = scratch();
  view.setInt32(0, 0, true);
  const result = check(libc().ioctl(fd, TIOCSPTLCK, address));
  if (result < 0) return result;
  const found = check(libc().ioctl(fd, TIOCGPTN, address));
  return found < 0 ? found : `/dev/pts/${view.getUint32(0, true)}`;
}

/** Opens a device for reading and writing; reads and writes answer -EAGAIN instead of waiting. */
export function openDevice(path: string): number {
  return open(path, OpenFlag.RDWR | O_NOCTTY | OpenFlag.NONBLOCK);
}

/** Bytes pass as they are, 8 bits at 115200 baud. -ENOTTY where it is no terminal. */
export function makeRaw(fd: number): number {
  const { view, address } = scratch();
  const result = check(libc().ioctl(fd, TCGETS, address));
  if (result < 0) return result;
  const change = (at: number, clear: number, set = 0): void =>
    view.setUint32(at, ((view.getUint32(at, true) & ~clear) | set) >>> 0, true);
  change(IFLAG_AT, IFLAGS_COOKED);
  change(OFLAG_AT, OPOST);
  change(LFLAG_AT, LFLAGS_COOKED);
  change(CFLAG_AT, CFLAGS_LINE, B115200 | EIGHT_BITS);
  view.setUint8(VMIN_AT, 1);
  view.setUint8(VTIME_AT, 0);
  return check(libc().ioctl(fd, TCSETS, address));
}

/** True while nobody has the other end open. */
export function hungUp(fd: number): boolean {
  const { view, address } = scratch();
  view.setInt32(0, fd, true);
  view.setInt16(4, 0, true);
  view.setInt16(6, 0, true);
  return check(libc().poll(address, 1, 0)) < 0 || (view.getInt16(6, true) & POLLHUP) !== 0;
}

/** Begins or ends a break on a serial line. */
export function setBreak(fd: number, on: boolean): number {
  return check(libc().ioctl(fd, on ? TIOCSBRK : TIOCCBRK, 0));
}

/** -ENOTTY where it is no parallel port. */
export function claimParallelPort(fd: number): number {
  return check(libc().ioctl(fd, PPCLAIM, 0));
}
