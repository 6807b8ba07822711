/**
 * TaskPool: one coroutine that has up to `max` pieces of its work under way at a time (a large request split in parts,
 * a copy job's chunks). The first error is kept; what runs is never broken off.
 */
import { assert } from '../base/assert.ts';
import { BlockError } from '../base/errors.ts';
import { Gate, type MaybePromise, spawn } from './op.ts';

/** Work that says how it ended: nothing or a number >= 0 for well, a negative errno or a thrown BlockError
 *  otherwise. */
export type Task = () => Promise<unknown>;

export class TaskPool {
  readonly max: number;
  #running = 0;
  #status = 0;
  #error: BlockError | undefined;
  #waiter: Gate | undefined;

  constructor(max: number) {
    assert(Number.isInteger(max) && max > 0, `a task pool of ${max} cannot run anything`);
    this.max = max;
  }

  get running(): number {
    return this.#running;
  }

  /** The first error so far as a negative errno, or 0. Callers look at it to stop starting more. */
  get status(): number {
    return this.#status;
  }

  /** The first error in full, when it was thrown. */
  get error(): BlockError | undefined {
    return this.#error;
  }

  /** Starts `task`, after waiting for a slot where all are taken. Resolves when it has started, not when it has
   *  ended. */
  start(task: Task): MaybePromise<void> {
    if (this.#running < this.max) {
      this.#launch(task);
      return;
    }
    return this.#startLater(task);
  }

  /** Waits until one of the tasks that run now has ended; at once when none runs. */
  async waitOne(): Promise<void> {
    if (this.#running === 0) return;
    assert(!this.#waiter, 'a task pool has one user, which waits for one thing at a time');
    this.#waiter = new Gate();
    await this.#waiter.promise;
  }

  /** Waits until nothing runs. The first error as a negative errno, or 0. */
  async drain(): Promise<number> {
    while (this.#running > 0) await this.waitOne();
    return this.#status;
  }

  async #startLater(task: Task): Promise<void> {
    while (this.#running >= this.max) await this.waitOne();
    this.#launch(task);
  }

  #launch(task: Task): void {
    this.#running++;
    spawn(this.#run(task));
  }

  // Anything but a BlockError is a bug: it stays unhandled and ends the thread.
  async #run(task: Task): Promise<void> {
    try {
      const result = await task();
      if (typeof result === 'number' && result < 0) this.#fail(result, undefined);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.#fail(-error.errno, error);
    } finally {
      this.#running--;
      const waiter = this.#waiter;
      this.#waiter = undefined;
      waiter?.open();
    }
  }

  #fail(status: number, error: BlockError | undefined): void {
    if (this.#status !== 0) return;
    this.#status = status;
    this.#error = error;
  }
}
