import assert from 'node:assert/strict';
import type { AioContext } from '../../aio/context.ts';
import { inContext } from '../../aio/testing.ts';
import type { Iov } from '../../base/memory.ts';
import type { Child } from '../../block/driver.ts';
import { MISS, TableCache } from './table-cache.ts';

const SLICE = 512;

/** A file whose bytes are the numbers of their slices. */
function cacheOf(aio: AioContext, slots: number): TableCache {
  const file = {
    read: async (at: number, iov: Iov) => iov.fill(at / SLICE),
  } as unknown as Child;
  return new TableCache({ aio, file, sliceSize: SLICE, slots, sync: async () => undefined });
}

inContext('more coroutines than slots all get their slice, and see what is in it', async (aio) => {
  const cache = cacheOf(aio, 2);
  const work = async (index: number): Promise<void> => {
    const key = index * SLICE;
    let loads = 0;
    while (cache.find(key) === MISS) {
      await cache.load(key);
      assert.ok(++loads < 1000, `slice ${index} is taken away again and again`);
    }
    assert.equal(cache.view.getUint8(cache.find(key) * SLICE), index);
  };
  for (let round = 0; round < 10; round++)
    await Promise.all(Array.from({ length: 7 }, (_, i) => work(i + 7 * (round % 3))));
});

inContext('a slice that nobody has come for can be evicted', async (aio) => {
  const cache = cacheOf(aio, 2);
  for (let index = 0; index < 10; index++) await cache.load(index * SLICE);
  assert.notEqual(cache.find(9 * SLICE), MISS);
});
