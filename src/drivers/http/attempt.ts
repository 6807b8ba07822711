/**
 * One GET of one range, from the request to the last byte or to what went wrong. Faults it must survive: a server that
 * says nothing, too little or too much, or other bytes than were asked for; one that never ends. It ends exactly once,
 * and after that takes no byte.
 */
import type { AioContext } from '../../aio/context.ts';
import type { Timer } from '../../aio/timers.ts';
import { Errno } from '../../base/errors.ts';
import type { Bytes, Nanoseconds } from '../../base/units.ts';
import { type Asking, type Exchange, Refusal, type Transport } from './exchange.ts';
import { type Headers, printable } from './response.ts';

/** Why an attempt came to nothing. */
export interface Failure {
  readonly errno: number;
  readonly why: string;
  /** Another attempt may do better, after so many seconds at least. */
  readonly retry: boolean;
  readonly afterSeconds?: number;
  /** The file is not what it was: no further attempt of any request. */
  readonly changed?: boolean;
}

/** What is made of the head of a response. */
export type Verdict =
  /** This many bytes of the range come, at least one. */
  | { readonly kind: 'body'; readonly length: Bytes }
  /** There are none, and that is right. */
  | { readonly kind: 'empty' }
  | { readonly kind: 'redirect'; readonly to: URL }
  | { readonly kind: 'failed'; readonly failure: Failure };

/** What an attempt is for. */
export interface AttemptOwner {
  judge(status: number, headers: Headers): Verdict;
  /** The next bytes of the range. The chunk is the callee's until it returns. */
  take(chunk: Uint8Array): void;
  /** The end. `verdict`: 'body' when all bytes that were announced have come. */
  ended(verdict: Verdict): void;
}

/** A body that is slower than this for longer than the timeout is given up: about 128 kbit/s. */
export const BYTES_PER_SECOND_MIN = 16 * 1024;
const NS = 1e9;

export class Attempt implements Exchange {
  readonly #aio: AioContext;
  readonly #owner: AttemptOwner;
  readonly #timer: Timer;
  readonly #timeoutNs: Nanoseconds;
  #asking: Asking | undefined;
  #verdict: Verdict | undefined;
  /** Bytes that are still to come. */
  #left: Bytes = 0;
  #giveUpAt: Nanoseconds = 0;
  #over = false;

  constructor(aio: AioContext, owner: AttemptOwner, timeoutNs: Nanoseconds) {
    this.#aio = aio;
    this.#owner = owner;
    this.#timeoutNs = timeoutNs;
    this.#timer = aio.timer(() => this.#timedOut(), 'http timeout');
  }

  start(transport: Transport, url: URL, headers: Readonly<Record<string, string>>): void {
    this.#timer.armIn(this.#timeoutNs);
    this.#asking = transport.get(url, headers, this);
  }

  /** Nobody wants it any more: it ends without a word. */
  cancel(): void {
    if (!this.#over) this.#stop();
  }

  head(status: number, headers: Headers): void {
    const verdict = this.#owner.judge(status, headers);
    if (verdict.kind !== 'body') {
      // The body of anything else is of no use, and may be endless: the connection goes with it.
      this.#end(verdict);
      return;
    }
    this.#verdict = verdict;
    this.#left = verdict.length;
    this.#giveUpAt = this.#aio.now() + this.#timeoutNs + (verdict.length / BYTES_PER_SECOND_MIN) * NS;
    this.#progress();
  }

  data(chunk: Uint8Array): void {
    if (chunk.length > this.#left) {
      this.#fail('the server sends more bytes than it announced', false);
      return;
    }
    this.#left -= chunk.length;
    this.#owner.take(chunk);
    this.#progress();
  }

  end(): void {
    if (this.#left > 0) this.#fail(`the response ended ${this.#left} bytes too early`, true);
    else this.#end(this.#verdict!);
  }

  failed(error: Error): void {
    this.#end({ kind: 'failed', failure: failureOf(error) });
  }

  #progress(): void {
    this.#timer.armIn(Math.min(this.#timeoutNs, this.#giveUpAt - this.#aio.now()));
  }

  #timedOut(): void {
    if (!this.#over) this.#end(failed('the server did not answer in time', true, Errno.ETIMEDOUT));
  }

  #fail(why: string, retry: boolean): void {
    this.#end(failed(why, retry));
  }

  #end(verdict: Verdict): void {
    const whole = verdict.kind === 'body';
    if (whole) {
      this.#over = true;
      this.#timer.cancel();
    } else this.#stop();
    this.#owner.ended(verdict);
  }

  #stop(): void {
    this.#over = true;
    this.#timer.cancel();
    this.#asking?.cut();
  }
}

export function failed(why: string, retry: boolean, errno: number = Errno.EIO): Verdict {
  return { kind: 'failed', failure: { errno, why, retry } };
}

/** Errors of connections, by their codes: what a person can do something about has words of its own. */
const KNOWN: Readonly<Record<string, readonly [errno: number, why: string, retry: boolean]>> = {
  ECONNREFUSED: [Errno.ECONNREFUSED, 'connection refused', true],
  ECONNRESET: [Errno.ECONNRESET, 'the connection was cut', true],
  EPIPE: [Errno.ECONNRESET, 'the connection was cut', true],
  ETIMEDOUT: [Errno.ETIMEDOUT, 'no connection in time', true],
  ENOTFOUND: [Errno.ENXIO, 'there is no host of that name', false],
  EAI_AGAIN: [Errno.ENXIO, 'the name of the host could not be looked up', true],
};

/** Of a certificate, by the codes that OpenSSL and Node have for it. */
const CERTIFICATE = /CERT|SELF_SIGNED|ERR_TLS|ERR_SSL|UNABLE_TO_VERIFY/;

function failureOf(error: Error): Failure {
  if (error instanceof Refusal) return { errno: error.errno, why: error.message, retry: error.retry };
  // Several addresses were tried.
  const [first] = error instanceof AggregateError ? (error.errors as Error[]) : [];
  const { code } = (first ?? error) as { readonly code?: unknown };
  const name = typeof code === 'string' ? code : error.name;
  const known = Object.hasOwn(KNOWN, name) ? KNOWN[name] : undefined;
  if (known) return { errno: known[0], why: known[1], retry: known[2] };
  if (CERTIFICATE.test(name)) {
    return { errno: Errno.EACCES, why: `the server cannot be trusted: ${printable(name)}`, retry: false };
  }
  // Not the message: it is not ours, and could hold anything.
  return { errno: Errno.EIO, why: `the request failed: ${printable(name)}`, retry: true };
}
