/**
 * What a BlockBackend has done, in shared words: requests, bytes, failures and latencies of each kind. Written by home
 * only; any thread reads it without disturbing it.
 */
import { TICKS } from '../aio/context.ts';
import type { Bytes } from '../base/units.ts';
import { RequestKind } from './request.ts';

/** Buckets of a histogram: bucket i counts latencies from 2^i ns to below 2^(i+1). Bucket 9 has all that are shorter
 *  (they are measured in ticks of 1024 ns), the last all beyond 2^39 ns (9 minutes). */
export const LATENCY_BUCKETS = 40;
const SHORTEST = 9;

const KINDS = ['read', 'write', 'flush', 'discard', 'zero', 'cache'] as const;
const Field = { COUNT: 0, BYTES: 1, FAILED: 2, LATENCIES: 3 } as const;
const KIND_WORDS = Field.LATENCIES + LATENCY_BUCKETS;
const Word = { SUBMITTED: 0, SLOW: 1, KINDS: 2 } as const;
const WORDS = Word.KINDS + KINDS.length * KIND_WORDS;

export interface KindStats {
  /** Requests that have ended, and how many of them failed. */
  readonly requests: number;
  readonly failed: number;
  /** Of those that ended well. */
  readonly bytes: Bytes;
  /** From submission to the end; see {@link LATENCY_BUCKETS}. A turn of the loop is as short as it is told apart. */
  readonly latencyBuckets: readonly number[];
}

/** By kind of request. */
export type IoStats = Readonly<Record<Exclude<(typeof KINDS)[number], 'cache'>, KindStats>> & {
  /** Requests that came in, and those of them that took the coroutine path. */
  readonly requests: number;
  readonly slow: number;
};

export class IoCounters {
  /** Survives structured clone. */
  readonly words: Float64Array<SharedArrayBuffer>;

  constructor(words?: Float64Array<SharedArrayBuffer>) {
    this.words = words ?? new Float64Array(new SharedArrayBuffer(8 * WORDS));
  }

  /** Requests that came in. */
  get requests(): number {
    return this.words[Word.SUBMITTED]!;
  }
  set requests(value: number) {
    this.words[Word.SUBMITTED] = value;
  }

  /** Requests that took the coroutine path. */
  get slow(): number {
    return this.words[Word.SLOW]!;
  }
  set slow(value: number) {
    this.words[Word.SLOW] = value;
  }

  /** A request of a RequestKind has ended. */
  ended(kind: number, length: Bytes, error: number, ticks: number): void {
    const { words } = this;
    const at = Word.KINDS + kind * KIND_WORDS;
    words[at + Field.COUNT]!++;
    if (error === 0) words[at + Field.BYTES] = words[at + Field.BYTES]! + length;
    else words[at + Field.FAILED]!++;
    words[at + Field.LATENCIES + bucketOf(ticks)]!++;
  }

  snapshot(): IoStats {
    const of = (kind: number): KindStats => {
      const at = Word.KINDS + kind * KIND_WORDS;
      const latencies = this.words.slice(at + Field.LATENCIES, at + KIND_WORDS);
      return {
        requests: this.words[at + Field.COUNT]!,
        failed: this.words[at + Field.FAILED]!,
        bytes: this.words[at + Field.BYTES]!,
        latencyBuckets: [...latencies],
      };
    };
    return {
      requests: this.requests,
      slow: this.slow,
      read: of(RequestKind.READ),
      write: of(RequestKind.WRITE),
      flush: of(RequestKind.FLUSH),
      discard: of(RequestKind.DISCARD),
      zero: of(RequestKind.ZERO),
    };
  }
}

/** From one time to a later one, as AioContext.turnTicks tells them; less than 18 minutes. */
export function ticksSince(begun: number, now: number): number {
  return now >= begun ? now - begun : now - begun + TICKS;
}

function bucketOf(ticks: number): number {
  return ticks === 0 ? SHORTEST : Math.min(SHORTEST + 32 - Math.clz32(ticks), LATENCY_BUCKETS - 1);
}
