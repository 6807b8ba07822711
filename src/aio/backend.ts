/**
 * The seam. Everything above it (the block core, the drivers, the exports) does its I/O through these interfaces and
 * cannot tell which of the three backends it has: **ring** (io_uring), **pool** (node:fs and node:net), **sim** (a
 * deterministic disk, network and clock). One test suite runs on all of them.
 *
 * Rules, the same for every backend:
 * - Methods are called in the home thread of the context only.
 * - An operation takes an {@link AioOp}, never completes inside the call, and completes exactly once. The op, its Iov
 *   and the memory in it belong to the backend until then.
 * - Results are byte counts (or 0) or negative errnos. Reads and writes may be short; 0 bytes read is the end of the
 * file. - Control methods (open, listen, connect, stat, ...) return promises and reject with BlockError.
 */
import type { Socket as NodeSocket } from 'node:net';
import type { Iov, Memory } from '../base/memory.ts';
import type { Bytes, Nanoseconds, Offset } from '../base/units.ts';
import type { AioOp } from './op.ts';

export type BackendName = 'ring' | 'pool' | 'sim';

/** What an AioContext offers the backend that drives it. */
export interface LoopHost {
  /** Runs what is ready: deferred completions, bottom halves, timers (in that order). True when anything was run. */
  dispatch(): boolean;
  /** When {@link dispatch} must run next, on the backend's clock: 0 at once, Infinity when there is nothing to wait
   *  for. */
  nextDeadline(): Nanoseconds;
  /** A turn begins, or ends: what {@link AioContext.turnTicks} said is over. */
  timePasses(): void;
  /** True when another thread has scheduled something since the last dispatch. */
  remotePending(): boolean;
  /** What is looked at in every turn, and before sleeping. */
  readonly pollers: readonly Poller[];
  /** True when code that is not the engine's own runs in callbacks here (drivers of the program's): it may give work to
   *  libuv at any time. */
  readonly foreign: boolean;
  /** Queues the end of `op` for the next dispatch: for results that are known inside the call that started the op. */
  completeLater(op: AioOp, result: number): void;
  /** Shared words: see context-shared.ts. Index SLEEPING is 1 while the thread sleeps and must be woken. */
  readonly shared: Int32Array;
  readonly polling: PollPolicy;
  readonly stats: LoopStats;
}

/** Somebody whose work comes through memory that others write, without a completion that would tell of it: the rings of
 *  a guest. Only the ring backend asks pollers. They are as quiet as AioOp.quiet says. Home thread only. */
export interface Poller {
  /** Takes up what is there; true when there was anything. Comes in every turn. */
  poll(): boolean;
  /** True when {@link poll} would find something. Comes all the time while the loop spins. */
  ready(): boolean;
  /** The loop is about to sleep: asks the other side to wake it. True when something has come meanwhile. */
  arm(): boolean;
}

/** Adaptive polling (SEMANTICS P1-P4); the ring backend asks it before it sleeps. */
export interface PollPolicy {
  /** How long to spin before the next sleep; 0 for not at all. */
  readonly pollNs: Nanoseconds;
  /** True while spinning would only take the processor from the other side. */
  readonly rests: boolean;
  /** To be told after spinning, before {@link adjust}. */
  spun(hit: boolean): void;
  /** To be told after every wait: how long it lasted in all, spinning included. */
  adjust(blockNs: Nanoseconds): void;
}

export interface LoopStats {
  turns: number;
  submits: number;
  operations: number;
  completions: number;
  pollHits: number;
  pollMisses: number;
  sleeps: number;
}

/** How another thread wakes a sleeping context; survives structured clone. */
export type WakeHandle =
  | { readonly kind: 'eventfd'; readonly fd: number }
  /** Atomics.notify on word NOTIFY of the context's shared words. */
  | { readonly kind: 'atomics' }
  | { readonly kind: 'none' };

export interface AioBackend {
  readonly name: BackendName;
  /** Why this backend and not a faster one, or what it lacks; for stats and `serve`'s banner. */
  readonly detail: string;
  readonly wakeHandle: WakeHandle;
  /** Monotonic clock. */
  now(): Nanoseconds;
  /** Begins to drive `host`. Called once. */
  start(host: LoopHost): void;
  /** The host has new work from its own thread outside a dispatch: make sure that one comes. Cheap and idempotent. */
  wake(): void;
  /** One synchronous turn: submit, collect, dispatch; waits for a completion or a deadline when `block`. True on
   *  progress. Refused with ENOTSUP where the backend cannot (pool and sim when `block`). */
  poll(block: boolean): boolean;
  /** Stops driving. Every operation has ended, or is cancelled and waited for. The backend is dead afterwards. */
  stop(): Promise<void>;

  /** The thread is about to die with operations in flight: ends them without completing them, so that the kernel does
   * not
   *  write to memory that is freed with the thread. Synchronous, waits at most a second; nothing works afterwards. */
  abandon(): void;

  /** Makes `bytes` known to the kernel side; the result keeps them alive. `bytes` must be on a SharedArrayBuffer (or
   *  native memory): a plain Buffer may move or vanish. */
  memory(bytes: Uint8Array): Memory;

  /** Gives the pages of a range that nobody uses back to the system where that can be done; its bytes are lost. */
  release(memory: Memory, at: number, length: Bytes): void;

  openFile(path: string, options: OpenFileOptions): Promise<AioFile>;
  listen(address: SocketAddress, options?: ListenOptions): Promise<AioListener>;
  connect(address: SocketAddress): Promise<AioSocket>;
  /** Takes over a connected stream socket, or a listening one (systemd socket activation). `shared`: makes one more
   *  of a socket that has an {@link AioSocket.fd}, of whichever context, and leaves that one as it is. */
  adoptSocket(fd: number, shared?: boolean): Promise<AioSocket>;
  adoptListener(fd: number): Promise<AioListener>;
  /** A connected stream of Node's (a TLS stream) as a socket of this seam: it belongs to that from here on. Absent
   *  where there are none (sim). */
  fromStream?(stream: NodeSocket): Promise<AioSocket>;
  /** Completes `op` with the ready events once `fd` is ready for `events` (POLLIN 1, POLLOUT 4), or -ECANCELED after
   *  {@link cancel}. ENOTSUP where there is no native layer. */
  pollFd(op: AioOp, fd: number, events: number): void;
  /** Only ring: completes `op` again and again, each time that something is added to the eventfd `fd`, which nobody
   *  needs to read. Once `op.slot` is -1 in `complete` it has ended: after {@link cancel}, with an error, or because
   *  the kernel wants to be asked anew. */
  watchFd?(op: AioOp, fd: number): void;
  /** Only ring: adds 1 to the eventfd `fd`. Where its count is full this waits, and the loop does not. */
  signalFd?(op: AioOp, fd: number): void;
  /** Asks for the early end of an operation in flight; it completes all the same, with -ECANCELED or its own result. */
  cancel(op: AioOp): void;
}

export interface OpenFileOptions {
  readonly writable: boolean;
  /** Bypass the page cache (O_DIRECT). */
  readonly direct?: boolean;
  readonly create?: boolean;
  readonly truncate?: boolean;
  /** Fail when it exists; with create. */
  readonly exclusive?: boolean;
  /** A descriptor of this process that is duplicated instead: the same open file, with its locks, and as writable and
   *  direct as that is. ENOTSUP where there is no native layer. */
  readonly fd?: number | undefined;
}

export interface FileStat {
  readonly kind: 'file' | 'block' | 'char' | 'directory' | 'other';
  /** Bytes; for a block device its capacity. */
  readonly size: Bytes;
  /** Bytes in use on the disk below, where known. */
  readonly allocated: Bytes;
  /** Smallest unit for direct I/O (logical block size); 1 when unknown or not direct. */
  readonly alignment: Bytes;
  readonly dev: number;
  readonly ino: number;
}

/**
 * What fallocate() is asked for.
 * - `punch`: deallocate; reads zeroes after. The size stays.
 * - `zero`: reads zeroes after, stays allocated where the file system can. The size stays.
 * - `allocate`: make sure that writes cannot run out of space; grows the file when beyond its end.
 */
export type AllocateMode = 'punch' | 'zero' | 'allocate';

export interface AioFile {
  readonly path: string;
  /** The descriptor, -1 in sim. */
  readonly fd: number;
  read(op: AioOp, iov: Iov, at: Offset): void;
  /** True when all of it was in the page cache, and has been read: synchronous, and never waits for the disk. Absent
   *  where that cannot be had. */
  readNow?(at: Offset, memory: Memory, offset: Bytes, length: Bytes): boolean;
  /** `durable`: on stable storage when it completes (RWF_DSYNC). Only when {@link nativeFua} is true. */
  write(op: AioOp, iov: Iov, at: Offset, durable: boolean): void;
  readonly nativeFua: boolean;
  datasync(op: AioOp): void;
  /** -ENOTSUP where the file system or the backend cannot. */
  allocate(op: AioOp, mode: AllocateMode, at: Offset, length: Bytes): void;
  readonly canAllocate: boolean;
  /** Bytes from `at` that are data (positive) or a hole (negative) up to the next change or `limit`; 0 beyond the end;
   *  `limit` (all data) where holes cannot be seen. Cheap and synchronous (SEEK_DATA / SEEK_HOLE). */
  extent(at: Offset, limit: Bytes): number;
  truncate(size: Bytes): Promise<void>;
  stat(): Promise<FileStat>;
  /** As OpenFileOptions.direct says, from the next operation on, for all descriptors of this open file; nothing may be
   *  in flight. {@link stat} tells the alignment afterwards. Throws EINVAL where the file system cannot, ENOTSUP where
   *  there is no native layer; then nothing has changed. */
  setDirect(direct: boolean): void;
  /** OFD byte-range lock on `[at, at+length)`. Resolves to true, or false when somebody else holds a conflicting one.
   *  Where there are no OFD locks (pool without native, other systems) resolves to true: `canLock` tells. */
  lock(kind: 'read' | 'write' | 'none', at: Offset, length: Bytes): Promise<boolean>;
  /** True when somebody else holds a lock that `kind` would conflict with. */
  testLock(kind: 'read' | 'write', at: Offset, length: Bytes): Promise<boolean>;
  readonly canLock: boolean;
  /** Every operation on it must have ended. */
  close(): Promise<void>;
}

export type SocketAddress =
  /** A path that begins with NUL is a name in the abstract namespace of Linux: there is no file. */
  | { readonly kind: 'unix'; readonly path: string }
  /** A literal IPv4 or IPv6 address: names are resolved above the seam. Port 0 asks for a free one. */
  | {
      readonly kind: 'inet';
      readonly host: string;
      readonly port: number;
      /** Of the IPv6 address that stands for all of them, to listen on: clients over IPv4 are not meant. */
      readonly only6?: boolean | undefined;
    };

export interface ListenOptions {
  readonly backlog?: number;
  /** Mode of the unix socket file, e.g. 0o600. */
  readonly mode?: number;
}

export interface AioListener {
  /** Where it really listens (the port is filled in). */
  readonly address: SocketAddress;
  /** Waits for a connection; completes with 0 and sets {@link accepted}, or with a negative errno. One at a time. */
  accept(op: AioOp): void;
  /** One more descriptor of the same listening socket, for adoptListener in another thread: each client goes to one of
   *  them. A negative errno when there is none to be had. Absent where threads cannot share a listener. */
  share?(): number;
  /** The socket of the accept that completed last; reading it hands it over. */
  takeAccepted(): AioSocket;
  /** A pending accept completes with -ECANCELED. A unix socket's file is removed if this listener made it. */
  close(): Promise<void>;
}

export interface AioSocket {
  /** For messages: 'unix' or '127.0.0.1:40312'. */
  readonly peer: string;
  /** Its descriptor (in sim, what stands for one), for messages that carry descriptors. It stays the socket's. Absent
   *  in pool. */
  readonly fd?: number;
  /** Receives at most `length` bytes into `memory` at `at`; completes with the count, 0 at the end of the stream. With
   *  `all`, completes only when `length` bytes are there (fewer at the end of the stream). One at a time. */
  recv(op: AioOp, memory: Memory, at: number, length: number, all: boolean): void;
  /** Sends all of `iov` (at most IOV_MAX runs); completes with its length or a negative errno. One at a time. */
  send(op: AioOp, iov: Iov): void;
  /**
   * Like {@link send}, but begins once `first` has ended with all that it was asked for; if that ends otherwise, this
   * completes with -ECANCELED. `first` is the operation that was given to this backend last, in this turn. False, and
   * nothing is begun, where the backend cannot (only ring can): send later then.
   */
  sendAfter(op: AioOp, iov: Iov, first: AioOp): boolean;
  /** Gives the connection up as a stream of Node's; bytes that were received and not asked for come out of it. No
   *  operation may be pending, and the socket is not used again. Absent where it cannot be had (sim). */
  toStream?(): Promise<NodeSocket>;
  /** Both directions end: pending operations complete (0 or an error), the peer sees the end. Idempotent. */
  shutdown(): void;
  /** Every operation on it must have ended. */
  close(): Promise<void>;
}
