import assert from 'node:assert/strict';
import { before } from 'node:test';
import type { AioContext } from '../../aio/context.ts';
import { inContext } from '../../aio/testing.ts';
import { BlockBackend } from '../../block/backend.ts';
import { registerDriver } from '../../block/registry.ts';
import { registerTestDrivers, testDisk, testIov } from '../../block/testing.ts';
import { blkverifyDriver } from './driver.ts';

before(() => {
  registerTestDrivers();
  registerDriver(blkverifyDriver);
});

function open(context: AioContext): Promise<BlockBackend> {
  const [raw, test] = ['raw', 'test'].map((disk) => ({ driver: 'memory', disk }));
  return BlockBackend.open(context, { driver: 'blkverify', raw, test } as never);
}

inContext('both get what is written, and reads are the same in both or an error that says where', async (context) => {
  const [raw, tested] = [testDisk('raw', 65_536), testDisk('test', 65_536)];
  const blk = await open(context);
  await blk.write(100, testIov(context, [5000], 1));
  await blk.writeZeroes(1000, 100);
  assert.deepEqual(raw.bytes, tested.bytes);
  assert.equal(raw.bytes[1000], 0);
  await blk.read(0, testIov(context, [65_536]));
  tested.bytes[4321]! ^= 1;
  await assert.rejects(blk.read(4000, testIov(context, [1000])), {
    ...{ code: 'EIO', message: 'blkverify: read offset=4000 bytes=1000 contents mismatch at offset 4321' },
  });
  await blk.read(0, testIov(context, [4321]));
  await blk.close();
});

inContext('a request that fails in one of them only is a mismatch, in both an error', async (context) => {
  const [raw, tested] = [testDisk('raw', 65_536), testDisk('test', 65_536)];
  const blk = await open(context);
  tested.script.push({ op: 'write', errno: 28 });
  await assert.rejects(blk.write(0, testIov(context, [512])), { message: /return value mismatch -28 != 0$/ });
  for (const disk of [raw, tested]) disk.script.push({ op: 'write', errno: 28 });
  await assert.rejects(blk.write(0, testIov(context, [512])), { code: 'ENOSPC' });
  await blk.close();
});
