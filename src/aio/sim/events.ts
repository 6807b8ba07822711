/** The one queue of everything that will happen in a simulated world: a heap by (time, order of scheduling). */
import type { Nanoseconds } from '../../base/units.ts';

export class SimEvent {
  readonly time: Nanoseconds;
  readonly order: number;
  readonly run: () => void;
  /** It will not run. */
  cancelled = false;

  constructor(time: Nanoseconds, order: number, run: () => void) {
    this.time = time;
    this.order = order;
    this.run = run;
  }
}

function before(a: SimEvent, b: SimEvent): boolean {
  return a.time < b.time || (a.time === b.time && a.order < b.order);
}

export class EventQueue {
  readonly #heap: SimEvent[] = [];
  #orders = 0;

  push(time: Nanoseconds, run: () => void): SimEvent {
    const event = new SimEvent(time, this.#orders++, run);
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
    return event;
  }

  /** The next event that is not cancelled; undefined when there is none. */
  shift(): SimEvent | undefined {
    for (;;) {
      const event = this.#shift();
      if (!event?.cancelled) return event;
    }
  }

  #shift(): SimEvent | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (!first || !last || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      const left = 2 * at + 1;
      if (left >= heap.length) break;
      const right = left + 1;
      const least = right < heap.length && before(heap[right]!, heap[left]!) ? right : left;
      if (!before(heap[least]!, last)) break;
      heap[at] = heap[least]!;
      at = least;
    }
    heap[at] = last;
    return first;
  }
}
