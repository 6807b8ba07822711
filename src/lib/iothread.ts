/** IOThreads as programs see them: a worker thread with an AioContext of its own, in which disks live. */
import { EventEmitter } from 'node:events';
import type { Transferable } from 'node:worker_threads';
import { IOThread as AioThread } from '../aio/iothread.ts';
import { type ContextStats, contextStats } from '../aio/loop-counters.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, GiB, isPowerOfTwo, MiB } from '../base/units.ts';
import { driverUrls } from './driver-url.ts';
import { Arena, PIECE } from './memory.ts';
import type { Method, MethodArgs, MethodResult, ThreadStats } from './messages.ts';

const EXTENSION = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
const WORKER = new URL(`./worker.${EXTENSION}`, import.meta.url);

export interface IOThreadOptions {
  /** For messages and reports; default io0, io1, ... */
  readonly name?: string | undefined;
  /** 'ring' (io_uring) or 'pool' (node:fs and node:net); default: ring where the system allows it. */
  readonly aio?: 'ring' | 'pool' | undefined;
  /** Longest time to spin before sleeping, in nanoseconds; 0 never spins. Default 65536. */
  readonly pollMaxNs?: number | undefined;
  /** Factor by which spinning grows; 0 means 2. */
  readonly pollGrow?: number | undefined;
  /** Divisor by which spinning shrinks; 0 means at once to nothing. */
  readonly pollShrink?: number | undefined;
  /** Shared memory for the transfers of this thread's disks, in bytes: a power of two from 1 MiB to 1 GiB. Default
   *  32 MiB, of which only what is used takes memory. */
  readonly memory?: Bytes | undefined;
  /**
   * Modules with drivers of your own, by absolute path or file: or data: URL. Each is loaded into the thread; its
   * default export is a Driver of `blockplane/driver`, or its export `drivers` is an array of them. Rejects with EINVAL
   * for what cannot be loaded or is no driver, EEXIST for the name of another driver. `blockplane/conformance` checks
   * such a driver.
   */
  readonly drivers?: readonly (string | URL)[] | undefined;
}

const MEMORY_MAX: Bytes = GiB;

let started = 0;

/**
 * A thread that does block I/O: disks opened in it share its event loop and nothing else in the process. Its 'crash'
 * event comes with the error when the thread died; every call in flight and every later one then fails with EIO.
 *
 * ```ts
 * const thread = await IOThread.start({ name: 'io0' });
 * const disk = await open('disk.img', { iothread: thread });
 * ...
 * await disk.close();
 * await thread.stop();
 * ```
 */
export class IOThread extends EventEmitter<{ crash: [Error] }> {
  readonly name: string;
  /** Which of the backends it runs on, and why. */
  readonly backend: { readonly name: string; readonly detail: string };
  readonly #thread: AioThread;
  readonly #memory: Bytes;
  #arena: Arena | undefined;
  /** Calls under way and services that run: with `#idleRef` false, only these keep the process alive. */
  #uses = 0;
  #idleRef = true;
  readonly #listeners = new Map<number, (name: string, payload: unknown) => void>();

  private constructor(thread: AioThread, memory: Bytes) {
    super();
    // Each service listens for the end of its thread.
    this.setMaxListeners(0);
    this.#thread = thread;
    this.#memory = memory;
    this.name = thread.name;
    this.backend = thread.backend;
    thread.on('crash', (error: Error) => {
      if (this.listenerCount('crash') > 0) this.emit('crash', error);
    });
    thread.on('event', (name: string, payload: unknown) => {
      const service = (payload as { readonly service?: unknown } | null)?.service;
      if (typeof service === 'number') this.#listeners.get(service)?.(name, payload);
    });
  }

  /** Starts a thread; resolves once its loop runs. Rejects when the backend that was asked for is not available. */
  static async start(options: IOThreadOptions = {}): Promise<IOThread> {
    const memory = options.memory ?? 32 * MiB;
    if (!isPowerOfTwo(memory) || memory < PIECE || memory > MEMORY_MAX) {
      throw new BlockError(Errno.EINVAL, `memory: ${memory} is not a power of two from ${PIECE} to ${MEMORY_MAX}`);
    }
    const urls = driverUrls(options.drivers ?? []);
    const thread = await AioThread.start({
      name: options.name ?? `io${started++}`,
      setup: WORKER,
      ...(options.aio ? { aio: options.aio } : {}),
      ...(options.pollMaxNs === undefined ? {} : { pollMaxNs: options.pollMaxNs }),
      ...(options.pollGrow === undefined ? {} : { pollGrow: options.pollGrow }),
      ...(options.pollShrink === undefined ? {} : { pollShrink: options.pollShrink }),
    });
    const made = new IOThread(thread, memory);
    try {
      if (urls.length > 0) await made.call('drivers', { urls });
    } catch (error) {
      await made.stop().catch(() => undefined);
      throw error;
    }
    return made;
  }

  /** @internal */
  async call<M extends Method>(
    method: M,
    args: MethodArgs<M>,
    transfer: readonly Transferable[] = [],
  ): Promise<MethodResult<M>> {
    this.hold();
    try {
      return await this.#thread.call<MethodResult<M>>(method, args, transfer);
    } finally {
      this.unhold();
    }
  }

  /** @internal Something is under way that keeps the process alive, until {@link unhold}. */
  hold(): void {
    if (this.#uses++ === 0 && !this.#idleRef) this.#thread.ref();
  }

  /** @internal */
  unhold(): void {
    if (--this.#uses === 0 && !this.#idleRef) this.#thread.unref();
  }

  /** @internal The memory that its disks are read into and written from. */
  get arena(): Arena {
    this.#arena ??= new Arena(this.#memory);
    return this.#arena;
  }

  /** @internal Events that carry `service` go to `listener`; undefined ends it. */
  listen(service: number, listener: ((name: string, payload: unknown) => void) | undefined): void {
    if (listener) this.#listeners.set(service, listener);
    else this.#listeners.delete(service);
  }

  /** Counters of the thread's loop, as of now; does not disturb it. */
  get loopStats(): ContextStats {
    return contextStats(this.#thread.remote);
  }

  /** Counters of the thread's loop, and what is open in it. */
  stats(): Promise<ThreadStats> {
    return this.call('stats', undefined);
  }

  /** Stops services, flushes and closes disks that are still open, then ends the thread. Idempotent. */
  stop(): Promise<void> {
    return this.#thread.stop();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  /** The thread keeps the process alive (default). */
  ref(): this {
    this.#idleRef = true;
    this.#thread.ref();
    return this;
  }

  /** The thread keeps the process alive only while a call is under way or a service runs. */
  unref(): this {
    this.#idleRef = false;
    if (this.#uses === 0) this.#thread.unref();
    return this;
  }
}

/** A thread and the way to say that it is no longer needed. */
export interface ThreadUse {
  readonly thread: IOThread;
  release(): Promise<void>;
}

interface Shared {
  readonly starting: Promise<IOThread>;
  /** Once it has started. */
  thread: IOThread | undefined;
  users: number;
}

const shared = new Map<string, Shared>();

/**
 * `given`, or the thread that disks without one share: it starts with the first of them and ends with the last. A disk
 * that is open and idle does not keep the process alive, as node's FileHandle does not.
 */
export async function useThread(given: IOThread | undefined, aio: 'ring' | 'pool' | undefined): Promise<ThreadUse> {
  if (given) {
    if (aio && given.backend.name !== aio) {
      throw new BlockError(
        Errno.EINVAL,
        `aio: '${aio}' was asked for, but ${given.name} runs on ${given.backend.name}`,
      );
    }
    const [key, entry] = [...shared].find(([, { thread }]) => thread === given) ?? [];
    if (!entry) return { thread: given, release: () => Promise.resolve() };
    return useShared(key!, entry);
  }
  const key = aio ?? '';
  return useShared(key, shared.get(key) ?? startShared(key, aio));
}

async function useShared(key: string, entry: Shared): Promise<ThreadUse> {
  entry.users++;
  let released = false;
  const release = async (): Promise<void> => {
    if (released) return;
    released = true;
    entry.users--;
    if (entry.users > 0) return;
    if (shared.get(key) === entry) shared.delete(key);
    const thread = await entry.starting.catch(() => undefined);
    await thread?.stop();
  };
  try {
    return { thread: await entry.starting, release };
  } catch (error) {
    await release();
    throw error;
  }
}

function startShared(key: string, aio: 'ring' | 'pool' | undefined): Shared {
  const starting = IOThread.start({ name: `default${key && `-${key}`}`, aio }).then((thread) => thread.unref());
  const entry: Shared = { starting, thread: undefined, users: 0 };
  shared.set(key, entry);
  const forget = (): void => {
    if (shared.get(key) === entry) shared.delete(key);
  };
  entry.starting.then((thread) => {
    entry.thread = thread;
    thread.on('crash', forget);
  }, forget);
  return entry;
}
