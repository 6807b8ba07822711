/**
 * AioContext: an event loop of one thread. Completions of operations, bottom halves and timers all run here; a backend
 * does the waiting. Everything in it belongs to the thread that made it; other threads hold a RemoteContext.
 */
import { assert } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { Fifo } from '../base/fifo.ts';
import type { Nanoseconds } from '../base/units.ts';
import { kernelThreadId } from '../native/thread.ts';
import type { AioBackend, LoopHost, Poller } from './backend.ts';
import { type BottomHalf, BottomHalfList, IDLE_NS } from './bottom-half.ts';
import { newSharedWords, type RemoteContextHandle, SharedWord } from './context-shared.ts';
import { LoopCounters } from './loop-counters.ts';
import { type AioOp, Gate, markResumed } from './op.ts';
import { AdaptivePolling, type PollOptions } from './poll-policy.ts';
import { Timer, TimerHeap } from './timers.ts';

export interface AioContextOptions extends PollOptions {
  readonly name?: string;
}

const TICK_NS = 1024;
/** Of {@link AioContext.turnTicks}, before they begin again. */
export const TICKS = 2 ** 30;

export class AioContext implements LoopHost {
  readonly name: string;
  readonly backend: AioBackend;
  readonly shared = newSharedWords();
  readonly polling: AdaptivePolling;
  readonly stats = new LoopCounters();
  /** Who comes or goes does so here. */
  readonly pollers: Poller[] = [];
  foreign = false;
  readonly #bottomHalves: BottomHalfList;
  readonly #timers: TimerHeap;
  readonly #late = new Fifo<AioOp>(64);
  readonly #lateResults = new Fifo<number>(64);
  readonly #coroutines = new Map<symbol, string>();
  /** -1: not asked for in this turn. */
  #turnTicks = -1;
  #dispatching = 0;
  #stopped = false;
  #stopping: Promise<void> | undefined;
  #lastCoroutine: Gate | undefined;

  /** Begins to run at once, on the calling thread. */
  constructor(backend: AioBackend, options: AioContextOptions = {}) {
    this.name = options.name ?? 'main';
    this.backend = backend;
    this.polling = new AdaptivePolling(options);
    const onWork = (): void => {
      if (this.#dispatching === 0) this.backend.wake();
    };
    this.#bottomHalves = new BottomHalfList(this.shared, onWork);
    this.#timers = new TimerHeap(() => this.backend.now(), onWork);
    backend.start(this);
  }

  /** Monotonic, ns. */
  now(): Nanoseconds {
    return this.backend.now();
  }

  /** The time of this turn, of the first who asks in it: in ticks of 1024 ns, modulo 2^30 (18 minutes). For what is
   *  done for every request: unlike nanoseconds, such a number needs no place on the heap. */
  turnTicks(): number {
    if (this.#turnTicks < 0) this.#turnTicks = Math.floor(this.backend.now() / TICK_NS) % TICKS;
    return this.#turnTicks;
  }

  /** A callback that can be scheduled any number of times; to be deleted before the context stops. */
  bottomHalf(callback: () => void, name: string): BottomHalf {
    return this.#bottomHalves.create(callback, name, false);
  }

  /** Runs `callback` once in the next turn. */
  oneshot(callback: () => void, name = 'oneshot'): BottomHalf {
    const bh = this.#bottomHalves.create(callback, name, true);
    bh.schedule();
    return bh;
  }

  timer(callback: () => void, name: string): Timer {
    return new Timer(this.#timers, callback, name);
  }

  /** What other threads need to schedule bottom halves here: see remote.ts. */
  remote(): RemoteContextHandle {
    return { name: this.name, shared: this.shared, counters: this.stats.words, wake: this.backend.wakeHandle };
  }

  /** Lets other threads see whether this one still lives: RemoteContext.dead. */
  identify(): void {
    Atomics.store(this.shared, SharedWord.KERNEL_THREAD, kernelThreadId());
  }

  /** Starts a coroutine that belongs to this context: `stop` waits for it. A rejection ends the thread, as a bug
   *  does. */
  run(name: string, coroutine: () => Promise<void>): void {
    const id = Symbol(name);
    this.#coroutines.set(id, name);
    markResumed();
    void coroutine().finally(() => {
      this.#coroutines.delete(id);
      if (this.#coroutines.size === 0) this.#lastCoroutine?.open();
    });
    if (this.#dispatching === 0) this.backend.wake();
  }

  /** Names of the coroutines that are running: for reports. */
  get coroutines(): readonly string[] {
    return [...this.#coroutines.values()];
  }

  /** Lets everything that is ready run before the caller goes on (FIFO among callers: SEMANTICS E3). */
  yield(): Promise<void> {
    const gate = new Gate();
    this.oneshot(() => gate.open(), 'yield');
    return gate.promise;
  }

  // LoopHost: for the backend.

  timePasses(): void {
    this.#turnTicks = -1;
  }

  completeLater(op: AioOp, result: number): void {
    this.#late.push(op);
    this.#lateResults.push(result);
    if (this.#dispatching === 0) this.backend.wake();
  }

  dispatch(): boolean {
    this.#dispatching++;
    let progress = false;
    try {
      for (let n = this.#late.length; n > 0; n--) {
        const op = this.#late.shift();
        if (!op) break;
        progress = true;
        this.stats.completions++;
        op.complete(this.#lateResults.shift()!);
      }
      if (this.#bottomHalves.run()) progress = true;
      if (this.#timers.run()) progress = true;
    } finally {
      this.#dispatching--;
    }
    return progress;
  }

  nextDeadline(): Nanoseconds {
    if (this.#late.length > 0 || this.#bottomHalves.hurried || this.remotePending()) return 0;
    const timer = this.#timers.first;
    return this.#bottomHalves.waiting > 0 ? Math.min(timer, this.backend.now() + IDLE_NS) : timer;
  }

  remotePending(): boolean {
    return Atomics.load(this.shared, SharedWord.REMOTE_PENDING) !== 0;
  }

  /** Runs one turn now, synchronously; may be nested in a callback, never called from a coroutine (it would keep every
   *  other coroutine from going on). True on progress. SEMANTICS E7. */
  poll(block: boolean): boolean {
    assert(!this.#stopped, `context '${this.name}' has stopped`);
    return this.backend.poll(block);
  }

  /** Ends the loop. Pending bottom halves run first; coroutines are waited for; bottom halves that were not deleted are
   *  a bug (E5). Calls after the first wait for the same end. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async #stop(): Promise<void> {
    while (this.#coroutines.size > 0 || this.#bottomHalves.hurried || this.#late.length > 0) {
      if (this.#coroutines.size > 0) {
        this.#lastCoroutine = new Gate();
        await this.#lastCoroutine.promise;
        this.#lastCoroutine = undefined;
      } else await this.yield();
    }
    this.#stopped = true;
    Atomics.store(this.shared, SharedWord.STOPPED, 1);
    await this.backend.stop();
    this.#bottomHalves.assertEmpty();
  }

  get stopped(): boolean {
    return this.#stopped;
  }

  /** Throws ESHUTDOWN once the context has stopped. */
  assertRunning(): void {
    if (this.#stopped) throw new BlockError(Errno.ESHUTDOWN, `Context '${this.name}' has stopped`);
  }
}
