/** One disk served by several IOThreads: whichever connection asks, it is the same disk. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { Prng } from '../src/base/prng.ts';
import { RawClient, requestBytes } from '../src/exports/nbd/raw-client.ts';
import { create, customNode, type Disk, IOThread, type NbdService, open, serveNbd } from '../src/index.ts';
import { Command, CommandFlag } from '../src/proto/nbd/constants.ts';
import { needs, pattern, peer, scratch, sparse } from './harness.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const SIZE = 4 * MiB;

async function threads(t: TestContext, count: number): Promise<IOThread[]> {
  const all = await Promise.all(Array.from({ length: count }, () => IOThread.start()));
  t.after(() => Promise.all(all.map((thread) => thread.stop())));
  return all;
}

function needsRing(thread: IOThread, t: TestContext): boolean {
  if (thread.backend.name === 'ring') return true;
  t.skip('threads share a listening socket with io_uring only');
  return false;
}

/** A connection that does one thing at a time. */
class Connection {
  readonly client: RawClient;

  private constructor(client: RawClient) {
    this.client = client;
  }

  static async open(service: NbdService): Promise<Connection> {
    const [address] = service.addresses;
    assert.ok(address?.kind === 'unix');
    const client = await RawClient.connect(address.path);
    await client.go('');
    return new Connection(client);
  }

  async run(type: number, at: number, length: number, flags = 0, payload?: Uint8Array): Promise<Buffer> {
    this.client.write(requestBytes(type, at, length, 1, flags), ...(payload ? [payload] : []));
    const reply = await this.client.simpleReply();
    assert.equal(reply?.error, 0, `command ${type} of ${length} bytes at ${at}`);
    return type === Command.READ ? this.client.read(length) : Buffer.alloc(0);
  }

  async end(): Promise<void> {
    this.client.request(Command.DISC, 0, 0);
    await this.client.closed;
  }
}

/** What a disk should hold, and everything that may be done to it from any connection. */
class Model {
  readonly bytes = new Uint8Array(SIZE);
  readonly random: Prng;
  readonly log: string[] = [];
  /** Where on the disk its first byte is. */
  readonly base: number;

  /** It is all of the disk, not a part of 512 KiB. */
  readonly whole: boolean;

  constructor(seed: number, base?: number) {
    this.random = new Prng(seed);
    this.whole = base === undefined;
    this.base = base ?? 0;
  }

  range(): [number, number] {
    const unit = [512, 4096, 64 * KiB][this.random.below(3)]!;
    const length = Math.min(unit * (1 + this.random.below(6)), 256 * KiB);
    // Mostly in a corner of the disk, so that what was done meets what is done.
    const area = this.whole && this.random.below(4) === 0 ? SIZE : 512 * KiB;
    const at = this.random.below((area - length) / 512 + 1) * 512;
    return [at, length];
  }

  async step(on: Connection, name: string): Promise<void> {
    const [at, length] = this.range();
    const what = this.random.below(10);
    if (what < 5) await this.check(on, name, at, length);
    else if (what < 8) {
      const data = pattern(length, this.random.below(1 << 30));
      this.log.push(`${name} write ${at}+${length}`);
      await on.run(Command.WRITE, this.base + at, length, this.random.below(4) === 0 ? CommandFlag.FUA : 0, data);
      this.bytes.set(data, at);
    } else if (what < 9) {
      const flags = this.random.below(2) === 0 ? CommandFlag.NO_HOLE : 0;
      this.log.push(`${name} zero ${at}+${length} ${flags}`);
      await on.run(Command.WRITE_ZEROES, this.base + at, length, flags);
      this.bytes.fill(0, at, at + length);
    } else {
      this.log.push(`${name} trim ${at}+${length}`);
      await on.run(Command.TRIM, this.base + at, length);
      // What it reads as is not defined: made so.
      await on.run(Command.WRITE_ZEROES, this.base + at, length);
      this.bytes.fill(0, at, at + length);
    }
  }

  async check(on: Connection, name: string, at: number, length: number): Promise<void> {
    const read = await on.run(Command.READ, this.base + at, length);
    if (Buffer.compare(read, this.bytes.subarray(at, at + length)) === 0) return;
    const wrong = read.findIndex((byte, i) => byte !== this.bytes[at + i]);
    assert.fail(`${name} reads ${at}+${length}: another byte at ${at + wrong}\n${this.log.slice(-30).join('\n')}`);
  }
}

interface World {
  readonly disk: Disk;
  readonly service: NbdService;
  readonly home: IOThread;
  readonly other: IOThread;
}

/** Steps on connections to both threads, in turn and at random, with `between` every now and then. */
async function walk(world: World, steps: number, seed: number, between: (step: number) => Promise<void>) {
  const { service } = world;
  const model = new Model(seed);
  const connections: Connection[] = [];
  for (let i = 0; i < 6; i++) connections.push(await Connection.open(service));
  for (let step = 0; step < steps; step++) {
    const i = model.random.below(connections.length);
    await model.step(connections[i]!, `connection ${i}`);
    if (step % 40 === 39) await between(step);
  }
  for (const [i, connection] of connections.entries()) {
    for (let at = 0; at < SIZE; at += MiB) await model.check(connection, `connection ${i}`, at, MiB);
    await connection.end();
  }
}

for (const format of ['raw', 'qcow2'] as const) {
  test(`connections of two threads see one ${format} disk`, needs('qemu-img'), async (t) => {
    const [home, other] = (await threads(t, 2)) as [IOThread, IOThread];
    if (!needsRing(home, t)) return;
    const path = `${scratch(t)}/d.${format}`;
    if (format === 'raw') sparse(path, SIZE);
    else await create(path, { size: SIZE, clusterSize: 4 * KiB });
    const disk = await open(path, { iothread: home });
    const service = await serveNbd(disk, { iothreads: [home, other] });
    const stats = async (thread: IOThread) => (await thread.stats()).loop.completions;
    const before = await stats(other);
    let snapshots = 0;
    await walk({ disk, service, home, other }, 1500, 7, async (step) => {
      const which = ((step / 40) % 5) | 0;
      if (which === 0) await disk.flush();
      else if (format === 'qcow2' && which === 1) await disk.snapshots.create(`s${snapshots++}`);
      else if (format === 'qcow2' && which === 2 && snapshots > 0) await disk.snapshots.delete(`s${--snapshots}`);
      else if (which === 3) await disk.bitmaps.add(`b${step}`);
      else if (which === 4) for (const { name } of await disk.bitmaps.list()) await disk.bitmaps.remove(name);
    });
    assert.ok((await stats(other)) > before, 'the other thread has served somebody');
    await service.stop();
    await disk.close();
    if (format === 'qcow2') await peer('qemu-img', 'check', '-q', path);
  });
}

test(
  'connections of two threads at once, while the disk is drained, changed and moved',
  needs('qemu-img'),
  async (t) => {
    const [home, other] = (await threads(t, 2)) as [IOThread, IOThread];
    if (!needsRing(home, t)) return;
    const path = `${scratch(t)}/d.qcow2`;
    await create(path, { size: 2 * SIZE, clusterSize: 16 * KiB });
    const disk = await open(path, { iothread: home });
    const service = await serveNbd(disk, { iothreads: [home, other] });
    let over = false;
    const walks = Array.from({ length: 6 }, async (_, i) => {
      const connection = await Connection.open(service);
      // Each has a part of the disk; where two meet they share a cluster.
      const model = new Model(100 + i, i * (512 * KiB + 512));
      while (!over) await model.step(connection, `connection ${i}`);
      await model.check(connection, `connection ${i}`, 0, 512 * KiB);
      await connection.end();
    });
    const changes = async (): Promise<void> => {
      for (let round = 0; round < 12; round++) {
        await disk.snapshots.create(`s${round}`);
        await disk.setAioContext(round % 2 === 0 ? other : home);
        await disk.bitmaps.add('b');
        await disk.truncate(2 * SIZE + (round + 1) * 64 * KiB);
        await disk.bitmaps.remove('b');
        if (round % 3 === 2) await disk.snapshots.delete(`s${round}`);
        await disk.flush();
      }
    };
    await Promise.all([
      ...walks,
      changes().finally(() => {
        over = true;
      }),
    ]);
    await service.stop();
    await disk.close();
    await peer('qemu-img', 'check', '-q', path);
  },
);

test('what several threads write to a disk is dirty in its bitmaps', async (t) => {
  const [home, other] = (await threads(t, 2)) as [IOThread, IOThread];
  if (!needsRing(home, t)) return;
  const disk = await open(sparse(`${scratch(t)}/d.raw`, SIZE), { iothread: home });
  const service = await serveNbd(disk, { iothreads: [home, other] });
  const connections = [await Connection.open(service), await Connection.open(service)];
  // Until both know that they may write by themselves.
  for (let i = 0; i < 20; i++) for (const one of connections) await one.run(Command.WRITE, 0, 512, 0, pattern(512));
  await disk.bitmaps.add('b', { granularity: 64 * KiB });
  for (const [i, one] of connections.entries()) {
    await one.run(Command.WRITE, (1 + i) * MiB, 512, 0, pattern(512));
  }
  const dirty: number[] = [];
  for await (const { offset, dirty: one } of disk.bitmaps.extents('b')) if (one) dirty.push(offset);
  assert.deepEqual(dirty, [MiB, 2 * MiB]);
  await service.stop();
  await disk.close();
});

test('clients of several threads are counted together, and an export leaves all of them or none', async (t) => {
  const [home, other] = (await threads(t, 2)) as [IOThread, IOThread];
  if (!needsRing(home, t)) return;
  const dir = scratch(t);
  const disk = await open(sparse(`${dir}/d.raw`, SIZE), { iothread: home });
  const more = await open(sparse(`${dir}/e.raw`, MiB), { iothread: other });
  const service = await serveNbd(disk, { iothreads: [home, other] });
  assert.deepEqual(service.iothreads, [home, other]);
  await service.addExport({ disk: more, exportName: 'more' });
  const connections: Connection[] = [];
  for (let i = 0; i < 8; i++) connections.push(await Connection.open(service));
  assert.equal(service.clients, 8);
  await assert.rejects(service.removeExport('', 'safe'), { code: 'EBUSY' });
  for (const one of connections) await one.run(Command.READ, 0, 4096);
  assert.equal((await service.stats()).clients, 8);
  assert.ok((await service.stats()).requests >= 8);
  await service.removeExport('more', 'safe');
  await more.close();
  await service.removeExport('');
  for (const { client } of connections) await client.closed;
  await service.stop();
  await disk.close();
  await assert.rejects(serveNbd(more, { iothreads: [] }), { code: 'EINVAL' });
  await assert.rejects(serveNbd(more, { iothreads: [home, home] }), { code: 'EINVAL' });
});

for (const dying of ['home', 'other'] as const) {
  test(`when the ${dying} thread of a service dies, nothing hangs, and what was answered is there`, async (t) => {
    const drivers = [new URL('./ram-driver.js', import.meta.url)];
    const both = { home: await IOThread.start({ drivers }), other: await IOThread.start({ drivers }) };
    t.after(() => Promise.allSettled(Object.values(both).map((thread) => thread.stop())));
    if (!needsRing(both.home, t)) return;
    const path = sparse(`${scratch(t)}/d.raw`, SIZE);
    const disk = await open(path, { iothread: both.home });
    const service = await serveNbd(disk, { iothreads: [both.home, both.other] });
    const crashed = new Promise<Error>((resolve) => service.once('crash', resolve));
    const model = new Uint8Array(SIZE);
    const connections: Connection[] = [];
    for (let i = 0; i < 6; i++) connections.push(await Connection.open(service));
    const loads = connections.map(async (connection, i) => {
      for (let round = 0; ; round = (round + 1) % 64) {
        const at = (i * 64 + round) * 4096;
        const data = pattern(4096, round + i);
        connection.client.write(requestBytes(Command.WRITE, at, 4096), data);
        const reply = await connection.client.simpleReply();
        if (reply?.error !== 0) break;
        model.set(data, at);
      }
      await connection.client.closed;
    });
    const fatal = await open(customNode({ driver: 'ram', size: MiB, trouble: 'crash' }), { iothread: both[dying] });
    await Promise.allSettled([fatal.read(new Uint8Array(512), 0, 512, 0)]);
    await crashed;
    await Promise.all(loads);
    await service.stop();
    await (dying === 'home' ? assert.rejects(disk.close(), { code: 'EIO' }) : disk.close());
    const bytes = readFileSync(path);
    for (let block = 0; block < 6 * 64; block++) {
      const [at, end] = [block * 4096, (block + 1) * 4096];
      // A write that was not answered may have been made or not; a block has one content, whichever round it was.
      const written = pattern(4096, (block % 64) + Math.floor(block / 64));
      const there = bytes.subarray(at, end);
      assert.ok(there.equals(model.subarray(at, end)) || there.equals(written), `block ${block}`);
    }
  });
}
