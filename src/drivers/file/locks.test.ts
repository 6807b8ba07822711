import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AioFile } from '../../aio/backend.ts';
import { ImageLocks } from './locks.ts';

/** A file whose locks can be had until `left` calls have been made; then one fails. */
class LockFile {
  readonly path = '/image';
  readonly held = new Set<number>();
  left = Number.POSITIVE_INFINITY;
  inUse = -1;

  async lock(kind: 'read' | 'none', at: number): Promise<boolean> {
    if (kind === 'none') {
      this.held.delete(at);
      return true;
    }
    if (this.left-- === 0) return false;
    this.held.add(at);
    return true;
  }

  async testLock(_kind: string, at: number): Promise<boolean> {
    return at === this.inUse;
  }
}

test('L7 a change of locks that fails at any step leaves exactly those from before', async () => {
  for (let steps = 0; steps < 3; steps++) {
    const file = new LockFile();
    const locks = new ImageLocks(file as unknown as AioFile);
    await locks.set(1, 13);
    assert.deepEqual([...file.held].sort(), [100, 201]);
    file.left = steps;
    await assert.rejects(locks.set(11, 5), { code: 'EBUSY' }, `step ${steps}`);
    assert.deepEqual([...file.held].sort(), [100, 201], `step ${steps}`);
  }
  const file = new LockFile();
  const locks = new ImageLocks(file as unknown as AioFile);
  file.inUse = 201;
  await assert.rejects(locks.set(3, 15), /Failed to get "write" lock/);
  assert.deepEqual([...file.held], []);
});
