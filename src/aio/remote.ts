/**
 * A context as another thread sees it: schedule, cancel and delete bottom halves, and wake the thread when, and only
 * when, it sleeps (SEMANTICS E1, E6, C1; the protocol is in context-shared.ts).
 */
import { signal } from '../native/eventfd.ts';
import { isThreadAlive } from '../native/thread.ts';
import type { RemoteBottomHalfHandle } from './bottom-half.ts';
import { type RemoteContextHandle, SharedWord } from './context-shared.ts';

/** Made in any thread from what `AioContext.remote()` gave; the handle comes through postMessage or workerData. */
export class RemoteContext {
  readonly name: string;
  readonly #shared: Int32Array<SharedArrayBuffer>;
  readonly #handle: RemoteContextHandle;

  constructor(handle: RemoteContextHandle) {
    this.name = handle.name;
    this.#handle = handle;
    this.#shared = handle.shared;
  }

  /** True once the context has stopped or its thread has died: what is scheduled now never runs. */
  get stopped(): boolean {
    return Atomics.load(this.#shared, SharedWord.STOPPED) !== 0;
  }

  /** True once it has stopped, or its thread is gone without having said so. A system call: for who has waited long. */
  get dead(): boolean {
    const thread = Atomics.load(this.#shared, SharedWord.KERNEL_THREAD);
    return this.stopped || (thread !== 0 && !isThreadAlive(thread));
  }

  /**
   * Runs the bottom half once in its context's next turn; a no-op while it is pending. False when it will not run: the
   * context has stopped, or the bottom half was deleted. What this thread wrote to shared memory before is seen there.
   */
  schedule(bh: RemoteBottomHalfHandle): boolean {
    const shared = this.#shared;
    if (!this.#valid(bh)) return false;
    const word = bh.slot >> 5;
    const bit = 1 << (bh.slot & 31);
    Atomics.and(shared, SharedWord.BH_CANCEL_BITS + word, ~bit);
    Atomics.or(shared, SharedWord.BH_BITS + word, bit);
    this.wake();
    return true;
  }

  /** It does not run unless scheduled again, whoever scheduled it; without effect on a run that has begun. */
  cancel(bh: RemoteBottomHalfHandle): void {
    if (!this.#valid(bh)) return;
    const word = bh.slot >> 5;
    const bit = 1 << (bh.slot & 31);
    Atomics.and(this.#shared, SharedWord.BH_BITS + word, ~bit);
    Atomics.or(this.#shared, SharedWord.BH_CANCEL_BITS + word, bit);
    // No wake-up: a context that sleeps has nothing pending that could be cancelled.
    Atomics.store(this.#shared, SharedWord.REMOTE_PENDING, 1);
  }

  /** It never runs again, apart from a run that has begun; its slot is free once the context has come round. */
  delete(bh: RemoteBottomHalfHandle): void {
    if (!this.#valid(bh)) return;
    Atomics.or(this.#shared, SharedWord.BH_DELETE_BITS + (bh.slot >> 5), 1 << (bh.slot & 31));
    this.wake();
  }

  /** Makes the context look at its shared words soon. One system call when it sleeps, none when it is awake. */
  wake(): void {
    const shared = this.#shared;
    Atomics.store(shared, SharedWord.REMOTE_PENDING, 1);
    Atomics.add(shared, SharedWord.WAKERS, 1);
    if (Atomics.exchange(shared, SharedWord.SLEEPING, 0) === 0) Atomics.add(shared, SharedWord.WAKES_SAVED, 1);
    else this.#send();
    Atomics.sub(shared, SharedWord.WAKERS, 1);
  }

  #send(): void {
    const shared = this.#shared;
    Atomics.add(shared, SharedWord.WAKES_SENT, 1);
    const wake = this.#handle.wake;
    if (wake.kind === 'eventfd') signal(wake.fd);
    else if (wake.kind === 'atomics') {
      Atomics.add(shared, SharedWord.NOTIFY, 1);
      Atomics.notify(shared, SharedWord.NOTIFY);
    }
  }

  // A slot may have a new owner since the handle was made. Between this check and the bit the owner may still change:
  // then the new one runs once for nothing, which every bottom half has to bear.
  #valid(bh: RemoteBottomHalfHandle): boolean {
    return !this.stopped && Atomics.load(this.#shared, SharedWord.BH_OWNERS + bh.slot) === bh.owner;
  }
}
