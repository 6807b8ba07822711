import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ClusterCounts } from './cluster-counts.ts';

/** Numbers near each other, far apart, and at the edges of pages and of 32 bits. */
const index = fc.oneof(
  fc.integer({ min: 0, max: 300 }),
  fc.integer({ min: 2 ** 32 - 70, max: 2 ** 32 + 70 }),
  fc.integer({ min: 0, max: 2 ** 44 }),
);
const times = fc.oneof(fc.constant(1), fc.integer({ min: 0, max: 300 }), fc.integer({ min: 0, max: 2 ** 51 }));
const additions = fc.array(fc.tuple(index, times), { maxLength: 200 });

function counted(entries: readonly (readonly [number, number])[]): {
  readonly counts: ClusterCounts;
  readonly model: Map<number, number>;
} {
  const counts = new ClusterCounts();
  const model = new Map<number, number>();
  for (const [at, add] of entries) {
    const sum = Math.min((model.get(at) ?? 0) + add, Number.MAX_SAFE_INTEGER);
    model.set(at, sum);
    if (sum < Number.MAX_SAFE_INTEGER) assert.equal(counts.add(at, add), sum);
    else counts.set(at, sum);
  }
  return { counts, model };
}

test('counts are those of a map, whatever their size and distance', () => {
  fc.assert(
    fc.property(additions, (entries) => {
      const { counts, model } = counted(entries);
      for (const [at, count] of model) assert.equal(counts.get(at), count);
      const visited: (readonly [number, number])[] = [];
      counts.forEach((at, count) => {
        visited.push([at, count]);
      });
      const expected = [...model].filter(([, count]) => count !== 0).sort(([a], [b]) => a - b);
      assert.deepEqual(visited, expected);
      assert.equal(counts.last, expected.at(-1)?.[0] ?? -1);
    }),
  );
});

test('differences are all numbers with two counts, in order', () => {
  fc.assert(
    fc.property(additions, additions, (some, more) => {
      const a = counted(some);
      const b = counted([...some.slice(0, 50), ...more]);
      const seen: number[][] = [];
      a.counts.differences(b.counts, (...difference) => {
        seen.push(difference);
      });
      const expected = [...new Set([...a.model.keys(), ...b.model.keys()])]
        .map((at) => [at, a.model.get(at) ?? 0, b.model.get(at) ?? 0])
        .filter(([, count, other]) => count !== other)
        .sort(([x], [y]) => x! - y!);
      assert.deepEqual(seen, expected);
    }),
  );
});

test('looking at a count does not make one', () => {
  const counts = new ClusterCounts();
  for (let i = 0; i < 1000; i++) assert.equal(counts.get(i * 1e9), 0);
  assert.equal(counts.last, -1);
});
