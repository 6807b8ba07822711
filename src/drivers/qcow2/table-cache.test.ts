import assert from 'node:assert/strict';
import type { AioContext } from '../../aio/context.ts';
import { inContext } from '../../aio/testing.ts';
import type { Iov, Memory } from '../../base/memory.ts';
import type { Child } from '../../block/driver.ts';
import { MISS, TableCache } from './table-cache.ts';

const SLICE = 512;

/** A file whose bytes are the numbers of their slices; every `nowEvery`th read is of bytes at hand. */
function cacheOf(aio: AioContext, slots: number, nowEvery = Infinity): TableCache {
  let reads = 0;
  const file = {
    read: async (at: number, iov: Iov) => iov.fill(at / SLICE),
    readNow: (at: number, memory: Memory, offset: number, length: number) => {
      if (++reads % nowEvery !== 0) return false;
      memory.bytes.fill(at / SLICE, offset, offset + length);
      return true;
    },
  } as unknown as Child;
  return new TableCache({ aio, file, sliceSize: SLICE, slots, sync: async () => undefined });
}

inContext('more coroutines than slots all get their slice, and see what is in it', async (aio) => {
  for (const nowEvery of [Infinity, 1, 3]) await contest(cacheOf(aio, 2, nowEvery));
});

async function contest(cache: TableCache): Promise<void> {
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
}

inContext('a slice whose bytes are at hand is there at once, and only once; others are not', async (aio) => {
  const cache = cacheOf(aio, 4, 2);
  assert.equal(cache.loadNow(0), MISS);
  const slot = cache.loadNow(SLICE);
  assert.equal(cache.find(SLICE), slot);
  assert.equal(cache.view.getUint8(slot * SLICE), 1);
  await cache.load(SLICE);
  assert.equal(cache.stats.misses, 1, 'it was there');
  const loading = cache.load(2 * SLICE);
  assert.equal(cache.loadNow(2 * SLICE), MISS, 'it is on its way');
  await loading;
});

inContext('nothing is evicted while there are empty slots, however slices are loaded', async (aio) => {
  for (const nowEvery of [Infinity, 1, 2, 3]) {
    const cache = cacheOf(aio, 16, nowEvery);
    for (let index = 0; index < 16; index++) {
      if (cache.find(index * SLICE) === MISS && cache.loadNow(index * SLICE) === MISS) await cache.load(index * SLICE);
    }
    assert.equal(cache.stats.evictions, 0);
    for (let index = 0; index < 16; index++) assert.notEqual(cache.find(index * SLICE), MISS);
  }
});

inContext('a slice that nobody has come for can be evicted', async (aio) => {
  const cache = cacheOf(aio, 2);
  for (let index = 0; index < 10; index++) await cache.load(index * SLICE);
  assert.notEqual(cache.find(9 * SLICE), MISS);
});
