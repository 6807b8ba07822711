import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MiB } from '../base/units.ts';
import { Arena } from './memory.ts';

test('who finds no room waits in turn, also behind somebody who wants more than there is', async () => {
  const arena = new Arena(MiB);
  const first = await arena.acquire(MiB / 2);
  const order: string[] = [];
  const large = Promise.resolve(arena.acquire(MiB)).then((at) => {
    order.push('large');
    arena.release(at);
  });
  const small = Promise.resolve(arena.acquire(4096)).then((at) => {
    order.push('small');
    arena.release(at);
  });
  assert.equal(arena.waiting, 2);
  arena.release(first);
  await Promise.all([large, small]);
  assert.deepEqual(order, ['large', 'small']);
  assert.equal(arena.used, 0);
  assert.equal(arena.waiting, 0);
});

test('a thousand requests never hold more than the whole, and all come through', async () => {
  const arena = new Arena(MiB);
  let held = 0;
  const use = async (bytes: number): Promise<void> => {
    const at = await arena.acquire(bytes);
    held += bytes;
    assert.ok(held <= MiB);
    await null;
    held -= bytes;
    arena.release(at);
  };
  await Promise.all(Array.from({ length: 1000 }, (_, i) => use(1 + ((i * 7919) % (MiB / 2)))));
  assert.equal(arena.used, 0);
});
