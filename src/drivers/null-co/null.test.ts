import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { Sim } from '../../aio/sim/sim.ts';
import { GiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { registerDriver } from '../../block/registry.ts';
import { bytesOf, testIov } from '../../block/testing.ts';
import { nullDriver } from './driver.ts';

before(() => registerDriver(nullDriver, 'null-aio'));

test('null-co is 1 GiB unless told, leaves memory alone unless read-zeroes, and takes its latency', async () => {
  const sim = new Sim(1);
  const context = new AioContext(sim.backend());
  await sim.complete(
    (async () => {
      const blk = await BlockBackend.open(context, { driver: 'null-aio' });
      assert.equal(blk.length, GiB);
      const iov = testIov(context, [512], 4);
      await blk.read(0, iov);
      assert.deepEqual(bytesOf(iov), bytesOf(testIov(context, [512], 4)));
      await blk.close();

      const slow = await BlockBackend.open(context, {
        driver: 'null-co',
        size: 4096,
        'read-zeroes': true,
        'latency-ns': 5_000_000,
      });
      for (const request of [
        () => slow.read(0, iov),
        () => slow.write(0, iov),
        () => slow.writeZeroes(0, 512),
        () => slow.flush(),
      ]) {
        const start = context.now();
        await request();
        const took = context.now() - start;
        assert.ok(took >= 5_000_000 && took < 20_000_000, `${took} ns`);
      }
      assert.ok(iov.isZero());
      await slow.close();
    })(),
  );
  await sim.complete(context.stop());
});
