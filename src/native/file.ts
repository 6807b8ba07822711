/**
 * What node:fs lacks for files and block devices: holes, preallocation, O_DIRECT, device geometry. Every function
 * returns its value or a negative errno; offsets and lengths are bytes up to 2^53-1. They block, so keep them to calls
 * that the kernel answers from memory, or to threads that may wait.
 */
import { Errno } from '../base/errors.ts';
import { alignDown, type Bytes, type Offset } from '../base/units.ts';
import { check, libc, native, scratch } from './lib.ts';
import { syscall, syscallNumber } from './syscall.ts';

const arm = process.arch === 'arm64';

/** Flags of {@link open} (asm/fcntl.h; O_DIRECT and its neighbours differ by architecture). */
export const OpenFlag = {
  RDONLY: 0,
  WRONLY: 1,
  RDWR: 2,
  CREAT: 0o100,
  EXCL: 0o200,
  TRUNC: 0o1000,
  NONBLOCK: 0o4000,
  DSYNC: 0o10000,
  DIRECT: arm ? 0o200000 : 0o40000,
  DIRECTORY: arm ? 0o40000 : 0o200000,
  NOFOLLOW: arm ? 0o100000 : 0o400000,
  NOATIME: 0o1000000,
  CLOEXEC: 0o2000000,
} as const;

/** Modes of {@link fallocate} (linux/falloc.h); 0 allocates and grows the file. */
const F_GETFL = 3;
const F_SETFL = 4;
const F_DUPFD_CLOEXEC = 1030;
const O_NONBLOCK = 0o4000;

export const FallocateMode = { KEEP_SIZE: 1, PUNCH_HOLE: 2, COLLAPSE_RANGE: 8, ZERO_RANGE: 16 } as const;

const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

const BLKSSZGET = 0x1268;
const BLKDISCARD = 0x1277;
const BLKPBSZGET = 0x127b;
const BLKZEROOUT = 0x127f;
const BLKGETSIZE64 = 0x80081272;

const AT_EMPTY_PATH = 0x1000;
const STATX_BASIC_STATS = 0x7ff;
const STATX_DIOALIGN = 0x2000;

/** True where the calls of this file can be made: without a native layer they throw ENOSYS. */
export function available(): boolean {
  return native() !== undefined;
}

/** The fd or a negative errno. Close-on-exec is added: no program started from here inherits disk images. */
export function open(path: string, flags: number, mode = 0o666): number {
  if (path.includes('\0')) return -Errno.EINVAL;
  return check(libc().open(path, flags | OpenFlag.CLOEXEC, mode));
}

export function close(fd: number): number {
  return check(libc().close(fd));
}

/** Where data begins at or after `at`; -ENXIO when only a hole follows, or nothing. Moves the file position. */
export function seekData(fd: number, at: Offset): Offset {
  return check(libc().lseek(fd, at, SEEK_DATA));
}

/** Where a hole begins at or after `at`; the end of the file counts as one. -ENXIO beyond the end. */
export function seekHole(fd: number, at: Offset): Offset {
  return check(libc().lseek(fd, at, SEEK_HOLE));
}

/** The end of a file or a block device. */
export function seekEnd(fd: number): Offset {
  return check(libc().lseek(fd, 0, SEEK_END));
}

/** Bytes from `at` that are data (positive) or a hole (negative) up to the next change, at most `limit`; 0 at or beyond
 *  the end; `limit`, all data, where holes cannot be seen. Calling a hole data is always safe, so doubt is data. */
export function extent(fd: number, at: Offset, limit: Bytes): number {
  const data = seekData(fd, at);
  if (data > at) return -Math.min(data - at, limit);
  if (data === at) {
    const hole = seekHole(fd, at);
    return hole > at ? Math.min(hole - at, limit) : limit;
  }
  if (data !== -Errno.ENXIO) return limit;
  const end = seekEnd(fd);
  return end > at ? -Math.min(end - at, limit) : 0;
}

const RWF_NOWAIT = 8;

/** Reads what is in memory already, and never waits: -EAGAIN where that would be needed, -ENOTSUP where the file
 *  system cannot say. May be short. */
export function readCached(fd: number, address: number, length: Bytes, at: Offset): number {
  const { view, address: vector } = scratch();
  view.setUint32(0, address >>> 0, true);
  view.setUint32(4, Math.floor(address / 2 ** 32), true);
  view.setUint32(8, length, true);
  view.setUint32(12, 0, true);
  return syscall(syscallNumber('preadv2'), fd, vector, 1, at, 0, RWF_NOWAIT);
}

export function fallocate(fd: number, mode: number, at: Offset, length: Bytes): number {
  return check(libc().fallocate(fd, mode, at, length));
}

/** Clears O_NONBLOCK, which an open that must not wait (for the other end of a FIFO) has set. */
export function setBlocking(fd: number): number {
  const flags = check(libc().fcntl(fd, F_GETFL, 0));
  if (flags < 0) return flags;
  return check(libc().fcntl(fd, F_SETFL, Math.floor(flags / (2 * O_NONBLOCK)) * 2 * O_NONBLOCK + (flags % O_NONBLOCK)));
}

/** Whether what is read and written through the open file bypasses the page cache (O_DIRECT). -EINVAL where its file
 *  system cannot. */
export function setDirect(fd: number, direct: boolean): number {
  const flags = check(libc().fcntl(fd, F_GETFL, 0));
  if (flags < 0) return flags;
  const others = flags & ~OpenFlag.DIRECT;
  return check(libc().fcntl(fd, F_SETFL, direct ? others | OpenFlag.DIRECT : others));
}

/** Another descriptor of the same open file: locks (OFD) and flags are common to both. It closes with {@link close},
 *  not through node:fs, which takes a worker's files for its own. A negative errno where `fd` is none. */
export function duplicate(fd: number): number {
  return check(libc().fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

export function ftruncate(fd: number, size: Bytes): number {
  return check(libc().ftruncate(fd, size));
}

export function fsync(fd: number): number {
  return check(libc().fsync(fd));
}

export function fdatasync(fd: number): number {
  return check(libc().fdatasync(fd));
}

export interface Stat {
  /** st_mode: type and permissions. */
  readonly mode: number;
  readonly kind: 'file' | 'block' | 'char' | 'directory' | 'other';
  /** Bytes; 0 for devices: see {@link deviceSize}. */
  readonly size: Bytes;
  /** 512-byte units in use. */
  readonly blocks: number;
  readonly dev: number;
  /** Rounded above 2^53. */
  readonly ino: number;
  /** What O_DIRECT asks of memory addresses, and of offsets and lengths (Linux 6.1); 0 when the kernel does not say. */
  readonly directMemoryAlign: Bytes;
  readonly directOffsetAlign: Bytes;
}

const KINDS = new Map<number, Stat['kind']>([
  [0o100000, 'file'],
  [0o060000, 'block'],
  [0o020000, 'char'],
  [0o040000, 'directory'],
]);

/** statx(2) of an open file. */
export function fstat(fd: number): Stat | number {
  const { view, address } = scratch();
  view.setUint8(0, 0); // the empty path, far from the result at 16
  const mask = STATX_BASIC_STATS | STATX_DIOALIGN;
  const result = syscall(syscallNumber('statx'), fd, address, AT_EMPTY_PATH, mask, address + 16);
  if (result < 0) return result;
  const word = (at: number) => view.getUint32(16 + at, true);
  const long = (at: number) => word(at) + word(at + 4) * 2 ** 32;
  const mode = view.getUint16(16 + 28, true);
  const dio = Math.floor(word(0) / STATX_DIOALIGN) % 2 === 1;
  return {
    mode,
    kind: KINDS.get(mode & 0o170000) ?? 'other',
    size: long(40),
    blocks: long(48),
    dev: makedev(word(136), word(140)),
    ino: long(32),
    directMemoryAlign: dio ? word(152) : 0,
    directOffsetAlign: dio ? word(156) : 0,
  };
}

/** The number that stat(2) and node:fs give for a device: the halves of major and minor are interleaved. */
function makedev(major: number, minor: number): number {
  const low = (minor % 256) + (major % 4096) * 2 ** 8;
  return low + alignDown(minor, 256) * 2 ** 12 + alignDown(major, 4096) * 2 ** 32;
}

/** Capacity of a block device in bytes. */
export function deviceSize(fd: number): Bytes {
  const { view, address } = scratch();
  const result = check(libc().ioctl(fd, BLKGETSIZE64, address));
  return result < 0 ? result : view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32;
}

/** Logical block size of a block device in bytes: the smallest unit of direct I/O. */
export function deviceBlockSize(fd: number): Bytes {
  return ioctlInt(fd, BLKSSZGET);
}

/** Physical block size of a block device in bytes: smaller writes cost a read. */
export function devicePhysicalBlockSize(fd: number): Bytes {
  return ioctlInt(fd, BLKPBSZGET);
}

/** Discards a range of a block device; what it reads afterwards is not defined. */
export function deviceDiscard(fd: number, at: Offset, length: Bytes): number {
  return ioctlRange(fd, BLKDISCARD, at, length);
}

/** Makes a range of a block device read as zeroes, by writing where the device has nothing better. */
export function deviceZero(fd: number, at: Offset, length: Bytes): number {
  return ioctlRange(fd, BLKZEROOUT, at, length);
}

function ioctlInt(fd: number, request: number): number {
  const { view, address } = scratch();
  const result = check(libc().ioctl(fd, request, address));
  return result < 0 ? result : view.getUint32(0, true);
}

function ioctlRange(fd: number, request: number, at: Offset, length: Bytes): number {
  const { view, address } = scratch();
  putLong(view, 0, at);
  putLong(view, 8, length);
  return check(libc().ioctl(fd, request, address));
}

function putLong(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % 2 ** 32, true);
  view.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
}

const TMPFS_MAGIC = 0x01021994;

/** True for a file in memory whose pages come one by one (memfd, tmpfs): not on huge pages, not on a disk. */
export function isShmem(fd: number): boolean {
  const { view, address } = scratch();
  return syscall(syscallNumber('fstatfs'), fd, address) === 0 && view.getUint32(0, true) === TMPFS_MAGIC;
}
