/** Events as programs read them: `for await (const { event, data } of ...)`. */
import { Gate } from '../aio/op.ts';
import type { EventData, EventName } from './schema/schema.ts';

/** Events that nobody has asked for yet, of one listener: the oldest go. */
const EVENTS_MAX = 4096;

/** One event, with the data that belongs to its name. */
export type QmpEvent = {
  readonly [N in EventName]: {
    readonly event: N;
    readonly data: EventData<N>;
    readonly timestamp: { readonly seconds: number; readonly microseconds: number };
  };
}[EventName];

/** The events of one reader, in their order. */
export class EventStream implements AsyncIterableIterator<QmpEvent> {
  readonly #events: QmpEvent[] = [];
  readonly #leave: (stream: EventStream) => void;
  #waiting: Gate | undefined;
  #ended = false;

  constructor(leave: (stream: EventStream) => void) {
    this.#leave = leave;
  }

  push(event: QmpEvent): void {
    this.#events.push(event);
    if (this.#events.length > EVENTS_MAX) this.#events.shift();
    this.#waiting?.open();
  }

  end(): void {
    this.#ended = true;
    this.#waiting?.open();
  }

  async next(): Promise<IteratorResult<QmpEvent>> {
    while (this.#events.length === 0 && !this.#ended) {
      this.#waiting = new Gate();
      await this.#waiting.promise;
    }
    const value = this.#events.shift();
    return value ? { value, done: false } : { value: undefined, done: true };
  }

  async return(): Promise<IteratorResult<QmpEvent>> {
    this.#leave(this);
    this.end();
    return { value: undefined, done: true };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
