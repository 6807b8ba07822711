import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { pattern } from '../../test/harness.ts';
import { mergeKey, splitKey } from './anti-forensic.ts';

test('a key comes back from its stripes, and from no others', () => {
  for (const hash of ['sha1', 'sha256', 'sha512']) {
    for (const length of [16, 32, 64]) {
      const key = pattern(length, length);
      const split = splitKey(key, 40, hash);
      assert.equal(split.length, 40 * length);
      assert.deepEqual(mergeKey(split, 40, hash), key);
      for (const at of [0, split.length - 1]) {
        split[at]! ^= 1;
        assert.notDeepEqual(mergeKey(split, 40, hash), key);
        split[at]! ^= 1;
      }
    }
  }
});

test('two stripes by hand: the second is the key, masked with the hash of the first in numbered pieces', () => {
  const split = pattern(64);
  const [first, second] = [split.subarray(0, 32), split.subarray(32)];
  const piece = (number: number, bytes: Uint8Array): Uint8Array =>
    createHash('sha1')
      .update(Uint8Array.of(0, 0, 0, number))
      .update(bytes)
      .digest();
  const mask = new Uint8Array(32);
  mask.set(piece(0, first.subarray(0, 20)));
  mask.set(piece(1, first.subarray(20)).subarray(0, 12), 20);
  assert.deepEqual(
    mergeKey(split, 2, 'sha1'),
    second.map((byte, i) => byte ^ mask[i]!),
  );
});

test('a single stripe is the key itself', () => {
  assert.deepEqual(splitKey(pattern(16), 1, 'sha256'), pattern(16));
  assert.deepEqual(mergeKey(pattern(16), 1, 'sha256'), pattern(16));
});
