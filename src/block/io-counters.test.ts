import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TICKS } from '../aio/context.ts';
import { IoCounters, LATENCY_BUCKETS, ticksSince } from './io-counters.ts';
import { RequestKind } from './request.ts';

test('a latency is counted in the bucket of its power of two, at both ends as well', () => {
  const values: readonly (readonly [number, number])[] = [
    [0, 9],
    [1, 10],
    [2, 11],
    [1023, 19],
    [1024, 20],
    [2 ** 29 - 1, 38],
    [2 ** 29, 39],
    [2 ** 30 - 1, 39],
  ];
  for (const [ticks, bucket] of values) {
    const counters = new IoCounters();
    counters.ended(RequestKind.WRITE, 512, 0, ticks);
    const { latencyBuckets } = counters.snapshot().write;
    assert.equal(latencyBuckets.length, LATENCY_BUCKETS);
    assert.equal(latencyBuckets.indexOf(1), bucket, String(ticks));
  }
});

test('counters made of the same words say the same, each kind for itself', () => {
  const counters = new IoCounters();
  counters.requests += 3;
  counters.slow++;
  counters.ended(RequestKind.READ, 4096, 0, 100);
  counters.ended(RequestKind.READ, 4096, -5, 100);
  counters.ended(RequestKind.ZERO, 2 ** 40, 0, 100);
  const { requests, slow, read, write, zero } = new IoCounters(structuredClone(counters.words)).snapshot();
  assert.deepEqual([requests, slow], [3, 1]);
  assert.deepEqual([read.requests, read.failed, read.bytes], [2, 1, 4096]);
  assert.equal(read.latencyBuckets[16], 2);
  assert.equal(zero.bytes, 2 ** 40);
  assert.equal(write.requests, 0);
});

test('time goes on when the ticks begin again', () => {
  assert.equal(ticksSince(5, 7), 2);
  assert.equal(ticksSince(TICKS - 1, 1), 2);
});
