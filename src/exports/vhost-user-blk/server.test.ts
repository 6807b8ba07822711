import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { Prng } from '../../base/prng.ts';
import { MiB } from '../../base/units.ts';
import { settle, until } from '../../block/testing.ts';
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
  encodeU64,
  encodeVringState,
} from '../../proto/vhost-user/message.ts';
import { CONFIG_WRITEBACK_AT, decodeBlkConfig } from '../../proto/virtio-blk/config.ts';
import { BlkRequestType, BlkStatus, RingFeature } from '../../proto/virtio-blk/constants.ts';
import { DescriptorFlag } from '../../proto/virtio-blk/split-ring.ts';
import { FrontEnd, GUEST, turnsUntil } from './testing-front-end.ts';
import { onServer, ready, SIZE } from './testing-rig.ts';

const { IN, OUT } = BlkRequestType;

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

for (const sealed of [true, false]) {
  const memory = sealed ? 'sealed memory' : 'memory that may shrink';
  onServer(
    `so it does with a packed ring, whose descriptors are overwritten by then: ${memory}`,
    async ({ server, disk }) => {
      const front = await FrontEnd.connect(server, sealed);
      front.packed = true;
      await front.negotiate();
      const asked = encodeInflight({ length: 0, offset: 0, queues: 1, queueSize: 128 });
      const reply = (await front.call(FrontRequest.GET_INFLIGHT_FD, asked))!;
      const area = decodeInflight(reply.payload)!;
      const begin = async (fresh: boolean): Promise<void> => {
        assert.equal(await front.acked(FrontRequest.SET_INFLIGHT_FD, encodeInflight(area), reply.fds), 0);
        // QEMU does not know where a ring was whose back-end was killed.
        await front.startRing(0, 128, FrontEnd.PACKED_BASE, fresh);
      };
      await front.shareMemory();
      await begin(true);
      // Twice round the ring, so that the wrap counters are others than at the beginning.
      for (let i = 0; i < 91; i++) assert.equal(await front.request(IN, i % 8, 512), BlkStatus.OK);
      disk.hold('write', 4);
      for (let slot = 0; slot < 5; slot++) front.push(slot, OUT, slot, 512, false);
      front.publish();
      await until(() => disk.waiting('write') === 4);
      await front.used();
      const seen = NativeMemory.ofFile(reply.fds[0]!, area.length) as NativeMemory;
      const left = Uint8Array.from(seen.bytes);
      const rings = Uint8Array.from(front.memory.bytes.subarray(0, MiB));
      disk.release('write');
      await front.stopRing(0);
      seen.bytes.set(left);
      front.memory.bytes.set(rings);
      disk.log.length = 0;
      await begin(false);
      const ids = new Set<number>();
      for (let i = 0; i < 4; i++) ids.add(await front.used());
      assert.equal(ids.size, 4);
      assert.deepEqual(disk.log, ['write 0+512', 'write 512+512', 'write 1024+512', 'write 1536+512']);
      for (let i = 0; i < 91; i++) assert.equal(await front.request(IN, i % 8, 512), BlkStatus.OK);
      // What the area holds may be anything.
      await front.stopRing(0);
      const prng = new Prng(3);
      for (let round = 0; round < 200; round++) {
        seen.bytes.set(left);
        for (let i = prng.below(20); i >= 0; i--) seen.bytes[prng.below(left.length)] = prng.below(256);
        await begin(true);
        await front.stopRing(0);
      }
      seen.release();
      close(reply.fds[0]!);
      await front.close();
    },
  );
}

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
  // The ring lets go of descriptors a little later.
  await until(() => count().every((some, i) => some <= before[i]!), 'descriptors and mappings to be gone');
});
