/** Telnet [RFC 854]: its commands are taken out of what comes. The answer to each option is ours already: we echo,
 *  suppress go-ahead, and both sides send 8 bits. */
import type { Framing } from './framing.ts';

const IAC = 255;
const DO = 253;
const WILL = 251;
const SB = 250;
const SE = 240;
const ECHO = 1;
const SUPPRESS_GO_AHEAD = 3;
const BINARY = 0;

export class TelnetFraming implements Framing {
  readonly opening = Uint8Array.of(
    ...[IAC, WILL, ECHO, IAC, WILL, SUPPRESS_GO_AHEAD],
    ...[IAC, WILL, BINARY, IAC, DO, BINARY],
  );
  /** What the next byte is. */
  #next: (byte: number) => boolean;

  constructor() {
    this.#next = this.#plain;
  }

  decode(bytes: Uint8Array): Uint8Array {
    return bytes.filter((byte) => this.#next(byte));
  }

  encode(text: string): Uint8Array {
    // In UTF-8 there is no IAC.
    return new TextEncoder().encode(text);
  }

  /** True for a byte of the conversation. */
  readonly #plain = (byte: number): boolean => {
    if (byte !== IAC) return true;
    this.#next = this.#command;
    return false;
  };

  readonly #command = (byte: number): boolean => {
    if (byte === SB) this.#next = this.#parameters;
    else this.#next = byte >= WILL && byte !== IAC ? this.#option : this.#plain;
    return byte === IAC;
  };

  readonly #option = (): boolean => {
    this.#next = this.#plain;
    return false;
  };

  /** Of an option, up to IAC SE. */
  readonly #parameters = (byte: number): boolean => {
    if (byte === IAC) this.#next = this.#parametersEnd;
    return false;
  };

  readonly #parametersEnd = (byte: number): boolean => {
    this.#next = byte === SE ? this.#plain : this.#parameters;
    return false;
  };
}
