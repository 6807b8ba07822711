/** The points of blkdebug that come in this driver, and what it makes of I/O that fails there: fault tests by name. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { before, test } from 'node:test';
import { peerPath, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { chooseBackend } from '../../aio/select.ts';
import { Errno } from '../../base/errors.ts';
import { KiB, MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { DEBUG_EVENTS, type DebugEvent, type Driver, RequestFlags } from '../../block/driver.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { registerDriver } from '../../block/registry.ts';
import { testIov } from '../../block/testing.ts';
import { blkdebugDriver } from '../blkdebug/driver.ts';
import type { Qcow2Node } from './driver.ts';
import { makeImage, registerQcow2 } from './testing.ts';

const heard = new Set<DebugEvent>();

/** Shows its file, and hears all. */
const listenerDriver: Driver = {
  name: 'listener',
  role: 'filter',
  children: { file: 'filtered' },
  options: {},
  async open(context) {
    const file = (await context.openChild('file', 'filtered'))!;
    return {
      get length() {
        return file.length;
      },
      map: (at, want, _why, out) => out.data(want, file, at),
      grew: () => undefined,
      truncate: (length) => file.truncate(length),
      debugEvent: (event) => void heard.add(event),
    };
  },
};

before(() => {
  registerQcow2();
  registerDriver(blkdebugDriver);
  registerDriver(listenerDriver);
});

async function withContext(body: (context: AioContext) => Promise<void>): Promise<void> {
  const context = new AioContext(await chooseBackend(), { name: 'test' });
  try {
    await body(context);
  } finally {
    await context.stop();
  }
}

function emptyFile(filename: string): NodeOptions {
  writeFileSync(filename, '');
  return { driver: 'file', filename };
}

type Work = (blk: BlockBackend, context: AioContext) => Promise<void>;

const write = (blk: BlockBackend, context: AioContext, at: number, bytes: number): Promise<void> =>
  blk.write(at, testIov(context, [bytes], 7), RequestFlags.FUA);

const WORKLOADS: Readonly<Record<string, { readonly cluster: number; readonly size: number; readonly work: Work }>> = {
  'writes, copies, discards': {
    ...{ cluster: 4096, size: MiB },
    work: async (blk, context) => {
      await write(blk, context, 100, 10_000);
      await write(blk, context, 0, 4096);
      const { snapshots, image } = blk.root!.impl as Qcow2Node;
      await snapshots.create('a');
      await write(blk, context, 5000, 100);
      await snapshots.delete('a');
      await blk.writeZeroes(8192, 4096);
      await blk.discard(0, 4096);
      await blk.write(64 * KiB, testIov(context, [4096], 0), RequestFlags.COMPRESSED);
      await blk.flush();
      image.l2.clear();
      await blk.read(64 * KiB, testIov(context, [4096]));
      await blk.read(4096, testIov(context, [4096]));
      await blk.read(512 * KiB, testIov(context, [4096]));
    },
  },
  'sizes, and refcounts of many clusters': {
    ...{ cluster: 512, size: MiB },
    work: async (blk, context) => {
      for (let at = 0; at < MiB; at += 128 * KiB) await write(blk, context, at, 128 * KiB);
      await blk.truncate(16 * MiB);
      for (let at = MiB; at < 13 * MiB; at += MiB) await write(blk, context, at, MiB);
      await blk.truncate(64 * KiB);
      await (blk.root!.impl as Qcow2Node).empty();
    },
  },
};

/** Of the block layer's for other nodes than the file, of what there is not here, or only where it repairs. */
const NOT_HERE: readonly DebugEvent[] = [
  ...(['vmstate_load', 'vmstate_save', 'cor_write', 'cluster_alloc_space', 'reftable_update'] as const),
  ...(['refblock_update', 'pwritev_rmw_head', 'pwritev_rmw_after_head', 'pwritev_rmw_tail'] as const),
  ...(['pwritev_rmw_after_tail', 'none'] as const),
];

test('all events of the format come, each where its work is done', async (t) => {
  const folder = scratch(t);
  await withContext(async (context) => {
    const below = emptyFile(`${folder}/below`);
    await makeImage(context, below, { size: MiB });
    for (const [name, { cluster, size, work }] of Object.entries(WORKLOADS)) {
      const file = emptyFile(`${folder}/${cluster}`);
      await makeImage(context, file, { size, 'cluster-size': cluster });
      const backing: NodeOptions | null = cluster === 512 ? null : { driver: 'qcow2', file: below };
      const options = { driver: 'qcow2', discard: 'unmap' as const, file: { driver: 'listener', file }, backing };
      const blk = await BlockBackend.open(context, options);
      await work(blk, context);
      await blk.close();
      t.diagnostic(`${name}: ${heard.size}`);
    }
  });
  const missing = DEBUG_EVENTS.filter((event) => !heard.has(event));
  assert.deepEqual(missing.sort(), [...NOT_HERE].sort());
});

/** Of a write of two clusters over what a snapshot shares, on stable storage. */
const FAILING: readonly DebugEvent[] = [
  ...(['l1_update', 'l2_load', 'l2_update', 'l2_alloc_cow_read', 'l2_alloc_write', 'write_aio', 'cow_read'] as const),
  ...(['cow_write', 'refblock_load', 'refblock_update_part', 'cluster_alloc', 'flush_to_os'] as const),
];

test('I/O that fails at an event is told, and leaves an image without corruption', async (t) => {
  const folder = scratch(t);
  await withContext(async (context) => {
    for (const event of FAILING) {
      for (const errno of [Errno.EIO, Errno.ENOSPC]) {
        for (const once of [true, false]) {
          const filename = `${folder}/${event}-${errno}-${once}`;
          const file = emptyFile(filename);
          await makeImage(context, file, { size: MiB, 'cluster-size': 4096 });
          const first = await BlockBackend.open(context, { driver: 'qcow2', file });
          await write(first, context, 0, 64 * KiB);
          await (first.root!.impl as Qcow2Node).snapshots.create('a');
          await first.close();

          const rules = [{ event, errno, once }];
          const blk = await BlockBackend.open(context, {
            ...{ driver: 'qcow2', file: { driver: 'blkdebug', image: file, 'inject-error': rules } },
          });
          await assert.rejects(write(blk, context, 100, 8192), { errno }, filename);
          if (once) await write(blk, context, 100, 8192);
          await blk.close().catch((error: { errno?: number }) => assert.equal(error.errno, errno));
          const after = await BlockBackend.open(context, { driver: 'qcow2', 'read-only': true, file });
          const { corruptions, checkErrors } = await (after.root!.impl as Qcow2Node).check('none');
          await after.close();
          assert.equal(corruptions + checkErrors, 0, filename);
          // 3: no more than leaks.
          if (once || peerPath('qemu-img') === undefined) continue;
          const { status, stdout } = spawnSync(peerPath('qemu-img')!, ['check', filename], { encoding: 'utf8' });
          assert.ok(status === 0 || status === 3, `${filename}: ${stdout}`);
        }
      }
    }
  });
});
