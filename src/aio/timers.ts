/** Timers of one context: a binary heap by deadline, on the backend's monotonic clock. */
import { assert } from '../base/assert.ts';
import type { Nanoseconds } from '../base/units.ts';

export class Timer {
  readonly name: string;
  readonly #owner: TimerHeap;
  readonly #callback: () => void;
  /** @internal */ deadline = Number.POSITIVE_INFINITY;
  /** @internal Place in the heap, -1 when not armed. */ index = -1;
  /** @internal Order of arming, so that equal deadlines run first come, first served. */ order = 0;

  /** @internal Use AioContext.timer(). */
  constructor(owner: TimerHeap, callback: () => void, name: string) {
    this.#owner = owner;
    this.#callback = callback;
    this.name = name;
  }

  get armed(): boolean {
    return this.index >= 0;
  }

  /** Runs the callback once, `ns` from now; replaces an earlier deadline. */
  armIn(ns: Nanoseconds): void {
    this.#owner.arm(this, this.#owner.now() + Math.max(0, ns));
  }

  cancel(): void {
    this.#owner.disarm(this);
  }

  /** @internal */
  fire(): void {
    this.#callback();
  }
}

export class TimerHeap {
  readonly now: () => Nanoseconds;
  readonly #onEarlier: () => void;
  readonly #heap: Timer[] = [];
  #orders = 0;

  constructor(now: () => Nanoseconds, onEarlier: () => void) {
    this.now = now;
    this.#onEarlier = onEarlier;
  }

  /** Deadline of the first timer, Infinity without one. */
  get first(): Nanoseconds {
    return this.#heap[0]?.deadline ?? Number.POSITIVE_INFINITY;
  }

  get length(): number {
    return this.#heap.length;
  }

  arm(timer: Timer, deadline: Nanoseconds): void {
    this.disarm(timer);
    timer.deadline = deadline;
    timer.order = this.#orders++;
    timer.index = this.#heap.length;
    this.#heap.push(timer);
    this.#up(timer.index);
    if (timer.index === 0) this.#onEarlier();
  }

  disarm(timer: Timer): void {
    const at = timer.index;
    if (at < 0) return;
    assert(this.#heap[at] === timer, `timer '${timer.name}' is not where it should be`);
    timer.index = -1;
    const last = this.#heap.pop()!;
    if (last === timer) return;
    this.#heap[at] = last;
    last.index = at;
    this.#up(at);
    this.#down(last.index);
  }

  /** Runs the timers that are due. A timer armed meanwhile waits for the next call, even when it is due already. */
  run(): boolean {
    if (this.#heap.length === 0) return false;
    const now = this.now();
    const limit = this.#orders;
    let progress = false;
    for (let timer = this.#heap[0]; timer && timer.deadline <= now && timer.order < limit; timer = this.#heap[0]) {
      this.disarm(timer);
      progress = true;
      timer.fire();
    }
    return progress;
  }

  #before(a: Timer, b: Timer): boolean {
    return a.deadline < b.deadline || (a.deadline === b.deadline && a.order < b.order);
  }

  #swap(i: number, j: number): void {
    const a = this.#heap[i]!;
    const b = this.#heap[j]!;
    this.#heap[i] = b;
    this.#heap[j] = a;
    b.index = i;
    a.index = j;
  }

  #up(i: number): void {
    for (let at = i; at > 0; ) {
      const parent = (at - 1) >> 1;
      if (!this.#before(this.#heap[at]!, this.#heap[parent]!)) return;
      this.#swap(at, parent);
      at = parent;
    }
  }

  #down(i: number): void {
    for (let at = i; ; ) {
      const left = at * 2 + 1;
      if (left >= this.#heap.length) return;
      const right = left + 1;
      const least = right < this.#heap.length && this.#before(this.#heap[right]!, this.#heap[left]!) ? right : left;
      if (!this.#before(this.#heap[least]!, this.#heap[at]!)) return;
      this.#swap(at, least);
      at = least;
    }
  }
}
