/**
 * One io_uring instance: the shared rings as typed arrays, submission entries written as 32-bit words, one system call
 * to submit and wait. Facts: io_uring(7), io_uring_setup(2), io_uring_enter(2). All methods: the thread that made it.
 */
import { assert, Bug } from '../base/assert.ts';
import type { Memory } from '../base/memory.ts';
import { close } from './file.ts';
import { addressOf, type Native, viewOf } from './lib.ts';
import { mapShared, unmapUnderView } from './mmap.ts';
import { ioUringSetup } from './syscall.ts';

/** Opcodes and flags in use. */
export const Op = {
  NOP: 0,
  READV: 1,
  WRITEV: 2,
  FSYNC: 3,
  POLL_ADD: 6,
  SENDMSG: 9,
  ACCEPT: 13,
  ASYNC_CANCEL: 14,
  CONNECT: 16,
  FALLOCATE: 17,
  READ: 22,
  WRITE: 23,
  SEND: 26,
  RECV: 27,
} as const;

export const FSYNC_DATASYNC = 1;
export const POLL_MULTISHOT = 1;
export const POLLIN = 1;
export const CANCEL_ALL = 1;
export const CANCEL_ANY = 4;
export const CQE_F_MORE = 2;

const SETUP_CQSIZE = 1 << 3;
const SETUP_CLAMP = 1 << 4;
const SETUP_COOP_TASKRUN = 1 << 8;
const SETUP_TASKRUN_FLAG = 1 << 9;
const SETUP_SINGLE_ISSUER = 1 << 12;
const SETUP_DEFER_TASKRUN = 1 << 13;

const FEAT_SINGLE_MMAP = 1;
const FEAT_NODROP = 1 << 1;
const FEAT_SUBMIT_STABLE = 1 << 2;
const FEAT_EXT_ARG = 1 << 8;
/** Linux 6.12: a wait for several completions may end with fewer, after a time of its own. */
const FEAT_MIN_TIMEOUT = 1 << 15;
export const NEEDED_FEATURES = FEAT_SINGLE_MMAP | FEAT_NODROP | FEAT_SUBMIT_STABLE | FEAT_EXT_ARG;

const ENTER_GETEVENTS = 1;
const ENTER_EXT_ARG = 8;
const OFF_SQES = 0x10000000;
const SQ_CQ_OVERFLOW = 2;
const SQ_TASKRUN = 4;

const SYS_ENTER = 426;
const PARAMS_BYTES = 120;
const SQE_WORDS = 16;
const SQE_IO_LINK = 4;

const CONTROL_BYTES = 64;
const ARG_AT = 0;
const TIMESPEC_AT = 32;
/** As good as no limit, where there has to be one. */
const LONG_NS = 3600e9;
const TWO_32 = 0x1_0000_0000;

export class Uring {
  readonly fd: number;
  readonly entries: number;
  readonly features: number;
  readonly #syscall: Native['libc']['syscall'];
  readonly #errno: () => number;
  readonly #sqes: Uint32Array;
  readonly #ring: Uint32Array;
  readonly #sqHeadAt: number;
  readonly #sqTailAt: number;
  readonly #sqFlagsAt: number;
  readonly #sqMask: number;
  readonly #cqHeadAt: number;
  readonly #cqTailAt: number;
  readonly #cqMask: number;
  /** Completion entries: words [user_data low, high, result, flags]. */
  readonly #cqes: Int32Array;
  readonly #control = new Uint8Array(new SharedArrayBuffer(CONTROL_BYTES));
  readonly #controlView = new DataView(this.#control.buffer);
  readonly #controlAddress: number;
  /** Address and length of what is mapped. */
  readonly #maps: readonly (readonly [number, number])[];
  #tail = 0;
  #submitted = 0;
  /** Of completions: the next to take, and the end of those that are known to be there. The kernel is told of the first
   *  with each `enter`: it adds none, or next to none, in between. */
  #head = 0;
  #seen = 0;

  /** Negative errno in `Uring.create` when the kernel refuses. */
  private constructor(native: Native, fd: number, params: Uint32Array) {
    this.#syscall = native.libc.syscall;
    this.#errno = native.koffi.errno;
    this.fd = fd;
    this.entries = params[0]!;
    this.features = params[5]!;
    const sq = params.subarray(10, 20);
    const cq = params.subarray(20, 30);
    const cqEntries = params[1]!;
    const ringBytes = Math.max(sq[6]! + this.entries * 4, cq[5]! + cqEntries * 16);
    const ringAddress = mapShared(fd, ringBytes, 0, true);
    const sqeAddress = mapShared(fd, this.entries * SQE_WORDS * 4, OFF_SQES, true);
    assert(ringAddress > 0 && sqeAddress > 0, 'io_uring rings cannot be mapped');
    this.#maps = [
      [ringAddress, ringBytes],
      [sqeAddress, this.entries * SQE_WORDS * 4],
    ];
    const ring = viewOf(ringAddress, ringBytes);
    this.#ring = new Uint32Array(ring, 0, Math.floor(ringBytes / 4));
    this.#sqes = new Uint32Array(viewOf(sqeAddress, this.entries * SQE_WORDS * 4));
    this.#sqHeadAt = sq[0]! / 4;
    this.#sqTailAt = sq[1]! / 4;
    this.#sqMask = this.#ring[sq[2]! / 4]!;
    this.#sqFlagsAt = sq[4]! / 4;
    this.#cqHeadAt = cq[0]! / 4;
    this.#cqTailAt = cq[1]! / 4;
    this.#cqMask = this.#ring[cq[2]! / 4]!;
    this.#cqes = new Int32Array(ring, cq[5]!, cqEntries * 4);
    // The index array is the identity for good: entry i is always submitted through slot i.
    for (let i = 0; i < this.entries; i++) this.#ring[sq[6]! / 4 + i] = i;
    this.#controlAddress = addressOf(this.#control);
    this.#controlView.setBigUint64(ARG_AT + 16, BigInt(this.#controlAddress + TIMESPEC_AT), true);
  }

  /** A ring, or the negative errno of io_uring_setup (EPERM in containers, ENOSYS on old kernels). */
  static create(native: Native, entries: number, completions: number): Uring | number {
    const wanted = SETUP_CQSIZE | SETUP_CLAMP;
    const quiet = wanted | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN | SETUP_TASKRUN_FLAG;
    let result = -22;
    const params = new Uint32Array(new SharedArrayBuffer(PARAMS_BYTES));
    for (const flags of [quiet, wanted | SETUP_COOP_TASKRUN | SETUP_TASKRUN_FLAG, wanted]) {
      params.fill(0);
      params[1] = completions;
      params[2] = flags;
      result = ioUringSetup(entries, addressOf(new Uint8Array(params.buffer)));
      if (result !== -22) break;
    }
    if (result < 0) return result;
    if ((params[5]! & NEEDED_FEATURES) !== NEEDED_FEATURES) {
      close(result);
      return -38;
    }
    return new Uring(native, result, params);
  }

  /** Entries written and not yet submitted. */
  get toSubmit(): number {
    return (this.#tail - this.#submitted) | 0;
  }

  /** Room for another entry; when false, `submit` first. */
  get room(): boolean {
    // The kernel takes entries within an `enter` only.
    return (this.#tail - this.#submitted) >>> 0 < this.entries;
  }

  /**
   * Writes one submission entry; there must be {@link room}. Its address is that of `memory` at `memoryAt`, or the
   * number
   * `memoryAt` itself without a memory (an address as an argument would be a number on the heap, for every entry).
   * `user` comes back with the completion (0..2^31-1).
   */
  prepare(
    op: number,
    fd: number,
    memory: Memory | null,
    memoryAt: number,
    length: number,
    offset: number,
    opFlags: number,
    user: number,
  ): void {
    if (!this.room) throw new Bug('the submission queue has no room');
    const at = (this.#tail & this.#sqMask) * SQE_WORDS;
    const sqes = this.#sqes;
    const offsetHigh = Math.floor(offset / TWO_32);
    const address = memory === null ? memoryAt : memory.address + memoryAt;
    const addressHigh = Math.floor(address / TWO_32);
    sqes[at] = op;
    sqes[at + 1] = fd;
    sqes[at + 2] = offset - offsetHigh * TWO_32;
    sqes[at + 3] = offsetHigh;
    sqes[at + 4] = address - addressHigh * TWO_32;
    sqes[at + 5] = addressHigh;
    sqes[at + 6] = length;
    sqes[at + 7] = opFlags;
    sqes[at + 8] = user;
    sqes[at + 9] = 0;
    sqes[at + 10] = 0;
    sqes[at + 11] = 0;
    sqes[at + 12] = 0;
    sqes[at + 13] = 0;
    this.#tail = (this.#tail + 1) >>> 0;
  }

  /** True when the entry written last is not submitted yet, so that {@link linkLast} can still change it. */
  isLast(user: number): boolean {
    if (this.toSubmit === 0) return false;
    return this.#sqes[((this.#tail - 1) & this.#sqMask) * SQE_WORDS + 8] === user;
  }

  /** The entry written next starts when the one written last has done all it was asked, or else is cancelled. */
  linkLast(): void {
    const at = ((this.#tail - 1) & this.#sqMask) * SQE_WORDS;
    this.#sqes[at] = (this.#sqes[at]! | (SQE_IO_LINK << 8)) >>> 0;
  }

  /** True when {@link next} would find a completion. */
  get completed(): boolean {
    return this.#head !== this.#seen || Atomics.load(this.#ring, this.#cqTailAt) !== this.#head;
  }

  /** True when the kernel holds finished work that only an `enter` turns into completions. */
  get taskWork(): boolean {
    return (Atomics.load(this.#ring, this.#sqFlagsAt) & (SQ_TASKRUN | SQ_CQ_OVERFLOW)) !== 0;
  }

  /**
   * Submits everything written; with `wait` blocks until a completion is there, `timeoutNs` has passed (Infinity: no
   * limit) or a signal came. With `gather` above 1 it first waits for so many completions, `gatherUs` at most (older
   * kernels do not). The one system call of a turn. Returns a negative errno only for a refused submission.
   */
  enter(wait: boolean, timeoutNs: number, gather = 1, gatherUs = 0): number {
    const count = this.toSubmit;
    Atomics.store(this.#ring, this.#sqTailAt, this.#tail);
    Atomics.store(this.#ring, this.#cqHeadAt, this.#head);
    const several = wait && gather > 1 && (this.features & FEAT_MIN_TIMEOUT) !== 0;
    let flags = ENTER_GETEVENTS;
    let arg = 0;
    let argBytes = 0;
    if (wait && (several || timeoutNs !== Number.POSITIVE_INFINITY)) {
      const limitNs = Math.min(timeoutNs, LONG_NS);
      const seconds = Math.floor(limitNs / 1e9);
      this.#controlView.setUint32(TIMESPEC_AT, seconds, true);
      this.#controlView.setUint32(TIMESPEC_AT + 4, 0, true);
      this.#controlView.setUint32(TIMESPEC_AT + 8, limitNs - seconds * 1e9, true);
      this.#controlView.setUint32(ARG_AT + 12, several ? gatherUs : 0, true);
      flags |= ENTER_EXT_ARG;
      arg = this.#controlAddress + ARG_AT;
      argBytes = 24;
    }
    const result = this.#syscall(SYS_ENTER, this.fd, count, several ? gather : wait ? 1 : 0, flags, arg, argBytes);
    // The kernel's head says what it took, whatever the call returned (a timeout hides the count).
    this.#submitted = Atomics.load(this.#ring, this.#sqHeadAt);
    return result === -1 ? -this.#errno() : result;
  }

  /**
   * Index of the next completion's words, or -1. Read {@link user}, {@link result}, {@link flags}, then {@link
   * advance}.
   */
  next(): number {
    if (this.#head === this.#seen) {
      this.#seen = Atomics.load(this.#ring, this.#cqTailAt);
      if (this.#head === this.#seen) return -1;
    }
    return (this.#head & this.#cqMask) * 4;
  }

  user(at: number): number {
    return this.#cqes[at]!;
  }

  result(at: number): number {
    return this.#cqes[at + 2]!;
  }

  flags(at: number): number {
    return this.#cqes[at + 3]!;
  }

  advance(): void {
    this.#head = (this.#head + 1) >>> 0;
  }

  /** Ends the ring: nothing may be called any more. A map alone would keep it alive in the kernel. */
  close(): void {
    close(this.fd);
    for (const [address, length] of this.#maps) unmapUnderView(address, length);
  }
}
