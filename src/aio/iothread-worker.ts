/**
 * The inside of an IOThread: makes the AioContext, has the setup module furnish it, serves calls until it is stopped.
 *
 * Calls are coroutines of the context, so that stopping waits for them. A Bug, and any error outside a handler, ends
 * the thread at once and reaches the owner with its stack: nothing is known to be in order after it.
 */
import { isMainThread, parentPort, threadId, workerData } from 'node:worker_threads';
import { assert, Bug } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { AioContext } from './context.ts';
import { SharedWord } from './context-shared.ts';
import { GlobalMutex } from './global-mutex.ts';
import type { CrossingError, FromThread, ThreadData, ToThread } from './iothread-messages.ts';
import { markResumed } from './op.ts';
import { chooseBackend } from './select.ts';

/** What the setup module is given. */
export interface SetupThread {
  readonly name: string;
  /** Of worker_threads; 0 in the first thread of the process. */
  readonly threadId: number;
  readonly context: AioContext;
  /** Tells the owner, who sees it as an 'event'. The payload is cloned. */
  emit(name: string, payload?: unknown): void;
}

/** Handles one kind of call. A thrown BlockError is the caller's; `signal` is there when the caller gave one. */
export type CallHandler = (args: never, signal?: AbortSignal) => unknown;

export interface Furnished {
  readonly handlers: Readonly<Record<string, CallHandler>>;
  /** Ends what the setup began; bottom halves are deleted here at the latest. */
  stop?(): Promise<void> | void;
}

/** The shape of a setup module. */
export interface SetupModule {
  setup(thread: SetupThread): Promise<Furnished> | Furnished;
}

class ThreadServer {
  readonly #context: AioContext;
  readonly #name: string;
  readonly #aborts = new Map<number, AbortController>();
  #furnished: Furnished | undefined;
  #early: FromThread[] | undefined = [];
  #stopping = false;

  constructor(name: string, context: AioContext) {
    this.#name = name;
    this.#context = context;
  }

  async start(module: SetupModule): Promise<void> {
    const context = this.#context;
    this.#furnished = await module.setup({
      name: this.#name,
      threadId,
      context,
      emit: (name, payload) => this.#emit({ kind: 'event', name, payload }),
    });
    const { name, detail } = context.backend;
    post({ kind: 'ready', backend: { name, detail }, remote: context.remote() });
    const early = this.#early ?? [];
    this.#early = undefined;
    for (const message of early) post(message);
  }

  /** Ends a start that failed half-way. */
  async abandon(): Promise<void> {
    await this.#context.stop();
  }

  receive(message: ToThread): void {
    markResumed();
    if (message.kind === 'abort') this.#aborts.get(message.id)?.abort();
    else if (message.kind === 'stop') this.#stop();
    // Unlike terminate(), this runs what is to be done at exit.
    else if (message.kind === 'die') process.exit(1);
    else this.#context.run(`call ${message.method}`, () => this.#serve(message));
  }

  // Nobody listens for events before the thread has started.
  #emit(message: FromThread): void {
    if (this.#early) this.#early.push(message);
    else post(message);
  }

  async #serve(call: ToThread & { kind: 'call' }): Promise<void> {
    const { id, method, args, abortable } = call;
    let signal: AbortSignal | undefined;
    if (abortable) {
      const controller = new AbortController();
      this.#aborts.set(id, controller);
      signal = controller.signal;
    }
    try {
      const handlers = this.#furnished?.handlers ?? {};
      const handler = Object.hasOwn(handlers, method) ? handlers[method] : undefined;
      if (!handler) throw new BlockError(Errno.ENOSYS, `IOThread '${this.#name}' has no '${method}' to call`);
      if (this.#stopping) throw new BlockError(Errno.ESHUTDOWN, `IOThread '${this.#name}' is stopping`);
      const value = await handler(args as never, signal);
      post({ kind: 'result', id, value });
    } catch (error) {
      if (error instanceof Bug) throw error;
      post({ kind: 'error', id, error: crossing(error) });
    } finally {
      this.#aborts.delete(id);
    }
  }

  #stop(): void {
    if (this.#stopping) return;
    this.#stopping = true;
    // Not a coroutine of the context, which waits for those. A bug here is an unhandled rejection: it ends the thread.
    void (async () => {
      let error: CrossingError | undefined;
      try {
        await this.#furnished?.stop?.();
      } catch (failure) {
        if (!(failure instanceof BlockError)) throw failure;
        error = crossing(failure);
      }
      await this.#context.stop();
      post({ kind: 'stopped', error });
      port().close();
    })();
  }
}

function port(): NonNullable<typeof parentPort> {
  assert(parentPort && !isMainThread, 'iothread-worker runs in a worker thread only');
  return parentPort;
}

function post(message: FromThread): void {
  port().postMessage(message);
}

function crossing(error: unknown): CrossingError {
  if (error instanceof BlockError) return error.toPlain();
  if (error instanceof Error) return { name: error.name, message: error.message };
  return { message: String(error) };
}

async function main(): Promise<void> {
  // Whatever --unhandled-rejections says: a coroutine that failed with nobody to see it is a bug, and ends the thread.
  process.on('unhandledRejection', (error) => {
    throw error;
  });
  const data = workerData as ThreadData;
  let server: ThreadServer | undefined;
  try {
    // Side by side: each waits for files most of the time.
    const [backend, module] = await Promise.all([chooseBackend(data.aio), import(data.setup) as Promise<SetupModule>]);
    GlobalMutex.refuseHere(`IOThread '${data.name}'`);
    const context = new AioContext(backend, data);
    // A thread that dies of a bug must not leave the kernel writing to memory that is freed with it. Only then others
    // may be told: who has lent memory to a request takes it back.
    process.on('exit', () => {
      backend.abandon();
      Atomics.store(context.shared, SharedWord.STOPPED, 1);
    });
    server = new ThreadServer(data.name, context);
    await server.start(module);
  } catch (error) {
    if (error instanceof Bug) throw error;
    post({ kind: 'failed', error: crossing(error) });
    await server?.abandon();
    return;
  }
  const ready = server;
  port().on('message', (message: ToThread) => ready.receive(message));
}

void main();
