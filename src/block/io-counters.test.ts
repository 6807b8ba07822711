import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoCounters, LATENCY_BUCKETS } from './io-counters.ts';
import { RequestKind } from './request.ts';

test('a latency is counted in the bucket of its power of two, at both ends as well', () => {
  const values: readonly (readonly [number, number])[] = [
    [-5, 0],
    [0, 0],
    [1, 0],
    [2, 1],
    [1023, 9],
    [1024, 10],
    [2 ** 31 - 1, 30],
    [2 ** 31, 31],
    [2 ** 35 + 0.5, 35],
    [2 ** 39, 39],
    [2 ** 60, 39],
  ];
  for (const [ns, bucket] of values) {
    const counters = new IoCounters();
    counters.ended(RequestKind.WRITE, 512, 0, ns);
    const { latencyBuckets } = counters.snapshot().write;
    assert.equal(latencyBuckets.length, LATENCY_BUCKETS);
    assert.equal(latencyBuckets.indexOf(1), bucket, String(ns));
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
  assert.equal(read.latencyBuckets[6], 2);
  assert.equal(zero.bytes, 2 ** 40);
  assert.equal(write.requests, 0);
});
