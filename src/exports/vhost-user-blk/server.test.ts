import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { RingBackend } from '../../aio/ring/backend.ts';
import { whyNoRing } from '../../aio/select.ts';
import { Errno } from '../../base/errors.ts';
import { Prng } from '../../base/prng.ts';
import { MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { registerTestDrivers, settle, type TestDisk, testDisk, until } from '../../block/testing.ts';
import { drain as drainEventfd } from '../../native/eventfd.ts';
import { close, ftruncate } from '../../native/file.ts';
import { NativeMemory } from '../../native/memory.ts';
import { memfdCreate } from '../../native/mmap.ts';
import { recvFds, socketpair } from '../../native/socket.ts';
import { BackRequest, FrontRequest, VRING_LOG } from '../../proto/vhost-user/constants.ts';
import {
  decodeHeader,
  decodeInflight,
  encodeConfigPart,
  encodeInflight,
  encodeLog,
  encodeMemoryTable,
  encodeSingleRegion,
  encodeU64,
  encodeVringState,
} from '../../proto/vhost-user/message.ts';
import { CONFIG_WRITEBACK_AT, decodeBlkConfig } from '../../proto/virtio-blk/config.ts';
import { BlkFeature, BlkRequestType, BlkStatus, RingFeature } from '../../proto/virtio-blk/constants.ts';
import { DescriptorFlag } from '../../proto/virtio-blk/split-ring.ts';
import { VhostUserBlkServer } from './server.ts';
import { FrontEnd, GUEST, PLAIN, turnsUntil, USER } from './testing-front-end.ts';

registerTestDrivers();
const skip = process.env.BLOCKPLANE_AIO === 'pool' ? 'BLOCKPLANE_AIO=pool' : ((await whyNoRing()) ?? false);
const { IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES } = BlkRequestType;
const SIZE = 4 * MiB;
let disks = 0;

interface Rig {
  readonly server: VhostUserBlkServer;
  readonly disk: TestDisk;
  readonly blk: BlockBackend;
  readonly ends: (string | undefined)[];
}

interface RigOptions {
  readonly writable?: boolean;
  readonly style?: 'callback' | 'coroutine';
}

function onServer(title: string, body: (rig: Rig) => Promise<void>, options: RigOptions = {}): void {
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

async function ready(server: VhostUserBlkServer, sealed = true, without = 0, packed = false): Promise<FrontEnd> {
  const front = await FrontEnd.connect(server, sealed);
  front.packed = packed;
  await front.negotiate(without);
  await front.shareMemory();
  await front.startRing(0);
  return front;
}

const SHAPES = [true, false].flatMap((sealed) =>
  [0, PLAIN].flatMap((without) =>
    [false, true].map((packed) => {
      const words = [packed ? 'packed ring' : 'split ring', sealed ? 'sealed memory' : 'memory that may shrink'];
      return [[...words, ...(without === 0 ? [] : ['no events'])].join(', '), sealed, without, packed] as const;
    }),
  ),
);

for (const [name, sealed, without, packed] of SHAPES) {
  onServer(`every request of the device does what it says: ${name}`, async ({ server, disk }) => {
    const front = await ready(server, sealed, without, packed);
    front.dataOf(0, 8192).fill(0x5a);
    assert.equal(await front.request(OUT, 8, 8192, false), BlkStatus.OK);
    assert.ok(disk.bytes.subarray(4096, 4096 + 8192).every((byte) => byte === 0x5a));
    assert.equal(disk.bytes[4095], 0);
    assert.equal(disk.bytes[4096 + 8192], 0);
    front.dataOf(1, 16384).fill(0xee);
    assert.equal(await front.request(IN, 4, 12288, true, 1), BlkStatus.OK);
    const data = front.dataOf(1, 16384);
    assert.deepEqual([data[0], data[2047], data[2048], data[10239], data[10240], data[12288]], [0, 0, 90, 90, 0, 238]);
    assert.equal(await front.request(FLUSH, 0), BlkStatus.OK);
    assert.ok(disk.log.includes('flush'));
    assert.equal(await front.request(GET_ID, 0, 20, true, 2), BlkStatus.OK);
    assert.equal(Buffer.from(front.dataOf(2, 20)).toString(), 'a serial that is lon');
    const segment = new DataView(front.memory.bytes.buffer, front.slotAt(3) + 4096, 16);
    segment.setUint32(0, 8, true);
    segment.setUint32(8, 8, true);
    assert.equal(await front.request(WRITE_ZEROES, 0, 16, false, 3), BlkStatus.OK);
    assert.ok(disk.log.some((entry) => entry.startsWith('zero 4096+4096')));
    assert.equal(await front.request(DISCARD, 0, 16, false, 3), BlkStatus.OK);
    assert.ok(disk.log.includes('discard 4096+4096'));
    await front.close();
  });
}

for (const [name, sealed, without, packed] of SHAPES) {
  onServer(`many requests at a time, round and round the ring: ${name}`, async ({ server, disk }) => {
    const front = await ready(server, sealed, without, packed);
    for (let i = 0; i < 64; i++) disk.bytes.fill(i + 1, i * 512, i * 512 + 512);
    const slotOf = new Map<number, number>();
    const free = Array.from({ length: 40 }, (_, i) => i);
    const prng = new Prng(5);
    let left = 1000;
    let stopped = false;
    while (left > 0 || slotOf.size > 0) {
      for (let n = prng.below(12); n > 0 && left > 0 && free.length > 0; n--, left--) {
        const slot = free.pop()!;
        // Now and then one without data, so that chains are of two lengths.
        const sector = prng.below(64);
        const empty = prng.chance(0.2);
        front.dataOf(slot, 512).fill(0);
        const head = front.push(slot, empty ? FLUSH : IN, sector, empty ? 0 : 512, true);
        assert.ok(!slotOf.has(head));
        slotOf.set(head, slot * 100 + (empty ? 0 : sector + 1));
      }
      front.publish();
      if (left < 500 && !stopped) {
        // In the middle of it all the ring stops, and goes on where it was.
        stopped = true;
        await front.startRing(0, 128, await front.stopRing(0), false);
      }
      if (slotOf.size === 0) continue;
      const head = await front.used();
      const [slot, byte] = [Math.floor(slotOf.get(head)! / 100), slotOf.get(head)! % 100];
      assert.equal(front.status(slot), BlkStatus.OK);
      assert.deepEqual([front.dataOf(slot, 512)[0], front.dataOf(slot, 512)[511]], [byte, byte]);
      slotOf.delete(head);
      free.push(slot);
    }
    await front.close();
  });
}

onServer('what cannot be done has a status that says so', async ({ server, disk }) => {
  const front = await ready(server);
  const { OK, IOERR, UNSUPP } = BlkStatus;
  const last = SIZE / 512;
  assert.equal(await front.request(IN, last - 1, 512), OK);
  for (const [type, sector, length, writable, status] of [
    [IN, last, 512, true, IOERR],
    [IN, last - 1, 1024, true, IOERR],
    [IN, 2 ** 53, 512, true, IOERR],
    [IN, 2 ** 63, 512, true, IOERR],
    [IN, 0, 511, true, IOERR],
    [OUT, last, 512, false, IOERR],
    [OUT, 0, 100, false, IOERR],
    [IN, 0, 0, true, OK],
    [99, 0, 512, true, UNSUPP],
    [DISCARD, 0, 15, false, IOERR],
    [DISCARD, 0, 32, false, IOERR],
  ] as const) {
    assert.equal(await front.request(type, sector, length, writable), status, `${type} ${sector} ${length}`);
  }
  const segment = new DataView(front.memory.bytes.buffer, front.slotAt(0) + 4096, 16);
  for (const [type, sectors, flags, status] of [
    [DISCARD, 8, 1, UNSUPP],
    [WRITE_ZEROES, 8, 2, UNSUPP],
    [WRITE_ZEROES, 0xffff_ffff, 0, IOERR],
    [DISCARD, last + 1, 0, IOERR],
    [DISCARD, 0, 0, OK],
  ] as const) {
    segment.setUint32(8, sectors, true);
    segment.setUint32(12, flags, true);
    assert.equal(await front.request(type, 0, 16, false), status, `${type} ${sectors} ${flags}`);
  }
  disk.script.push({ op: 'read', errno: Errno.EIO }, { op: 'write', errno: Errno.ENOSPC });
  assert.equal(await front.request(IN, 0, 512), IOERR);
  assert.equal(await front.request(OUT, 0, 512, false), IOERR);
  assert.equal(await front.request(IN, 0, 512), OK);
  await front.close();
});

onServer(
  'a device that is read-only refuses all that writes',
  async ({ server, disk }) => {
    const front = await ready(server);
    assert.ok((front.features & BlkFeature.RO) !== 0);
    const segment = new DataView(front.memory.bytes.buffer, front.slotAt(0) + 4096, 16);
    segment.setUint32(8, 8, true);
    for (const type of [OUT, DISCARD, WRITE_ZEROES]) {
      assert.equal(await front.request(type, 0, type === OUT ? 512 : 16, false), BlkStatus.IOERR);
    }
    assert.equal(await front.request(IN, 0, 512), BlkStatus.OK);
    assert.deepEqual(disk.log, ['read 0+512']);
    await front.close();
  },
  { writable: false },
);

onServer(
  'requests in tables, in many pieces and framed in other ways are the same requests',
  async ({ server, disk }) => {
    const front = await ready(server);
    const driver = front.drivers[0]!;
    const at = front.slotAt(0);
    const { view, bytes } = front.memory;
    for (let i = 0; i < 4096; i++) disk.bytes[i] = i % 251;
    view.setUint32(at, IN, true);
    bytes.fill(0, at + 4, at + 16);
    // The header in three pieces, the status in the piece of the last data.
    for (const [from, length] of [
      [0, 4],
      [4, 7],
      [11, 5],
    ] as const)
      driver.add(GUEST + at + from, length, false);
    driver.add(GUEST + at + 8192, 100, true);
    driver.add(GUEST + at + 16384, 413, true);
    driver.end();
    front.publish();
    await front.used();
    assert.equal(bytes[at + 16384 + 412], BlkStatus.OK);
    assert.equal(bytes[at + 8192 + 99], 99);
    assert.equal(bytes[at + 16384], 100);
    assert.equal(bytes[at + 16384 + 411], 511 % 251);
    // In a table of 40 pieces.
    const table = at + 32768;
    for (let i = 0; i < 42; i++) {
      const entry = table + i * 16;
      const where = i === 0 ? at : i === 41 ? at + 16 : at + 4096 + i * 128;
      view.setUint32(entry, GUEST + where, true);
      view.setUint32(entry + 4, 0, true);
      view.setUint32(entry + 8, i === 0 ? 16 : i === 41 ? 1 : 64, true);
      view.setUint16(entry + 12, (i === 0 ? 0 : DescriptorFlag.WRITE) | (i === 41 ? 0 : DescriptorFlag.NEXT), true);
      view.setUint16(entry + 14, i + 1, true);
    }
    const index = driver.add(GUEST + table, 42 * 16, false);
    driver.descriptors[index * 4 + 3] = DescriptorFlag.INDIRECT;
    driver.end();
    bytes[at + 16] = 0xff;
    front.publish();
    await front.used();
    assert.equal(front.status(0), BlkStatus.OK);
    assert.equal(bytes[at + 4096 + 40 * 128], (39 * 64) % 251);
    await front.close();
  },
);

onServer(
  'several regions make up one request, and regions come and go while the ring runs',
  async ({ server, disk }) => {
    const front = await ready(server);
    const more = memfdCreate('more');
    ftruncate(more, MiB);
    const region = { guest: GUEST + front.bytes, user: USER + 2 ** 32, length: MiB, offset: 0 };
    const driver = front.drivers[0]!;
    const at = front.slotAt(0);
    const ask = async (): Promise<void> => {
      front.memory.bytes.fill(0, at, at + 16);
      front.memory.bytes[at + 16] = 0xff;
      driver.add(GUEST + at, 16, false);
      // Across the border.
      driver.add(GUEST + front.bytes - 512, 1024, true);
      driver.add(GUEST + at + 16, 1, true);
      driver.end();
      front.publish();
      await front.used();
    };
    disk.bytes.fill(7, 0, 1024);
    await ask();
    assert.equal(front.status(0), BlkStatus.IOERR);
    assert.equal(await front.acked(FrontRequest.ADD_MEM_REG, encodeSingleRegion(region), [more]), 0);
    await ask();
    assert.equal(front.status(0), BlkStatus.OK);
    const seen = NativeMemory.ofFile(more, MiB) as NativeMemory;
    assert.equal(seen.bytes[511], 7);
    assert.equal(seen.bytes[512], 0);
    assert.equal(await front.acked(FrontRequest.REM_MEM_REG, encodeSingleRegion(region)), 0);
    assert.equal(await front.acked(FrontRequest.REM_MEM_REG, encodeSingleRegion(region)), 1);
    await ask();
    assert.equal(front.status(0), BlkStatus.IOERR);
    seen.release();
    close(more);
    await front.close();
  },
);

onServer('stopping a ring waits for what is in flight, and says where to go on', async ({ server, disk }) => {
  const front = await ready(server);
  assert.equal(await front.request(IN, 0, 512), BlkStatus.OK);
  disk.hold('read');
  front.push(0, IN, 0, 512, true);
  front.push(1, IN, 0, 512, true);
  front.publish();
  await until(() => disk.waiting('read') === 2);
  let base: number | undefined;
  const stopping = front.stopRing(0).then((value) => {
    base = value;
  });
  await settle(20);
  assert.equal(base, undefined);
  disk.release('read');
  await stopping;
  assert.equal(base, 3);
  assert.ok(front.drivers[0]!.hasUsed);
  await front.used();
  await front.used();
  // Nothing is taken from a ring that has stopped.
  front.push(2, IN, 0, 512, true);
  front.publish();
  front.kick();
  await settle(20);
  assert.equal(front.drivers[0]!.hasUsed, false);
  await front.startRing(0, 128, base, false);
  await front.used();
  assert.equal(front.status(2), BlkStatus.OK);
  await front.close();
});

onServer('a ring that is not enabled takes nothing until it is', async ({ server }) => {
  const front = await ready(server);
  await front.acked(FrontRequest.SET_VRING_ENABLE, encodeVringState({ index: 0, value: 0 }));
  front.push(0, IN, 0, 512, true);
  front.publish();
  front.kick();
  await settle(20);
  assert.equal(front.status(0), 0xff);
  await front.acked(FrontRequest.SET_VRING_ENABLE, encodeVringState({ index: 0, value: 1 }));
  await front.used();
  assert.equal(front.status(0), BlkStatus.OK);
  await front.close();
});

onServer('D4 a drained disk takes nothing from the rings, and goes on by itself', async ({ server, blk }) => {
  const front = await ready(server);
  const drained = await blk.drain();
  front.push(0, IN, 0, 512, true);
  front.publish();
  front.kick();
  await settle(20);
  assert.equal(front.status(0), 0xff);
  assert.equal(blk.queued, 0);
  drained.end();
  await front.used();
  assert.equal(front.status(0), BlkStatus.OK);
  await front.close();
});

onServer('interrupts come where the driver asks for them, and not elsewhere', async ({ server }) => {
  const front = await ready(server);
  const call = front.calls[0]!;
  const driver = front.drivers[0]!;
  assert.equal(await front.request(IN, 0, 512), BlkStatus.OK);
  await settle();
  assert.ok(drainEventfd(call) > 0);
  // It has not asked again.
  assert.equal(await front.request(IN, 0, 512), BlkStatus.OK);
  await settle();
  assert.equal(drainEventfd(call), 0);
  assert.equal(driver.arm(), false);
  for (let slot = 0; slot < 4; slot++) front.push(slot, IN, 0, 512, true);
  front.publish();
  for (let i = 0; i < 4; i++) await front.used();
  await settle();
  assert.equal(drainEventfd(call), 1);
  await front.close();
});

onServer('the configuration space says what the disk is, and its change is told', async ({ server, blk, disk }) => {
  const front = await FrontEnd.connect(server);
  await front.negotiate();
  const [ours, theirs] = socketpair(true) as readonly [number, number];
  assert.equal(await front.acked(FrontRequest.SET_BACKEND_REQ_FD, undefined, [theirs]), 0);
  close(theirs);
  const read = async () => {
    const reply = await front.call(FrontRequest.GET_CONFIG, encodeConfigPart(0, new Uint8Array(60)));
    return decodeBlkConfig(reply!.payload.subarray(12));
  };
  const config = await read();
  assert.equal(config.capacity, SIZE / 512);
  assert.equal(config.blockBytes, 512);
  assert.equal(config.writeback, true);
  assert.equal(config.queues, 64);
  await blk.truncate(2 * SIZE + 100);
  const message = await turnsUntil(() => {
    const received = recvFds(ours, 64, 0);
    return typeof received === 'number' ? undefined : received.bytes;
  }, 'the notice');
  assert.equal(decodeHeader(message).request, BackRequest.CONFIG_CHANGE);
  assert.equal((await read()).capacity, (2 * SIZE) / 512);
  // The driver switches the cache off: each write is stable when it ends.
  await front.shareMemory();
  await front.startRing(0);
  const off = encodeConfigPart(CONFIG_WRITEBACK_AT, new Uint8Array(1));
  assert.equal(await front.acked(FrontRequest.SET_CONFIG, off), 0);
  assert.equal((await read()).writeback, false);
  assert.equal(await front.acked(FrontRequest.SET_CONFIG, encodeConfigPart(0, new Uint8Array(8))), 1);
  const flushes = disk.log.filter((entry) => entry === 'flush').length;
  assert.equal(await front.request(OUT, 0, 512, false), BlkStatus.OK);
  assert.equal(disk.log.filter((entry) => entry === 'flush').length, flushes + 1);
  close(ours);
  await front.close();
});

onServer('the next back-end finds what was in flight, and does it again', async ({ server, disk }) => {
  const front = await FrontEnd.connect(server);
  await front.negotiate();
  const asked = encodeInflight({ length: 0, offset: 0, queues: 1, queueSize: 128 });
  const reply = (await front.call(FrontRequest.GET_INFLIGHT_FD, asked))!;
  const area = decodeInflight(reply.payload)!;
  assert.equal(reply.fds.length, 1);
  assert.equal(await front.acked(FrontRequest.SET_INFLIGHT_FD, encodeInflight(area), reply.fds), 0);
  await front.shareMemory();
  await front.startRing(0);
  for (let i = 0; i < 3; i++) assert.equal(await front.request(IN, i, 512), BlkStatus.OK);
  disk.hold('write');
  for (let slot = 0; slot < 3; slot++) front.push(slot, OUT, slot, 512, false);
  front.publish();
  await until(() => disk.waiting('write') === 3);
  // As the memory is at this moment, a killed back-end would leave it.
  const seen = NativeMemory.ofFile(reply.fds[0]!, area.length) as NativeMemory;
  const left = Uint8Array.from(seen.bytes);
  const rings = Uint8Array.from(front.memory.bytes.subarray(0, MiB));
  disk.release('write');
  for (let i = 0; i < 3; i++) await front.used();
  await front.stopRing(0);
  seen.bytes.set(left);
  front.memory.bytes.set(rings);
  disk.log.length = 0;
  // It says where it thinks it was: behind what was in flight.
  assert.equal(await front.acked(FrontRequest.SET_INFLIGHT_FD, encodeInflight(area), reply.fds), 0);
  await front.startRing(0, 128, 3, false);
  await turnsUntil(
    () => (front.memory.view.getUint16(front.ringAt(0) + 4096 + 2, true) === 6 ? true : undefined),
    'all',
  );
  assert.deepEqual(
    disk.log.filter((entry) => entry.startsWith('write')),
    ['write 0+512', 'write 512+512', 'write 1024+512'],
  );
  seen.release();
  close(reply.fds[0]!);
  await front.close();
});

onServer('pages that the device writes to are in the dirty log, and no others', async ({ server }) => {
  const front = await ready(server);
  const log = memfdCreate('log');
  const bytes = Math.ceil((GUEST + front.bytes) / 4096 / 8);
  ftruncate(log, bytes);
  await front.call(FrontRequest.SET_LOG_BASE, encodeLog({ length: bytes, offset: 0 }), [log]);
  await front.setFeatures(RingFeature.LOG_ALL);
  const usedAt = GUEST + front.ringAt(0) + 4096;
  assert.equal(await front.acked(FrontRequest.SET_VRING_ADDR, front.addressOf(0, 128, VRING_LOG, usedAt)), 0);
  assert.equal(await front.request(IN, 0, 8192), BlkStatus.OK);
  const seen = NativeMemory.ofFile(log, bytes) as NativeMemory;
  const dirty = [];
  for (let page = 0; page < bytes * 8; page++) {
    if (((seen.bytes[page >> 3]! >> (page & 7)) & 1) !== 0) dirty.push(page * 4096 - GUEST);
  }
  const slot = front.slotAt(0);
  assert.deepEqual(dirty, [front.ringAt(0) + 4096, slot, slot + 4096, slot + 8192]);
  // A log that is too small for the memory leaves out what is beyond it.
  assert.ok(await front.call(FrontRequest.SET_LOG_BASE, encodeLog({ length: 8, offset: 0 }), [log]));
  assert.equal(await front.request(IN, 0, 8192), BlkStatus.OK);
  seen.release();
  close(log);
  await front.close();
});

onServer('a guest that breaks its ring loses the queue, and a reset gives it back', async ({ server, ends }) => {
  const front = await ready(server);
  const driver = front.drivers[0]!;
  const head = front.push(0, IN, 0, 512, true);
  // The chain goes round.
  driver.descriptors[head * 4 + 3] = DescriptorFlag.NEXT | (head << 16);
  front.publish();
  front.kick();
  await settle(30);
  assert.equal(driver.hasUsed, false);
  await front.stopRing(0);
  await front.startRing(0);
  assert.equal(await front.request(IN, 0, 512), BlkStatus.OK);
  await front.close();
  assert.deepEqual(ends, [`Queue 0 has stopped: the chain at ${head} is broken`]);
});

onServer('memory that is cut off under a running ring ends the queue, not the process', async ({ server, ends }) => {
  const front = await ready(server, false);
  assert.equal(await front.request(IN, 0, 512), BlkStatus.OK);
  front.push(0, IN, 0, 512, true);
  front.memory.release();
  assert.equal(ftruncate(front.memfd, 0), 0);
  front.kick();
  await settle(50);
  await front.close();
  assert.match(ends[0]!, /its memory has gone/);
});

onServer('front-ends and memory tables come and go without descriptors or mappings left', async ({ server }) => {
  const count = (): number[] => {
    const maps = readFileSync('/proc/self/maps', 'latin1');
    return [readdirSync('/proc/self/fd').length, maps.split('\n').filter((line) => /memfd|rw-s/.test(line)).length];
  };
  const once = async (): Promise<void> => {
    const front = await ready(server);
    assert.equal(await front.request(IN, 0, 512), BlkStatus.OK);
    for (let i = 0; i < 5; i++) {
      await front.acked(FrontRequest.SET_VRING_NUM, encodeVringState({ index: 1, value: 64 }));
      await front.acked(FrontRequest.SET_VRING_CALL, encodeU64(1), [front.calls[0]!]);
      await front.acked(FrontRequest.SET_VRING_ERR, encodeU64(1), [front.calls[0]!, front.calls[0]!, front.calls[0]!]);
      await front.acked(FrontRequest.SET_MEM_TABLE, encodeMemoryTable([front.region]), [front.memfd]);
    }
    assert.equal(await front.request(IN, 0, 512), BlkStatus.OK);
    await front.close();
    await settle(20);
  };
  await once();
  const before = count();
  for (let i = 0; i < 10; i++) await once();
  assert.deepEqual(count(), before);
});
