/** Character devices: where the bytes of a monitor come from and go to. */
import type { Qapi } from '../../qmp/schema/schema.ts';

/** One conversation over a device: a client of a socket, or all there is of a file. */
export interface CharLink {
  send(text: string): void;
  /** Bytes that were sent and not taken yet. */
  readonly unsent: number;
  pause(): void;
  resume(): void;
  /** Ends the conversation. */
  cut(): void;
}

/** Who uses a device. */
export interface CharFrontend {
  /** Somebody is there; the answer hears what comes. */
  opened(link: CharLink): CharListener;
}

export interface CharListener {
  received(bytes: Uint8Array): void;
  /** What was sent has been taken. */
  drained(): void;
  closed(): void;
}

export interface Chardev {
  /** What it is, as `query-chardev` shows it. */
  readonly filename: string;
  /** Of a pseudo-terminal: what others open. */
  readonly pty?: string;
  /** Users that it can have; default 1. */
  readonly frontendsMax?: number;
  /** Conversations begin. */
  attach(frontend: CharFrontend): void;
  /** A break on its line, where it has one. */
  sendBreak?(): void;
  close(): void;
}

export type ChardevBackend = Qapi<'ChardevBackend'>;
export type SocketAddress = Qapi<'SocketAddress'>;

/** Of those that give nothing, and keep nothing or all that they are given. */
export class SinkChardev implements Chardev {
  readonly filename: string;
  readonly #take: (text: string) => void;
  readonly #onClose: () => void;

  constructor(filename: string, take: (text: string) => void = () => undefined, onClose: () => void = () => undefined) {
    this.filename = filename;
    this.#take = take;
    this.#onClose = onClose;
  }

  attach(frontend: CharFrontend): void {
    frontend.opened({
      send: this.#take,
      unsent: 0,
      pause: () => undefined,
      resume: () => undefined,
      cut: () => undefined,
    });
  }

  close(): void {
    this.#onClose();
  }
}
