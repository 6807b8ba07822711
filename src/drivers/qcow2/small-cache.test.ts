/** Caches that are far smaller than the tables: whatever was brought in may be gone again before it is used. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { Iov } from '../../base/memory.ts';
import { Prng } from '../../base/prng.ts';
import { KiB, MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { makeImage } from './testing.ts';
import { countedFile, mistakes, registerCounted } from './testing-counted.ts';

const SIZE = 8 * MiB;
const CLUSTER = 512;
const TOGETHER = 24;

test('requests all over the disk are right with four slices of tables', { timeout: 60_000 }, async () => {
  registerCounted();
  mistakes.length = 0;
  const context = new AioContext(new PoolBackend());
  const file = countedFile('small-cache', new Uint8Array(0));
  const child = { driver: 'counted', file: 'small-cache' };
  await makeImage(context, child, { size: SIZE, 'cluster-size': CLUSTER });
  const prng = new Prng(1);
  file.prng = prng.fork();
  const blk = await BlockBackend.open(context, {
    ...{ driver: 'qcow2-watched', discard: 'unmap', 'cache-clean-interval': 0, file: child },
    ...{ 'l2-cache-size': 4 * CLUSTER, 'refcount-cache-size': 16 * CLUSTER },
  });
  const model = new Uint8Array(SIZE);
  const memory = (length: number, value: number): Iov =>
    Iov.of(context.backend.memory(new Uint8Array(new SharedArrayBuffer(length)).fill(value)));
  for (let round = 0; round < 60; round++) {
    const works: Promise<void>[] = [];
    // Each in a part of the disk of its own, so that it is known what is there in the end.
    for (let i = 0; i < TOGETHER; i++) {
      const part = SIZE / TOGETHER;
      const at = Math.ceil((i * part) / CLUSTER + prng.below(part / CLUSTER - 64)) * CLUSTER;
      const length = prng.between(1, 60) * CLUSTER;
      const value = prng.chance(0.3) ? 0 : prng.between(1, 255);
      model.fill(value, at, at + length);
      works.push(value === 0 ? blk.discard(at, length) : blk.write(at, memory(length, value)));
    }
    if (round % 7 === 0) works.push(blk.flush());
    await Promise.all(works);
  }
  for (let at = 0; at < SIZE; at += 64 * KiB) {
    const iov = memory(64 * KiB, 0xee);
    await blk.read(at, iov);
    const wrong = iov.run(0).findIndex((byte, i) => byte !== model[at + i]);
    assert.ok(wrong < 0, `byte ${at + wrong} is ${iov.run(0)[wrong]}, not ${model[at + wrong]}`);
  }
  await blk.close();
  assert.deepEqual(mistakes, []);
  await context.stop();
});
