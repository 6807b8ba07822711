/** Throttle groups and the filter, in simulated time. */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { Gate } from '../../aio/op.ts';
import { Sim } from '../../aio/sim/sim.ts';
import { BlockBackend } from '../../block/backend.ts';
import { registerDriver } from '../../block/registry.ts';
import { registerTestDrivers, settle, testDisk, testIov } from '../../block/testing.ts';
import { ThrottleGroup, throttleGroup, throttleGroups } from '../../block/throttle-group.ts';
import { checkLimits, type ThrottleLimits } from '../../block/throttle-limits.ts';
import { throttleDriver } from './driver.ts';

const SIZE = 65_536;

before(() => {
  registerTestDrivers();
  registerDriver(throttleDriver);
});

async function inSim(body: (context: AioContext, sim: Sim) => Promise<void>): Promise<void> {
  const sim = new Sim(1);
  sim.driveItself();
  const context = new AioContext(sim.backend());
  try {
    await body(context, sim);
  } finally {
    await context.stop();
  }
}

function open(context: AioContext, group: string, disk = 'disk'): Promise<BlockBackend> {
  testDisk(disk, SIZE);
  return BlockBackend.open(context, {
    driver: 'throttle',
    'throttle-group': group,
    file: { driver: 'memory', disk },
  } as never);
}

/** Seconds that `count` requests take, all of them begun at once. */
async function seconds(context: AioContext, count: number, run: (n: number) => Promise<void>): Promise<number> {
  const begun = context.now();
  await Promise.all(Array.from({ length: count }, (_, n) => run(n)));
  return (context.now() - begun) / 1e9;
}

function near(actual: number, expected: number, what: string): void {
  assert.ok(Math.abs(actual - expected) <= 0.06 * Math.max(expected, 1), `${what}: ${actual} s, not ${expected}`);
}

test('rates: bytes and requests, of either direction or both, and what of a second may come at once', async () => {
  await inSim(async (context) => {
    const rows: readonly (readonly [ThrottleLimits, 'read' | 'write', number, number])[] = [
      // 20 requests of 4096: a tenth of a second's comes at once, and one more.
      [{ bpsTotal: { avg: 8192 } }, 'read', 4096, (20 * 4096 - 4096 - 819) / 8192],
      [{ bpsWrite: { avg: 8192 } }, 'write', 4096, (20 * 4096 - 4096 - 819) / 8192],
      [{ bpsWrite: { avg: 8192 } }, 'read', 4096, 0],
      [{ iopsTotal: { avg: 10 } }, 'write', 512, 1.8],
      [{ iopsRead: { avg: 10 } }, 'read', 512, 1.8],
      // Those of a burst come at once: 10 in a second.
      [{ iopsTotal: { avg: 5, max: 10 } }, 'read', 512, (20 - 10 - 1) / 5],
      // Two seconds at 5 a second, the rest at 1.
      [{ iopsTotal: { avg: 1, max: 5, maxLength: 2 } }, 'read', 512, 20 - 10 - 1],
      // A request of 4096 counts as four.
      [{ iopsTotal: { avg: 10 }, iopsSize: 1024 }, 'write', 4096, (80 - 1 - 4) / 10],
    ];
    for (const [limits, direction, length, expected] of rows) {
      const group = ThrottleGroup.create('g', limits);
      const blk = await open(context, 'g');
      const iov = testIov(context, [length]);
      const took = await seconds(context, 20, () => blk[direction](0, iov));
      near(took, expected, JSON.stringify(limits));
      await blk.close();
      group.delete();
    }
  });
});

test('a long burst goes at its own rate, then at the average', async () => {
  await inSim(async (context) => {
    const group = ThrottleGroup.create('g', { iopsTotal: { avg: 10, max: 100, maxLength: 3 } });
    const blk = await open(context, 'g');
    const iov = testIov(context, [512]);
    const times: number[] = [];
    const begun = context.now();
    await seconds(context, 360, () => blk.read(0, iov).then(() => void times.push((context.now() - begun) / 1e9)));
    // 100 a second, and as the bucket leaks at 10 a second a little more than 300 of them.
    near(times[199]!, 1.9, 'the 200th');
    assert.ok(times[325]! > 3 && times[325]! < 5, `${times[325]}`);
    near(times[359]! - times[349]!, 1, 'after the burst');
    await blk.close();
    group.delete();
  });
});

test('nodes of a group take turns, in one context and over two', async () => {
  await inSim(async (context, sim) => {
    const other = new AioContext(sim.backend('other'));
    const group = ThrottleGroup.create('g', { iopsTotal: { avg: 100 } });
    const there = ThrottleGroup.attach('g-there', group.memory);
    const blks = [await open(context, 'g', 'a'), await open(context, 'g', 'b'), await open(other, 'g-there', 'c')];
    const done = [0, 0, 0];
    const half = new Gate();
    const iov = testIov(context, [512]);
    const all = blks.map((blk, i) =>
      Promise.all(
        // The first has more to do than the others.
        Array.from({ length: i === 0 ? 300 : 60 }, async () => {
          await blk.read(0, iov);
          done[i]!++;
          if (done[0]! + done[1]! + done[2]! === 120) half.open();
        }),
      ),
    );
    await half.promise;
    assert.ok(Math.abs(done[0]! - done[1]!) <= 12, `${done}`);
    assert.ok(Math.min(...done) >= 15, `${done}`);
    await Promise.all(all);
    assert.throws(() => group.delete(), { code: 'EBUSY', message: /3 nodes/ });
    for (const blk of blks) await blk.close();
    group.delete();
    there.delete();
    assert.deepEqual(throttleGroups(), []);
    await other.stop();
  });
});

test('limits may change while requests wait; without any a node is as if it were not there', async () => {
  await inSim(async (context) => {
    const group = ThrottleGroup.create('g', { iopsTotal: { avg: 1 } });
    const blk = await open(context, 'g');
    const iov = testIov(context, [512]);
    let done = 0;
    const all = Array.from({ length: 50 }, () => blk.read(0, iov).then(() => done++));
    await settle();
    assert.ok(done <= 2);
    assert.throws(() => group.setLimits({ iopsTotal: { avg: -1 } }), { code: 'EINVAL' });
    const begun = context.now();
    group.setLimits({});
    await Promise.all(all);
    assert.ok(context.now() - begun < 1e8);
    const { slow } = blk.stats;
    await blk.read(0, iov);
    assert.equal(blk.stats.slow, slow);
    await blk.close();
    group.delete();
  });
});

test('nobody waits in a drained node, and what comes after waits again', async () => {
  await inSim(async (context) => {
    const group = ThrottleGroup.create('g', { bpsTotal: { avg: 1 } });
    const blk = await open(context, 'g');
    const iov = testIov(context, [512]);
    const all = Promise.all(Array.from({ length: 20 }, () => blk.write(0, iov)));
    await settle();
    const begun = context.now();
    {
      using _drained = await blk.drain();
      assert.equal(blk.inFlight, 0);
    }
    await all;
    assert.ok(context.now() - begun < 1e9);
    let over = false;
    await blk.write(0, iov);
    const next = blk.write(0, iov).then(() => {
      over = true;
    });
    await settle(20);
    assert.equal(over, false);
    const closing = blk.close();
    await Promise.all([next, closing]);
    group.delete();
  });
});

test('limits that cannot be are refused, and so are groups of a name that is taken, or none', async () => {
  const rows: readonly (readonly [ThrottleLimits, RegExp])[] = [
    [{ bpsTotal: { avg: 1 }, bpsRead: { avg: 1 } }, /'bpsTotal' cannot be given with/],
    [{ iopsTotal: { avg: 1 }, iopsWrite: { avg: 1 } }, /'iopsTotal' cannot be given with/],
    [{ bpsTotal: { avg: 2e15 } }, /'bpsTotal' has an 'avg'/],
    [{ bpsTotal: { avg: Number.NaN } }, /'avg' of NaN/],
    [{ iopsRead: { avg: 0, max: 5 } }, /no 'avg'/],
    [{ iopsRead: { avg: 10, max: 5 } }, /less than its 'avg'/],
    [{ iopsRead: { avg: 1, maxLength: 2 } }, /no 'max'/],
    [{ iopsRead: { avg: 1, max: 2, maxLength: 0 } }, /whole seconds/],
    [{ iopsRead: { avg: 1, max: 1e15, maxLength: 2 } }, /too long/],
    [{ iopsSize: 512 }, /needs a limit of requests/],
    [{ iopsTotal: { avg: 1 }, iopsSize: -1 }, /'iopsSize'/],
  ];
  for (const [limits, message] of rows) assert.throws(() => checkLimits(limits), { code: 'EINVAL', message });
  const limits = { iopsRead: { avg: 1, max: 2, maxLength: 3 }, iopsSize: 4 };
  const group = ThrottleGroup.create('g', limits);
  assert.deepEqual(group.limits.iopsRead, limits.iopsRead);
  assert.equal(throttleGroup('g'), group);
  assert.throws(() => ThrottleGroup.create('g'), { code: 'EEXIST' });
  group.delete();
  await inSim(
    async (context) => void (await assert.rejects(open(context, 'g'), { code: 'ENOENT', message: /group 'g'/ })),
  );
});
