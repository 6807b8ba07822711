/** Mirrors of an overlay, while a guest uses it: what the target is, who uses what at the end, and what errors do. */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { Sim } from '../aio/sim/sim.ts';
import { Errno } from '../base/errors.ts';
import { type Bytes, KiB } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import { drainAll } from '../block/drain.ts';
import { openNode, releaseNode } from '../block/graph.ts';
import type { BlockNode } from '../block/node.ts';
import { allNodes, nodeByName, registerDriver } from '../block/registry.ts';
import { registerTestDrivers, settle, testDisk, testIov, until } from '../block/testing.ts';
import { nullDriver } from '../drivers/null-co/driver.ts';
import type { JobErrorEvent } from './block-job.ts';
import { DirtyCopy } from './dirty-copy.ts';
import type { Job } from './job.ts';
import { type CopyMode, checkedGranularity, MirrorJob, type MirrorJobOptions } from './mirror-job.ts';
import {
  type ChainFiles,
  chainOf,
  makeChain,
  readAll,
  registerStreamDrivers,
  SIZE,
  useDisk,
} from './testing-stream.ts';

before(() => {
  registerStreamDrivers();
  registerTestDrivers();
  registerDriver(nullDriver);
});

const FILES: ChainFiles = { base: '/base', middle: '/middle', top: '/top' };
const TARGET = '/target';
const MODES: readonly CopyMode[] = ['background', 'write-blocking'];

interface World {
  readonly context: AioContext;
  readonly sim: Sim;
  readonly model: Uint8Array;
  readonly blk: BlockBackend;
  readonly target: BlockNode;
  job(more?: Partial<MirrorJobOptions>): Promise<MirrorJob>;
}

/** The chain with a guest on it, and a raw target full of old bytes. */
async function inSim(seed: number, body: (world: World) => Promise<void>, size: Bytes = SIZE): Promise<void> {
  const sim = new Sim(seed, { chances: { read: { short: 0.1 }, write: { short: 0.1 } } });
  sim.driveItself();
  for (const path of Object.values(FILES)) sim.writeDisk(path, new Uint8Array(0));
  sim.writeDisk(TARGET, new Uint8Array(size).fill(0xee));
  const context = new AioContext(sim.backend());
  try {
    const model = await makeChain(context, FILES, seed);
    const blk = await BlockBackend.open(context, chainOf(FILES, seed % 4 === 1));
    const file = { driver: 'file', filename: TARGET } as const;
    const target = await openNode(context, { driver: 'raw', 'node-name': 'target', file } as never);
    const options = {
      id: 'mirror',
      sync: 'full',
      autoDismiss: false,
      granularity: 4 * KiB,
      bufSize: 64 * KiB,
    } as const;
    const job = (more = {}): Promise<MirrorJob> => MirrorJob.create(blk.root!, target, { ...options, ...more });
    await body({ context, sim, model, blk, target, job });
    await blk.close();
    // It says once more what it has failed with.
    await releaseNode(target).catch(() => undefined);
    assert.deepEqual(
      allNodes().map(({ name }) => name),
      [],
    );
  } finally {
    await context.stop();
  }
}

/** What a node reads as. */
async function held(context: AioContext, name: string): Promise<Uint8Array> {
  const blk = await BlockBackend.open(context, name, { readOnly: true, shared: 15 });
  try {
    return await readAll(blk);
  } finally {
    await blk.close();
  }
}

const complete = (job: Job): void => {
  if (job.status === 'ready') job.complete();
};

test('J4 a guest goes on with the target, which holds all that it has written, in either mode [sim]', async () => {
  for (let seed = 1; seed <= 24; seed++) {
    await inSim(seed, async ({ context, model, blk, target, job }) => {
      const source = blk.root!;
      const mirror = await job({ copyMode: MODES[seed % 2], onStatus: complete });
      mirror.start();
      await useDisk(blk, model, seed, 12);
      await mirror.ended;
      assert.equal(mirror.error, undefined, `seed ${seed}`);
      assert.equal(mirror.current, mirror.total);
      assert.equal(blk.root, target);
      assert.equal(source.closed, true);
      await useDisk(blk, model, seed + 1000, 4);
      assert.ok(Buffer.compare(await held(context, 'target'), model) === 0, `seed ${seed}`);
    });
  }
});

test('J4 one that is cancelled when it is ready leaves the target as the disk is at that moment', async () => {
  for (let seed = 1; seed <= 12; seed++) {
    await inSim(seed, async ({ context, model, blk, target, job }) => {
      const source = blk.root!;
      const mirror = await job({ copyMode: MODES[seed % 2] });
      let atEnd: Uint8Array | undefined;
      void mirror.ended.then(() => {
        atEnd = Uint8Array.from(model);
      });
      mirror.start();
      await useDisk(blk, model, seed, 6);
      await mirror.readyOrEnded;
      await useDisk(blk, model, seed + 500, 3);
      mirror.cancel();
      await mirror.ended;
      assert.equal(mirror.error, undefined);
      assert.equal(blk.root, source);
      await settle();
      await useDisk(blk, model, seed + 1000, 2);
      assert.ok(Buffer.compare(await held(context, target.name), atEnd!) === 0, `seed ${seed}`);
    });
  }
});

test('J4 top copies what the active layer holds, none what is written meanwhile', async () => {
  await inSim(3, async ({ context, blk, target, job }) => {
    const iov = (await import('../block/testing.ts')).testIov(context, [4096], 5);
    await blk.write(8 * 4096, iov);
    const top = await job({ sync: 'top', onStatus: complete });
    top.start();
    await top.ended;
    assert.equal(blk.root, target);
    const found = await held(context, 'target');
    const written = found.subarray(8 * 4096, 9 * 4096);
    assert.ok(written.some((byte) => byte !== 0xee));
    assert.ok(found.subarray(9 * 4096).every((byte) => byte === 0xee));
    assert.equal(top.total, 4096);
  });
  await inSim(4, async ({ context, blk, target, job }) => {
    const none = await job({ sync: 'none' });
    none.start();
    await none.readyOrEnded;
    assert.equal(none.total, 0);
    const { testIov, bytesOf } = await import('../block/testing.ts');
    const iov = testIov(context, [512], 9);
    await blk.write(4096, iov);
    none.cancel();
    await none.ended;
    const found = await held(context, target.name);
    assert.deepEqual(found.subarray(4096, 4608), bytesOf(iov));
    assert.ok(found.subarray(8192).every((byte) => byte === 0xee));
  });
});

test('J4 from background to write-blocking while it runs, and not back', async () => {
  await inSim(6, async ({ context, model, blk, job }) => {
    const source = blk.root!;
    await blk.setPermissions(blk.perm, 15);
    const mirror = await job({ sync: 'full', filterName: 'filter' });
    const filter = blk.root!;
    assert.deepEqual([filter.name, filter.filtered?.node], ['filter', source]);
    // It comes past the filter as long as that may be.
    const late = await BlockBackend.open(context, source.name, { readOnly: false, shared: 15 });
    mirror.start();
    await useDisk(late, model, 6, 2);
    assert.equal(late.root, source);
    mirror.setCopyMode('write-blocking');
    await useDisk(late, model, 7, 4);
    await mirror.readyOrEnded;
    await until(() => late.root === filter);
    await late.close();
    assert.throws(() => mirror.setCopyMode('background'), { errno: Errno.EINVAL });
    await useDisk(blk, model, 8, 4);
    mirror.complete();
    await mirror.ended;
    assert.equal(mirror.error, undefined);
    assert.equal(blk.root!.name, 'target');
    assert.equal(filter.closed, true);
    assert.ok(Buffer.compare(await held(context, 'target'), model) === 0);
  });
});

test('J4 another node than the source may be replaced', async () => {
  await inSim(10, async ({ context, model, blk, job }) => {
    // What is below the disk, and a reader of that, go on with what the disk shows.
    const other = await BlockBackend.open(context, 'middle', { readOnly: true, shared: 15 });
    const mirror = await job({ replaces: nodeByName('middle'), sync: 'full', onStatus: complete });
    mirror.start();
    await mirror.ended;
    assert.equal(mirror.error, undefined);
    assert.deepEqual([other.root!.name, blk.root!.name, blk.root!.cow?.node.name], ['target', 'top', 'target']);
    await other.close();
    assert.ok(Buffer.compare(await held(context, 'target'), model) === 0);
    assert.ok(Buffer.compare(await readAll(blk), model) === 0);
  });
});

test('a mirror that is cancelled at any moment leaves the disk alone, and nothing behind', async () => {
  for (let moment = 0; moment < 60; moment += 4) {
    await inSim(11, async ({ model, blk, job }) => {
      const root = blk.root!;
      const mirror = await job({ copyMode: MODES[moment % 8 === 0 ? 0 : 1] });
      if (moment > 0) mirror.start();
      const using = useDisk(blk, model, 5, 3);
      await settle(moment);
      if (mirror.status !== 'concluded') mirror.cancel(true);
      await mirror.ended;
      assert.equal(mirror.error?.errno, Errno.ECANCELED);
      await using;
      assert.equal(blk.root, root);
      assert.deepEqual(
        [root.parents.length, root.dirtyHooks.length, root.filtered === undefined || true],
        [1, 0, true],
      );
      assert.ok(Buffer.compare(await readAll(blk), model) === 0);
    });
  }
});

test('an error of either side fails a mirror, or is tried again, or waited for; the guest goes on', async () => {
  for (const mode of MODES) {
    for (const [op, path, errno] of [
      ['read', FILES.base, Errno.EIO],
      ['write', TARGET, Errno.ENOSPC],
      ['write', TARGET, Errno.EIO],
      ['datasync', TARGET, Errno.EIO],
    ] as const) {
      for (const policy of ['report', 'ignore', 'stop', 'enospc'] as const) {
        await inSim(9, async ({ sim, model, blk, target, job, context }) => {
          const what = `${mode}: ${op} of ${path}: ${errno}, ${policy}`;
          const events: JobErrorEvent[] = [];
          const mirror = await job({
            copyMode: mode,
            ...{ onSourceError: policy, onTargetError: policy, onStatus: complete },
            onError: (_, event) => events.push(event),
          });
          sim.inject({ op, path, nth: op === 'datasync' ? 1 : 3, errno });
          mirror.start();
          let over = false;
          void mirror.ended.then(() => {
            over = true;
          });
          // The guest reads no more than was written: only the job meets the fault.
          if (op !== 'read') await useDisk(blk, model, 2, 3);
          await until(() => over || mirror.status === 'paused' || mirror.status === 'standby', what);
          if (!over) {
            assert.ok(mirror.paused, what);
            assert.equal(mirror.ioStatus, errno === Errno.ENOSPC ? 'nospace' : 'failed', what);
            mirror.resume();
            await mirror.ended;
          }
          const fails = op === 'datasync' || events[0]?.action === 'report';
          assert.equal(mirror.error?.errno, fails ? errno : undefined, what);
          assert.equal(blk.root === target, !fails, what);
          assert.ok(Buffer.compare(await readAll(blk), model) === 0, what);
          if (!fails) assert.ok(Buffer.compare(await held(context, 'target'), model) === 0, what);
        });
      }
    }
  }
});

test('D3 nothing of a mirror is in flight while all nodes are drained, and it ends all the same', async () => {
  for (const copyMode of MODES) {
    await inSim(5, async ({ context, model, blk, job }) => {
      const mirror = await job({ copyMode, onStatus: complete });
      let ended = false;
      void mirror.ended.then(() => {
        ended = true;
      });
      mirror.start();
      const using = useDisk(blk, model, 5, 6);
      for (let n = 0; !ended; n++) {
        await settle(n % 5);
        using _drained = await drainAll(context, allNodes());
        assert.ok(allNodes().every(({ inFlight }) => inFlight === 0));
        const { current } = mirror;
        await settle(n % 3);
        assert.equal(mirror.current, current);
      }
      await using;
      assert.equal(mirror.error, undefined);
      assert.ok(Buffer.compare(await readAll(blk), model) === 0);
    });
  }
});

test('what stands against a mirror is said before anything happens', async () => {
  await inSim(13, async ({ context, blk, target, job }) => {
    await assert.rejects(job({ granularity: 1000 }), { code: 'EINVAL', message: /granularity/ });
    await assert.rejects(job({ bufSize: -1 }), { code: 'EINVAL', message: /buf-size/ });
    await assert.rejects(job({ speed: -1 }), { code: 'EINVAL' });
    await assert.rejects(MirrorJob.create(target, target, { id: 'm', sync: 'full' }), { code: 'EINVAL' });
    const huge = { driver: 'null-co', size: 2 ** 45 };
    const [from, to] = [await openNode(context, huge), await openNode(context, huge)];
    const many = MirrorJob.create(from, to, { id: 'm', sync: 'full', granularity: 512 });
    await assert.rejects(many, { code: 'EFBIG', message: /granules/ });
    for (const node of [from, to]) await releaseNode(node);
    const user = await BlockBackend.open(context, 'target');
    await assert.rejects(job(), { code: 'EPERM', message: /does not share/ });
    await user.close();
    for (const filterName of ['1', 'x'.repeat(32)]) await assert.rejects(job({ filterName }), { code: 'EINVAL' });
    await assert.rejects(job({ filterName: 'top' }), { code: 'EEXIST' });
    const first = await job();
    for (const readOnly of [true, false]) {
      await assert.rejects(BlockBackend.open(context, 'target', { readOnly, shared: 15 }), { code: 'EPERM' });
    }
    await assert.rejects(job(), { code: 'EBUSY', message: /in use by job 'mirror'/ });
    first.cancel();
    await first.ended;
    assert.equal(blk.root!.parents.length, 1);
  });
  await inSim(
    13,
    async ({ job }) => void (await assert.rejects(job(), { code: 'EINVAL', message: /source has/ })),
    4096,
  );
  for (const good of [512, 4096, 64 * 1024 * KiB]) assert.equal(checkedGranularity(good), good);
});

test('a copy of what is dirty waits for who writes to the target itself, and these for each other', async () => {
  await inSim(14, async ({ context, blk, target }) => {
    const to = await BlockBackend.open(context, target.name);
    const nothing = { before: async () => undefined, onDone: () => undefined, onFailure: () => false };
    const copy = new DirtyCopy(blk, to, SIZE, { granularity: 4096, bufferBytes: 65536, unmap: true, ...nothing });
    copy.mark(0, SIZE);
    const first = await copy.exclude(4096, 100);
    let second: Disposable | undefined;
    void copy.exclude(4100, 4096).then((range) => {
      second = range;
    });
    let copied = false;
    void copy.run().then(() => {
      copied = true;
    });
    await until(() => copy.remaining === 2 * 4096, 'all but the two');
    await settle(20);
    assert.deepEqual([second, copied], [undefined, false]);
    first[Symbol.dispose]();
    await until(() => second !== undefined);
    await settle(20);
    assert.equal(copied, false);
    second![Symbol.dispose]();
    await until(() => copied);
    assert.equal(copy.remaining, 0);
    await to.close();
  });
});

test('a mirror that is outrun in its first round follows the writes from there on, true to the end', async () => {
  await inSim(15, async ({ context }) => {
    const size = 4096 * KiB;
    const disk = testDisk('outrun', size);
    const copy = testDisk('outrun-copy', size);
    disk.bytes.fill(1);
    for (const each of [disk, copy]) each.missing.add('status');
    const guest = await BlockBackend.open(context, { driver: 'memory', disk: 'outrun' } as never, { shared: 15 });
    const target = await openNode(context, { driver: 'memory', disk: 'outrun-copy' } as never);
    const options = { id: 'mirror', sync: 'full', granularity: 4 * KiB, bufSize: 64 * KiB } as const;
    const mirror = await MirrorJob.create(guest.root!, target, { ...options, onStatus: complete });
    mirror.start();
    let first: number | undefined;
    // As many at a time as the mirror copies.
    const write = (n: number): Promise<void> => guest.write(((n * 7919) % 1024) * 4096, testIov(context, [4096], n));
    for (let n = 4; mirror.status !== 'pending' && mirror.status !== 'null'; n += 4) {
      await Promise.all([n, n + 1, n + 2, n + 3].map(write));
      if (mirror.copyMode === 'write-blocking') first ??= mirror.current;
    }
    await mirror.ended;
    assert.equal(mirror.error, undefined);
    assert.ok(first !== undefined && first < size, `${first}`);
    assert.ok(Buffer.compare(disk.bytes, copy.bytes) === 0);
    await guest.close();
    await releaseNode(target);
  });
});

test('nobody writes past a mirror that writes to both sides, while it does', async () => {
  await inSim(5, async ({ context, blk, job }) => {
    const source = blk.root!;
    await blk.setPermissions(blk.perm, 15);
    const mirror = await job({ copyMode: 'write-blocking' });
    mirror.start();
    await until(() => mirror.status === 'ready');
    const late = { readOnly: false, shared: 15 };
    await assert.rejects(BlockBackend.open(context, source.name, late), { code: 'EPERM' });
    mirror.cancel();
    await mirror.ended;
    assert.equal(mirror.error, undefined);
    const writer = await BlockBackend.open(context, source.name, late);
    await writer.close();
  });
});
