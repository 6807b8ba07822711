import assert from 'node:assert/strict';
import { test } from 'node:test';
import { exitCode } from './check.ts';

test('the exit code says what is left', () => {
  const counts = { checkErrors: 0, corruptions: 0, leaks: 0, corruptionsFixed: 4, leaksFixed: 5 };
  const rest = { totalClusters: 0, allocatedClusters: 0, fragmentedClusters: 0, compressedClusters: 0 };
  const clean = { ...counts, ...rest, imageEndOffset: 0, messages: [] };
  assert.equal(exitCode(clean), 0);
  assert.equal(exitCode({ ...clean, leaks: 1 }), 3);
  assert.equal(exitCode({ ...clean, leaks: 1, checkErrors: 1 }), 1);
  assert.equal(exitCode({ ...clean, leaks: 1, corruptions: 1 }), 2);
  assert.equal(exitCode({ ...clean, checkErrors: 1, corruptions: 1 }), 1);
});
