/**
 * IOThread: a worker thread that runs one AioContext. Its owner (the control plane, usually the main thread) sets it up
 * with a module of its own, calls into it by message and is told of events. The data path uses shared memory and
 * bottom halves instead: see remote.ts.
 */
import { EventEmitter } from 'node:events';
import { type Transferable, Worker } from 'node:worker_threads';
import { BlockError, Errno } from '../base/errors.ts';
import { type RemoteContextHandle, SharedWord } from './context-shared.ts';
import { globalMutex } from './global-mutex.ts';
import type { BackendInfo, CrossingError, FromThread, ThreadData, ToThread } from './iothread-messages.ts';
import { Gate } from './op.ts';
import type { PollOptions } from './poll-policy.ts';
import type { BackendChoice } from './select.ts';

export interface IOThreadOptions extends PollOptions {
  /** For messages and statistics: 'io0'. */
  readonly name: string;
  /** Forces a backend; without it: BLOCKPLANE_AIO, or io_uring where it works. */
  readonly aio?: BackendChoice;
  /** The module that furnishes the thread: see SetupModule in iothread-worker.ts. */
  readonly setup: URL;
}

interface IOThreadEvents {
  event: [name: string, payload: unknown];
  /** The thread died without being asked to. */
  crash: [error: BlockError];
}

interface Call {
  readonly gate: Gate<unknown>;
  readonly signal: AbortSignal | undefined;
  readonly onAbort: (() => void) | undefined;
}

/** How long a thread that has stopped its context may take to leave, ms. */
const EXIT_MS = 5000;
/** How long one that is to die may take to do so by itself, ms. */
const KILL_MS = 2000;

export class IOThread extends EventEmitter<IOThreadEvents> {
  readonly name: string;
  readonly threadId: number;
  readonly #worker: Worker;
  readonly #calls = new Map<number, Call>();
  readonly #started = new Gate();
  readonly #exited = new Gate();
  #backend: BackendInfo | undefined;
  #remote: RemoteContextHandle | undefined;
  #ids = 0;
  #stopping: Promise<void> | undefined;
  #stopped = false;
  #stopFailure: Error | undefined;
  /** Why it is dead. */
  #death: BlockError | undefined;
  #uncaught: unknown;

  private constructor(options: IOThreadOptions) {
    super();
    this.name = options.name;
    // The thread and all workers after it inherit it.
    globalMutex();
    const { setup, ...rest } = options;
    const data: ThreadData = { ...rest, setup: setup.href };
    // The module's own extension: .ts when node runs the sources, .js after the build.
    const here = import.meta.url;
    this.#worker = new Worker(new URL(`./iothread-worker${here.slice(here.lastIndexOf('.'))}`, here), {
      name: options.name,
      workerData: data,
      ...threadArgv(),
    });
    this.threadId = this.#worker.threadId;
    this.#worker.on('message', (message: FromThread) => this.#receive(message));
    this.#worker.on('error', (error) => {
      this.#uncaught = error;
    });
    this.#worker.on('messageerror', (error) => {
      this.#uncaught = error;
      this.#kill();
    });
    this.#worker.on('exit', (code) => this.#onExit(code));
  }

  /** Resolves once the setup is done and the thread takes calls. Rejects with the setup's own error. */
  static async start(options: IOThreadOptions): Promise<IOThread> {
    const thread = new IOThread(options);
    await thread.#started.promise;
    return thread;
  }

  /** Which backend drives it, and why that one. */
  get backend(): BackendInfo {
    return this.#backend!;
  }

  /** For a RemoteContext in any thread. */
  get remote(): RemoteContextHandle {
    return this.#remote!;
  }

  /** True while calls are taken. */
  get running(): boolean {
    return !this.#death && !this.#stopping;
  }

  /**
   * Calls a handler of the setup. Rejects with its BlockError, or with an Error of the same name and message; with EIO
   * when the thread has died or dies meanwhile; with ESHUTDOWN after `stop`. A `signal` that is aborted reaches the
   * handler, and the call still ends when the handler does (memory it was lent is free only then): with the signal's
   * reason when the handler failed.
   */
  async call<T>(
    method: string,
    args?: unknown,
    transfer: readonly Transferable[] = [],
    signal?: AbortSignal,
  ): Promise<T> {
    if (this.#death) throw this.#death;
    if (this.#stopping) throw new BlockError(Errno.ESHUTDOWN, `IOThread '${this.name}' is stopping`);
    signal?.throwIfAborted();
    const id = ++this.#ids;
    this.#post({ kind: 'call', id, method, args, abortable: signal !== undefined }, transfer);
    const onAbort = signal ? () => this.#post({ kind: 'abort', id }) : undefined;
    if (onAbort) signal?.addEventListener('abort', onAbort, { once: true });
    const call: Call = { gate: new Gate(), signal, onAbort };
    this.#calls.set(id, call);
    return (await call.gate.promise) as T;
  }

  /**
   * Ends the thread: the setup's `stop`, then the calls and coroutines that are under way, then the context. Calls from
   * now on are refused. Settles when the thread is gone: rejects with what its `stop` failed with, or when it died
   * instead of stopping. Again: the same end.
   */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  /** The process stays alive for it (the default). */
  ref(): void {
    this.#worker.ref();
  }

  /** The process does not stay alive for it. */
  unref(): void {
    this.#worker.unref();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #stop(): Promise<void> {
    if (this.#death) return;
    this.#worker.ref();
    this.#post({ kind: 'stop' });
    await this.#exited.promise;
    if (this.#death && !this.#stopped) throw this.#death;
    if (this.#stopFailure) throw this.#stopFailure;
  }

  #post(message: ToThread, transfer: readonly Transferable[] = []): void {
    this.#worker.postMessage(message, transfer);
  }

  #receive(message: FromThread): void {
    switch (message.kind) {
      case 'ready':
        this.#backend = message.backend;
        this.#remote = message.remote;
        this.#started.open();
        return;
      case 'failed':
        this.#started.fail(rebuildError(message.error));
        this.#awaitExit();
        return;
      case 'event':
        this.emit('event', message.name, message.payload);
        return;
      case 'result':
        this.#take(message.id)?.gate.open(message.value);
        return;
      case 'error': {
        const call = this.#take(message.id);
        call?.gate.fail(call.signal?.aborted ? call.signal.reason : rebuildError(message.error));
        return;
      }
      case 'stopped':
        this.#stopped = true;
        this.#stopFailure = message.error && rebuildError(message.error);
        this.#awaitExit();
        return;
    }
  }

  #take(id: number): Call | undefined {
    const call = this.#calls.get(id);
    this.#calls.delete(id);
    if (call?.onAbort) call.signal?.removeEventListener('abort', call.onAbort);
    return call;
  }

  // Something of the setup's that is still open keeps a thread alive: then it is ended, and that is said.
  #awaitExit(): void {
    const timer = setTimeout(() => {
      this.#stopped = false;
      this.#uncaught = new Error(`something kept it alive for ${EXIT_MS} ms after it had stopped`);
      this.#kill();
    }, EXIT_MS);
    this.#worker.once('exit', () => clearTimeout(timer));
  }

  // The thread is asked first: terminate() would free its memory under the kernel's hands.
  #kill(): void {
    this.#post({ kind: 'die' });
    setTimeout(() => void this.#worker.terminate(), KILL_MS).unref();
  }

  #onExit(code: number): void {
    if (this.#remote) Atomics.store(this.#remote.shared, SharedWord.STOPPED, 1);
    if (this.#stopped && !this.#uncaught) {
      this.#death = new BlockError(Errno.ESHUTDOWN, `IOThread '${this.name}' has stopped`);
    } else {
      const why = this.#uncaught instanceof Error ? this.#uncaught.message : (this.#uncaught ?? `exit code ${code}`);
      this.#stopped = false;
      this.#death = new BlockError(Errno.EIO, `IOThread '${this.name}' died: ${why}`, { cause: this.#uncaught });
    }
    const death = this.#death;
    for (const id of [...this.#calls.keys()]) this.#take(id)?.gate.fail(death);
    const started = this.#remote !== undefined;
    if (!started) this.#started.fail(death);
    this.#exited.open();
    if (started && !this.#stopped) this.emit('crash', death);
  }
}

/**
 * Meant for the program given by --eval or stdin; a worker refuses it. Without it the worker inherits ours as they are.
 */
function threadArgv(): { execArgv?: string[] } {
  const kept = process.execArgv.filter((arg) => !arg.startsWith('--input-type'));
  return kept.length === process.execArgv.length ? {} : { execArgv: kept };
}

function rebuildError(error: CrossingError): Error {
  if (error.errno !== undefined) return BlockError.fromPlain({ ...error, errno: error.errno });
  const rebuilt = new Error(error.message);
  rebuilt.name = error.name ?? 'Error';
  return rebuilt;
}
