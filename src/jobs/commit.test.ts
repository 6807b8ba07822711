/** Committing layers of an overlay over an overlay over a raw image, while a guest uses it. */
import assert from 'node:assert/strict';
import { statSync, writeFileSync } from 'node:fs';
import { before, test } from 'node:test';
import { needs, peer, scratch } from '../../test/harness.ts';
import { AioContext } from '../aio/context.ts';
import { chooseBackend } from '../aio/select.ts';
import { Sim } from '../aio/sim/sim.ts';
import { backends } from '../aio/testing.ts';
import { Errno } from '../base/errors.ts';
import { BlockBackend } from '../block/backend.ts';
import { type NodeOptions, openNode, releaseNode } from '../block/graph.ts';
import { settle, until } from '../block/testing.ts';
import { makeImage } from '../drivers/qcow2/testing.ts';
import type { ErrorPolicy, JobErrorEvent } from './block-job.ts';
import { baseNode, commitOf, completeWhenReady, type What } from './testing-commit.ts';
import {
  type ChainFiles,
  chainOf,
  makeChain,
  readAll,
  registerStreamDrivers,
  SHORT_BASE,
  SIZE,
  useDisk,
} from './testing-stream.ts';

before(registerStreamDrivers);

const SIM_FILES: ChainFiles = { base: '/base', middle: '/middle', top: '/top' };
const KINDS: readonly What[] = ['middle', 'top', 'top-to-middle'];

async function inSim(seed: number, body: (context: AioContext, sim: Sim) => Promise<void>): Promise<void> {
  const sim = new Sim(seed, { chances: { read: { short: 0.1 }, write: { short: 0.1 } } });
  sim.driveItself();
  for (const path of Object.values(SIM_FILES)) sim.writeDisk(path, new Uint8Array(0));
  const context = new AioContext(sim.backend());
  try {
    await body(context, sim);
  } finally {
    await context.stop();
  }
}

const file = (filename: string): NodeOptions => ({ driver: 'file', filename });

/** What an image shows after a commit, opened anew as its header says. */
function treeAfter(files: ChainFiles, what: What): NodeOptions {
  const raw = { driver: 'raw', file: file(files.base) };
  if (what === 'top') return raw;
  const path = what === 'middle' ? files.top : files.middle;
  return { driver: 'qcow2', file: file(path), backing: raw };
}

test('a guest reads what it wrote, and what was below, while layers are committed and ever after [sim]', async () => {
  for (let seed = 1; seed <= 24; seed++) {
    await inSim(seed, async (context) => {
      const what = KINDS[seed % 3]!;
      const model = await makeChain(context, SIM_FILES, seed, seed % 2 === 0 ? SHORT_BASE : SIZE);
      const filter = seed % 4 < 2;
      const blk = await BlockBackend.open(context, chainOf(SIM_FILES, filter));
      const job = await commitOf(blk, SIM_FILES, what, completeWhenReady);
      job.start();
      await useDisk(blk, model, seed, 12);
      await job.ended;
      assert.equal(job.error, undefined, `seed ${seed}`);
      assert.equal(job.current, job.total);
      if (what !== 'middle') assert.equal(blk.root!.name, baseNode(what).name);
      await useDisk(blk, model, seed + 1000, 4);
      assert.ok(Buffer.compare(await readAll(blk), model) === 0, `seed ${seed}`);
      await blk.close();
      const alone = await BlockBackend.open(context, treeAfter(SIM_FILES, what), { readOnly: true });
      assert.ok(Buffer.compare(await readAll(alone), model) === 0, `seed ${seed}, opened again`);
      await alone.close();
    });
  }
});

for (const backend of backends()) {
  test(`qemu-img finds the chain whole and its content the guest's [${backend}]`, needs('qemu-img'), async (t) => {
    const dir = scratch(t);
    const context = new AioContext(await chooseBackend(backend));
    t.after(() => context.stop());
    for (const [n, what] of KINDS.entries()) {
      const files = { base: `${dir}/base`, middle: `${dir}/middle`, top: `${dir}/top` };
      for (const path of Object.values(files)) writeFileSync(path, '');
      const model = await makeChain(context, files, 7 + n, n === 0 ? SHORT_BASE : SIZE);
      const blk = await BlockBackend.open(context, chainOf(files, false));
      const job = await commitOf(blk, files, what, completeWhenReady);
      job.start();
      await useDisk(blk, model, 3, 40);
      await job.ended;
      assert.equal(job.error, undefined);
      await blk.close();
      writeFileSync(`${dir}/model`, model);
      const [path, format] =
        what === 'top' ? [files.base, 'raw'] : [what === 'middle' ? files.top : files.middle, 'qcow2'];
      if (format === 'qcow2') await peer('qemu-img', 'check', '-q', path);
      await peer('qemu-img', 'compare', '-F', 'raw', '-f', format, path, `${dir}/model`);
    }
  });

  test(`a commit makes the base what qemu-img makes it [${backend}]`, needs('qemu-img'), async (t) => {
    const dir = scratch(t);
    const context = new AioContext(await chooseBackend(backend));
    t.after(() => context.stop());
    const [ours, theirs] = ['ours', 'theirs'].map((name) => ({
      base: `${dir}/${name}-base`,
      middle: `${dir}/${name}-middle`,
      top: `${dir}/${name}-top`,
    })) as [ChainFiles, ChainFiles];
    for (const files of [ours, theirs]) {
      for (const path of Object.values(files)) writeFileSync(path, '');
      await makeChain(context, files, 21, SHORT_BASE);
    }
    const blk = await BlockBackend.open(context, chainOf(ours, false));
    const job = await commitOf(blk, ours, 'middle');
    job.start();
    await job.ended;
    assert.equal(job.error, undefined);
    await blk.close();
    await peer('qemu-img', 'commit', '-q', '-d', theirs.middle);
    await peer('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', ours.base, theirs.base);
    assert.equal(statSync(ours.base).size, statSync(theirs.base).size);
  });
}

test('D3 nothing of a commit is in flight on a drained disk, and its last step waits, too', async () => {
  for (const what of KINDS) {
    await inSim(5, async (context) => {
      const model = await makeChain(context, SIM_FILES, 5);
      const blk = await BlockBackend.open(context, chainOf(SIM_FILES, false));
      const job = await commitOf(blk, SIM_FILES, what, completeWhenReady);
      let ended = false;
      void job.ended.then(() => {
        ended = true;
      });
      job.start();
      for (let n = 0; !ended; n++) {
        await settle(n % 3);
        using _drained = await blk.drain();
        assert.equal(blk.root!.inFlight, 0);
        const root = blk.root!;
        await settle(n % 5);
        assert.equal(blk.root, root);
        assert.equal(root.inFlight, 0);
      }
      assert.equal(job.error, undefined);
      assert.ok(Buffer.compare(await readAll(blk), model) === 0);
      await blk.close();
    });
  }
});

test('an error of any image ends a commit with its errno, or has it wait, and the disk reads as it did', async () => {
  for (const what of KINDS) {
    for (const path of [SIM_FILES.base, SIM_FILES.middle, SIM_FILES.top]) {
      for (const [kind, errno] of [
        ['read', Errno.EIO],
        ['write', Errno.ENOSPC],
      ] as const) {
        // The others are only read.
        if (kind === 'write' && path !== SIM_FILES.base) continue;
        for (const policy of ['report', 'ignore', 'stop', 'enospc'] as const) {
          await failing(what, path, kind, errno, policy);
        }
      }
    }
  }
});

async function failing(
  what: What,
  path: string,
  op: 'read' | 'write',
  errno: number,
  policy: ErrorPolicy,
): Promise<void> {
  await inSim(9, async (context, sim) => {
    const name = `${what}: ${op} of ${path}, ${policy}`;
    const model = await makeChain(context, SIM_FILES, 9);
    const blk = await BlockBackend.open(context, chainOf(SIM_FILES, false));
    const events: JobErrorEvent[] = [];
    const onError = (_: unknown, event: JobErrorEvent): void => void events.push(event);
    const root = blk.root!.name;
    const job = await commitOf(blk, SIM_FILES, what, { onImageError: policy, onError, ...completeWhenReady });
    sim.inject({ op, path, nth: 3, errno });
    job.start();
    let over = false;
    void job.ended.then(() => {
      over = true;
    });
    await until(() => over || job.status === 'paused', name);
    if (!over) {
      assert.ok(policy === 'stop' || (policy === 'enospc' && errno === Errno.ENOSPC), name);
      assert.equal(job.ioStatus, errno === Errno.ENOSPC ? 'nospace' : 'failed', name);
      assert.ok(Buffer.compare(await readAgain(blk), model) === 0, name);
      job.resume();
      assert.equal(job.ioStatus, 'ok');
      await job.ended;
    }
    const [event] = events;
    const fails = event?.action === 'report';
    if (event !== undefined) assert.equal(event.error.errno, errno, name);
    if (event !== undefined && !fails) assert.equal(job.error, undefined, name);
    if (fails) assert.deepEqual([job.error?.errno, blk.root!.name], [errno, root], name);
    assert.ok(Buffer.compare(await readAgain(blk), model) === 0, name);
    await blk.close().catch(() => undefined);
  });
}

/** One that was to fail and has not fails here. */
function readAgain(blk: BlockBackend): Promise<Uint8Array> {
  return readAll(blk).catch(() => readAll(blk));
}

test('a commit that is cancelled at any moment leaves nothing under way, and the disk as it was', async () => {
  for (const what of KINDS) {
    for (let moment = 0; moment < 40; moment += 4) {
      await inSim(11, async (context) => {
        const model = await makeChain(context, SIM_FILES, 11);
        const blk = await BlockBackend.open(context, chainOf(SIM_FILES, false));
        const base = baseNode(what);
        const root = blk.root!;
        const job = await commitOf(blk, SIM_FILES, what);
        assert.equal(base.readOnly, false);
        if (moment > 0) job.start();
        await settle(moment);
        if (job.status !== 'concluded') {
          // Its last step goes on to its end.
          const gentle = job.status === 'ready' || job.status === 'pending';
          job.cancel();
          await job.ended;
          assert.equal(job.error?.errno, gentle ? undefined : Errno.ECANCELED);
          assert.equal(base.readOnly, true);
        }
        assert.equal(blk.root, root);
        assert.equal(blk.root!.parents.length, 1);
        assert.ok(Buffer.compare(await readAll(blk), model) === 0);
        await blk.close();
      });
    }
  }
});

test('what stands against a commit is said before anything happens', async () => {
  await inSim(12, async (context) => {
    await makeChain(context, SIM_FILES, 12);
    const blk = await BlockBackend.open(context, chainOf(SIM_FILES, false));
    const job = await commitOf(blk, SIM_FILES, 'middle');
    await assert.rejects(commitOf(blk, SIM_FILES, 'top'), { code: 'EBUSY', message: /in use by job 'commit'/ });
    job.cancel();
    await job.ended;
    const { root } = blk;
    const { ActiveCommitJob } = await import('./active-commit.ts');
    await assert.rejects(ActiveCommitJob.commit(root!, root!, { id: 'self' }), { code: 'EINVAL' });
    assert.equal(baseNode('top').readOnly, true);
    await blk.close();
  });
});

test('nothing is committed to a base that another overlay shows, too: it would read differently', async () => {
  await inSim(14, async (context, sim) => {
    await makeChain(context, SIM_FILES, 14);
    sim.writeDisk('/other', new Uint8Array(0));
    await makeImage(context, file('/other'), { size: SIZE, 'backing-file': '/base', 'backing-fmt': 'raw' });
    const blk = await BlockBackend.open(context, chainOf(SIM_FILES, false));
    const other = { driver: 'qcow2', 'node-name': 'other', file: file('/other'), backing: 'base' };
    const over = await openNode(context, other as NodeOptions);
    for (const what of ['middle', 'top'] as const) {
      await assert.rejects(commitOf(blk, SIM_FILES, what), { code: 'EBUSY', message: /in use by node 'other'/ });
    }
    await releaseNode(over);
    await blk.close();
  });
});
