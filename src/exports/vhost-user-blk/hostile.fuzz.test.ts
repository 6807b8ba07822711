/**
 * Malformed sequences: messages that say what cannot be, and rings that hold what no driver would put there. Whatever
 * comes, a request or its device fails; the process lives, nothing outside the shared memory is touched, and no
 * descriptor or mapping stays. BLOCKPLANE_FUZZ_RUNS sets how many, BLOCKPLANE_FUZZ_SEED which.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { RingBackend } from '../../aio/ring/backend.ts';
import { whyNoRing } from '../../aio/select.ts';
import { Prng } from '../../base/prng.ts';
import { MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { registerDriver } from '../../block/registry.ts';
import { until } from '../../block/testing.ts';
import { nullDriver } from '../../drivers/null-co/driver.ts';
import { sendFds } from '../../native/socket.ts';
import { FrontRequest, HeaderFlag } from '../../proto/vhost-user/constants.ts';
import {
  encodeConfigPart,
  encodeInflight,
  encodeLog,
  encodeMemoryTable,
  encodeMessage,
  encodeSingleRegion,
  encodeU64,
  encodeVringState,
} from '../../proto/vhost-user/message.ts';
import { BlkRequestType, BlkStatus } from '../../proto/virtio-blk/constants.ts';
import { PackedFlag } from '../../proto/virtio-blk/packed-ring.ts';
import { VhostUserBlkServer } from './server.ts';
import { FrontEnd, GUEST, PLAIN, USER } from './testing-front-end.ts';

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';
const RUNS = Number(process.env.BLOCKPLANE_FUZZ_RUNS ?? 300) * (LONG ? 2.5 : 1);
const SEED = Number(process.env.BLOCKPLANE_FUZZ_SEED ?? 1);
/** Sequences of one front-end before it is asked whether all is well. */
const ROUND = 25;
const skip = process.env.BLOCKPLANE_AIO === 'pool' ? 'BLOCKPLANE_AIO=pool' : ((await whyNoRing()) ?? false);
registerDriver(nullDriver);

const REQUESTS = Object.values(FrontRequest);
const EDGES = [0, 1, 2, 15, 16, 17, 127, 128, 129, 511, 512, 1024, 4095, 4096, 65535, 65536, 2 ** 31 - 1, 2 ** 31];

function edge(prng: Prng): number {
  const value = prng.pick([...EDGES, 2 ** 32 - 1, 2 ** 32, 2 ** 52, 2 ** 53 - 1, GUEST, USER]);
  return Math.max(0, value + prng.between(-1, 1));
}

/** A payload as its request has it, with numbers of the edges in it; sometimes cut or too long. */
function payloadOf(prng: Prng, request: number): Uint8Array {
  const index = prng.chance(0.8) ? prng.below(3) : edge(prng) % 2 ** 32;
  const region = () => ({ guest: edge(prng), user: edge(prng), length: edge(prng), offset: edge(prng) });
  const R = FrontRequest;
  const area = { length: edge(prng), offset: prng.chance(0.5) ? 0 : edge(prng) };
  switch (request) {
    case R.SET_MEM_TABLE:
      return encodeMemoryTable(Array.from({ length: prng.below(12) }, region));
    case R.ADD_MEM_REG:
    case R.REM_MEM_REG:
      return encodeSingleRegion(region());
    case R.SET_VRING_NUM:
    case R.SET_VRING_BASE:
    case R.GET_VRING_BASE:
    case R.SET_VRING_ENABLE:
      return encodeVringState({ index, value: edge(prng) % 2 ** 32 });
    case R.SET_VRING_KICK:
    case R.SET_VRING_CALL:
    case R.SET_VRING_ERR:
      return encodeU64(prng.chance(0.7) ? index : edge(prng));
    case R.GET_CONFIG:
    case R.SET_CONFIG:
      return encodeConfigPart(edge(prng) % 2 ** 32, new Uint8Array(prng.below(300)), edge(prng) % 2 ** 32);
    case R.GET_INFLIGHT_FD:
    case R.SET_INFLIGHT_FD:
      return encodeInflight({ ...area, queues: prng.below(80), queueSize: edge(prng) % 65536 });
    case R.SET_LOG_BASE:
      return encodeLog(area);
    default:
      return prng.fill(new Uint8Array(prng.below(64)));
  }
}

/** One message, wrong in some way or other. */
function hostileMessage(prng: Prng, front: FrontEnd): void {
  const request = prng.chance(0.9) ? prng.pick(REQUESTS) : edge(prng) % 2 ** 32;
  let payload = payloadOf(prng, request);
  if (prng.chance(0.1)) payload = payload.subarray(0, prng.below(payload.length + 1));
  const fds = prng.chance(0.5) ? Array.from({ length: prng.below(10) }, () => prng.pick(front.allFds)) : [];
  const bytes = encodeMessage(request, payload, prng.chance(0.7) ? HeaderFlag.NEED_REPLY : 0);
  if (prng.chance(0.02)) bytes[prng.below(12)] = prng.below(256);
  sendFds(front.fd, bytes, fds);
}

/** What a bad driver does to the words of its ring. */
function hostileRing(prng: Prng, front: FrontEnd): void {
  const driver = front.drivers[0]!;
  const { descriptors, avail } = driver;
  const count = prng.between(1, 6);
  for (let i = 0; i < count; i++) {
    const at = prng.below(driver.size) * 4;
    hostileDescriptor(prng, front, descriptors, at);
    descriptors[at + 3] = prng.below(8) + (prng.chance(0.8) ? prng.below(driver.size) : prng.below(65536)) * 65536;
    avail[2 + ((avail[1]! + i) % driver.size)] = prng.chance(0.95) ? at / 4 : prng.below(65536);
  }
  Atomics.store(avail, 1, avail[1]! + (prng.chance(0.95) ? count : prng.below(65536)));
  front.kick();
}

/** The same in a packed ring, from the first descriptor on: the wrap counter is 1 there. */
function hostilePacked(prng: Prng, front: FrontEnd): void {
  const { descriptors, size } = front.packedDrivers[0]!;
  for (let i = prng.below(4), count = prng.between(1, 6); count > 0; i++, count--) {
    const at = (i % size) * 4;
    hostileDescriptor(prng, front, descriptors, at);
    const id = prng.chance(0.9) ? prng.below(size) : prng.below(65536);
    const flags = prng.chance(0.8) ? prng.below(8) + PackedFlag.AVAIL : prng.below(65536);
    descriptors[at + 3] = id + flags * 65536;
  }
  front.kick();
}

/** An address and a length, and often something behind it that can be read as a header, or as a table. */
function hostileDescriptor(prng: Prng, front: FrontEnd, descriptors: Uint32Array, at: number): void {
  const where = prng.chance(0.7) ? GUEST + prng.below(front.bytes + 4096) : edge(prng);
  descriptors[at] = where % 2 ** 32;
  descriptors[at + 1] = Math.floor(where / 2 ** 32);
  descriptors[at + 2] = prng.chance(0.7) ? prng.pick([0, 1, 16, 17, 512, 528]) : edge(prng) % 2 ** 32;
  if (where < GUEST + MiB || where + 64 >= GUEST + front.bytes) return;
  const words = new DataView(front.memory.bytes.buffer, where - GUEST, 64);
  words.setUint32(0, prng.below(16), true);
  for (let word = 4; word < 64; word += 4) words.setUint32(word, edge(prng) % 2 ** 32, true);
}

function resources(): number[] {
  const maps = readFileSync('/proc/self/maps', 'latin1').split('\n');
  return [readdirSync('/proc/self/fd').length, maps.filter((line) => /memfd/.test(line)).length];
}

/** One front-end: so many sequences, then it leaves. */
async function round(prng: Prng, server: VhostUserBlkServer): Promise<void> {
  const front = await FrontEnd.connect(server, prng.chance(0.8));
  front.packed = prng.chance(0.4);
  await front.negotiate(prng.chance(0.3) ? PLAIN : 0);
  await front.shareMemory();
  await front.startRing(0, 64);
  const rings = prng.chance(0.6);
  for (let i = 0; i < ROUND; i++) {
    if (!rings) {
      hostileMessage(prng, front);
      if (i % 5 === 4) await server.context.yield();
      continue;
    }
    if (front.packed) hostilePacked(prng, front);
    else hostileRing(prng, front);
    for (let turn = 0; turn < 3; turn++) await server.context.yield();
    if (i % 4 !== 3) continue;
    // The queue may be broken by now.
    await front.stopRing(0);
    await front.startRing(0, 64);
  }
  await front.close();
}

test('whatever a front-end or a guest does, it harms nobody but itself', { skip, timeout: 1_800_000 }, async () => {
  const context = new AioContext(new RingBackend(), { name: 'hostile' });
  const blk = await BlockBackend.open(context, { driver: 'null-co', size: 64 * MiB, 'read-zeroes': true }, {});
  const server = new VhostUserBlkServer(context, blk, { writable: true });
  const well = async (): Promise<void> => {
    const front = await FrontEnd.connect(server);
    await front.negotiate();
    await front.shareMemory();
    await front.startRing(0);
    front.dataOf(0, 512).fill(1);
    assert.equal(await front.request(BlkRequestType.IN, 0, 512), BlkStatus.OK);
    assert.equal(front.dataOf(0, 512)[511], 0);
    await front.close();
  };
  await well();
  for (let turn = 0; turn < 5; turn++) await context.yield();
  const before = resources();
  // Descriptors are closed when the ring has let go of them.
  const quiet = (): Promise<void> =>
    until(() => resources().every((some, i) => some <= before[i]!), 'descriptors and mappings to be gone');
  for (let run = 0; run * ROUND < RUNS; run++) {
    const seed = SEED + run;
    try {
      await round(new Prng(seed), server);
      if (run % 10 === 9) await well();
      await quiet();
    } catch (error) {
      throw new Error(`seed ${seed} (BLOCKPLANE_FUZZ_SEED): ${error}`, { cause: error });
    }
  }
  await server.stop();
  await blk.close();
  await context.stop();
});
