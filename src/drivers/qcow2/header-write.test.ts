/** A crash while the header changes leaves one that can be read, and says what it said before, or what it shall. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { needs, peer, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { DiskJournal } from '../../aio/sim/journal.ts';
import { Sim } from '../../aio/sim/sim.ts';
import { Prng } from '../../base/prng.ts';
import { KiB, MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { parseHeader } from '../../proto/qcow2/header.ts';
import { backingFormat } from '../../proto/qcow2/header-extensions.ts';
import type { Qcow2CreateOptions } from './create-options.ts';
import type { Qcow2Node } from './driver.ts';
import { makeImage, registerQcow2 } from './testing.ts';
import { writeFile } from './testing-crash.ts';
import { CrashReplay, crashPoints } from './testing-crash-states.ts';
import { IMAGE } from './testing-crash-work.ts';

const backed = (name: string, format?: string) => ({
  'backing-file': name,
  ...(format === undefined ? {} : { 'backing-fmt': format }),
});

interface Scene {
  readonly what: string;
  readonly create: Partial<Qcow2CreateOptions>;
  readonly changes: readonly Readonly<Record<string, unknown>>[];
  /** There is no room for two names: one of them may be there in part. */
  readonly crowded?: boolean;
}

const SCENES: readonly Scene[] = [
  { what: 'a name comes', create: {}, changes: [backed('new.qcow2', 'qcow2')] },
  {
    what: 'a name gets longer, another, and shorter',
    create: backed('old.raw', 'raw'),
    changes: [backed('n'.repeat(700), 'qcow2'), backed('m'.repeat(1000), 'qcow2'), backed('short', 'raw')],
  },
  {
    what: 'a name goes',
    create: backed('o'.repeat(1023), 'raw'),
    changes: [{ 'backing-file': null }],
  },
  {
    what: 'its format alone, and then none',
    create: backed('o'.repeat(500), 'raw'),
    changes: [{ 'backing-fmt': 'copy-on-read' }, { 'backing-fmt': null }],
  },
  {
    what: 'the version, up and down',
    create: { compat: '0.10', ...backed('o'.repeat(430), 'raw') },
    changes: [{ compat: '1.1' }, backed('n'.repeat(900), 'raw'), { compat: '0.10' }],
  },
  {
    what: 'clusters of 2 KiB',
    create: { 'cluster-size': 2 * KiB, ...backed('o'.repeat(400), 'raw') },
    changes: [backed('n'.repeat(410), 'qcow2'), backed('m'.repeat(20), 'qcow2')],
  },
  {
    what: 'clusters of 1 KiB, whose second sector has the name',
    create: { 'cluster-size': KiB, ...backed('o'.repeat(400), 'raw') },
    changes: [backed('n'.repeat(410), 'raw')],
    crowded: true,
  },
];

/** What a header says of what is below. */
function saying(cluster: Uint8Array): string {
  const header = parseHeader(cluster, cluster.length);
  return `${header.backingFile ?? 'nothing'}, ${backingFormat(header) ?? 'no format'}`;
}

for (const { what, create, changes, crowded } of SCENES) {
  test(`the header after a crash: ${what}`, needs('qemu-img'), async (t) => {
    registerQcow2();
    const sim = new Sim(4);
    sim.writeDisk(IMAGE, new Uint8Array(0));
    const context = new AioContext(sim.backend());
    const file = { driver: 'file', filename: IMAGE };
    await sim.complete(makeImage(context, file, { size: MiB, ...create } as Qcow2CreateOptions));
    const blk = await sim.complete(BlockBackend.open(context, { driver: 'qcow2', file, backing: null }));
    const clusterSize = create['cluster-size'] ?? 64 * KiB;
    const states = new Set<string>();
    for (const change of changes) {
      const before = sim.readDisk(IMAGE)!;
      const journal = new DiskJournal();
      sim.disk.journal = journal;
      await sim.complete((blk.root!.impl as unknown as Qcow2Node).amend(change));
      sim.disk.journal = undefined;
      const after = sim.readDisk(IMAGE)!;
      const allowed = [before, after].map((bytes) => saying(bytes.subarray(0, clusterSize)));
      const replay = new CrashReplay(new Map([[IMAGE, before]]), journal);
      for (const point of crashPoints(journal, new Prng(5), 40)) {
        const { files, hash } = replay.build(point);
        const cluster = new Uint8Array(clusterSize);
        files.get(IMAGE)!.read(0, cluster);
        const said = saying(cluster);
        assert.ok(crowded || allowed.includes(said), `${point.what}: ${said}`);
        states.add(hash);
      }
      const path = writeFile(scratch(t), 'image', sim.disk.files.get(IMAGE)!.cached);
      const info = JSON.parse(await peer('qemu-img', 'info', '--output=json', path)) as Record<string, string>;
      const seen = `${info['backing-filename'] ?? 'nothing'}, ${info['backing-filename-format'] ?? 'no format'}`;
      assert.equal(seen, allowed[1], 'as QEMU reads it');
      const alone = { driver: 'qcow2', backing: null, file: { driver: 'file', filename: path } };
      await peer('qemu-img', 'check', '-q', `json:${JSON.stringify(alone)}`);
    }
    t.diagnostic(`${states.size} states`);
    assert.ok(states.size >= changes.length);
    await sim.complete(blk.close());
    await context.stop();
  });
}
