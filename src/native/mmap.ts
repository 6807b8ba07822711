/** Mappings (mmap(2)) and anonymous files (memfd_create(2)). Addresses are numbers; failures are negative errnos. */
import { assert } from '../base/assert.ts';
import { alignDown, alignUp, type Bytes, type Offset } from '../base/units.ts';
import { check, libc, scratch } from './lib.ts';
import { syscall, syscallNumber } from './syscall.ts';

const PROT_NONE = 0;
const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
const MAP_POPULATE = 0x8000;

const MADV_DONTNEED = 4;
const PAGE = 4096;

const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;

/** Seals of a memfd (linux/fcntl.h). A file that cannot shrink cannot kill its reader with SIGBUS. */
export const Seal = { SEAL: 1, SHRINK: 2, GROW: 4, WRITE: 8 } as const;

/** Maps `length` bytes of `fd` from `offset` (a multiple of the page size), shared and writable. With `populate`,
 *  faults the pages in now. The address or a negative errno. */
export function mapShared(fd: number, length: Bytes, offset: Offset = 0, populate = false): number {
  const flags = MAP_SHARED | (populate ? MAP_POPULATE : 0);
  return check(libc().mmap(0, length, PROT_READ | PROT_WRITE, flags, fd, offset));
}

/** Maps `length` bytes of `fd` from `offset`, shared and writable, over whatever is at `address`.
 *  0 or a negative errno. */
export function mapSharedAt(address: number, fd: number, length: Bytes, offset: Offset): number {
  const flags = MAP_SHARED | MAP_FIXED | MAP_NORESERVE;
  return Math.min(check(libc().mmap(address, length, PROT_READ | PROT_WRITE, flags, fd, offset)), 0);
}

/** Address space without memory: every access is a crash. The address or a negative errno. */
export function reserveAddresses(length: Bytes): number {
  return check(libc().mmap(0, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
}

/** The same, read-only. */
export function mapSharedReadOnly(fd: number, length: Bytes, offset: Offset = 0): number {
  return check(libc().mmap(0, length, PROT_READ, MAP_SHARED, fd, offset));
}

/** `length` bytes of zeroes, shared with nobody. Page-aligned, so fit for O_DIRECT. */
export function mapAnonymous(length: Bytes): number {
  return check(libc().mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

/** Gives the whole pages in a range of private memory back to the system; they read as zeroes when next touched. */
export function releasePages(address: number, length: Bytes): number {
  const start = alignUp(address, PAGE);
  const end = alignDown(address + length, PAGE);
  return end > start ? check(libc().madvise(start, end - start, MADV_DONTNEED)) : 0;
}

/** Ends a mapping that no ArrayBuffer was ever made over. */
export function unmapUnseen(address: number, length: Bytes): number {
  return check(libc().munmap(address, length));
}

/** Ends a mapping that ArrayBuffers may still be over, and gives its memory back. An ArrayBuffer cannot be detached,
 *  and an unmapped address may be mapped again by anybody: so the range stays reserved without access, and a use
 *  after the end is a crash, never another's memory. */
export function unmapUnderView(address: number, length: Bytes): number {
  assert(address > 0, `bad address ${address}`);
  const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
  const result = check(libc().mmap(address, length, PROT_NONE, flags, -1, 0));
  return Math.min(result, 0);
}

/** An empty anonymous file, sealable; `name` (under 250 bytes) is for /proc only. The fd or a negative errno. */
export function memfdCreate(name: string): number {
  const { bytes, address } = scratch();
  const { written } = new TextEncoder().encodeInto(name, bytes.subarray(0, 249));
  bytes[written] = 0;
  return syscall(syscallNumber('memfd_create'), address, MFD_CLOEXEC | MFD_ALLOW_SEALING);
}

export function addSeals(fd: number, seals: number): number {
  return check(libc().fcntl(fd, F_ADD_SEALS, seals));
}

/** The seals of `fd`; -EINVAL for a file that has none of the kind. */
export function getSeals(fd: number): number {
  return check(libc().fcntl(fd, F_GET_SEALS, 0));
}
