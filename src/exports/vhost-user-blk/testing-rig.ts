import { test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { RingBackend } from '../../aio/ring/backend.ts';
import { whyNoRing } from '../../aio/select.ts';
import { MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { registerTestDrivers, type TestDisk, testDisk } from '../../block/testing.ts';
import { VhostUserBlkServer } from './server.ts';
import { FrontEnd, PLAIN } from './testing-front-end.ts';

registerTestDrivers();
const skip = process.env.BLOCKPLANE_AIO === 'pool' ? 'BLOCKPLANE_AIO=pool' : ((await whyNoRing()) ?? false);
export const SIZE = 4 * MiB;
let disks = 0;

export interface Rig {
  readonly server: VhostUserBlkServer;
  readonly disk: TestDisk;
  readonly blk: BlockBackend;
  readonly ends: (string | undefined)[];
}

interface RigOptions {
  readonly writable?: boolean;
  readonly style?: 'callback' | 'coroutine';
}

/** A test with a device over a disk in memory, on a ring of its own. */
export function onServer(title: string, body: (rig: Rig) => Promise<void>, options: RigOptions = {}): void {
  test(title, { skip, timeout: 30_000 }, async () => {
    const context = new AioContext(new RingBackend(), { name: 'vhost-user' });
    const name = `vhost-user-${disks++}`;
    const disk = testDisk(name, SIZE);
    disk.style = options.style ?? 'callback';
    const blk = await BlockBackend.open(context, { driver: 'memory', disk: name, discard: 'unmap' }, { name });
    const ends: (string | undefined)[] = [];
    const server = new VhostUserBlkServer(context, blk, {
      writable: options.writable ?? true,
      serial: 'a serial that is longer than twenty',
      onDisconnect: (_peer, why) => ends.push(why),
    });
    try {
      await body({ server, disk, blk, ends });
    } finally {
      await server.stop();
      await blk.close();
      await context.stop();
    }
  });
}

/** A front-end whose queue 0 runs. */
export async function ready(server: VhostUserBlkServer, sealed = true, without = 0, packed = false): Promise<FrontEnd> {
  const front = await FrontEnd.connect(server, sealed);
  front.packed = packed;
  await front.negotiate(without);
  await front.shareMemory();
  await front.startRing(0);
  return front;
}

/** Name, and the last three arguments of {@link ready}. */
export const SHAPES = [true, false].flatMap((sealed) =>
  [0, PLAIN].flatMap((without) =>
    [false, true].map((packed) => {
      const words = [packed ? 'packed ring' : 'split ring', sealed ? 'sealed memory' : 'memory that may shrink'];
      return [[...words, ...(without === 0 ? [] : ['no events'])].join(', '), sealed, without, packed] as const;
    }),
  ),
);
