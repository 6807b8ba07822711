/** Events of a daemon, to all who listen. */
import type { QmpEvent } from '../qmp/event-stream.ts';
import type { EventData, EventName } from '../qmp/schema/schema.ts';

export type EventListener = (event: QmpEvent) => void;

export class Events {
  readonly #listeners = new Set<EventListener>();

  /** The answer ends it. */
  listen(listener: EventListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  emit<N extends EventName>(event: N, data: EventData<N>): void {
    const now = performance.timeOrigin + performance.now();
    const seconds = Math.floor(now / 1000);
    const timestamp = { seconds, microseconds: Math.floor((now - seconds * 1000) * 1000) };
    for (const listener of this.#listeners) listener({ event, data, timestamp } as unknown as QmpEvent);
  }
}
