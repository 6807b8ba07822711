import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { Sim } from '../../aio/sim/sim.ts';
import { Errno } from '../../base/errors.ts';
import { KiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { RequestFlags } from '../../block/driver.ts';
import { registerDriver } from '../../block/registry.ts';
import { bytesOf, testIov } from '../../block/testing.ts';
import { rawDriver } from '../raw/driver.ts';
import { fileDriver } from './driver.ts';

before(() => {
  registerDriver(fileDriver);
  registerDriver(rawDriver);
});

const IMAGE = { driver: 'raw', file: { driver: 'file', filename: '/disk.img' } };

test('R5 R8 what was flushed, or written with FUA, is there after a power failure', async () => {
  for (let seed = 1; seed <= 30; seed++) {
    const sim = new Sim(seed);
    sim.writeDisk('/disk.img', new Uint8Array(256 * KiB));
    const context = new AioContext(sim.backend());
    const durable = new Map<number, number>();
    const work = async (): Promise<void> => {
      const blk = await BlockBackend.open(context, IMAGE);
      for (let i = 0; i < 12; i++) {
        const at = ((i * 5 + seed) % 16) * 16 * KiB;
        durable.delete(at);
        if (i % 3 === 0) {
          await blk.write(at, testIov(context, [4 * KiB], i), RequestFlags.FUA);
          durable.set(at, i);
        } else {
          await blk.write(at, testIov(context, [4 * KiB], i));
          if (i % 3 === 1) await blk.flush();
          if (i % 3 === 1) durable.set(at, i);
        }
      }
    };
    await sim.complete(work());
    const after = sim.crash();
    const bytes = after.readDisk('/disk.img')!;
    for (const [at, i] of durable) {
      const expected = bytesOf(testIov(context, [4 * KiB], i));
      assert.deepEqual(new Uint8Array(bytes.subarray(at, at + 4 * KiB)), expected, `seed ${seed}: write ${i} at ${at}`);
    }
  }
});

test('L6 errors of every kind of request reach the caller with their errno, whatever the latency', async () => {
  for (const [op, errno] of [
    ['read', Errno.EIO],
    ['write', Errno.ENOSPC],
    ['datasync', Errno.EIO],
  ] as const) {
    const sim = new Sim(7, { script: [{ op, nth: 1, errno }] });
    sim.writeDisk('/disk.img', new Uint8Array(64 * KiB));
    const context = new AioContext(sim.backend());
    const work = async (): Promise<void> => {
      const blk = await BlockBackend.open(context, IMAGE);
      const outcomes: unknown[] = [];
      const note = (error: { errno?: number }): void => {
        outcomes.push(error.errno);
      };
      await blk.read(0, testIov(context, [512])).catch(note);
      await blk.write(0, testIov(context, [512])).catch(note);
      await blk.flush().catch(note);
      assert.deepEqual(outcomes, [errno], op);
      await blk.close().catch(note);
      // Only a lost write is never forgotten.
      assert.deepEqual(outcomes, op === 'datasync' ? [errno, errno] : [errno], op);
    };
    await sim.complete(work());
    await sim.complete(context.stop());
  }
});

test('L6 what a FUA write through the page cache fails with is kept for every later flush', async () => {
  const sim = new Sim(3, { script: [{ op: 'datasync', nth: 1, errno: Errno.EIO }] });
  sim.writeDisk('/disk.img', new Uint8Array(64 * KiB));
  const context = new AioContext(sim.backend());
  const work = async (): Promise<void> => {
    const blk = await BlockBackend.open(context, IMAGE);
    await assert.rejects(blk.write(0, testIov(context, [512]), RequestFlags.FUA), { code: 'EIO' });
    await assert.rejects(blk.flush(), { code: 'EIO' });
    await assert.rejects(blk.write(0, testIov(context, [512]), RequestFlags.FUA), { code: 'EIO' });
    await assert.rejects(blk.close(), { code: 'EIO' });
  };
  await sim.complete(work());
  await sim.complete(context.stop());
});
