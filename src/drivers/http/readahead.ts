/**
 * Reading ahead of sequential readers, so that a line with latency is kept full.
 *
 * A read that begins where another ended makes a stream. Ahead of it a window of segments is fetched, each a range
 * request of its own; the window doubles as the stream moves on, up to its share of the limit. What is read elsewhere
 * neither waits for this nor disturbs it. Memory: all segments together never have more bytes than the limit.
 */
import type { AioContext } from '../../aio/context.ts';
import type { BlockError } from '../../base/errors.ts';
import { type Bytes, KiB, MiB, type Nanoseconds, type Offset } from '../../base/units.ts';
import type { ReadJob } from './read-job.ts';
import type { RangeFetch, RangeSink, Remote } from './remote.ts';

const SEGMENT_MIN = 64 * KiB;
const SEGMENT_MAX = 4 * MiB;
const WINDOW_FIRST = 256 * KiB;
/** A window is no more than what its reader has had in this time: on a slow line more would bring nothing, and who
 *  reads elsewhere would have to wait for it. Above any latency, so that a window can grow. */
const WINDOW_NS: Nanoseconds = 2e9;
const STREAMS_MAX = 4;
/** Ends of reads that a next one may begin at: as many as a deep queue has in flight. */
const RECENT = 64;
/** Reads of a stream may come in another order than they were made in, as far apart as this. */
const DISORDER = MiB;
/** Reads elsewhere after which a stream counts as over. */
const IDLE_READS = 1024;

interface Stream {
  /** Where its reader goes on. */
  next: Offset;
  /** End of what was fetched, or is. */
  fetchedTo: Offset;
  window: Bytes;
  /** In reads of the node. */
  lastUse: number;
  /** Bytes that were used up since then. Both are halved now and then, so that what was long ago counts less. */
  used: Bytes;
  since: Nanoseconds;
}

interface Waiter {
  readonly job: ReadJob;
  readonly at: Offset;
  readonly length: Bytes;
}

class Segment implements RangeSink {
  readonly at: Offset;
  readonly bytes: Uint8Array;
  readonly stream: Stream;
  readonly #owner: Readahead;
  readonly waiters: Waiter[] = [];
  received: Bytes = 0;
  /** Bytes that have been asked for. */
  used: Bytes = 0;
  fetch: RangeFetch | null = null;

  constructor(owner: Readahead, stream: Stream, at: Offset, bytes: Uint8Array) {
    this.#owner = owner;
    this.stream = stream;
    this.at = at;
    this.bytes = bytes;
  }

  get end(): Offset {
    return this.at + this.bytes.length;
  }

  give(waiter: Waiter): boolean {
    const from = waiter.at - this.at;
    if (from + waiter.length > this.received) return false;
    waiter.job.put(this.bytes.subarray(from, from + waiter.length), waiter.at);
    return true;
  }

  take(chunk: Uint8Array, from: Bytes): void {
    this.bytes.set(chunk, from);
    this.received = from + chunk.length;
    for (let i = 0; i < this.waiters.length; ) {
      const waiter = this.waiters[i]!;
      if (this.give(waiter)) {
        this.waiters.splice(i, 1);
        waiter.job.end(null);
      } else i++;
    }
    this.#owner.arrived(this);
  }

  done(failure: BlockError | null): void {
    this.fetch = null;
    if (failure !== null) this.#owner.lost(this);
    for (const { job } of this.waiters.splice(0)) job.end(failure);
    this.#owner.arrived(this);
  }
}

export class Readahead {
  readonly #aio: AioContext;
  readonly #remote: Remote;
  readonly #limit: Bytes;
  readonly #connections: number;
  /** What is before this is at hand anyway. */
  readonly #from: Offset;
  #segments: Segment[] = [];
  #streams: Stream[] = [];
  /** Memory of segments that are gone, for the next: no more than the limit with those that are there. */
  readonly #spare: Uint8Array[] = [];
  #bytes: Bytes = 0;
  #reads = 0;
  readonly #recent = new Float64Array(RECENT).fill(-1);
  #held = 0;

  constructor(aio: AioContext, remote: Remote, limit: Bytes, connections: number, from: Offset) {
    this.#aio = aio;
    this.#remote = remote;
    this.#limit = limit;
    this.#connections = connections;
    this.#from = from;
  }

  /** The segment that has `at`, or will have it. */
  #find(at: Offset): Segment | undefined {
    return this.#segments.find((segment) => at >= segment.at && at < segment.end);
  }

  /** How many bytes from `at` on are in one segment, which `job` gets; 0 where there is none. */
  serve(job: ReadJob, at: Offset, want: Bytes): Bytes {
    const segment = this.#find(at);
    if (segment === undefined) return 0;
    const length = Math.min(want, segment.end - at);
    const waiter = { job, at, length };
    segment.used += length;
    if (!segment.give(waiter)) {
      job.begin();
      segment.waiters.push(waiter);
      if (segment.fetch) this.#remote.promote(segment.fetch);
    }
    return length;
  }

  /** Where the next segment behind `at` begins: a direct read need go no further. */
  nextAfter(at: Offset): Offset {
    let next = Number.POSITIVE_INFINITY;
    for (const segment of this.#segments) if (segment.at > at && segment.at < next) next = segment.at;
    return next;
  }

  /** A read was made: looks whether it is part of a stream, and keeps its window full. */
  note(at: Offset, length: Bytes): void {
    if (this.#limit === 0 || this.#held > 0) return;
    this.#reads++;
    const end = at + length;
    let stream = this.#streams.find(({ next, fetchedTo }) => at >= next - DISORDER && at <= Math.max(next, fetchedTo));
    if (stream === undefined && this.#recent.includes(at)) stream = this.#newStream(end);
    this.#recent[this.#reads % RECENT] = end;
    if (stream === undefined) return;
    stream.lastUse = this.#reads;
    stream.next = Math.max(stream.next, end);
    stream.fetchedTo = Math.max(stream.fetchedTo, stream.next, this.#from);
    this.#dropUsed(stream);
    this.#topUp(stream);
  }

  #newStream(next: Offset): Stream | undefined {
    for (const idle of this.#streams.filter(({ lastUse }) => this.#reads - lastUse > IDLE_READS)) this.#forget(idle);
    if (this.#streams.length >= STREAMS_MAX) return undefined;
    const place = { next, fetchedTo: next, window: WINDOW_FIRST };
    const stream = { ...place, lastUse: this.#reads, used: 0, since: this.#aio.now() };
    this.#streams.push(stream);
    return stream;
  }

  #topUp(stream: Stream): void {
    const { length } = this.#remote;
    const most = Math.min(stream.window, this.#limit / this.#streams.length);
    // Two for each connection: one that comes, and one to go on with at once, or that the reader still has to use.
    const each = Math.min(SEGMENT_MAX, Math.max(SEGMENT_MIN, most / this.#connections / 2));
    const piece = 2 ** Math.floor(Math.log2(each));
    while (stream.fetchedTo < length) {
      const take = Math.min(piece, length - stream.fetchedTo);
      if (stream.fetchedTo + take > stream.next + most || this.#bytes + take > this.#limit) return;
      const there = this.#find(stream.fetchedTo);
      if (there) {
        stream.fetchedTo = there.end;
        continue;
      }
      const room = this.nextAfter(stream.fetchedTo) - stream.fetchedTo;
      const segment = new Segment(this, stream, stream.fetchedTo, this.#buffer(Math.min(take, room)));
      this.#segments.push(segment);
      this.#bytes += segment.bytes.length;
      stream.fetchedTo = segment.end;
      segment.fetch = this.#remote.fetch(segment.at, segment.bytes.length, segment, false);
    }
  }

  #buffer(length: Bytes): Uint8Array {
    if (this.#spare.at(-1)?.length === length) return this.#spare.pop()!;
    this.#spare.length = 0;
    return new Uint8Array(length);
  }

  /** What its reader has had, or has passed, goes; that it was used makes the window larger. */
  #dropUsed(stream: Stream): void {
    for (const segment of this.#segments.filter((one) => one.stream === stream)) {
      const used = segment.used >= segment.bytes.length;
      if (!used && segment.end + DISORDER > stream.next) continue;
      if (segment.waiters.length > 0 || (used && segment.fetch !== null)) continue;
      if (used) this.#widen(stream, segment.bytes.length);
      this.#drop(segment);
    }
  }

  /** A segment of so many bytes was used up. */
  #widen(stream: Stream, used: Bytes): void {
    stream.used += used;
    const elapsed = Math.max(1, this.#aio.now() - stream.since);
    const most = Math.max(WINDOW_FIRST, (stream.used / elapsed) * WINDOW_NS);
    stream.window = Math.min(stream.window * 2, most, this.#limit);
    if (elapsed < WINDOW_NS) return;
    stream.used /= 2;
    stream.since += elapsed / 2;
  }

  #drop(segment: Segment): void {
    const index = this.#segments.indexOf(segment);
    if (index < 0) return;
    this.#segments.splice(index, 1);
    this.#bytes -= segment.bytes.length;
    if (segment.fetch) this.#remote.cancel(segment.fetch);
    segment.fetch = null;
    this.#keep(segment.bytes);
  }

  /** Memory that was touched is worth more than new memory. */
  #keep(bytes: Uint8Array): void {
    const [other] = this.#spare;
    if (other !== undefined && other.length !== bytes.length) this.#spare.length = 0;
    if (this.#bytes + (this.#spare.length + 1) * bytes.length <= this.#limit) this.#spare.push(bytes);
  }

  #forget(stream: Stream): void {
    this.#streams = this.#streams.filter((one) => one !== stream);
    for (const segment of this.#segments.filter((one) => one.stream === stream)) {
      if (segment.waiters.length === 0) this.#drop(segment);
    }
    this.#spare.length = 0;
  }

  /** @internal Bytes of a segment have come, or its end. */
  arrived(segment: Segment): void {
    if (segment.waiters.length > 0) return;
    // Its stream is over: it was there for those that waited.
    if (!this.#streams.includes(segment.stream)) this.#drop(segment);
    else if (segment.fetch === null) {
      this.#dropUsed(segment.stream);
      this.#topUp(segment.stream);
    }
  }

  /** @internal A segment could not be fetched: whoever wants it asks the server, and gets its answer. */
  lost(segment: Segment): void {
    this.#drop(segment);
    this.#forget(segment.stream);
  }

  /** Nothing is fetched that nobody waits for, until `release`; streams begin anew after it. Nests. */
  hold(): void {
    if (this.#held++ > 0) return;
    for (const stream of this.#streams) this.#forget(stream);
  }

  release(): void {
    this.#held--;
  }
}
