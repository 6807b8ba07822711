import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Prng } from './prng.ts';

test('the numbers are those of the reference implementation of xoshiro128**', () => {
  const prng = Prng.ofState(1, 2, 3, 4);
  const expected = [11520, 0, 5927040, 70819200, 2031721883, 1637235492, 1287239034, 3734860849];
  assert.deepEqual(
    expected.map(() => prng.u32()),
    expected,
  );
});

test('the same seed gives the same numbers, neighbours give others', () => {
  const numbers = (seed: number): number[] => {
    const prng = new Prng(seed);
    return Array.from({ length: 20 }, () => prng.u32());
  };
  assert.deepEqual(numbers(7), numbers(7));
  const first = new Set([0, 1, 2, 3, -1, 2 ** 32, 2 ** 32 + 1, 2 ** 53 - 1].map((seed) => numbers(seed)[0]));
  assert.equal(first.size, 8);
});

test('values stay within their ranges and reach both ends', () => {
  const prng = new Prng(1);
  const seen = new Set<number>();
  for (let i = 0; i < 1000; i++) {
    const x = prng.float();
    assert.ok(x >= 0 && x < 1);
    seen.add(prng.between(-2, 2));
    const big = prng.below(2 ** 53 - 1);
    assert.ok(Number.isSafeInteger(big) && big >= 0);
  }
  assert.deepEqual(
    [...seen].sort((a, b) => a - b),
    [-2, -1, 0, 1, 2],
  );
  assert.equal(prng.below(1), 0);
  assert.equal(prng.chance(0), false);
  assert.equal(prng.chance(1), true);
});

test('the numbers are spread evenly', () => {
  const prng = new Prng(99);
  const bins = new Array(16).fill(0);
  for (let i = 0; i < 16_000; i++) bins[prng.below(16)]++;
  // Standard deviation of a bin is about 31.
  for (const count of bins) assert.ok(Math.abs(count - 1000) < 200, String(bins));
});

test('a fork goes its own way and does not depend on what comes after it', () => {
  const a = new Prng(5);
  const b = new Prng(5);
  const [fa, fb] = [a.fork(), b.fork()];
  a.u32();
  assert.equal(fa.u32(), fb.u32());
  assert.notEqual(fa.u32(), a.u32());
});
