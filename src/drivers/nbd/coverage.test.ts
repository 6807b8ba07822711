import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Coverage } from './coverage.ts';

test('pieces in any order are told from pieces that come again, as a model of single bytes does', () => {
  const piece = fc.tuple(fc.nat(63), fc.integer({ min: 1, max: 16 }));
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 40 }), (pieces) => {
      const coverage = new Coverage();
      const model = new Set<number>();
      for (const [from, length] of pieces) {
        const bytes = Array.from({ length }, (_, i) => from + i);
        const fresh = bytes.every((byte) => !model.has(byte));
        assert.equal(coverage.add(from, from + length), fresh);
        // The connection ends with the first that is not.
        if (!fresh) return;
        for (const byte of bytes) model.add(byte);
        assert.equal(coverage.bytes, model.size);
      }
    }),
    { numRuns: 1000 },
  );
});

test('pieces apart from each other have a bound', () => {
  const coverage = new Coverage();
  for (let i = 0; i < 1024; i++) assert.equal(coverage.add(2 * i, 2 * i + 1), true);
  assert.equal(coverage.add(4096, 4097), false);
});
