/**
 * A file on a server, as a place to read ranges from. What must hold:
 *
 * - All bytes are of one state of the file. What it is known by (ETag, else Last-Modified, and its length) is compared
 *   in each response; once it differs, nothing is read any more.
 * - No byte counts that was not asked for and announced (Content-Range), and a range has been read when all of it came.
 * - So many requests at a time and no more; each ends, in bounded time, whatever the server does.
 * - Credentials go to the origin of the URL that they were given for, and into no message.
 */
import type { AioContext } from '../../aio/context.ts';
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import { Fifo } from '../../base/fifo.ts';
import { type Bytes, MAX_OFFSET, MiB, type Nanoseconds, type Offset } from '../../base/units.ts';
import { Attempt, type AttemptOwner, BYTES_PER_SECOND_MIN, type Failure, failed, type Verdict } from './attempt.ts';
import type { Transport } from './exchange.ts';
import { redirected } from './location.ts';
import {
  contentRange,
  type Headers,
  headerOf,
  isEmptyFile,
  retryAfter,
  type Validator,
  validatorOf,
  wrongCoding,
} from './response.ts';
import type { HttpSettings } from './settings.ts';

/** Redirects in a row. */
const REDIRECTS_MAX = 8;
/** For each MiB of a range: pieces of 16 KiB, and some failures between them. */
const ATTEMPTS_MAX = 128;
const BACKOFF_NS: Nanoseconds = 100e6;
const BACKOFF_MAX_NS: Nanoseconds = 5e9;
const NS = 1e9;

const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);
/** Too many requests, and what servers and proxies answer when they are overloaded or not there for the moment. */
const PASSING: ReadonlySet<number> = new Set([408, 429, 500, 502, 503, 504]);
/** A remembered target of a redirect (a signed URL, say) may have expired when it answers these. */
const EXPIRED: ReadonlySet<number> = new Set([400, 401, 403, 404, 410]);

const NO_RANGES = "the server does not serve ranges, which are needed; option 'download' fetches all of it first";

/** Who wants a range. */
export interface RangeSink {
  /** Bytes of the range, in order, `from` bytes in. The chunk is the callee's until it returns. */
  take(chunk: Uint8Array, from: Bytes): void;
  /** All of it has come, or nothing more will. Not after `cancel`. */
  done(failure: BlockError | null): void;
}

/** One range, with as many attempts as it takes. */
export class RangeFetch implements AttemptOwner {
  readonly at: Offset;
  readonly sink: RangeSink;
  /** Shorter after the first answer where the file is. */
  length: Bytes;
  /** Somebody waits for it. */
  urgent: boolean;
  state: 'queued' | 'active' | 'over' = 'queued';
  received: Bytes = 0;
  url: URL;
  redirects = 0;
  /** Attempts that brought no byte, in a row. */
  tries = 0;
  attempts = 0;
  /** Failures after this are for good: it moves on as bytes come, the limit does not. */
  deadline: Nanoseconds = 0;
  limit: Nanoseconds = 0;
  attempt: Attempt | null = null;
  readonly #remote: Remote;

  constructor(remote: Remote, at: Offset, length: Bytes, sink: RangeSink, urgent: boolean) {
    this.#remote = remote;
    this.at = at;
    this.length = length;
    this.sink = sink;
    this.urgent = urgent;
    this.url = remote.found;
  }

  get attemptsMax(): number {
    return ATTEMPTS_MAX * Math.ceil(this.length / MiB);
  }

  judge(status: number, headers: Headers): Verdict {
    return this.#remote.judge(this, status, headers);
  }

  take(chunk: Uint8Array): void {
    const from = this.received;
    this.received += chunk.length;
    this.tries = 0;
    this.sink.take(chunk, from);
  }

  ended(verdict: Verdict): void {
    this.attempt = null;
    this.#remote.ended(this, verdict);
  }
}

export class Remote {
  /** Known after the first answer. */
  length: Bytes = 0;
  /** Where the file was found: the URL, or where it redirected to. */
  found: URL;
  /** Set once nothing is read any more. */
  broken: BlockError | null = null;
  readonly #aio: AioContext;
  readonly #settings: HttpSettings;
  readonly #transport: Transport;
  /** Told when no request is under way any more. */
  readonly #onIdle: () => void;
  /** For a server without ranges: there is one fetch, of the whole file. */
  readonly #whole: boolean;
  #known = false;
  #validator: Validator | undefined;
  readonly #urgent = new Fifo<RangeFetch>();
  readonly #ahead = new Fifo<RangeFetch>();
  readonly #active = new Set<RangeFetch>();
  #closed = false;

  constructor(aio: AioContext, settings: HttpSettings, transport: Transport, onIdle: () => void, whole = false) {
    this.#whole = whole;
    this.#aio = aio;
    this.#settings = settings;
    this.#transport = transport;
    this.#onIdle = onIdle;
    this.found = settings.url;
  }

  get busy(): boolean {
    return this.#active.size > 0;
  }

  /** Begins to read a range inside the file. The sink is told, never before this returns. */
  fetch(at: Offset, length: Bytes, sink: RangeSink, urgent: boolean): RangeFetch {
    const fetch = new RangeFetch(this, at, length, sink, urgent);
    (urgent ? this.#urgent : this.#ahead).push(fetch);
    this.#pump();
    return fetch;
  }

  /** Somebody waits for it now: it goes before what is read ahead. */
  promote(fetch: RangeFetch): void {
    if (fetch.urgent) return;
    fetch.urgent = true;
    if (fetch.state === 'queued') this.#urgent.push(fetch);
  }

  /** The sink hears nothing more. */
  cancel(fetch: RangeFetch): void {
    if (fetch.state === 'over') return;
    fetch.attempt?.cancel();
    this.#leave(fetch);
  }

  close(): void {
    this.#closed = true;
    for (const fetch of [...this.#active]) this.cancel(fetch);
    this.#transport.close();
  }

  #pump(): void {
    while (this.#active.size < this.#settings.connections) {
      const fetch = this.#urgent.shift() ?? this.#ahead.shift();
      if (fetch === undefined) return;
      // Cancelled, or promoted and begun.
      if (fetch.state !== 'queued') continue;
      fetch.state = 'active';
      this.#active.add(fetch);
      this.#begin(fetch);
    }
  }

  #begin(fetch: RangeFetch): void {
    const now = this.#aio.now();
    const { timeoutNs } = this.#settings;
    fetch.deadline = now + 2 * timeoutNs;
    fetch.limit = now + 4 * timeoutNs + (fetch.length / BYTES_PER_SECOND_MIN) * NS;
    this.#attempt(fetch);
  }

  #leave(fetch: RangeFetch): void {
    fetch.state = 'over';
    if (!this.#active.delete(fetch) || this.#closed) return;
    this.#pump();
    if (this.#active.size === 0) this.#onIdle();
  }

  #attempt(fetch: RangeFetch): void {
    const { timeoutNs } = this.#settings;
    const first = fetch.at + fetch.received;
    fetch.attempts++;
    fetch.attempt = new Attempt(this.#aio, fetch, timeoutNs);
    fetch.attempt.start(this.#transport, fetch.url, {
      ...(this.#whole ? {} : { range: `bytes=${first}-${fetch.at + fetch.length - 1}` }),
      // What is compressed on the way is not the file's bytes, and can be without end.
      'accept-encoding': 'identity',
      'user-agent': 'blockplane',
      ...this.#condition(),
      ...(fetch.url.origin === this.#settings.url.origin ? this.#settings.secrets : {}),
    });
  }

  /** Weak tags cannot be used for this; they are compared all the same. [RFC 9110, 13.1.5] */
  #condition(): Record<string, string> {
    const validator = this.#validator;
    if (validator?.header !== 'etag' || validator.value.startsWith('W/')) return {};
    return { 'if-range': validator.value };
  }

  /** @internal */
  judge(fetch: RangeFetch, status: number, headers: Headers): Verdict {
    if (REDIRECTS.has(status)) {
      const to = redirected(fetch.url, headerOf(headers, 'location'), this.#settings.insecureRedirects);
      return typeof to === 'string' ? failed(to, false) : { kind: 'redirect', to };
    }
    if (!this.#known && isEmptyFile(status, headers)) return this.#learn(fetch, 0, headers, { kind: 'empty' });
    if (this.#whole && status === 200) return this.#judgeWhole(fetch, headers);
    if (status === 206) return this.#judgeRange(fetch, headers);
    if (status === 200) {
      if (!this.#known) return failed(NO_RANGES, false, Errno.ENOTSUP);
      return this.#sameState(headers) ?? failed('the server does not serve ranges any more', false);
    }
    if (status === 416 && this.#known) return changed('the server says that it is shorter than it was');
    const why = `the server answered ${status}`;
    if (EXPIRED.has(status) && fetch.url !== this.#settings.url && fetch.redirects === 0) {
      return { kind: 'redirect', to: this.#settings.url };
    }
    if (status === 401 || status === 403) return failed(`${why} (not allowed)`, false, Errno.EACCES);
    if (status === 404 || status === 410) return failed(`${why} (not found)`, false, Errno.ENOENT);
    if (status === 407) return failed(`the proxy answered ${status}`, false, Errno.EACCES);
    const failure: Failure = { errno: Errno.EIO, why, retry: PASSING.has(status), afterSeconds: retryAfter(headers) };
    return { kind: 'failed', failure };
  }

  #judgeWhole(fetch: RangeFetch, headers: Headers): Verdict {
    const coding = wrongCoding(headers);
    if (coding !== undefined) return failed(coding, false);
    const [digits] = /^\d{1,16}$/.exec(headerOf(headers, 'content-length') ?? '') ?? [];
    const length = Number(digits ?? 0);
    if (length === 0 || length > MAX_OFFSET) {
      return failed('the server does not say how long the file is (Content-Length)', false);
    }
    return this.#learn(fetch, length, headers, { kind: 'body', length });
  }

  #judgeRange(fetch: RangeFetch, headers: Headers): Verdict {
    const coding = wrongCoding(headers);
    if (coding !== undefined) return failed(coding, false);
    const range = contentRange(headers);
    if (range === undefined) return failed('the server does not say which bytes it sends (Content-Range)', false);
    const state = this.#sameState(headers);
    if (state !== undefined) return state;
    if (this.#known && range.total !== this.length) {
      return changed(`it had ${this.length} bytes, and has ${range.total}`);
    }
    const first = fetch.at + fetch.received;
    if (range.first !== first || range.last >= fetch.at + fetch.length) {
      return failed(`the server sends bytes ${range.first} to ${range.last}, which were not asked for`, false);
    }
    const length = range.last - range.first + 1;
    const announced = headerOf(headers, 'content-length');
    if (announced !== undefined && announced !== String(length)) {
      return failed('Content-Length and Content-Range do not fit together', false);
    }
    const verdict: Verdict = { kind: 'body', length };
    return this.#known ? verdict : this.#learn(fetch, range.total, headers, verdict);
  }

  /** A verdict when the file has changed. */
  #sameState(headers: Headers): Verdict | undefined {
    if (!this.#known || this.#validator === undefined) return undefined;
    const { header, value } = this.#validator;
    return headerOf(headers, header) === value
      ? undefined
      : changed(`its ${header === 'etag' ? 'ETag' : 'Last-Modified'} differs`);
  }

  /** What the first answer says is what the file is from here on. */
  #learn(fetch: RangeFetch, length: Bytes, headers: Headers, verdict: Verdict): Verdict {
    this.#known = true;
    this.length = length;
    this.#validator = validatorOf(headers);
    this.found = fetch.url;
    fetch.length = Math.min(fetch.length, length - fetch.at);
    return verdict;
  }

  /** @internal An attempt is over. */
  ended(fetch: RangeFetch, verdict: Verdict): void {
    switch (verdict.kind) {
      case 'redirect':
        this.#redirect(fetch, verdict.to);
        return;
      case 'failed':
        this.#failed(fetch, verdict.failure);
        return;
      default:
        this.found = fetch.url;
        // A server may send less of a range than was asked for.
        if (fetch.received === fetch.length) this.#finish(fetch, null);
        else if (fetch.attempts < fetch.attemptsMax) this.#again(fetch, 0);
        else this.#failed(fetch, { errno: Errno.EIO, why: 'the server sends it in too many pieces', retry: false });
    }
  }

  #redirect(fetch: RangeFetch, to: URL): void {
    fetch.url = to;
    if (++fetch.redirects > REDIRECTS_MAX) {
      this.#failed(fetch, { errno: Errno.ELOOP, why: `more than ${REDIRECTS_MAX} redirects`, retry: false });
    } else this.#again(fetch, 0);
  }

  #failed(fetch: RangeFetch, failure: Failure): void {
    if (failure.changed) {
      this.broken ??= this.#error(`Could not read '${this.#settings.shown}'`, failure);
      this.#finish(fetch, this.broken);
      return;
    }
    const waitNs = Math.max(
      Math.min(BACKOFF_NS * 2 ** fetch.tries, BACKOFF_MAX_NS),
      Math.min((failure.afterSeconds ?? 0) * NS, this.#settings.timeoutNs),
    );
    // As long as bytes come, it goes on.
    if (fetch.received > 0 && fetch.tries === 0) fetch.deadline = this.#aio.now() + 2 * this.#settings.timeoutNs;
    // Without ranges it cannot go on where it was.
    const cut = this.#whole && fetch.received > 0;
    const inTime =
      !cut && this.#aio.now() + waitNs < Math.min(fetch.deadline, fetch.limit) && fetch.attempts < fetch.attemptsMax;
    if (failure.retry && inTime && fetch.tries++ < this.#settings.retries) {
      this.#again(fetch, waitNs);
      return;
    }
    const what = this.#known && !this.#whole ? `read ${fetch.length} bytes at ${fetch.at} of` : 'open';
    this.#finish(fetch, this.#error(`Could not ${what} '${this.#settings.shown}'`, failure));
  }

  #error(what: string, { errno, why }: Failure): BlockError {
    return new BlockError(errno, `${what}: ${why}`, { where: { path: this.#settings.shown } });
  }

  #again(fetch: RangeFetch, afterNs: Nanoseconds): void {
    const go = (): void => {
      if (fetch.state !== 'active') return;
      if (this.broken) this.#finish(fetch, this.broken);
      else this.#attempt(fetch);
    };
    if (afterNs > 0) this.#aio.timer(go, 'http back-off').armIn(afterNs);
    else this.#aio.oneshot(go, 'http');
  }

  #finish(fetch: RangeFetch, failure: BlockError | null): void {
    this.#leave(fetch);
    fetch.sink.done(failure);
  }
}

function changed(why: string): Verdict {
  const text = `${errnoText(Errno.ESTALE)}: it was changed on the server (${why})`;
  return { kind: 'failed', failure: { errno: Errno.ESTALE, why: text, retry: false, changed: true } };
}
