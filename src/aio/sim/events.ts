/** The one queue of everything that will happen in a simulated world: a heap by (time, order of scheduling). */
import type { Nanoseconds } from '../../base/units.ts';

export class SimEvent {
  readonly time: Nanoseconds;
  readonly order: number;
  readonly run: () => void;
  /** A turn of a loop: not something that happens in the world, so its place among these is no choice. */
  readonly turn: boolean;
  /** It will not run. */
  cancelled = false;

  constructor(time: Nanoseconds, order: number, run: () => void, turn: boolean) {
    this.time = time;
    this.order = order;
    this.run = run;
    this.turn = turn;
  }
}

function before(a: SimEvent, b: SimEvent): boolean {
  return a.time < b.time || (a.time === b.time && a.order < b.order);
}

export class EventQueue {
  readonly #heap: SimEvent[] = [];
  #orders = 0;

  push(time: Nanoseconds, run: () => void, turn: boolean): SimEvent {
    const event = new SimEvent(time, this.#orders++, run, turn);
    this.#insert(event);
    return event;
  }

  /** The event that `choose` picks out of so many, in the order of their scheduling; a turn goes first, unasked. */
  pick(choose: (count: number) => number): SimEvent | undefined {
    const events = this.#heap.splice(0).filter((event) => !event.cancelled);
    events.sort((a, b) => a.order - b.order);
    const turn = events.findIndex((event) => event.turn);
    const [event] = events.splice(turn >= 0 ? turn : events.length > 1 ? choose(events.length) : 0, 1);
    for (const other of events) this.#insert(other);
    return event;
  }

  #insert(event: SimEvent): void {
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
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
