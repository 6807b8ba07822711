/**
 * How libuv drives an AioContext: one setImmediate for a turn that is due, one timer for the next deadline, and
 * Atomics.waitAsync for what other threads schedule meanwhile. libuv stays free for everything else in the thread.
 */
import { assert } from '../../base/assert.ts';
import { Errno } from '../../base/errors.ts';
import type { Nanoseconds } from '../../base/units.ts';
import type { LoopHost } from '../backend.ts';
import { SharedWord } from '../context-shared.ts';
import { type AioOp, Gate } from '../op.ts';
import { dispatchRest, type OpOwner, OpTable } from '../op-table.ts';
import { ThreadPool } from '../thread-pool.ts';

/** The longest node takes for a timer (2^31-1 ms). */
const MAX_TIMER_MS = 0x7fff_ffff;

/** What is open on a backend, and has to go when it stops. */
export interface PoolResource {
  /** Ends operations that may wait for ever. */
  endWaiting(): void;
  close(): Promise<void>;
}

export class PoolLoop {
  readonly ops = new OpTable();
  readonly threads: ThreadPool;
  readonly resources = new Set<PoolResource>();
  #host: LoopHost | undefined;
  #immediate: NodeJS.Immediate | undefined;
  #timer: NodeJS.Timeout | undefined;
  #timerAt: Nanoseconds = Number.POSITIVE_INFINITY;
  #keepAlive: NodeJS.Timeout | undefined;
  #watching = false;
  #state: 'new' | 'running' | 'stopping' | 'stopped' = 'new';
  #idle: Gate | undefined;

  constructor() {
    this.threads = new ThreadPool({ completeLater: (op, result) => this.end(op, result) });
  }

  get host(): LoopHost {
    assert(this.#host, 'the backend drives no context');
    return this.#host;
  }

  /** False once stop() has begun: what is started then ends with -ECANCELED. */
  get running(): boolean {
    return this.#state === 'running';
  }

  now(): Nanoseconds {
    return Math.round(performance.now() * 1e6);
  }

  start(host: LoopHost): void {
    assert(this.#state === 'new', 'a backend is started once');
    this.#state = 'running';
    this.#host = host;
    // Atomics.waitAsync does not keep a thread alive, and a context lives until stop().
    this.#keepAlive = setInterval(() => undefined, MAX_TIMER_MS);
    this.#arm();
  }

  wake(): void {
    if (this.#immediate || this.#state === 'new' || this.#state === 'stopped') return;
    this.#immediate = setImmediate(this.#turn);
  }

  /** Takes `op` over. False when the loop is stopping: it then ends with -ECANCELED by itself. */
  begin(op: AioOp, owner: OpOwner): boolean {
    this.ops.add(op, owner);
    this.host.stats.operations++;
    if (this.#state === 'running') return true;
    this.end(op, -Errno.ECANCELED);
    return false;
  }

  /** The end of `op`, in the next dispatch. */
  end(op: AioOp, result: number): void {
    this.ops.remove(op);
    this.host.completeLater(op, result);
    if (this.ops.size === 0) this.#idle?.open();
  }

  endNow(op: AioOp, result: number): void {
    this.ops.remove(op);
    op.complete(result);
    if (this.ops.size === 0) this.#idle?.open();
  }

  later(op: AioOp): void {
    this.host.completeLater(op, 0);
  }

  cancel(op: AioOp): void {
    this.ops.ownerOf(op)?.cancel(op);
  }

  poll(): boolean {
    const progress = this.host.dispatch();
    this.#arm();
    return progress;
  }

  /** Closes what is open, waits for what cannot be cancelled, and lets its ends run. */
  async stop(): Promise<void> {
    if (this.#state !== 'running') return;
    this.#state = 'stopping';
    for (const op of this.ops.list()) this.cancel(op);
    for (const resource of [...this.resources]) resource.endWaiting();
    while (this.ops.size > 0) {
      this.#idle = new Gate();
      await this.#idle.promise;
    }
    dispatchRest(this.host);
    await Promise.all([...this.resources].map((resource) => resource.close()));
    dispatchRest(this.host);
    this.abandon();
    // The waiter that is left would hold on to the context.
    if (this.#watching) Atomics.notify(this.host.shared, SharedWord.NOTIFY);
  }

  /** Ends the driving, and nothing else: node waits for its threads, and keeps the memory they use until then. */
  abandon(): void {
    this.#state = 'stopped';
    clearImmediate(this.#immediate);
    clearTimeout(this.#timer);
    clearInterval(this.#keepAlive);
  }

  readonly #turn = (): void => {
    this.#immediate = undefined;
    const host = this.host;
    Atomics.store(host.shared, SharedWord.SLEEPING, 0);
    host.stats.turns++;
    host.timePasses();
    host.dispatch();
    host.timePasses();
    this.#arm();
  };

  /** Makes sure that the next turn comes when it is due. */
  #arm(): void {
    if (this.#immediate || this.#state === 'stopped') return;
    const deadline = this.host.nextDeadline();
    if (deadline <= this.now()) {
      this.wake();
      return;
    }
    if (deadline !== this.#timerAt) this.#setTimer(deadline);
    this.#sleep();
  }

  #setTimer(deadline: Nanoseconds): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#timerAt = deadline;
    if (deadline === Number.POSITIVE_INFINITY) return;
    const ms = Math.min(Math.ceil((deadline - this.now()) / 1e6), MAX_TIMER_MS);
    this.#timer = setTimeout(this.#onTimer, ms);
  }

  readonly #onTimer = (): void => {
    this.#timerAt = Number.POSITIVE_INFINITY;
    this.wake();
  };

  // The sleeper's side of context-shared.ts. NOTIFY is read before SLEEPING is set: who sees the 1 changes it later.
  #sleep(): void {
    const host = this.host;
    const shared = host.shared as Int32Array<SharedArrayBuffer>;
    if (!this.#watching) {
      const wait = Atomics.waitAsync(shared, SharedWord.NOTIFY, Atomics.load(shared, SharedWord.NOTIFY));
      if (!wait.async) {
        this.wake();
        return;
      }
      this.#watching = true;
      void wait.value.then(this.#onNotify);
    }
    Atomics.store(shared, SharedWord.SLEEPING, 1);
    host.stats.sleeps++;
    if (host.remotePending()) this.wake();
  }

  readonly #onNotify = (): void => {
    this.#watching = false;
    this.wake();
  };
}
