/** Copies of what is dirty, between two disks of memory: when what was written is made stable. */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { Sim } from '../aio/sim/sim.ts';
import { Errno } from '../base/errors.ts';
import { MiB } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import { registerTestDrivers, settle, type TestDisk, testDisk, until } from '../block/testing.ts';
import { DirtyCopy } from './dirty-copy.ts';

before(registerTestDrivers);

const SIZE = 80 * MiB;

interface World {
  readonly to: BlockBackend;
  readonly copy: DirtyCopy;
  readonly target: TestDisk;
}

async function inWorld(body: (world: World) => Promise<void>): Promise<void> {
  const sim = new Sim(1);
  sim.driveItself();
  const context = new AioContext(sim.backend());
  try {
    const disks = ['from', 'to'].map((name) => testDisk(name, SIZE));
    for (const disk of disks) disk.missing.add('status');
    const [from, to] = await Promise.all(
      ['from', 'to'].map((disk) => BlockBackend.open(context, { driver: 'memory', disk } as never)),
    );
    // As jobs do: none goes on while a side is drained.
    const rest = async (): Promise<void> => {
      while (to!.quiesce > 0) await settle(1);
    };
    const nothing = { before: rest, onDone: () => undefined, onFailure: () => false };
    const copy = new DirtyCopy(from!, to!, SIZE, {
      granularity: MiB,
      bufferBytes: 4 * MiB,
      unmap: true,
      ...nothing,
    });
    copy.mark(0, SIZE);
    await body({ to: to!, copy, target: disks[1]! });
    for (const blk of [from!, to!]) await blk.close().catch(() => undefined);
  } finally {
    await context.stop();
  }
}

test('what is copied is flushed on the way, one flush at a time, and a copy ends after the last', async () => {
  await inWorld(async ({ copy, target }) => {
    target.hold('flush');
    let ended = false;
    const running = copy.run().then(() => {
      ended = true;
    });
    await until(() => copy.remaining === 0, 'all is copied');
    assert.equal(target.waiting('flush'), 1);
    assert.equal(ended, false);
    const before = target.log.slice(0, target.log.indexOf('flush')).filter((line) => line.startsWith('write'));
    assert.equal(before.length, 32);
    target.release('flush');
    await running;
    assert.equal(target.log.filter((line) => line === 'flush').length, 1);
  });
});

test('a flush on the way that fails ends the copy, though one after it would succeed', async () => {
  await inWorld(async ({ copy, target, to }) => {
    target.script.push({ op: 'flush', errno: Errno.EIO });
    await assert.rejects(copy.run(), { code: 'EIO' });
    assert.ok(copy.remaining > 0);
    await to.flush();
  });
});

test('D1 a drained section of the target waits for a flush on the way, and none begins in it', async () => {
  await inWorld(async ({ copy, target, to }) => {
    target.hold('flush');
    const running = copy.run();
    await until(() => target.waiting('flush') === 1, 'a flush');
    let drained: Disposable | undefined;
    const draining = to.drain().then((section) => {
      drained = section;
    });
    await until(() => !copy.drainBusy(), 'the pieces that had begun');
    await settle(20);
    assert.equal(drained, undefined);
    target.release('flush');
    await draining;
    const { length } = target.log;
    await settle(20);
    assert.equal(target.log.length, length);
    drained![Symbol.dispose]();
    await running;
    assert.equal(copy.remaining, 0);
  });
});
