/**
 * A crash at any moment of a commit leaves images that `qemu-img check` finds no corruption in; the disk reads as
 * before through whatever its header names by then, and has what the guest has flushed meanwhile.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { needs, scratch } from '../../test/harness.ts';
import { AioContext } from '../aio/context.ts';
import { DiskJournal } from '../aio/sim/journal.ts';
import { Sim } from '../aio/sim/sim.ts';
import { Prng } from '../base/prng.ts';
import { BlockBackend } from '../block/backend.ts';
import { writeFile } from '../drivers/qcow2/testing-crash.ts';
import { CrashReplay, crashPoints } from '../drivers/qcow2/testing-crash-states.ts';
import { PeerFolder } from '../drivers/qcow2/testing-peer.ts';
import type { Job } from './job.ts';
import { commitOf, type What } from './testing-commit.ts';
import { CHECK_LEAKS, choose, FILES, guest, look, problem } from './testing-crash.ts';
import { chainOf, makeChain, registerStreamDrivers, SHORT_BASE, SIZE } from './testing-stream.ts';

before(registerStreamDrivers);

const STATES = 25;

/** The active layer stays what the disk is until it is completed: here it is not. */
const leaveWhenReady = {
  onStatus: (job: Job): void => {
    if (job.status === 'ready') job.cancel();
  },
};

test('no crash on the way of a commit changes what the disk reads as', needs('qemu-img'), async (t) => {
  const peer = new PeerFolder(join(scratch(t), 'peer'));
  t.after(() => peer.end());
  const named = new Set<string>();
  const kinds: readonly What[] = ['middle', 'middle', 'top', 'top-to-middle'];
  for (const [n, what] of kinds.entries()) {
    const seed = n + 1;
    const sim = new Sim(seed);
    sim.driveItself();
    for (const path of Object.values(FILES)) sim.writeDisk(path, new Uint8Array(0));
    const context = new AioContext(sim.backend());
    const model = await makeChain(context, FILES, seed, seed % 2 === 0 ? SHORT_BASE : SIZE);
    const start = new Map(Object.values(FILES).map((path) => [path, sim.readDisk(path)!] as const));
    const journal = new DiskJournal();
    sim.disk.journal = journal;
    const blk = await BlockBackend.open(context, chainOf(FILES, false));
    const job = await commitOf(blk, FILES, what, leaveWhenReady);
    job.start();
    const writes = n > 0 ? await guest(blk, journal, seed) : [];
    await job.ended;
    assert.equal(job.error, undefined);
    await blk.close();
    await context.stop();
    const replay = new CrashReplay(start, journal);
    for (const point of choose(crashPoints(journal, new Prng(seed), 2), new Prng(seed), STATES)) {
      const { files } = replay.build(point);
      const where = `${what}, seed ${seed}, ${point.what}`;
      const { content, below } = await look(files);
      assert.equal(problem(content, model, writes, point.moment), '', where);
      named.add(below);
      for (const path of Object.values(FILES)) writeFile(peer.path, path, files.get(path)!);
      for (const path of what === 'top-to-middle' ? [FILES.middle, FILES.top] : [FILES.top]) {
        const { code, output } = await peer.run('check', '-f', 'qcow2', join(peer.path, path));
        assert.ok(code === 0 || code === CHECK_LEAKS, `${where}: ${path}: ${output}`);
      }
    }
  }
  // Both sides of the last step were seen.
  assert.deepEqual([...named].sort(), [FILES.base, FILES.middle]);
});
