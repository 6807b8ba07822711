import assert from 'node:assert/strict';
import { before } from 'node:test';
import type { AioContext } from '../../aio/context.ts';
import { inContext } from '../../aio/testing.ts';
import type { Iov } from '../../base/memory.ts';
import { MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { registerDriver } from '../../block/registry.ts';
import { registerTestDrivers, testDisk, testIov } from '../../block/testing.ts';
import type { Qcow2Node } from '../qcow2/driver.ts';
import { makeImage, registerQcow2 } from '../qcow2/testing.ts';
import { compressDriver } from './driver.ts';

before(() => {
  registerTestDrivers();
  registerQcow2();
  registerDriver(compressDriver);
});

function filled(context: AioContext, bytes: number, value: number): Iov {
  const iov = testIov(context, [bytes]);
  iov.run(0).fill(value);
  return iov;
}

inContext('all that is written is compressed, in whole clusters, up to the end of the disk', async (context) => {
  testDisk('image', 0);
  const file = { driver: 'memory', disk: 'image' };
  await makeImage(context, file, { size: MiB + 512 });
  const image = { driver: 'qcow2', file };
  const blk = await BlockBackend.open(context, { driver: 'compress', file: image });
  await blk.write(100, filled(context, 100_000, 3));
  await blk.write(MiB, filled(context, 512, 4));
  await blk.write(0, filled(context, 10, 5));
  const all = testIov(context, [100_100]);
  await blk.read(0, all);
  const [head, gap, rest] = [all.run(0).subarray(0, 10), all.run(0).subarray(10, 100), all.run(0).subarray(100)];
  for (const [bytes, value] of [
    [head, 5],
    [gap, 0],
    [rest, 3],
  ] as const)
    assert.ok(bytes.every((byte) => byte === value));
  await blk.close();
  const plain = await BlockBackend.open(context, { ...image, 'read-only': true });
  const { compressedClusters, allocatedClusters } = await (plain.root!.impl as Qcow2Node).check('none');
  assert.deepEqual([compressedClusters, allocatedClusters], [3, 3]);
  await plain.close();
  await assert.rejects(BlockBackend.open(context, { driver: 'compress', file }), { code: 'ENOTSUP' });
});
