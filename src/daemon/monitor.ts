/** Monitors: a session for each client of their character device. */

import type { JsonObject } from '../qmp/json.ts';
import { type Dispatcher, Session } from '../qmp/session.ts';
import type { CharFrontend, CharLink, CharListener } from './chardev/chardev.ts';

export class Monitor implements CharFrontend {
  readonly #dispatcher: Dispatcher;
  readonly #pretty: boolean;
  readonly #sessions = new Set<Session>();

  constructor(dispatcher: Dispatcher, pretty: boolean) {
    this.#dispatcher = dispatcher;
    this.#pretty = pretty;
  }

  opened(link: CharLink): CharListener {
    const session = new Session(this.#dispatcher, link, this.#pretty);
    this.#sessions.add(session);
    return {
      received: (bytes) => session.push(bytes),
      drained: () => session.drained(),
      closed: () => {
        session.close();
        this.#sessions.delete(session);
      },
    };
  }

  event(event: JsonObject): void {
    for (const session of this.#sessions) session.event(event);
  }
}
