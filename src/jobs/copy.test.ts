import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import type { AioContext } from '../aio/context.ts';
import { inContext } from '../aio/testing.ts';
import { Errno } from '../base/errors.ts';
import { Prng } from '../base/prng.ts';
import { KiB, MiB } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import { registerTestDrivers, settle, type TestDisk, testDisk, until } from '../block/testing.ts';
import { checkedSparse } from './block-copy.ts';
import { CopyJob, wholeOf } from './copy-job.ts';

before(registerTestDrivers);

const SIZE = 3 * MiB + 4096 + 512;
/** More than a copy has under way at a time. */
const LARGE = 40 * MiB + 512;

interface Pair {
  readonly from: TestDisk;
  readonly to: TestDisk;
  readonly source: BlockBackend;
  readonly target: BlockBackend;
  job(options?: { sparse?: number; targetIsZero?: boolean; speed?: number }): CopyJob;
}

/** Two memory disks; the source has `content`, the target something else. */
async function inPair(context: AioContext, content: Uint8Array, body: (pair: Pair) => Promise<void>): Promise<void> {
  const from = testDisk('from', content.length);
  const to = testDisk('to', content.length);
  from.bytes.set(content);
  to.bytes.fill(0xee);
  const source = await BlockBackend.open(context, { driver: 'memory', disk: 'from' }, { readOnly: true });
  const target = await BlockBackend.open(context, { driver: 'memory', disk: 'to' });
  try {
    const job: Pair['job'] = ({ sparse = 4096, targetIsZero = false, speed = 0 } = {}) =>
      new CopyJob([wholeOf(source)], target, { id: 'copy', sparse, targetIsZero, speed, autoDismiss: false });
    await body({ from, to, source, target, job });
  } finally {
    await source.close();
    await target.close();
  }
}

/** Data and zeroes in runs of any length. */
function patchwork(seed: number, size = SIZE): Uint8Array {
  const random = new Prng(seed);
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; ) {
    const length = 1 + random.below(random.below(2) === 0 ? 700 * KiB : 9 * KiB);
    if (random.below(2) === 0) for (let i = at; i < Math.min(at + length, size); i++) bytes[i] = 1 + random.below(255);
    at += length;
  }
  return bytes;
}

inContext('the target has the bytes of the source, whatever is looked for, and all are counted', async (context) => {
  for (let seed = 1; seed <= 6; seed++) {
    const content = patchwork(seed);
    for (const sparse of [0, 512, 4096, 256 * KiB]) {
      await inPair(context, content, async ({ to, job }) => {
        const copy = job({ sparse });
        copy.start();
        await copy.ended;
        assert.equal(copy.error, undefined);
        assert.ok(Buffer.compare(to.bytes, content) === 0, `seed ${seed}, sparse ${sparse}`);
        assert.deepEqual([copy.current, copy.total], [SIZE, SIZE]);
        assert.equal(to.log.at(-1), 'flush');
      });
    }
  }
});

inContext(
  'zeroes are never written as data; where the target has them they are not written at all',
  async (context) => {
    const content = new Uint8Array(SIZE);
    content.fill(7, 512 * KiB, 512 * KiB + 4096);
    await inPair(context, content, async ({ to, job }) => {
      const copy = job();
      copy.start();
      await copy.ended;
      assert.deepEqual(
        to.log.filter((line) => line.startsWith('write')),
        [`write ${512 * KiB}+4096`],
      );
    });
    await inPair(context, content, async ({ to, job }) => {
      to.bytes.fill(0);
      const copy = job({ targetIsZero: true });
      copy.start();
      await copy.ended;
      assert.ok(Buffer.compare(to.bytes, content) === 0);
      assert.deepEqual(to.log, [`write ${512 * KiB}+4096`, 'flush']);
      assert.equal(copy.current, SIZE);
    });
  },
);

inContext('an error of either side ends the copy with its errno, once nothing is under way', async (context) => {
  for (const side of ['from', 'to'] as const) {
    await inPair(context, patchwork(3).fill(9), async (pair) => {
      pair[side].script.push({ op: side === 'from' ? 'read' : 'write', errno: Errno.ENXIO });
      const copy = pair.job();
      copy.start();
      await copy.ended;
      assert.equal(copy.error?.errno, Errno.ENXIO);
      assert.equal(copy.status, 'concluded');
      assert.deepEqual([pair.source.inFlight, pair.target.inFlight], [0, 0]);
      assert.ok(!pair.to.log.includes('flush'));
    });
  }
});

inContext('a target that is smaller is refused before anything happens', async (context) => {
  testDisk('large', 1024);
  const small = testDisk('small', 512);
  const source = await BlockBackend.open(context, { driver: 'memory', disk: 'large' }, { readOnly: true });
  const target = await BlockBackend.open(context, { driver: 'memory', disk: 'small' });
  const options = { id: 'copy', sparse: 0, targetIsZero: false };
  assert.throws(() => new CopyJob([wholeOf(source)], target, options), { errno: Errno.ENOSPC });
  await source.close();
  await target.close();
  assert.deepEqual(small.log, ['close']);
});

inContext('nothing of a copy is in flight on what is drained; it goes on afterwards', async (context) => {
  const content = new Uint8Array(LARGE).fill(5);
  for (const side of ['source', 'target'] as const) {
    await inPair(context, content, async (pair) => {
      const { log } = side === 'source' ? pair.from : pair.to;
      pair.from.hold('read');
      const copy = pair.job();
      copy.start();
      await until(() => pair.from.waiting('read') > 0);
      const draining = pair[side].drain();
      pair.from.release('read');
      {
        using _drained = await draining;
        assert.equal(pair[side].inFlight, 0);
        const { length } = log;
        await settle(20);
        assert.equal(log.length, length);
        assert.notEqual(copy.status, 'concluded');
      }
      await copy.ended;
      assert.equal(copy.error, undefined);
      assert.ok(Buffer.compare(pair.to.bytes, content) === 0);
    });
  }
});

inContext('a copy has 8 pieces under way, and 32 where the source or the target is far', async (context) => {
  let clock = 0;
  context.now = () => clock;
  const cases = [
    { from: 1e6, to: 1e6, most: 8 },
    { from: 20e6, to: 1e6, most: 32 },
    { from: 1e6, to: 20e6, most: 32 },
  ];
  for (const { from, to, most } of cases) {
    await inPair(context, new Uint8Array(LARGE).fill(7), async (pair) => {
      pair.from.hold('read');
      pair.to.hold('write');
      const copy = pair.job();
      copy.start();
      let highest = 0;
      const under = (): number => pair.from.waiting('read') + pair.to.waiting('write');
      const done = (): boolean => copy.status === 'concluded';
      while (!done()) {
        await until(() => under() > 0 || done());
        await settle();
        highest = Math.max(highest, under());
        const [op, disk, time] =
          pair.from.waiting('read') > 0 ? (['read', pair.from, from] as const) : (['write', pair.to, to] as const);
        clock += time;
        disk.release(op, disk.waiting(op));
      }
      assert.equal(highest, most);
      assert.deepEqual([copy.error, Buffer.compare(pair.to.bytes, pair.from.bytes)], [undefined, 0]);
    });
  }
});

inContext('a copy that is cancelled leaves nothing under way', async (context) => {
  await inPair(context, new Uint8Array(LARGE).fill(3), async (pair) => {
    pair.to.hold('write');
    const copy = pair.job();
    copy.start();
    await until(() => pair.to.waiting('write') > 0);
    copy.cancel();
    pair.to.release('write');
    await copy.ended;
    assert.equal(copy.error?.errno, Errno.ECANCELED);
    assert.deepEqual([pair.source.inFlight, pair.target.inFlight], [0, 0]);
    assert.ok(copy.current < copy.total);
  });
});

test('zeroes can be looked for in powers of two only', () => {
  for (const good of [0, 512, 4096, 256 * KiB]) assert.equal(checkedSparse(good), good);
  for (const bad of [-1, 1, 256, 513, 1024 * KiB, Number.NaN, 4096.5]) {
    assert.throws(() => checkedSparse(bad), { errno: Errno.EINVAL });
  }
});
