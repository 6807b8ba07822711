/** What is between a file on a server (remote.ts) and the protocol that it is read by. */
import type { Headers } from './response.ts';

/** Who has asked. Told nothing more after {@link Asking.cut}, `end` or `failed`. */
export interface Exchange {
  /** Cuts where the body is not wanted. */
  head(status: number, headers: Headers): void;
  /** The next bytes of the body: the callee's until it returns. */
  data(chunk: Uint8Array): void;
  /** The body has come, as far as the server says. */
  end(): void;
  /** A {@link Refusal}, or an error of a socket. */
  failed(error: Error): void;
}

/** A request that is under way. */
export interface Asking {
  /** Nobody wants it any more: the connection goes with it. */
  cut(): void;
}

export interface Transport {
  /** Begins to read a range: `headers.range`. As many at a time as the caller likes. Nothing is told before this
   *  returns. */
  get(url: URL, headers: Readonly<Record<string, string>>, exchange: Exchange): Asking;
  /** Cuts all connections. */
  close(): void;
}

/** Why it did not come to an answer, in words of ours. */
export class Refusal extends Error {
  readonly errno: number;
  /** Another attempt may do better. */
  readonly retry: boolean;

  constructor(errno: number, why: string, retry = false) {
    super(why);
    this.errno = errno;
    this.retry = retry;
  }
}
