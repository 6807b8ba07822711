/** Streaming an overlay over an overlay over a raw image, while a guest uses it. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { before, test } from 'node:test';
import { needs, peer, scratch } from '../../test/harness.ts';
import { AioContext } from '../aio/context.ts';
import { chooseBackend } from '../aio/select.ts';
import { Sim } from '../aio/sim/sim.ts';
import { backends } from '../aio/testing.ts';
import { Errno } from '../base/errors.ts';
import { BlockBackend } from '../block/backend.ts';
import { settle, until } from '../block/testing.ts';
import {
  type ChainFiles,
  chainOf,
  makeChain,
  readAll,
  registerStreamDrivers,
  SHORT_BASE,
  SIZE,
  streamOf,
  useDisk,
} from './testing-stream.ts';

before(registerStreamDrivers);

const SIM_FILES: ChainFiles = { base: '/base', middle: '/middle', top: '/top' };

/** A world of its own, in which anything may come before anything else that has not to wait for it. */
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

test('a guest reads what it wrote, and what was below, while a stream goes on and ever after [sim]', async () => {
  for (let seed = 1; seed <= 40; seed++) {
    await inSim(seed, async (context) => {
      const keepBase = seed % 3 === 0;
      const model = await makeChain(context, SIM_FILES, seed, keepBase ? SHORT_BASE : SIZE);
      const filter = seed % 2 === 0;
      const blk = await BlockBackend.open(context, chainOf(SIM_FILES, filter));
      const job = streamOf(blk, SIM_FILES, keepBase);
      job.start();
      await useDisk(blk, model, seed, 12);
      await job.ended;
      assert.equal(job.error, undefined, `seed ${seed}`);
      assert.deepEqual([job.current, job.total], [SIZE, SIZE]);
      const top = filter ? blk.root!.children[0]!.node : blk.root!;
      assert.equal(top.cow?.node.name, keepBase ? 'base' : undefined);
      await useDisk(blk, model, seed + 1000, 4);
      assert.ok(Buffer.compare(await readAll(blk), model) === 0, `seed ${seed}`);
      await blk.close();
      // By itself: as its header says.
      const file = { driver: 'file', filename: SIM_FILES.top };
      const raw = { driver: 'raw', file: { driver: 'file', filename: SIM_FILES.base } };
      const again = { driver: 'qcow2', file, ...(keepBase ? { backing: raw } : {}) };
      const alone = await BlockBackend.open(context, again, { readOnly: true });
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
    for (const keepBase of [false, true]) {
      const files = { base: `${dir}/base`, middle: `${dir}/middle`, top: `${dir}/top` };
      for (const path of Object.values(files)) writeFileSync(path, '');
      const model = await makeChain(context, files, keepBase ? 7 : 8, keepBase ? SHORT_BASE : SIZE);
      const blk = await BlockBackend.open(context, chainOf(files, true));
      const job = streamOf(blk, files, keepBase);
      job.start();
      await useDisk(blk, model, 3, 40);
      await job.ended;
      assert.equal(job.error, undefined);
      await blk.close();
      writeFileSync(`${dir}/model`, model);
      await peer('qemu-img', 'check', '-q', files.top);
      await peer('qemu-img', 'compare', '-F', 'raw', '-f', 'qcow2', files.top, `${dir}/model`);
      const { 'backing-filename': below } = JSON.parse(await peer('qemu-img', 'info', '--output=json', files.top));
      assert.equal(below, keepBase ? files.base : undefined);
    }
  });
}

test('D3 nothing of a stream is in flight on a drained disk, and its last step waits, too', async () => {
  await inSim(5, async (context) => {
    const model = await makeChain(context, SIM_FILES, 5);
    const blk = await BlockBackend.open(context, chainOf(SIM_FILES, true));
    const job = streamOf(blk, SIM_FILES, false);
    let ended = false;
    void job.ended.then(() => {
      ended = true;
    });
    job.start();
    for (let n = 0; !ended; n++) {
      await settle(n % 3);
      using _drained = await blk.drain();
      assert.equal(blk.inFlight, 0);
      const current: number = job.current;
      const over: boolean = ended;
      await settle(n % 5);
      assert.deepEqual([job.current, ended], [current, over]);
    }
    assert.equal(job.error, undefined);
    assert.ok(Buffer.compare(await readAll(blk), model) === 0);
    await blk.close();
  });
});

test('an error of either side ends a stream with its errno, and the image reads as it did', async () => {
  for (const path of [SIM_FILES.base, SIM_FILES.middle, SIM_FILES.top]) {
    for (const [kind, errno] of [
      ['read', Errno.EIO],
      ['write', Errno.ENOSPC],
      ['datasync', Errno.EIO],
    ] as const) {
      await inSim(9, async (context, sim) => {
        const model = await makeChain(context, SIM_FILES, 9);
        const blk = await BlockBackend.open(context, chainOf(SIM_FILES, false));
        sim.inject({ op: kind, path, nth: 1, errno });
        const job = streamOf(blk, SIM_FILES, false);
        job.start();
        await job.ended;
        const came = sim.faults.waiting === 0;
        assert.equal(job.error?.errno, came ? errno : undefined, `${kind} of ${path}`);
        assert.ok(Buffer.compare(await readAll(blk), model) === 0, `${kind} of ${path}`);
        assert.equal(blk.root!.cow?.node.name, came ? 'middle' : undefined);
        await blk.close().catch(() => undefined);
      });
    }
  }
});

test('a stream that is cancelled leaves nothing under way, and the next one goes on from there', async () => {
  await inSim(11, async (context) => {
    const model = await makeChain(context, SIM_FILES, 11);
    const blk = await BlockBackend.open(context, chainOf(SIM_FILES, false));
    const job = streamOf(blk, SIM_FILES, false, { speed: 16 * 4096 });
    job.start();
    await until(() => job.current > 0);
    job.cancel();
    await job.ended;
    assert.equal(job.error?.errno, Errno.ECANCELED);
    assert.equal(blk.inFlight, 0);
    assert.equal(blk.root!.cow?.node.name, 'middle');
    const next = streamOf(blk, SIM_FILES, false);
    assert.throws(() => streamOf(blk, SIM_FILES, false), { errno: Errno.EBUSY });
    next.start();
    await next.ended;
    assert.equal(next.error, undefined);
    assert.ok(Buffer.compare(await readAll(blk), model) === 0);
    await blk.close();
  });
});

test('a base that shows behind the end of what is above it is refused', async () => {
  await inSim(12, async (context) => {
    await makeChain(context, SIM_FILES, 12);
    const blk = await BlockBackend.open(context, chainOf(SIM_FILES, false));
    assert.throws(() => streamOf(blk, SIM_FILES, true), { errno: Errno.EINVAL, message: /longer than node 'middle'/ });
    assert.equal(blk.users.size, 0);
    await blk.close();
  });
});
