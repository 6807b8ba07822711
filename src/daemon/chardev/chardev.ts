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
  /** Somebody uses it, and somebody is there. */
  readonly frontendOpen: boolean;
  /** Conversations begin. Undefined: this device carries none. */
  attach?(frontend: CharFrontend): void;
  close(): void;
}

export type ChardevBackend = Qapi<'ChardevBackend'>;
export type SocketAddress = Qapi<'SocketAddress'>;

/** Of those that take everything and give nothing. */
export class NullChardev implements Chardev {
  readonly filename = 'null';
  readonly frontendOpen = false;

  close(): void {}
}
