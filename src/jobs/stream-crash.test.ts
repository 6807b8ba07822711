/**
 * A crash at any moment of a stream leaves an image that `qemu-img check` finds no corruption in, that reads as before
 * through whatever its header names by then, and that has what the guest has flushed meanwhile.
 */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
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
import { CHECK_LEAKS, choose, FILES, guest, look, problem } from './testing-crash.ts';
import { chainOf, makeChain, registerStreamDrivers, SHORT_BASE, SIZE, streamOf } from './testing-stream.ts';

before(registerStreamDrivers);

test('no crash on the way of a stream changes what the disk reads as', needs('qemu-img'), async (t) => {
  const peer = new PeerFolder(join(scratch(t), 'peer'));
  t.after(() => peer.end());
  const named = new Set<string>();
  for (let seed = 1; seed <= 6; seed++) {
    const keepBase = seed % 2 === 0;
    const sim = new Sim(seed);
    sim.driveItself();
    for (const path of Object.values(FILES)) sim.writeDisk(path, new Uint8Array(0));
    const context = new AioContext(sim.backend());
    const model = await makeChain(context, FILES, seed, keepBase ? SHORT_BASE : SIZE);
    const start = new Map(Object.values(FILES).map((path) => [path, sim.readDisk(path)!] as const));
    const journal = new DiskJournal();
    sim.disk.journal = journal;
    const blk = await BlockBackend.open(context, chainOf(FILES, true));
    const job = streamOf(blk, FILES, keepBase);
    job.start();
    const writes = seed > 2 ? await guest(blk, journal, seed) : [];
    await job.ended;
    assert.equal(job.error, undefined);
    await blk.close();
    await context.stop();
    const replay = new CrashReplay(start, journal);
    // The peer looks for what the overlay names, too.
    for (const path of [FILES.base, FILES.middle]) writeFileSync(join(peer.path, path), start.get(path)!);
    for (const point of choose(crashPoints(journal, new Prng(seed), 2), new Prng(seed))) {
      const { files } = replay.build(point);
      const what = `seed ${seed}, ${point.what}`;
      const { content, below } = await look(files);
      assert.equal(problem(content, model, writes, point.moment), '', what);
      named.add(below);
      const { code, output } = await peer.run(
        'check',
        '-f',
        'qcow2',
        writeFile(peer.path, FILES.top, files.get(FILES.top)!),
      );
      assert.ok(code === 0 || code === CHECK_LEAKS, `${what}: ${output}`);
    }
  }
  // Both sides of the last step were seen.
  assert.deepEqual([...named].sort(), ['', FILES.base, FILES.middle]);
});
