/**
 * The ring backend: the thread sleeps in io_uring_enter, and everything else wakes it through the ring: files, sockets,
 * other threads (an eventfd), and libuv itself (its epoll descriptor), so that promises, MessagePorts, timers and
 * Node's own sockets work beside it.
 *
 * One turn: reap completions and run them, run bottom halves and timers, submit all that was prepared meanwhile with
 * one system call. The loop stays in JavaScript for turn after turn and goes back to libuv (setImmediate) when a
 * coroutine has something to continue, when libuv has work, before it sleeps, and after {@link STAY_NS} in any case.
 */
import type { Socket } from 'node:net';
import { assert } from '../../base/assert.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { FreeList } from '../../base/free-list.ts';
import type { Memory } from '../../base/memory.ts';
import type { Nanoseconds } from '../../base/units.ts';
import * as eventfd from '../../native/eventfd.ts';
import { close } from '../../native/file.ts';
import { native } from '../../native/lib.ts';
import { memoryOf } from '../../native/memory.ts';
import { releasePages } from '../../native/mmap.ts';
import { CANCEL_ALL, CANCEL_ANY, CQE_F_MORE, Op, POLL_MULTISHOT, POLLIN, Uring } from '../../native/uring.ts';
import { hasNeighbour, type UvLoop, uvLoop } from '../../native/uv.ts';
import type {
  AioBackend,
  AioFile,
  AioListener,
  AioSocket,
  ListenOptions,
  LoopHost,
  OpenFileOptions,
  SocketAddress,
  WakeHandle,
} from '../backend.ts';
import { SharedWord } from '../context-shared.ts';
import { type AioOp, Gate, takeResumed } from '../op.ts';
import { anyReady, armAll, pollAll } from '../pollers.ts';
import { openRingFile } from './file.ts';
import { IovTable } from './iov-table.ts';
import { adoptRingListener, adoptRingSocket, connectRing, listenRing } from './socket.ts';
import type { RingStreams } from './streams.ts';

const SQ_ENTRIES = 1024;
const CQ_ENTRIES = 16384;
/** Operations in flight at once; beyond it they complete with -EAGAIN. */
const MAX_SLOTS = 65536;
/** The longest the loop keeps libuv waiting while it is busy. */
const STAY_NS = 1_000_000;
/** user_data of the loop's own operations: above every slot. */
const USER_WAKE = 0x7fff0001;
const USER_LIBUV = 0x7fff0002;
const USER_CANCEL = 0x7fff0003;
/** What a write to an eventfd adds: 1. */
const ONE = new Uint32Array(new SharedArrayBuffer(8));
ONE[0] = 1;
/** How long a thread that dies waits for the kernel to let go of its memory. */
const ABANDON_NS = 1_000_000_000;
/** Errors of io_uring_enter that pass: it is called again anyway. */
const LATER: ReadonlySet<number> = new Set([Errno.EINTR, Errno.ETIME, Errno.EBUSY, Errno.EAGAIN]);
/** Operations that the kernel hands to threads of its own as a rule, a bit each: while one is in flight, spinning would
 *  only take the processor from it. */
const WORKER_OPS = (1 << Op.WRITE) | (1 << Op.WRITEV) | (1 << Op.FSYNC) | (1 << Op.FALLOCATE);
/** With many of those in flight, one wake-up is for a part of them, and waits for that so long at most: a thread of the
 *  kernel's ends one after the other, and waking for each would take more time from it than they take. */
const GATHER_PART = 4;
const GATHER_US = 60;
/** How many busy turns, and how many looks at the ring while spinning, between two looks at the clock. */
const TURNS_PER_CLOCK = 8;
const LOOKS_PER_CLOCK = 32;

export class RingBackend implements AioBackend {
  readonly name = 'ring';
  readonly detail: string;
  readonly wakeHandle: WakeHandle;
  readonly ring: Uring;
  readonly iovs: IovTable;
  readonly #one: Memory;
  /** Descriptors that Node.js does not know of, for {@link abandon}. */
  readonly fds = new Set<number>();
  readonly #uv: UvLoop;
  readonly #eventfd: number;
  readonly #slots: (AioOp | undefined)[] = [];
  readonly #free = new FreeList<number>();
  #host!: LoopHost;
  /** Once there is one. */
  #streams: RingStreams | undefined;
  /** By slot: 1 for an operation that a thread of the kernel's works on (see {@link WORKER_OPS}). */
  readonly #byWorker = new Uint8Array(MAX_SLOTS);
  #workerOps = 0;
  #inFlight = 0;
  #immediate: NodeJS.Immediate | undefined;
  /** The one whose callback is running, or was last. */
  #ran: NodeJS.Immediate | undefined;
  #running = false;
  #stopping = false;
  #closed = false;
  /** Opens when the last operation has ended. */
  #quiet: Gate | undefined;
  #libuvArmed = false;
  /** See UvLoop.activity: its value when the loop was about to sleep last. */
  #activity = -1;
  #visitLibuv = false;
  /** Something has run since the last visit to libuv that may have given it work. */
  #loud = false;
  /** When libuv has to be visited, as of the last visit; -1: not asked since. */
  #libuvDueNs: Nanoseconds = -1;
  #spunNs = 0;

  /** Throws BlockError (EPERM, ENOSYS...) where io_uring cannot be used. */
  constructor() {
    const lib = native();
    if (!lib) throw new BlockError(Errno.ENOSYS, 'io_uring needs koffi, which cannot be loaded here');
    const uv = uvLoop();
    if (!uv)
      throw new BlockError(Errno.ENOSYS, 'io_uring cannot be driven here: this Node.js does not show its event loop');
    const ring = Uring.create(lib, SQ_ENTRIES, CQ_ENTRIES);
    if (typeof ring === 'number') throw new BlockError(ring, `Could not set up io_uring (errno ${-ring})`);
    this.#uv = uv;
    this.ring = ring;
    this.detail = 'io_uring';
    this.iovs = new IovTable(this);
    this.#one = memoryOf(new Uint8Array(ONE.buffer));
    this.#eventfd = eventfd.create();
    if (this.#eventfd < 0) {
      ring.close();
      throw new BlockError(this.#eventfd, `Could not create an eventfd (errno ${-this.#eventfd})`);
    }
    this.wakeHandle = { kind: 'eventfd', fd: this.#eventfd };
  }

  now(): Nanoseconds {
    return performance.now() * 1e6;
  }

  readonly memory: (bytes: Uint8Array) => Memory = memoryOf;

  release(memory: Memory, at: number, length: number): void {
    releasePages(memory.address + at, length);
  }

  start(host: LoopHost): void {
    this.#host = host;
    this.#running = true;
    this.#armWake();
    this.#schedule();
  }

  wake(): void {
    // The loop is either inside a turn, which looks for new work before it sleeps, or in libuv's hands with an
    // immediate pending: nothing is ever asleep while JavaScript of this thread runs.
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    for (const op of this.#slots) if (op) this.cancel(op);
    this.#streams?.endAll();
    while (this.#inFlight > 0) {
      this.#quiet = new Gate();
      await this.#quiet.promise;
    }
    await this.#streams?.close();
    // What the last completions have queued.
    while (this.#host.dispatch()) takeResumed();
    this.#running = false;
    if (this.#immediate) clearImmediate(this.#immediate);
    this.#close();
  }

  abandon(): void {
    if (this.#closed) return;
    this.#running = false;
    const deadline = this.now() + ABANDON_NS;
    if (this.room()) this.ring.prepare(Op.ASYNC_CANCEL, -1, null, 0, 0, 0, CANCEL_ALL | CANCEL_ANY, USER_CANCEL);
    while (this.#inFlight > 0 && this.now() < deadline) {
      this.#submit(true, ABANDON_NS / 10);
      for (let at = this.ring.next(); at >= 0; at = this.ring.next()) {
        if (this.ring.user(at) < USER_WAKE) this.#inFlight--;
        this.ring.advance();
      }
    }
    this.#close();
    for (const fd of this.fds) close(fd);
  }

  #close(): void {
    this.#closed = true;
    this.ring.close();
    // A waker may have seen us asleep just before; the number of a closed descriptor may be somebody's file soon.
    const { shared } = this.#host;
    Atomics.store(shared, SharedWord.SLEEPING, 0);
    const deadline = this.now() + ABANDON_NS;
    while (Atomics.load(shared, SharedWord.WAKERS) > 0 && this.now() < deadline);
    close(this.#eventfd);
  }

  // Operations: what file.ts and socket.ts use.

  /** Prepares an operation that ends in `op.complete`. The arguments are those of {@link Uring.prepare}. */
  begin(
    op: AioOp,
    code: number,
    fd: number,
    memory: Memory | null,
    memoryAt: number,
    length: number,
    offset: number,
    flags: number,
  ): void {
    const slot = this.#admit(op);
    if (slot < 0) return;
    if (((WORKER_OPS >>> code) & 1) === 1) {
      this.#byWorker[slot] = 1;
      this.#workerOps++;
    }
    this.ring.prepare(code, fd, memory, memoryAt, length, offset, flags, slot);
  }

  /** A slot for an operation that is to be prepared; -1 when it ends at once. */
  #admit(op: AioOp): number {
    assert(op.slot < 0, 'an operation was started twice');
    if (this.#stopping || !this.room()) {
      this.#host.completeLater(op, this.#stopping ? -Errno.ECANCELED : -Errno.EAGAIN);
      return -1;
    }
    const slot = this.#take(op);
    if (slot < 0) this.#host.completeLater(op, -Errno.EAGAIN);
    else this.#host.stats.operations++;
    return slot;
  }

  /** Makes room for one more submission entry; false when the kernel takes none. */
  room(): boolean {
    if (this.ring.room) return true;
    this.#submit(false, 0);
    return this.ring.room;
  }

  /** False when as many operations are in flight as there may be. */
  get hasSlot(): boolean {
    return this.#free.length > 0 || this.#slots.length < MAX_SLOTS;
  }

  /** Submits what is prepared. */
  flush(): void {
    this.#submit(false, 0);
  }

  later(op: AioOp, result: number): void {
    this.#host.completeLater(op, result);
  }

  cancel(op: AioOp): void {
    if (this.#streams?.cancel(op)) return;
    const { slot } = op.proxy ?? op;
    if (slot < 0 || !this.#running || !this.room()) return;
    this.ring.prepare(Op.ASYNC_CANCEL, -1, null, slot, 0, 0, 0, USER_CANCEL);
  }

  async fromStream(stream: Socket): Promise<AioSocket> {
    const { RingStreams } = await import('./streams.ts');
    this.#streams ??= new RingStreams(this.#host);
    return this.#streams.adopt(stream);
  }

  pollFd(op: AioOp, fd: number, events: number): void {
    this.begin(op, Op.POLL_ADD, fd, null, 0, 0, 0, events);
  }

  watchFd(op: AioOp, fd: number): void {
    this.begin(op, Op.POLL_ADD, fd, null, 0, POLL_MULTISHOT, 0, POLLIN);
  }

  signalFd(op: AioOp, fd: number): void {
    // No matter for a thread of the kernel's, unlike other writes.
    const slot = this.#admit(op);
    if (slot >= 0) this.ring.prepare(Op.WRITE, fd, this.#one, 0, 8, 0, 0, slot);
  }

  openFile(path: string, options: OpenFileOptions): Promise<AioFile> {
    return openRingFile(this, path, options);
  }

  listen(address: SocketAddress, options?: ListenOptions): Promise<AioListener> {
    return listenRing(this, address, options);
  }

  connect(address: SocketAddress): Promise<AioSocket> {
    return connectRing(this, address);
  }

  readonly adoptSocket = async (fd: number, shared = false): Promise<AioSocket> => adoptRingSocket(this, fd, shared);
  readonly adoptListener = async (fd: number): Promise<AioListener> => adoptRingListener(this, fd);

  // The loop.

  poll(block: boolean): boolean {
    if (this.ring.toSubmit > 0 || this.ring.taskWork) this.#submit(false, 0);
    let progress = this.#reap();
    if (this.#host.dispatch()) progress = true;
    if (progress || !block) return progress;
    this.#sleep(true);
    this.#host.timePasses();
    progress = this.#reap();
    return this.#host.dispatch() || progress;
  }

  #take(op: AioOp): number {
    let slot = this.#free.take();
    if (slot === undefined) {
      slot = this.#slots.length;
      if (slot >= MAX_SLOTS) return -1;
    }
    this.#slots[slot] = op;
    op.slot = slot;
    this.#inFlight++;
    return slot;
  }

  #schedule(): void {
    this.#immediate = setImmediate(this.#turn);
  }

  readonly #turn = (): void => {
    this.#ran = this.#immediate;
    this.#immediate = undefined;
    if (!this.#running) return;
    // Scheduled first: a throw out of a callback (a bug) must not leave the loop without a next turn.
    this.#schedule();
    this.#visitLibuv = false;
    if (!this.#libuvArmed) this.#armLibuv();
    takeResumed();
    this.#stay();
    this.#host.timePasses();
  };

  /** Turn after turn, until somebody else has to run. */
  #stay(): void {
    const leave = this.now() + STAY_NS;
    let looks = 0;
    this.#loud = false;
    this.#libuvDueNs = -1;
    for (;;) {
      this.#host.stats.turns++;
      this.#host.timePasses();
      // First of all: what callbacks and coroutines have prepared must not wait for a loop that is kept busy by others.
      if (this.ring.toSubmit > 0 || this.ring.taskWork) this.#submit(false, 0);
      let progress = this.#reap();
      if (this.#host.dispatch()) {
        progress = true;
        this.#loud = true;
      }
      if (pollAll(this.#host.pollers)) progress = true;
      if (progress && this.#host.foreign) this.#loud = true;
      if (takeResumed() || !this.#running || this.#visitLibuv) return;
      if (progress || this.ring.toSubmit > 0 || this.ring.completed) {
        this.#spunNs = 0;
        // The clock is looked at now and then only: its value is a number on the heap.
        if (++looks % TURNS_PER_CLOCK === 0 && this.now() > leave) return;
        continue;
      }
      if (this.#spin()) continue;
      // libuv gets its turn before a sleep: what JavaScript gave it since the last visit is not yet in its epoll set.
      if (this.#loud) return;
      this.#sleep();
    }
  }

  /** Spins as long as the policy says; true when something came. */
  #spin(): boolean {
    const host = this.#host;
    const { pollNs: limit, rests } = host.polling;
    if (limit === 0 || rests || this.#spunNs > 0 || this.#workerOps > 0) return false;
    const begin = this.now();
    const deadline = host.nextDeadline();
    if (deadline <= begin) return true;
    const end = Math.min(begin + limit, deadline);
    for (;;) {
      for (let look = 0; look < LOOKS_PER_CLOCK; look++) {
        if (!this.ring.completed && this.ring.taskWork) this.#submit(false, 0);
        if (this.ring.completed || host.remotePending() || anyReady(host.pollers)) {
          host.stats.pollHits++;
          host.polling.spun(true);
          host.polling.adjust(Math.min(this.now() - begin, limit));
          return true;
        }
      }
      const now = this.now();
      if (now >= end) {
        this.#spunNs = now - begin;
        host.stats.pollMisses++;
        host.polling.spun(false);
        return false;
      }
    }
  }

  /** `nested`: in a poll() inside a callback, where libuv cannot be visited. */
  #sleep(nested = false): void {
    const host = this.#host;
    const begin = this.now();
    const until = nested ? host.nextDeadline() : Math.min(host.nextDeadline(), this.#libuvDeadline(begin));
    if (until <= begin) {
      this.#visitLibuv = true;
      if (this.ring.toSubmit > 0) this.#submit(false, 0);
    }
    if (until <= begin || (!nested && armAll(host.pollers))) {
      this.#spunNs = 0;
      return;
    }
    Atomics.store(host.shared, SharedWord.SLEEPING, 1);
    if (!host.remotePending()) {
      host.stats.sleeps++;
      this.#submit(true, until - begin, Math.floor(this.#workerOps / GATHER_PART));
    }
    Atomics.store(host.shared, SharedWord.SLEEPING, 0);
    host.polling.adjust(this.now() - begin + this.#spunNs);
    this.#spunNs = 0;
  }

  /**
   * When libuv has to be visited. At once, when it has run something since the loop last came here: what that gave to
   * libuv (a descriptor to watch, a handle to close) is taken up in the next visit only. And at once when somebody else
   * has immediates: those run in the same visit as this loop's own, before it or after.
   */
  #libuvDeadline(now: Nanoseconds): Nanoseconds {
    if (this.#libuvDueNs >= 0) return this.#libuvDueNs;
    const activity = this.#uv.activity();
    if (activity !== this.#activity || hasNeighbour(this.#ran) || hasNeighbour(this.#immediate)) {
      this.#activity = activity;
      return now;
    }
    this.#libuvDueNs = now + this.#uv.timerDueMs() * 1e6;
    return this.#libuvDueNs;
  }

  #submit(wait: boolean, timeoutNs: number, gather = 1): void {
    this.#host.stats.submits++;
    const result = this.ring.enter(wait, timeoutNs, gather, GATHER_US);
    if (result < 0 && !LATER.has(-result)) throw new BlockError(result, `io_uring_enter failed (errno ${-result})`);
    this.iovs.submitted(this.ring.toSubmit === 0);
  }

  #reap(): boolean {
    const ring = this.ring;
    let count = 0;
    for (let at = ring.next(); at >= 0; at = ring.next()) {
      const user = ring.user(at);
      const result = ring.result(at);
      const flags = ring.flags(at);
      ring.advance();
      count++;
      if (user >= USER_WAKE) {
        this.#internal(user, result, flags);
        continue;
      }
      const op = this.#slots[user]!;
      if ((flags & CQE_F_MORE) !== 0) {
        // A watch, which goes on.
        op.complete(result);
        continue;
      }
      if (!op.quiet) this.#loud = true;
      this.#slots[user] = undefined;
      this.#free.give(user);
      op.slot = -1;
      this.#inFlight--;
      if (this.#byWorker[user] === 1) {
        this.#byWorker[user] = 0;
        this.#workerOps--;
      }
      this.#host.stats.completions++;
      op.complete(result);
    }
    if (this.#inFlight === 0) this.#quiet?.open();
    return count > 0;
  }

  #internal(user: number, result: number, flags: number): void {
    if (user === USER_WAKE) {
      if (result < 0) throw new BlockError(result, 'The wake-up descriptor cannot be polled');
      if ((flags & CQE_F_MORE) === 0) this.#armWake();
    } else if (user === USER_LIBUV) {
      if (result < 0) throw new BlockError(result, "libuv's descriptor cannot be polled");
      this.#libuvArmed = false;
      this.#visitLibuv = true;
    }
  }

  // Multishot polls report every write to the eventfd, so that its count need not be read.
  #armWake(): void {
    this.room();
    this.ring.prepare(Op.POLL_ADD, this.#eventfd, null, 0, POLL_MULTISHOT, 0, POLLIN, USER_WAKE);
  }

  // One-shot, armed anew after each visit: it then tells what libuv has left undone as well as what is new.
  #armLibuv(): void {
    this.#libuvArmed = true;
    this.room();
    this.ring.prepare(Op.POLL_ADD, this.#uv.fd, null, 0, 0, 0, POLLIN, USER_LIBUV);
  }
}
