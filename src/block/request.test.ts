import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { AioContext } from '../aio/context.ts';
import { PoolBackend } from '../aio/pool/backend.ts';
import { Errno } from '../base/errors.ts';
import type { Memory } from '../base/memory.ts';
import { KiB, MiB } from '../base/units.ts';
import { nullDriver } from '../drivers/null-co/driver.ts';
import { rawDriver } from '../drivers/raw/driver.ts';
import { BlockBackend } from './backend.ts';
import { RequestFlags } from './driver.ts';
import { registerDriver } from './registry.ts';
import { BlockRequest, RequestKind } from './request.ts';
import { bytesOf, registerTestDrivers, settle, testDisk, testIov, testMemory, until } from './testing.ts';

let context: AioContext;
before(() => {
  registerDriver(nullDriver, 'null-aio');
  registerDriver(rawDriver);
  registerTestDrivers();
  context = new AioContext(new PoolBackend());
});
after(() => context.stop());

class Probe extends BlockRequest {
  results: number[] = [];
  again = 0;
  next: BlockBackend | null = null;
  done(error: number): void {
    this.results.push(error);
    if (this.again-- > 0) this.next!.submit(this);
  }
}

function request(kind: number, at: number, length: number, memory?: Memory, flags = 0): Probe {
  const probe = new Probe();
  probe.kind = kind;
  probe.at = at;
  probe.length = length;
  probe.flags = flags;
  if (memory) probe.iov.push(memory, 0, length);
  return probe;
}

async function run(blk: BlockBackend, probe: Probe): Promise<number> {
  const had = probe.results.length;
  blk.submit(probe);
  assert.equal(probe.results.length, had, 'done ran inside submit');
  await until(() => probe.results.length > had, 'done');
  return probe.results.at(-1)!;
}

test('B5 requests beyond the end are EIO, on no medium ENOMEDIUM, writes to a read-only backend EPERM', async () => {
  const memory = testMemory(context, 4096);
  const blk = await BlockBackend.open(context, { driver: 'null-co', size: 64 * KiB });
  for (const [at, length] of [
    [64 * KiB, 1],
    [64 * KiB - 1, 2],
    [-1, 1],
    [0.5, 1],
    [2 ** 53, 1],
    [2 ** 53 - 1, 2],
    [0, -1],
  ] as const) {
    const probe = request(RequestKind.READ, at, length);
    assert.equal(await run(blk, probe), -Errno.EIO, `read ${length} at ${at}`);
  }
  assert.equal(await run(blk, request(RequestKind.READ, 64 * KiB, 0)), 0);
  assert.equal(await run(blk, request(RequestKind.READ, 60 * KiB, 4096, memory)), 0);
  await blk.close();
  assert.equal(await run(blk, request(RequestKind.READ, 0, 512, memory)), -Errno.ENOMEDIUM);

  const readOnly = await BlockBackend.open(context, { driver: 'null-co', 'read-only': true });
  for (const kind of [RequestKind.WRITE, RequestKind.ZERO, RequestKind.DISCARD]) {
    assert.equal(await run(readOnly, request(kind, 0, 512, memory)), -Errno.EPERM);
  }
  assert.equal(await run(readOnly, request(RequestKind.FLUSH, 0, 0)), 0);
  await readOnly.close();
});

test('B7 done never runs inside submit, and may submit the same request again', async () => {
  const blk = await BlockBackend.open(context, { driver: 'null-co', 'read-zeroes': true });
  const memory = testMemory(context, 4096);
  for (const kind of [RequestKind.READ, RequestKind.WRITE, RequestKind.FLUSH, RequestKind.ZERO, RequestKind.CACHE]) {
    const probe = request(kind, 0, 4096, memory);
    probe.next = blk;
    probe.again = 3;
    blk.submit(probe);
    assert.equal(probe.results.length, 0);
    await until(() => probe.results.length === 4);
    assert.deepEqual(probe.results, [0, 0, 0, 0]);
  }
  assert.equal(blk.inFlight, 0);
  assert.equal(blk.root!.inFlight, 0);
  await blk.close();
});

test('a request that is in flight cannot be submitted again', async () => {
  const blk = await BlockBackend.open(context, { driver: 'null-co' });
  const probe = request(RequestKind.READ, 0, 512, testMemory(context, 512));
  blk.submit(probe);
  assert.throws(() => blk.submit(probe), /in flight/);
  await until(() => probe.results.length === 1);
  await blk.close();
});

test('plain reads and writes stay on the fast path', async () => {
  const disk = testDisk('fast', MiB);
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'fast' });
  const memory = testMemory(context, 8192, 3);
  assert.equal(await run(blk, request(RequestKind.WRITE, 1000, 8192, memory)), 0);
  const back = testMemory(context, 8192, 9);
  assert.equal(await run(blk, request(RequestKind.READ, 1000, 8192, back)), 0);
  assert.deepEqual(back.bytes, memory.bytes);
  assert.deepEqual(disk.log, ['write 1000+8192', 'read 1000+8192']);
  assert.equal(blk.stats.slow, 0);
  await blk.close();
});

test('L3 L4 short results go on, 0 bytes read is the end, 0 written is ENOSPC, EINTR and EAGAIN go again', async () => {
  const disk = testDisk('short', 64 * KiB);
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'short' });
  for (const slow of [0, RequestFlags.SERIALISING]) {
    const memory = testMemory(context, 4096, 5);
    disk.log.length = 0;
    disk.script.push({ op: 'write', short: 1000 }, { op: 'write', errno: Errno.EINTR }, { op: 'write', short: 96 });
    assert.equal(await run(blk, request(RequestKind.WRITE, 0, 4096, memory, slow)), 0);
    assert.deepEqual(disk.log, ['write 0+4096', 'write 1000+3096', 'write 1000+3096', 'write 1096+3000']);
    assert.deepEqual(disk.bytes.subarray(0, 4096), new Uint8Array(memory.bytes));

    const back = testMemory(context, 4096, 6);
    disk.script.push({ op: 'read', short: 512 }, { op: 'read', errno: Errno.EAGAIN }, { op: 'read', short: 0 });
    assert.equal(await run(blk, request(RequestKind.READ, 0, 4096, back, slow)), 0);
    assert.deepEqual(back.bytes.slice(0, 512), memory.bytes.slice(0, 512));
    assert.ok(back.bytes.subarray(512).every((byte) => byte === 0));

    disk.script.push({ op: 'write', short: 1024 }, { op: 'write', short: 0 });
    assert.equal(await run(blk, request(RequestKind.WRITE, 0, 4096, memory, slow)), -Errno.ENOSPC);
    disk.script.push({ op: 'read', errno: Errno.EIO });
    assert.equal(await run(blk, request(RequestKind.READ, 0, 4096, memory, slow)), -Errno.EIO);
  }
  await blk.close();
});

test('B6 a writethrough backend adds FUA to every write', async () => {
  const disk = testDisk('through', 64 * KiB);
  disk.nativeFua = true;
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'through' }, { writethrough: true });
  const memory = testMemory(context, 512);
  assert.equal(await run(blk, request(RequestKind.WRITE, 0, 512, memory)), 0);
  assert.deepEqual(disk.log, ['write 0+512 flags 1']);
  await blk.close();
});

test('R5 FUA is a flush at the end where the driver lacks it, and is dropped with cache.no-flush', async () => {
  const memory = testMemory(context, 4096);
  for (const style of ['callback', 'coroutine'] as const) {
    const disk = testDisk('fua', 64 * KiB);
    disk.style = style;
    disk.limits = { maxTransfer: 1024 };
    const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'fua' });
    assert.equal(await run(blk, request(RequestKind.WRITE, 0, 2048, memory, RequestFlags.FUA)), 0);
    assert.deepEqual(disk.log, ['write 0+1024', 'write 1024+1024', 'flush']);
    disk.log.length = 0;
    disk.script.push({ op: 'flush', errno: Errno.EIO });
    assert.equal(await run(blk, request(RequestKind.WRITE, 0, 512, memory, RequestFlags.FUA)), -Errno.EIO);
    await blk.close();

    disk.log.length = 0;
    const cache = { 'no-flush': true };
    const unsafe = await BlockBackend.open(context, { driver: 'memory', disk: 'fua', cache });
    assert.equal(await run(unsafe, request(RequestKind.WRITE, 0, 512, memory, RequestFlags.FUA)), 0);
    assert.equal(await run(unsafe, request(RequestKind.FLUSH, 0, 0)), 0);
    assert.deepEqual(disk.log, ['write 0+512']);
    await unsafe.close();
  }
});

test('B3 requests to a drained backend wait without being counted, and go on in order when it ends', async () => {
  const disk = testDisk('queue', 64 * KiB);
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'queue' });
  const memory = testMemory(context, 4096);
  disk.hold('write');
  const first = request(RequestKind.WRITE, 0, 512, memory);
  blk.submit(first);
  let drained = false;
  const draining = blk.drain().then((section) => {
    drained = true;
    return section;
  });
  const waiting = [1, 2, 3].map((n) => request(RequestKind.WRITE, n * 512, 512, memory));
  for (const probe of waiting) blk.submit(probe);
  await settle();
  assert.equal(drained, false);
  assert.equal(blk.queued, 3);
  assert.equal(blk.inFlight, 1);
  disk.release('write');
  const section = await draining;
  assert.equal(blk.inFlight, 0);
  assert.equal(blk.root!.inFlight, 0);
  assert.deepEqual(first.results, [0]);
  await settle();
  assert.equal(disk.log.length, 1);
  section.end();
  section.end();
  assert.equal(blk.inFlight, 3);
  await until(() => waiting.every((probe) => probe.results.length === 1));
  assert.deepEqual(disk.log, ['write 0+512', 'write 512+512', 'write 1024+512', 'write 1536+512']);
  await blk.close();
});

test('B3 a backend that opted out of queueing works inside its drained section', async () => {
  const blk = await BlockBackend.open(context, { driver: 'null-co' });
  const section = await blk.drain();
  blk.disableQueuing = true;
  await blk.read(0, testIov(context, [512]));
  section.end();
  await blk.close();
});

test('B4 the medium is looked at after waiting: one that went away meanwhile is ENOMEDIUM', async () => {
  const blk = await BlockBackend.open(context, { driver: 'null-co' });
  const section = await blk.drain();
  const probe = request(RequestKind.READ, 0, 512, testMemory(context, 512));
  blk.submit(probe);
  await blk.remove();
  await until(() => probe.results.length === 1);
  assert.deepEqual(probe.results, [-Errno.ENOMEDIUM]);
  section.end();
});

test('the promise API rejects with a BlockError that says what was tried', async () => {
  const disk = testDisk('api', 64 * KiB);
  const blk = await BlockBackend.open(context, { driver: 'memory', disk: 'api', 'node-name': 'api0' });
  disk.script.push({ op: 'read', errno: Errno.EIO });
  await assert.rejects(blk.read(4096, testIov(context, [512])), {
    code: 'EIO',
    message: 'Could not read 512 bytes at 4096: Input/output error',
    where: { op: 'read', at: 4096, length: 512, node: 'api0' },
  });
  const iov = testIov(context, [100, 400, 12], 8);
  await blk.write(100, iov);
  const back = testIov(context, [512], 1);
  await blk.read(100, back);
  assert.deepEqual(bytesOf(back), bytesOf(iov));
  await blk.close();
  assert.equal(disk.closed, true);
});

test('a read and a write on the fast path allocate nothing', { timeout: 60_000 }, async () => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const blk = await BlockBackend.open(context, { driver: 'raw', file: { driver: 'null-co' } });
  const quiet = { length: 0, push: () => 0 } as unknown as number[];
  const memory = testMemory(context, 4096);
  // Many at a time, so that what the event loop allocates for every turn of its own does not count.
  const probes = Array.from({ length: 4096 }, (_, n) => request(n % 2, n * 4096, 4096, memory));
  const round = async (requests: number): Promise<number> => {
    collect();
    const before = process.memoryUsage().heapUsed;
    for (const probe of probes) {
      probe.results = quiet;
      probe.next = blk;
      probe.again = requests / probes.length - 1;
      blk.submit(probe);
    }
    await until(() => blk.inFlight === 0);
    return (process.memoryUsage().heapUsed - before) / requests;
  };
  await round(4096 * 25);
  const growth: number[] = [];
  for (let i = 0; i < 4; i++) growth.push(await round(4096 * 25));
  // The smallest of several: what is compiled in between is not the path's doing.
  assert.ok(Math.min(...growth) < 8, `bytes per request: ${growth.map((n) => n.toFixed(1)).join(' ')}`);
  assert.equal(blk.stats.slow, 0);
  await blk.close();
});
