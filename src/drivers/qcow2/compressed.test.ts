import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { inflateRawSync } from 'node:zlib';
import { needs, run, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { Iov } from '../../base/memory.ts';
import { KiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { RequestFlags } from '../../block/driver.ts';
import { BlockStatus } from '../../block/status.ts';
import { testDisk } from '../../block/testing.ts';
import { CompressedClusters } from './compressed.ts';
import { makeImage, registerQcow2 } from './testing.ts';

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

test('compressed clusters beside each other are one extent, and read as what was written', async (t) => {
  registerQcow2();
  const file = { driver: 'file', filename: join(scratch(t), 'image') };
  writeFileSync(file.filename, '');
  const context = new AioContext(new PoolBackend());
  const count = 40;
  await makeImage(context, file, { size: (count + 1) * CLUSTER, 'cluster-size': CLUSTER });
  const blk = await BlockBackend.open(context, { driver: 'qcow2', file });
  const bytes = Iov.of(context.backend.memory(new Uint8Array(new SharedArrayBuffer(count * CLUSTER))));
  for (let i = 0; i < count; i++) bytes.fill(i + 1, i * CLUSTER, CLUSTER);
  await blk.write(0, bytes, RequestFlags.COMPRESSED);
  const status = new BlockStatus();
  await blk.blockStatus(512, count * CLUSTER, status);
  assert.deepEqual([status.length, status.data], [count * CLUSTER - 512, true]);
  const back = Iov.of(context.backend.memory(new Uint8Array(new SharedArrayBuffer(count * CLUSTER - 1024))));
  await blk.read(512, back);
  assert.ok(back.run(0).every((byte, i) => byte === 1 + Math.floor((512 + i) / CLUSTER)));
  await blk.close();
  await context.stop();
});

const CLUSTER = 4 * KiB;
const SIZE = 4 * CLUSTER + 512;
/** Compressed writes, and whether they can be. */
const WRITES: readonly (readonly [at: number, length: number, whole: boolean])[] = [
  [0, CLUSTER, true],
  [CLUSTER, 2 * CLUSTER, true],
  [4 * CLUSTER, 512, true],
  [3 * CLUSTER, CLUSTER + 512, true],
  [0, 512, false],
  [512, CLUSTER - 512, false],
  [512, CLUSTER, false],
  [CLUSTER, CLUSTER + 512, false],
  [2 * CLUSTER + 512, 2 * CLUSTER, false],
];

test('a compressed write of a part of a cluster is refused, and nothing is written', needs('qemu-io'), async (t) => {
  registerQcow2();
  const path = join(scratch(t), 'image');
  const file = { driver: 'file', filename: path };
  const context = new AioContext(new PoolBackend());
  for (const [at, length, whole] of WRITES) {
    writeFileSync(path, '');
    await makeImage(context, file, { size: SIZE, 'cluster-size': CLUSTER });
    const { stdout, stderr } = await run('qemu-io', ['-f', 'qcow2', '-c', `write -c ${at} ${length}`, path]);
    assert.match(stdout + stderr, whole ? /^wrote/ : /Invalid argument/, `qemu-io: ${length} at ${at}`);
    const blk = await BlockBackend.open(context, { driver: 'qcow2', file });
    const memory = (size: number): Iov => Iov.of(context.backend.memory(new Uint8Array(new SharedArrayBuffer(size))));
    const bytes = memory(length);
    bytes.fill(7);
    const write = blk.write(at, bytes, RequestFlags.COMPRESSED);
    if (whole) await write;
    else await assert.rejects(write, { code: 'EINVAL', message: /clusters of 4096 bytes, not/ });
    const disk = memory(SIZE);
    await blk.read(0, disk);
    const written = disk.run(0).reduce((sum, byte) => sum + (byte === 7 ? 1 : 0), 0);
    assert.equal(written, whole ? length : 0, `${length} at ${at}`);
    await blk.close();
  }
  await context.stop();
});
