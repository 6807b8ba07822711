/** System calls that libc has no function for, or not everywhere. Numbers: asm/unistd.h of each architecture. */
import { check, libc, native } from './lib.ts';

const NUMBERS = {
  x64: {
    fstatfs: 138,
    prctl: 157,
    gettid: 186,
    tgkill: 234,
    process_vm_readv: 310,
    process_vm_writev: 311,
    seccomp: 317,
    memfd_create: 319,
    preadv2: 327,
    statx: 332,
  },
  arm64: {
    fstatfs: 44,
    tgkill: 131,
    prctl: 167,
    gettid: 178,
    process_vm_readv: 270,
    process_vm_writev: 271,
    seccomp: 277,
    memfd_create: 279,
    preadv2: 286,
    statx: 291,
  },
} as const;

/** Since 5.1 new system calls have one number on all architectures. */
const COMMON = { io_uring_setup: 425, io_uring_enter: 426, io_uring_register: 427, pidfd_open: 434 } as const;

export type SyscallName = keyof (typeof NUMBERS)['x64'] | keyof typeof COMMON;

/** The number of a system call on this processor. */
export function syscallNumber(name: SyscallName): number {
  if (name in COMMON) return COMMON[name as keyof typeof COMMON];
  return NUMBERS[native()?.arch ?? 'x64'][name as keyof (typeof NUMBERS)['x64']];
}

/** A raw system call; pointers are addresses. Returns its result or a negative errno. */
export function syscall(number: number, a = 0, b = 0, c = 0, d = 0, e = 0, f = 0): number {
  return check(libc().syscall(number, a, b, c, d, e, f));
}

/** `params` is the address of a struct io_uring_params. Returns the ring's fd or a negative errno. */
export function ioUringSetup(entries: number, params: number): number {
  return check(libc().syscall(COMMON.io_uring_setup, entries, params, 0, 0, 0, 0));
}

/** Returns the number of SQEs consumed or a negative errno. */
export function ioUringEnter(
  fd: number,
  toSubmit: number,
  minComplete: number,
  flags: number,
  argument: number,
  argumentBytes: number,
): number {
  return check(libc().syscall(COMMON.io_uring_enter, fd, toSubmit, minComplete, flags, argument, argumentBytes));
}

export function ioUringRegister(fd: number, opcode: number, argument: number, count: number): number {
  return check(libc().syscall(COMMON.io_uring_register, fd, opcode, argument, count, 0, 0));
}
