import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Bug } from './assert.ts';
import { Buddy } from './buddy.ts';

test('blocks are aligned to their size, never overlap, and all of the range comes back', () => {
  const step = fc.record({ take: fc.boolean(), size: fc.integer({ min: 1, max: 70_000 }), pick: fc.nat() });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const buddy = new Buddy(1 << 16, 1 << 10);
      const held: { at: number; length: number }[] = [];
      for (const { take, size, pick } of steps) {
        if (take) {
          const at = buddy.allocate(size);
          if (at < 0) continue;
          const length = 2 ** Math.max(10, Math.ceil(Math.log2(size)));
          assert.equal(at % length, 0);
          assert.ok(at + length <= 1 << 16);
          for (const other of held) assert.ok(at >= other.at + other.length || at + length <= other.at);
          held.push({ at, length });
        } else if (held.length > 0) {
          const [gone] = held.splice(pick % held.length, 1);
          buddy.free(gone!.at);
        }
        assert.equal(
          buddy.used,
          held.reduce((sum, block) => sum + block.length, 0),
        );
      }
      for (const block of held) buddy.free(block.at);
      assert.equal(buddy.allocate(1 << 16), 0);
    }),
  );
});

test('a full range answers -1 and never more than the whole', () => {
  const buddy = new Buddy(8192, 1024);
  assert.equal(buddy.allocate(8193), -1);
  const taken = Array.from({ length: 8 }, () => buddy.allocate(1));
  assert.deepEqual(
    [...taken].sort((a, b) => a - b),
    [0, 1024, 2048, 3072, 4096, 5120, 6144, 7168],
  );
  assert.equal(buddy.allocate(1), -1);
});

test('freeing what is not handed out is a bug', () => {
  const buddy = new Buddy(8192, 1024);
  assert.throws(() => buddy.free(0), Bug);
  const at = buddy.allocate(4096);
  assert.throws(() => buddy.free(at + 1024), Bug);
  buddy.free(at);
  assert.throws(() => buddy.free(at), Bug);
});
