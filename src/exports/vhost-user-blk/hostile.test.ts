/**
 * What guests and front-ends have done to back-ends before, one by one (the numbers are CVEs of others): the request or
 * the device fails, and the next front-end finds a good one.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { MiB } from '../../base/units.ts';
import { settle, until } from '../../block/testing.ts';
import { close, ftruncate } from '../../native/file.ts';
import { addSeals, memfdCreate, Seal } from '../../native/mmap.ts';
import { FrontRequest } from '../../proto/vhost-user/constants.ts';
import {
  encodeInflight,
  encodeLog,
  encodeMemoryTable,
  encodeSingleRegion,
  encodeU64,
  encodeVringAddress,
  encodeVringState,
} from '../../proto/vhost-user/message.ts';
import { BlkRequestType, BlkStatus } from '../../proto/virtio-blk/constants.ts';
import { DescriptorFlag } from '../../proto/virtio-blk/split-ring.ts';
import type { VhostUserBlkServer } from './server.ts';
import { type FrontEnd, GUEST, PLAIN, USER } from './testing-front-end.ts';
import { onServer, ready } from './testing-rig.ts';

const { IN, OUT } = BlkRequestType;
const { NEXT, WRITE, INDIRECT } = DescriptorFlag;
const R = FrontRequest;

async function allWell(server: VhostUserBlkServer): Promise<void> {
  const front = await ready(server);
  assert.equal(await front.request(IN, 0, 512), BlkStatus.OK);
  await front.close();
}

/** The words of a descriptor. */
function describe(front: FrontEnd, index: number, at: number, length: number, flags: number, next = 0): void {
  front.drivers[0]!.descriptors.set([(GUEST + at) % 2 ** 32, 0, length, flags + next * 65536], index * 4);
}

/** Makes whatever stands at descriptor `head` available. */
function avail(front: FrontEnd, head: number, index = 1): void {
  const { avail: ring } = front.drivers[0]!;
  ring[2] = head;
  Atomics.store(ring, 1, index);
  front.kick();
}

/** In the first slot of requests: a header, data and a status. */
function usual(front: FrontEnd): number {
  const at = front.slotAt(0);
  front.memory.bytes.fill(0, at, at + 16);
  front.memory.bytes[at + 16] = 0xff;
  return at;
}

const BROKEN: readonly (readonly [string, RegExp, (front: FrontEnd, at: number) => void])[] = [
  [
    'a chain that goes round (2019-9547)',
    /chain at 0 is broken/,
    (front, at) => {
      describe(front, 0, at, 16, NEXT, 1);
      describe(front, 1, at + 4096, 512, NEXT | WRITE, 0);
      avail(front, 0);
    },
  ],
  [
    'a chain of nothing that goes round (2016-6490)',
    /chain at 0 is broken/,
    (front, at) => {
      describe(front, 0, at, 0, NEXT, 0);
      avail(front, 0);
    },
  ],
  [
    'a next beyond the ring',
    /chain at 0 is broken/,
    (front, at) => {
      describe(front, 0, at, 16, NEXT, 128);
      avail(front, 0);
    },
  ],
  ['a head beyond the ring', /chain at 128 is broken/, (front) => avail(front, 128)],
  ['an index that jumps', /more chains are available than there can be/, (front) => avail(front, 0, 129)],
  [
    'the same head twice (2016-5403)',
    /chain at 0 is in use/,
    (front, at) => {
      describe(front, 0, at, 16, NEXT, 1);
      describe(front, 1, at + 4096, 512, NEXT | WRITE, 2);
      describe(front, 2, at + 16, 1, WRITE);
      front.drivers[0]!.avail[3] = 0;
      avail(front, 0, 2);
    },
  ],
  [
    'no byte for the status',
    /chain at 0 is broken/,
    (front, at) => {
      describe(front, 0, at, 16, 0);
      avail(front, 0);
    },
  ],
  [
    'a status in memory that may only be read',
    /chain at 0 is broken/,
    (front, at) => {
      describe(front, 0, at, 16, NEXT, 1);
      describe(front, 1, at + 16, 1, 0);
      avail(front, 0);
    },
  ],
  [
    'a status that is not in memory',
    /chain at 0 is broken/,
    (front, at) => {
      describe(front, 0, at, 16, NEXT, 1);
      describe(front, 1, front.bytes, 1, WRITE);
      avail(front, 0);
    },
  ],
  [
    'a table whose length is no multiple of 16',
    /chain at 0 is broken/,
    (front, at) => {
      describe(front, 0, at, 47, INDIRECT);
      avail(front, 0);
    },
  ],
  [
    'a table of nothing',
    /chain at 0 is broken/,
    (front, at) => {
      describe(front, 0, at, 0, INDIRECT);
      avail(front, 0);
    },
  ],
  [
    'a table beyond all bounds',
    /chain at 0 is broken/,
    (front, at) => {
      describe(front, 0, at, 2 ** 31, INDIRECT);
      avail(front, 0);
    },
  ],
  [
    'a table that has a next',
    /chain at 0 is broken/,
    (front, at) => {
      describe(front, 0, at, 32, INDIRECT | NEXT, 1);
      avail(front, 0);
    },
  ],
  [
    'a table in a table',
    /chain at 0 is broken/,
    (front, at) => {
      front.memory.view.setUint32(at, GUEST + at, true);
      front.memory.view.setUint32(at + 8, 16, true);
      front.memory.view.setUint16(at + 12, INDIRECT, true);
      describe(front, 0, at, 16, INDIRECT);
      avail(front, 0);
    },
  ],
  [
    'a table that is not in memory',
    /chain at 0 is broken/,
    (front) => {
      describe(front, 0, front.bytes - 16, 32, INDIRECT);
      avail(front, 0);
    },
  ],
];

for (const [what, message, spoil] of BROKEN) {
  for (const sealed of [true, false]) {
    onServer(
      `${what} stops the queue${sealed ? '' : ', in memory that may shrink'}`,
      async ({ server, disk, ends }) => {
        disk.hold('read');
        const front = await ready(server, sealed);
        spoil(front, usual(front));
        await settle(30);
        assert.equal(front.drivers[0]!.hasUsed, false);
        disk.release('read');
        await front.close();
        assert.match(ends[0]!, message);
        await allWell(server);
      },
    );
  }
}

onServer('a table that was not agreed on stops the queue', async ({ server, ends }) => {
  const front = await ready(server, true, PLAIN);
  describe(front, 0, usual(front), 32, INDIRECT);
  avail(front, 0);
  await settle(30);
  await front.close();
  assert.match(ends[0]!, /chain at 0 is broken/);
});

onServer('requests that reach beyond the memory, or over a gap in it, fail (2018-1059, 2022-2132)', async (rig) => {
  const front = await ready(rig.server);
  const at = usual(front);
  const driver = front.drivers[0]!;
  // A second region behind a gap.
  const more = memfdCreate('more');
  ftruncate(more, MiB);
  const region = { guest: GUEST + front.bytes + MiB, user: USER + 2 ** 32, length: MiB, offset: 0 };
  assert.equal(await front.acked(R.ADD_MEM_REG, encodeSingleRegion(region), [more]), 0);
  for (const [header, data, length] of [
    [GUEST + at, GUEST + front.bytes - 512, 1024],
    [GUEST + at, GUEST + front.bytes - 512, 2 * MiB],
    [GUEST + at, 2 ** 52, 512],
    [GUEST + at, GUEST + at + 4096, 2 ** 31],
    [GUEST + front.bytes - 8, GUEST + at + 4096, 512],
  ] as const) {
    front.memory.bytes[at + 16] = 0xff;
    driver.add(header, 16, false);
    driver.add(data, length, true);
    driver.add(GUEST + at + 16, 1, true);
    driver.end();
    front.publish();
    await front.used();
    assert.equal(front.status(0), BlkStatus.IOERR);
  }
  assert.deepEqual(rig.disk.log, []);
  close(more);
  await front.close();
});

onServer('commands for SCSI are not supported (2026-48914)', async ({ server }) => {
  const front = await ready(server);
  for (const type of [2, 3, 0x8000_0000]) assert.equal(await front.request(type, 0, 96), BlkStatus.UNSUPP);
  await front.close();
});

onServer(
  'a write where the driver has not taken RO is refused all the same',
  async (rig) => {
    const front = await ready(rig.server, true, 1 << 5);
    assert.equal(await front.request(OUT, 0, 512, false), BlkStatus.IOERR);
    assert.deepEqual(rig.disk.log, []);
    await front.close();
  },
  { writable: false },
);

const STATE = (index: number, value: number): Uint8Array => encodeVringState({ index, value });
const REGION = (front: FrontEnd, change: object): Uint8Array => encodeMemoryTable([{ ...front.region, ...change }]);

const REFUSED: readonly (readonly [string, number, (front: FrontEnd) => Uint8Array, number])[] = [
  ['queue -1 (2011-2512)', R.SET_VRING_NUM, () => STATE(0xffff_ffff, 128), 0],
  ['a queue beyond the last', R.SET_VRING_BASE, () => STATE(64, 0), 0],
  ['a queue of none', R.SET_VRING_NUM, () => STATE(1, 0), 0],
  ['a queue of three', R.SET_VRING_NUM, () => STATE(1, 3), 0],
  ['a queue of 32768', R.SET_VRING_NUM, () => STATE(1, 32768), 0],
  ['a running queue of another size', R.SET_VRING_NUM, () => STATE(0, 64), 0],
  ['an index beyond 16 bits', R.SET_VRING_BASE, () => STATE(1, 65536), 0],
  [
    'a ring that is not aligned (2017-17381)',
    R.SET_VRING_ADDR,
    () => {
      const [descriptors, available, used] = [USER + 1, USER + 4097, USER + 8193];
      return encodeVringAddress({ index: 0, flags: 0, log: 0, descriptors, available, used });
    },
    0,
  ],
  [
    'a ring that is nowhere',
    R.SET_VRING_ADDR,
    () => {
      const [descriptors, available, used] = [0, 4096, 8192];
      return encodeVringAddress({ index: 0, flags: 0, log: 0, descriptors, available, used });
    },
    0,
  ],
  ['a kick that is no eventfd', R.SET_VRING_KICK, () => encodeU64(1), 1],
  ['a kick of a queue that has nothing', R.SET_VRING_KICK, () => encodeU64(1), -1],
  [
    'requests in flight while queues run',
    R.SET_INFLIGHT_FD,
    () => encodeInflight({ length: 8192, offset: 0, queues: 1, queueSize: 128 }),
    1,
  ],
  ['memory twice', R.ADD_MEM_REG, (front) => encodeSingleRegion(front.region), 1],
  ['memory of no length', R.SET_MEM_TABLE, (front) => REGION(front, { length: 0 }), 1],
  ['memory beyond its file', R.SET_MEM_TABLE, (front) => REGION(front, { length: 2 ** 40 }), 1],
  ['memory beyond its file by its offset', R.SET_MEM_TABLE, (front) => REGION(front, { offset: 4096 }), 1],
  ['memory at the end of all addresses', R.SET_MEM_TABLE, (front) => REGION(front, { guest: 2 ** 53 - 4096 }), 1],
  ['memory without a descriptor', R.SET_MEM_TABLE, (front) => REGION(front, {}), 0],
  ['memory of more descriptors than regions', R.SET_MEM_TABLE, (front) => REGION(front, {}), 3],
  ['a log that is longer than its file', R.SET_LOG_BASE, () => encodeLog({ length: 2 ** 30, offset: 0 }), 1],
  [
    'a log whose end is beyond 2^53 (2020-10722)',
    R.SET_LOG_BASE,
    () => encodeLog({ length: 4096, offset: 2 ** 53 - 4096 }),
    1,
  ],
  ['a log of nothing', R.SET_LOG_BASE, () => encodeLog({ length: 0, offset: 0 }), 1],
  [
    'requests in flight of no queue (2021-3839)',
    R.GET_INFLIGHT_FD,
    () => encodeInflight({ length: 0, offset: 0, queues: 0, queueSize: 128 }),
    0,
  ],
  [
    'requests in flight of 65535 queues',
    R.GET_INFLIGHT_FD,
    () => encodeInflight({ length: 0, offset: 0, queues: 65535, queueSize: 128 }),
    0,
  ],
  ['features that are not offered', R.SET_FEATURES, () => encodeU64(1 << 24), 0],
  ['a message that there is not', 77, () => new Uint8Array(8), 0],
  ['postcopy', R.POSTCOPY_ADVISE, () => new Uint8Array(0), 0],
];

onServer('messages that say what cannot be are refused, and cost no descriptor (2022-0669)', async ({ server }) => {
  const front = await ready(server);
  const eventfds = front.calls;
  const count = (): number => readdirSync('/proc/self/fd').length;
  const before = count();
  for (const [what, request, payload, fds] of REFUSED) {
    const given = fds < 0 ? [eventfds[0]!] : new Array<number>(fds).fill(front.memfd);
    assert.equal(await front.acked(request, payload(front), given), 1, what);
    // The ring lets go of a descriptor a little later.
    await until(() => count() <= before, what);
  }
  // What follows a table that was refused has no memory; one that is good has it again.
  assert.equal(await front.acked(R.SET_MEM_TABLE, encodeMemoryTable([front.region]), [front.memfd]), 0);
  await front.stopRing(0);
  await front.startRing(0);
  assert.equal(await front.request(IN, 0, 512), BlkStatus.OK);
  await front.close();
  await allWell(server);
});

onServer('descriptors that nobody asked for are closed (2022-0669)', async ({ server }) => {
  const front = await ready(server);
  const count = (): number => readdirSync('/proc/self/fd').length;
  const before = count();
  const area = { length: 0, offset: 0, queues: 1, queueSize: 128 };
  for (let i = 0; i < 50; i++) {
    const reply = await front.call(R.GET_INFLIGHT_FD, encodeInflight(area), new Array<number>(8).fill(front.memfd));
    for (const fd of reply!.fds) close(fd);
    await front.acked(R.SET_FEATURES, encodeU64(0), new Array<number>(8).fill(front.memfd));
  }
  await until(() => count() <= before, 'descriptors to be gone');
  await front.close();
});

onServer('a memory table with a file that shrinks takes nothing but its own device', async ({ server }) => {
  const front = await ready(server);
  const other = memfdCreate('shrinks');
  ftruncate(other, MiB);
  addSeals(other, Seal.SEAL);
  const region = { guest: GUEST + 2 ** 30, user: USER + 2 ** 40, length: MiB, offset: 0 };
  assert.equal(await front.acked(R.ADD_MEM_REG, encodeSingleRegion(region), [other]), 0);
  ftruncate(other, 0);
  const at = usual(front);
  const driver = front.drivers[0]!;
  driver.add(GUEST + at, 16, false);
  driver.add(region.guest, 512, true);
  driver.add(GUEST + at + 16, 1, true);
  driver.end();
  front.publish();
  await front.used();
  assert.equal(front.status(0), BlkStatus.IOERR);
  // And it cannot be shared any more.
  assert.equal(await front.acked(R.ADD_MEM_REG, encodeSingleRegion({ ...region, guest: 2 ** 40 }), [other]), 1);
  assert.equal(await front.request(IN, 0, 512), BlkStatus.OK);
  close(other);
  await front.close();
});
