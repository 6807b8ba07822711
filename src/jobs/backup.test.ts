/** Backups of an overlay while a guest writes to it: each is of one moment. */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { Sim } from '../aio/sim/sim.ts';
import { Errno } from '../base/errors.ts';
import { BlockBackend } from '../block/backend.ts';
import { drainAll } from '../block/drain.ts';
import { Perm } from '../block/driver.ts';
import { type NodeOptions, openNode, releaseNode } from '../block/graph.ts';
import type { BlockNode } from '../block/node.ts';
import { allNodes, nodeByName, registerDriver } from '../block/registry.ts';
import { registerTestDrivers, settle, testDisk, testIov, until } from '../block/testing.ts';
import { copyBeforeWriteDriver } from '../drivers/copy-before-write/driver.ts';
import { makeImage } from '../drivers/qcow2/testing.ts';
import { snapshotAccessDriver } from '../drivers/snapshot-access/driver.ts';
import { BackupJob, type BackupJobOptions } from './backup-job.ts';
import type { JobErrorEvent } from './block-job.ts';
import { JobTransaction } from './job-transaction.ts';
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
  registerDriver(copyBeforeWriteDriver);
  registerDriver(snapshotAccessDriver);
});

const FILES: ChainFiles = { base: '/base', middle: '/middle', top: '/top' };
const OLD = 0xee;
const V2_OR_V3 = ['0.10', '1.1'] as const;

interface World {
  readonly context: AioContext;
  readonly sim: Sim;
  readonly model: Uint8Array;
  readonly blk: BlockBackend;
  readonly target: BlockNode;
  job(more: Partial<BackupJobOptions>): Promise<BackupJob>;
}

async function inSim(seed: number, body: (world: World) => Promise<void>): Promise<void> {
  const sim = new Sim(seed, { chances: { read: { short: 0.1 }, write: { short: 0.1 } } });
  sim.driveItself();
  for (const path of [...Object.values(FILES), '/packed']) sim.writeDisk(path, new Uint8Array(0));
  sim.writeDisk('/target', new Uint8Array(SIZE).fill(OLD));
  const context = new AioContext(sim.backend());
  try {
    const model = await makeChain(context, FILES, seed);
    const blk = await BlockBackend.open(context, chainOf(FILES, seed % 4 === 1));
    const target = await openNode(context, raw('/target', 'target'));
    const options = { id: 'backup', sync: 'full', autoDismiss: false } as const;
    const job = (more: Partial<BackupJobOptions>): Promise<BackupJob> =>
      BackupJob.create(blk.root!, target, { ...options, ...more });
    await body({ context, sim, model, blk, target, job });
    await blk.close();
    await releaseNode(target).catch(() => undefined);
    assert.deepEqual(
      allNodes().map(({ name }) => name),
      [],
    );
  } finally {
    await context.stop();
  }
}

function raw(filename: string, name: string): NodeOptions {
  return { driver: 'raw', 'node-name': name, file: { driver: 'file', filename } };
}

async function held(context: AioContext, name: string): Promise<Uint8Array> {
  const blk = await BlockBackend.open(context, name, { readOnly: true, shared: 15 });
  try {
    return await readAll(blk);
  } finally {
    await blk.close();
  }
}

test('J4 a backup is of the moment it was made, and the guest stays where it is [sim]', async () => {
  for (let seed = 1; seed <= 24; seed++) {
    await inSim(seed, async ({ context, model, blk, target, job }) => {
      const source = blk.root!;
      const backup = await job({});
      const moment = Uint8Array.from(model);
      assert.equal(blk.root!.driver.name, 'copy-before-write');
      const using = useDisk(blk, model, seed, 10);
      if (seed % 3 === 0) await settle(seed);
      backup.start();
      await using;
      await backup.ended;
      assert.equal(backup.error, undefined, `seed ${seed}`);
      assert.equal(backup.current, backup.total);
      assert.equal(blk.root, source);
      assert.ok(Buffer.compare(await held(context, target.name), moment) === 0, `seed ${seed}`);
      assert.ok(Buffer.compare(await readAll(blk), model) === 0, `seed ${seed}, the disk`);
    });
  }
});

test('a snapshot that somebody reads stays what it is while a job works on the disk above its filter', async () => {
  await inSim(6, async ({ context, model, blk, target }) => {
    await blk.setPermissions(Perm.CONSISTENT_READ, 15);
    testDisk('kept', SIZE);
    const kept = { driver: 'memory', 'node-name': 'kept', disk: 'kept' };
    const options = { driver: 'copy-before-write', 'node-name': 'keep', file: blk.root!.name, target: kept };
    const keep = await openNode(context, options as NodeOptions);
    const then = await BlockBackend.open(context, { driver: 'snapshot-access', file: 'keep' } as NodeOptions);
    const guest = await BlockBackend.open(context, 'keep', { shared: 15 });
    const moment = Uint8Array.from(model);
    await useDisk(guest, model, 6, 3);
    const backup = await BackupJob.create(keep, target, { id: 'backup', sync: 'full' });
    assert.ok(Buffer.compare(await readAll(then), moment) === 0);
    backup.cancel();
    await backup.ended;
    assert.ok(Buffer.compare(await readAll(then), moment) === 0);
    for (const each of [then, guest]) await each.close();
    await releaseNode(keep);
  });
});

test('J4 bitmaps: what was written since the last backup is what the next one copies', async () => {
  for (let seed = 1; seed <= 8; seed++) {
    await inSim(seed, async ({ context, model, blk, target, job }) => {
      const root = blk.root!;
      await root.bitmaps.add('since', { granularity: 4096 });
      const full = await job({});
      full.start();
      await full.ended;
      await useDisk(blk, model, seed, 4);
      for (const n of [1, 2]) {
        const next = await job({ sync: 'bitmap', bitmap: 'since' });
        const moment = Uint8Array.from(model);
        await assert.rejects(root.bitmaps.clear('since'), { code: 'EBUSY' });
        next.start();
        await useDisk(blk, model, seed * 10 + n, 3);
        await next.ended;
        assert.equal(next.error, undefined);
        assert.ok(Buffer.compare(await held(context, target.name), moment) === 0, `seed ${seed}, ${n}`);
      }
      // What was written during the last one is dirty, and copied by one more.
      const last = await job({ sync: 'bitmap', bitmap: 'since' });
      last.start();
      await last.ended;
      assert.ok(Buffer.compare(await held(context, target.name), model) === 0);
      assert.equal(root.bitmaps.get('since').dirty, 0);
    });
  }
});

test('J4 bitmap modes: what a bitmap holds after success, and after failure', async () => {
  const rows: readonly (readonly ['on-success' | 'never' | 'always', boolean, string])[] = [
    ['on-success', true, 'new'],
    ['on-success', false, 'old new'],
    ['never', true, 'old new'],
    ['never', false, 'old new'],
    ['always', true, 'new'],
    ['always', false, 'old new'],
  ];
  for (const [bitmapMode, well, expected] of rows) {
    await inSim(3, async ({ context, blk, job }) => {
      const { bitmaps } = blk.root!;
      const bitmap = await bitmaps.add('b', { granularity: 4096 });
      await blk.write(0, testIov(context, [4096]));
      // The last cluster is a short one.
      await blk.write(SIZE - 512, testIov(context, [512]));
      const backup = await job({ sync: 'bitmap', bitmap: 'b', bitmapMode });
      await blk.write(32 * 4096, testIov(context, [4096]));
      if (well) backup.start();
      else backup.cancel();
      await backup.ended;
      const dirty = [
        bitmap.next(0, 4096, true) === 0 ? 'old' : '',
        bitmap.next(32 * 4096, SIZE, true) === 32 * 4096 ? 'new' : '',
      ];
      assert.equal(dirty.join(' ').trim(), expected, `${bitmapMode}, ${well}`);
      assert.equal(bitmap.users, 0);
      await blk.write(50 * 4096, testIov(context, [512]));
      assert.equal(bitmap.next(50 * 4096, SIZE, true), 50 * 4096);
    });
  }
});

test('J4 top leaves out what only layers below hold; none keeps what is written over, until cancelled', async () => {
  await inSim(4, async ({ context, blk, target, job }) => {
    await blk.write(0, testIov(context, [512], 3));
    const backup = await job({ sync: 'top' });
    backup.start();
    await backup.ended;
    const found = await held(context, target.name);
    assert.ok(found.subarray(64 * 1024).every((byte) => byte === OLD));
    assert.ok(found.subarray(0, 512).some((byte) => byte !== OLD));
  });
  await inSim(8, async ({ context, model, blk, target, job }) => {
    const backup = await job({ sync: 'none' });
    backup.start();
    const moment = Uint8Array.from(model);
    await blk.write(70_000, testIov(context, [512], 3));
    await settle(10);
    assert.equal(backup.status, 'running');
    backup.cancel();
    await backup.ended;
    assert.equal(backup.error?.errno, Errno.ECANCELED);
    const found = await held(context, target.name);
    assert.deepEqual(found.subarray(65_536, 131_072), moment.subarray(65_536, 131_072));
    assert.ok(found.subarray(131_072).every((byte) => byte === OLD));
  });
});

test('J4 a backup may be compressed where the format can, and is refused where not', async () => {
  await inSim(5, async ({ context, model, blk, job }) => {
    await assert.rejects(job({ compress: true }), { code: 'ENOTSUP', message: /'raw' does not compress/ });
    await makeImage(context, { driver: 'file', filename: '/packed' }, { size: SIZE });
    const file = { driver: 'file', filename: '/packed' };
    const packed = await openNode(context, { driver: 'qcow2', 'node-name': 'packed', file } as NodeOptions);
    const backup = await BackupJob.create(blk.root!, packed, { id: 'b', sync: 'full', compress: true });
    const moment = Uint8Array.from(model);
    backup.start();
    await useDisk(blk, model, 5, 4);
    await backup.ended;
    assert.equal(backup.error, undefined);
    assert.ok(Buffer.compare(await held(context, 'packed'), moment) === 0);
    await releaseNode(packed);
  });
});

test('J4 snapshot-access reads the moment while the guest writes, also what has not been copied yet', async () => {
  for (let seed = 1; seed <= 12; seed++) {
    await inSim(seed, async ({ context, model, blk, job }) => {
      const backup = await job({ sync: seed % 2 === 0 ? 'none' : 'full', filterName: 'filter' });
      const moment = Uint8Array.from(model);
      const show = { driver: 'snapshot-access', 'node-name': 'then', file: 'filter' } as NodeOptions;
      const then = await BlockBackend.open(context, show);
      assert.equal(then.readOnly, true);
      backup.start();
      const reading = async (): Promise<void> => {
        for (let at = 0; at + 9000 <= SIZE; at += 9000) {
          const found = await readAll(then, at, 9000);
          assert.ok(Buffer.compare(found, moment.subarray(at, at + 9000)) === 0, `seed ${seed}: at ${at}`);
        }
      };
      await Promise.all([useDisk(blk, model, seed, 6), reading(), reading()]);
      await then.close();
      if (backup.status === 'running') backup.cancel();
      await backup.ended;
    });
  }
});

test('a target that lies over the disk shows the moment, where the disk had zeroes, and while it is read', async () => {
  for (let seed = 1; seed <= 16; seed++) {
    await inSim(seed, async ({ context, sim, model, blk }) => {
      sim.writeDisk('/over', new Uint8Array(0));
      await makeImage(context, { driver: 'file', filename: '/over' }, { size: SIZE, compat: V2_OR_V3[seed % 2]! });
      const over = { driver: 'qcow2', 'node-name': 'over', file: { driver: 'file', filename: '/over' } };
      const target = await openNode(context, { ...over, backing: 'top' } as NodeOptions);
      const options = { id: 'b', sync: seed % 4 < 2 ? 'none' : 'full' } as const;
      const backup = await BackupJob.create(nodeByName('top'), target, options);
      const moment = Uint8Array.from(model);
      const then = await BlockBackend.open(context, 'over', { readOnly: true, shared: 15 });
      backup.start();
      let ended = false;
      const reading = async (): Promise<void> => {
        while (!ended) {
          for (let at = 0; at + 9000 <= SIZE; at += 9000) {
            const found = await readAll(then, at, 9000);
            assert.ok(Buffer.compare(found, moment.subarray(at, at + 9000)) === 0, `seed ${seed}: at ${at}`);
          }
        }
      };
      const using = useDisk(blk, model, seed, 8).finally(() => {
        ended = true;
      });
      await Promise.all([using, reading(), reading()]);
      assert.ok(Buffer.compare(await readAll(then), moment) === 0, `seed ${seed}, at the end`);
      await then.close();
      if (backup.status === 'running') backup.cancel();
      await backup.ended;
      await releaseNode(target);
    });
  }
});

test('on-cbw-error: the guest write fails, or the snapshot is lost and the guest does not notice', async () => {
  await inSim(6, async ({ context, sim, model, blk, job }) => {
    const backup = await job({ sync: 'none', onCbwError: 'break-guest-write' });
    backup.start();
    sim.inject({ op: 'write', path: '/target', nth: 1, errno: Errno.ENOSPC });
    await assert.rejects(blk.write(0, testIov(context, [512], 1)), { code: 'ENOSPC' });
    assert.deepEqual(await readAll(blk, 0, 512), model.slice(0, 512));
    await blk.write(0, testIov(context, [512], 1));
    backup.cancel();
    await backup.ended;
  });
  await inSim(6, async ({ context, sim, blk, job }) => {
    const backup = await job({ onCbwError: 'break-snapshot', filterName: 'filter' });
    const then = await BlockBackend.open(context, { driver: 'snapshot-access', file: 'filter' } as NodeOptions);
    sim.inject({ op: 'write', path: '/target', nth: 1, errno: Errno.ENOSPC });
    await blk.write(0, testIov(context, [512], 1));
    await assert.rejects(readAll(then, 0, 512), { code: 'EACCES', message: /lost/ });
    await then.close();
    backup.start();
    await backup.ended;
    assert.equal(backup.error?.errno, Errno.ENOSPC);
  });
});

test('errors of either side: reported, tried again, or waited for; the guest does not notice', async () => {
  for (const [op, path, errno] of [
    ['read', FILES.base, Errno.EIO],
    ['write', '/target', Errno.ENOSPC],
  ] as const) {
    for (const policy of ['report', 'ignore', 'stop', 'enospc'] as const) {
      await inSim(9, async ({ context, sim, model, blk, target, job }) => {
        const what = `${op}, ${policy}`;
        const events: JobErrorEvent[] = [];
        const backup = await job({
          ...{ onSourceError: policy, onTargetError: policy },
          onError: (_, event) => events.push(event),
        });
        const moment = Uint8Array.from(model);
        sim.inject({ op, path, nth: 2, errno });
        backup.start();
        let over = false;
        void backup.ended.then(() => {
          over = true;
        });
        await until(() => over || backup.status === 'paused', what);
        if (!over) {
          assert.equal(backup.ioStatus, errno === Errno.ENOSPC ? 'nospace' : 'failed', what);
          await useDisk(blk, model, 4, 2);
          backup.resume();
          await backup.ended;
        }
        const fails = events[0]?.action === 'report';
        assert.equal(backup.error?.errno, fails ? errno : undefined, what);
        if (!fails) assert.ok(Buffer.compare(await held(context, target.name), moment) === 0, what);
        assert.ok(Buffer.compare(await readAll(blk), model) === 0, what);
      });
    }
  }
});

test('a backup that is cancelled at any moment leaves the disk alone, and nothing behind', async () => {
  for (let moment = 0; moment < 40; moment += 3) {
    await inSim(11, async ({ model, blk, job }) => {
      const root = blk.root!;
      const backup = await job({});
      if (moment > 0) backup.start();
      const using = useDisk(blk, model, 5, 3);
      await settle(moment);
      if (backup.status !== 'concluded') backup.cancel();
      await backup.ended;
      await using;
      assert.equal(blk.root, root);
      assert.equal(root.parents.length, 1);
      assert.ok(Buffer.compare(await readAll(blk), model) === 0);
    });
  }
});

test('D3 nothing of a backup is in flight while all nodes are drained, and it ends all the same', async () => {
  await inSim(5, async ({ context, model, blk, job }) => {
    const backup = await job({});
    let ended = false;
    void backup.ended.then(() => {
      ended = true;
    });
    backup.start();
    const using = useDisk(blk, model, 5, 6);
    for (let n = 0; !ended; n++) {
      await settle(n % 5);
      using _drained = await drainAll(context, allNodes());
      assert.ok(allNodes().every(({ inFlight }) => inFlight === 0));
      await settle(1);
      const { current } = backup;
      await settle(n % 3);
      assert.equal(backup.current, current);
    }
    await using;
    assert.equal(backup.error, undefined);
    assert.ok(Buffer.compare(await readAll(blk), model) === 0);
  });
});

test('J2 backups of one transaction end well together or not at all, and their bitmaps with them', async () => {
  for (const fails of [false, true]) {
    await inSim(7, async ({ context, sim, blk, target, job }) => {
      sim.writeDisk('/second', new Uint8Array(SIZE).fill(3));
      sim.writeDisk('/second-target', new Uint8Array(SIZE));
      const other = await BlockBackend.open(context, raw('/second', 'second'));
      const into = await openNode(context, raw('/second-target', 'into'));
      await blk.root!.bitmaps.add('b', { granularity: 4096 });
      await blk.write(0, testIov(context, [512]));
      const transaction = new JobTransaction();
      const first = await job({ sync: 'bitmap', bitmap: 'b', transaction });
      const options = { id: 'second', sync: 'full', transaction, autoDismiss: false } as const;
      const second = await BackupJob.create(other.root!, into, options);
      if (fails) sim.inject({ op: 'write', path: '/second-target', nth: 1, errno: Errno.EIO });
      first.start();
      await until(() => first.status === 'waiting');
      second.start();
      await Promise.all([first.ended, second.ended]);
      assert.equal(second.error?.errno, fails ? Errno.EIO : undefined);
      assert.equal(first.error?.errno, fails ? Errno.ECANCELED : undefined);
      assert.equal(blk.root!.bitmaps.get('b').dirty, fails ? 4096 : 0);
      assert.equal(target.parents.length, 0);
      await other.close();
      await releaseNode(into);
    });
  }
});

test('what stands against a backup is said before anything happens', async () => {
  await inSim(13, async ({ blk, target, job }) => {
    const refused = (more: object, message: RegExp, code = 'EINVAL') =>
      assert.rejects(job(more as Partial<BackupJobOptions>), { code, message });
    await refused({ sync: 'bitmap' }, /'bitmap' is missing/);
    await refused({ sync: 'none', bitmap: 'b' }, /cannot be given/);
    await refused({ sync: 'bitmap', bitmap: 'none' }, /Could not find bitmap/, 'ENOENT');
    await refused({ maxWorkers: 0 }, /max-workers/);
    await refused({ maxChunk: -1 }, /max-chunk/);
    await refused({ cbwTimeoutSeconds: -1 }, /cbw-timeout/);
    await assert.rejects(BackupJob.create(target, target, { id: 'b', sync: 'full' }), { code: 'EINVAL' });
    assert.equal(blk.root!.parents.length, 1);
    assert.equal(target.parents.length, 0);
  });
});

test('the guest does not wait for a flush of its own disk where a backup ends', async () => {
  await inSim(30, async ({ context }) => {
    const disk = testDisk('source', 65536 * 4);
    testDisk('copy', 65536 * 4);
    const guest = await BlockBackend.open(context, { driver: 'memory', disk: 'source' } as never, { shared: 15 });
    const target = await openNode(context, { driver: 'memory', disk: 'copy' } as never);
    const backup = await BackupJob.create(guest.root!, target, { id: 'backup', sync: 'full' });
    await guest.write(0, testIov(context, [4096]));
    backup.start();
    await backup.ended;
    assert.equal(backup.error, undefined);
    assert.ok(disk.log.includes('write 0+4096'));
    assert.ok(!disk.log.includes('flush'));
    await guest.close();
    await releaseNode(target);
  });
});
