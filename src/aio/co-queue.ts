/**
 * CoQueue: coroutines that wait for a condition (SEMANTICS C7). What a waiter finds may have changed again before it
 * goes on, so a wait is always in a loop:
 *
 *     while (!condition()) await queue.wait(held);
 */
import { Fifo } from '../base/fifo.ts';
import type { Held } from './co-mutex.ts';
import { Gate } from './op.ts';

export interface WaitOptions {
  /** To be the next one woken, before those that wait already. */
  readonly front?: boolean;
}

export class CoQueue {
  readonly #waiters = new Fifo<Gate>(4);

  get length(): number {
    return this.#waiters.length;
  }

  /** Waits to be woken. The lock is released once this coroutine is in the queue, and held again when it goes on. */
  async wait(held?: Held, options: WaitOptions = {}): Promise<void> {
    held?.assertHolds(held.mutex);
    const gate = new Gate();
    if (options.front) this.#waiters.unshift(gate);
    else this.#waiters.push(gate);
    held?.mutex.release(held);
    await gate.promise;
    if (held) await held.mutex.retake(held);
  }

  /** Wakes the first in the queue; it goes on after the caller has returned or awaits. False when nobody waits. */
  wakeOne(): boolean {
    const gate = this.#waiters.shift();
    gate?.open();
    return gate !== undefined;
  }

  /** Wakes, in order, all that wait now; returns how many. */
  wakeAll(): number {
    const count = this.#waiters.length;
    for (let i = 0; i < count; i++) this.wakeOne();
    return count;
  }
}
