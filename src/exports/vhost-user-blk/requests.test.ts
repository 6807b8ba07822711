import assert from 'node:assert/strict';
import { Errno } from '../../base/errors.ts';
import { Prng } from '../../base/prng.ts';
import { MiB } from '../../base/units.ts';
import { close, ftruncate } from '../../native/file.ts';
import { NativeMemory } from '../../native/memory.ts';
import { memfdCreate } from '../../native/mmap.ts';
import { FrontRequest } from '../../proto/vhost-user/constants.ts';
import { encodeSingleRegion } from '../../proto/vhost-user/message.ts';
import { BlkFeature, BlkRequestType, BlkStatus } from '../../proto/virtio-blk/constants.ts';
import { DescriptorFlag } from '../../proto/virtio-blk/split-ring.ts';
import { GUEST, USER } from './testing-front-end.ts';
import { onServer, ready, SHAPES, SIZE } from './testing-rig.ts';

const { IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES } = BlkRequestType;

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
