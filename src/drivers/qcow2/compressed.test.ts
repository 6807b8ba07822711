import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inflateRawSync } from 'node:zlib';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { KiB } from '../../base/units.ts';
import { testDisk } from '../../block/testing.ts';
import { CompressedClusters } from './compressed.ts';

test('T4 at most four clusters of an image are compressed at a time, and all of them in the end', async () => {
  const context = new AioContext(new PoolBackend());
  // Packing does not look at the file.
  const file = testDisk('compressed', 0) as never;
  const clusters = new CompressedClusters({ aio: context, file, clusterSize: 64 * KiB, type: 0 });
  const seen: number[] = [];
  const works = Array.from({ length: 20 }, async (_, i) => {
    const packed = await clusters.pack(new Uint8Array(64 * KiB).fill(i));
    seen.push(clusters.running);
    return packed!;
  });
  seen.push(clusters.running);
  const packed = await Promise.all(works);
  assert.equal(Math.max(...seen), 4);
  assert.equal(clusters.running, 0);
  for (const [i, bytes] of packed.entries()) {
    const plain = inflateRawSync(bytes);
    assert.ok(plain.length === 64 * KiB && plain.every((byte) => byte === i), `cluster ${i}`);
  }
  await context.stop();
});
