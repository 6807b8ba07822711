/**
 * CoMutex: a lock that a coroutine may hold across an await (SEMANTICS C4, C6). Only for coroutines of one context;
 * code without an await in it needs no lock.
 *
 *     using held = await mutex.lock();
 */
import { assert } from '../base/assert.ts';
import { Fifo } from '../base/fifo.ts';
import { Gate, type MaybePromise } from './op.ts';

interface Waiter {
  readonly held: Held;
  readonly gate: Gate<Held>;
}

export class CoMutex {
  readonly name: string;
  #holder: Held | undefined;
  readonly #waiters = new Fifo<Waiter>(4);

  constructor(name = 'mutex') {
    this.name = name;
  }

  get locked(): boolean {
    return this.#holder !== undefined;
  }

  /** Coroutines that wait for it. */
  get waiters(): number {
    return this.#waiters.length;
  }

  /** Takes the lock: at once when it is free, else in the order of the calls. Not recursive: a holder that locks again
   *  waits for itself, for ever. */
  lock(): MaybePromise<Held> {
    return this.#take(new Held(this));
  }

  /** The lock when it is free. */
  tryLock(): Held | undefined {
    if (this.#holder) return undefined;
    this.#holder = new Held(this);
    return this.#holder;
  }

  /** @internal Only Held and CoQueue call it. */
  release(held: Held): void {
    assert(this.#holder === held, `mutex '${this.name}' was released by somebody who does not hold it`);
    // Handed over, never free in between: nobody can slip in before the one that has waited longest.
    const next = this.#waiters.shift();
    this.#holder = next?.held;
    next?.gate.open(next.held);
  }

  /** @internal Takes the lock back after a wait on a CoQueue. */
  retake(held: Held): MaybePromise<Held> {
    return this.#take(held);
  }

  /** @internal */
  isHeldBy(held: Held): boolean {
    return this.#holder === held;
  }

  #take(held: Held): MaybePromise<Held> {
    if (!this.#holder) {
      this.#holder = held;
      return held;
    }
    const gate = new Gate<Held>();
    this.#waiters.push({ held, gate });
    return gate.promise;
  }
}

/** The proof that a CoMutex is held; leaving its `using` block releases it. To release it twice is a bug. */
export class Held implements Disposable {
  readonly mutex: CoMutex;

  /** @internal Use CoMutex.lock(). */
  constructor(mutex: CoMutex) {
    this.mutex = mutex;
  }

  /** Throws Bug unless this is the lock on `mutex`, and still held. For functions that require their caller's lock. */
  assertHolds(mutex: CoMutex): void {
    assert(this.mutex === mutex, `the lock on '${this.mutex.name}' is not one on '${mutex.name}'`);
    assert(mutex.isHeldBy(this), `mutex '${mutex.name}' is not held any more`);
  }

  [Symbol.dispose](): void {
    this.mutex.release(this);
  }
}
