/**
 * Operations and how their ends reach JavaScript.
 *
 * The hot path is callbacks: an {@link AioOp} is a pooled object whose `complete` runs in its AioContext. The coroutine
 * path is promises: {@link WaitOp} is an AioOp whose end resolves one.
 *
 * Every promise that the engine resolves goes through {@link markResumed} (WaitOp, Gate and the coroutine locks do it):
 * the ring's loop stays in JavaScript for many turns, and leaves as soon as a coroutine has something to continue.
 */
import { Bug } from '../base/assert.ts';

/** What may have to be waited for and often has not: the caller looks before it awaits. */
export type MaybePromise<T> = T | Promise<T>;

let resumed = false;

/** Says that a promise was resolved, so that the loop lets the microtasks run before its next turn. */
export function markResumed(): void {
  resumed = true;
}

/** Reads and clears the mark. For the loop only. */
export function takeResumed(): boolean {
  const was = resumed;
  resumed = false;
  return was;
}

/**
 * One operation given to a backend. The object belongs to the backend from the call that takes it until `complete`;
 * giving it away a second time meanwhile is a bug. Operations never complete inside the call that starts them.
 */
export abstract class AioOp {
  /** The backend's bookkeeping: -1 at rest. */
  slot = -1;
  /** The backend's own operation that stands for this one while it is in flight, where there is one. */
  proxy: AioOp | null = null;
  /** More than the number says of what went wrong, for a message: a BlockError. Set by whoever fails the operation,
   *  cleared by whoever wants to see it. Valid in `complete`. */
  failure: unknown = null;
  /** `complete` gives nothing to libuv but through a promise of the engine's: no handle, no immediate, no timer of
   *  Node's. The ring's loop may then sleep without a visit to libuv. */
  quiet = false;
  /** The result: a count of bytes or 0, or a negative errno. Runs once, in the home context; must not throw. */
  abstract complete(result: number): void;
}

/** An operation that one coroutine waits for: `const n = await op.start(() => file.read(op, iov, at))`. Reusable. */
export class WaitOp extends AioOp {
  #resolve: ((result: number) => void) | undefined;

  /** A promise for the result (a negative errno is a result, not a rejection). Call before giving the op away. */
  wait(): Promise<number> {
    if (this.#resolve) throw new Bug('WaitOp: already waiting');
    return new Promise((resolve) => {
      this.#resolve = resolve;
    });
  }

  complete(result: number): void {
    const resolve = this.#resolve;
    if (!resolve) throw new Bug('WaitOp: completed without a waiter');
    this.#resolve = undefined;
    markResumed();
    resolve(result);
  }
}

/** A promise that the engine resolves from outside. */
export class Gate<T = void> {
  readonly promise: Promise<T>;
  #resolve!: (value: T) => void;
  #reject!: (error: unknown) => void;
  #opened = false;

  constructor() {
    this.promise = new Promise<T>((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  /** True once it was opened or has failed. */
  get opened(): boolean {
    return this.#opened;
  }

  open(value: T): void {
    this.#opened = true;
    markResumed();
    this.#resolve(value);
  }

  fail(error: unknown): void {
    this.#opened = true;
    markResumed();
    this.#reject(error);
  }
}

/** Starts a coroutine from callback code. A rejection nobody handles ends the thread, as any bug does. */
export function spawn(coroutine: Promise<unknown>): void {
  markResumed();
  void coroutine;
}
