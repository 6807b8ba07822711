/** A vhost-user-blk device whose queues are in several IOThreads, and whose disk moves, under our own client. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { create, type Disk, IOThread, open, serveVhostUser } from '../src/index.ts';
import { needs, peer, scratch, sparse } from './harness.ts';

const MIB = 2 ** 20;
const BLOCK = 4096;
const skip = process.env.BLOCKPLANE_AIO === 'pool' ? 'BLOCKPLANE_AIO=pool' : false;

async function threads(t: TestContext, count: number): Promise<IOThread[]> {
  const all = await Promise.all(Array.from({ length: count }, () => IOThread.start()));
  t.after(() => Promise.all(all.map((thread) => thread.stop())));
  return all;
}

/** The device as a disk of `iothread`. */
function client(path: string, iothread: IOThread, more: object = {}): Promise<Disk> {
  return open({ driver: 'virtio-blk-vhost-user', path, 'num-queues': 4, ...more }, { iothread });
}

/** A client is told of a new size when its thread comes to it. */
async function hasGrown(disk: Disk, size: number): Promise<void> {
  while ((await disk.stat()).size !== size) await new Promise((resolve) => setImmediate(resolve));
}

/** Writes to blocks at random, and reads what they must hold, until `over` says so. */
class Load {
  readonly #disk: Disk;
  readonly #model: Uint8Array;
  #random = 1;
  rounds = 0;

  constructor(disk: Disk, blocks: number) {
    this.#disk = disk;
    this.#model = new Uint8Array(blocks);
  }

  #below(below: number): number {
    this.#random = (Math.imul(this.#random, 1664525) + 1013904223) >>> 0;
    return Math.floor((this.#random / 2 ** 32) * below);
  }

  async run(over: () => boolean): Promise<void> {
    const blocks = this.#model.length;
    while (!over()) {
      this.rounds++;
      // One owner a block and round, so that the order does not matter.
      const first = this.#below(blocks);
      const touched = Array.from({ length: 32 }, (_, i) => (first + i * 7) % blocks);
      const value = this.rounds % 255;
      await Promise.all(
        touched.map(async (block, i) => {
          if (i % 2 === 0) return this.#check(block);
          await this.#disk.write(Buffer.alloc(BLOCK, value + 1), 0, BLOCK, block * BLOCK);
          this.#model[block] = value + 1;
        }),
      );
    }
  }

  async #check(block: number): Promise<void> {
    const { buffer } = await this.#disk.read(Buffer.alloc(BLOCK), 0, BLOCK, block * BLOCK);
    assert.ok(
      buffer.every((byte) => byte === this.#model[block]),
      `block ${block} is not ${this.#model[block]}`,
    );
  }

  async checkAll(): Promise<void> {
    for (let block = 0; block < this.#model.length; block += 3) await this.#check(block);
  }
}

test('queues in several threads serve one device, each doing its I/O by itself', {
  skip,
  timeout: 60_000,
}, async (t) => {
  const [home, other, mine] = (await threads(t, 3)) as [IOThread, IOThread, IOThread];
  const image = sparse(join(scratch(t), 'a.img'), 8 * MIB);
  const disk = await open(image, { iothread: home, format: 'raw' });
  const mapping = [{ iothread: home }, { iothread: other }];
  const service = await serveVhostUser(disk, { queues: 4, iothreadVqMapping: mapping });
  assert.deepEqual(service.iothreads, [home, other]);
  for (const packed of [false, true]) {
    const front = await client(service.socket, mine, { packed });
    const before = disk.ioStats.requests;
    const load = new Load(front, 2048);
    // Another client's bytes are under a model of zeroes.
    await front.writeZeroes(0, 8 * MIB);
    await load.run(() => load.rounds === 60);
    await load.checkAll();
    const total = 60 * 32 + Math.ceil(2048 / 3);
    // The other thread's were done in the file, of which the home does not hear: how many depends on who is quick.
    const heard = disk.ioStats.requests - before;
    assert.ok(heard > total / 4 && heard < total, `${heard} of ${total}`);
    await front.close();
  }
  await disk.truncate(9 * MIB);
  const front = await client(service.socket, mine);
  assert.equal(front.size, 9 * MIB);
  await disk.truncate(10 * MIB);
  await hasGrown(front, 10 * MIB);
  // Every queue knows of it.
  const end = Array.from({ length: 64 }, (_, i) => front.write(Buffer.alloc(512, 7), 0, 512, 10 * MIB - 512 * (i + 1)));
  await Promise.all(end);
  await front.close();
  assert.equal((await service.stats()).connections, 3);
  await service.stop();
  await disk.close();
  assert.equal(readFileSync(image)[10 * MIB - 1], 7);
});

test('queues go to the threads they are given to, and a mapping that is none is refused', { skip }, async (t) => {
  const [home, other, mine] = (await threads(t, 3)) as [IOThread, IOThread, IOThread];
  const disk = await open(sparse(join(scratch(t), 'a.img'), MIB), { iothread: home });
  const serve = (iothreadVqMapping: { iothread: IOThread; vqs?: number[] }[]) =>
    serveVhostUser(disk, { queues: 2, iothreadVqMapping });
  await assert.rejects(serve([]), { message: /there is no thread/ });
  await assert.rejects(serve([{ iothread: home }, { iothread: home }]), { message: /a thread is there twice/ });
  await assert.rejects(serve([{ iothread: home, vqs: [0, 1] }, { iothread: other }]), { message: /and some have not/ });
  await assert.rejects(serve([{ iothread: home, vqs: [0] }]), { message: /queue 1 has no thread/ });
  await assert.rejects(serve([{ iothread: home, vqs: [0, 1, 1] }]), { message: /queue 1 is there twice/ });
  await assert.rejects(serve([{ iothread: home, vqs: [0, 2] }]), { message: /queue 2 is not from 0 to 1/ });
  // All queues in a thread that is not the home.
  const service = await serve([{ iothread: other, vqs: [1, 0] }]);
  const front = await client(service.socket, mine);
  await front.write(Buffer.alloc(4096, 9), 0, 4096, 0);
  const { buffer } = await disk.read(Buffer.alloc(4096), 0, 4096, 0);
  assert.ok(buffer.every((byte) => byte === 9));
  await front.close();
  await service.stop();
  await disk.close();
});

for (const format of ['raw', 'qcow2'] as const) {
  test(`a ${format} disk moves again and again under a client of its export`, {
    ...needs('qemu-img'),
    skip,
    timeout: 120_000,
  }, async (t) => {
    const [a, b, mine] = (await threads(t, 3)) as [IOThread, IOThread, IOThread];
    const folder = scratch(t);
    const image = join(folder, `a.${format}`);
    if (format === 'raw') sparse(image, 8 * MIB);
    else {
      writeFileSync(join(folder, 'base.img'), Buffer.alloc(8 * MIB));
      await create(image, { backingFile: 'base.img', backingFormat: 'raw' });
    }
    const disk = await open(image, { iothread: a });
    const service = await serveVhostUser(disk, { queues: 4, iothreadVqMapping: [{ iothread: a }, { iothread: b }] });
    const front = await client(service.socket, mine);
    const load = new Load(front, 2048);
    let over = false;
    const running = load.run(() => over);
    for (let moves = 0; moves < 6; moves++) {
      const seen = load.rounds;
      await disk.setAioContext(moves % 2 === 0 ? b : a);
      while (load.rounds < seen + 5) await front.stat();
    }
    await disk.setAioContext(mine);
    await disk.truncate(9 * MIB);
    await hasGrown(front, 9 * MIB);
    over = true;
    await running;
    await load.checkAll();
    await front.flush();
    assert.equal((await service.stats()).connections, 1);
    await front.close();
    await service.stop();
    await disk.close();
    if (format === 'qcow2') await peer('qemu-img', 'check', image);
  });
}

test('a service stops when one of its threads does, and its client is told', { skip, timeout: 30_000 }, async (t) => {
  const [home, other, mine] = (await threads(t, 3)) as [IOThread, IOThread, IOThread];
  const disk = await open(sparse(join(scratch(t), 'a.img'), MIB), { iothread: home });
  const service = await serveVhostUser(disk, { iothreadVqMapping: [{ iothread: home }, { iothread: other }] });
  const front = await client(service.socket, mine);
  await front.write(Buffer.alloc(4096, 9), 0, 4096, 0);
  await front.flush();
  await other.stop();
  while ((await service.stats()).connected) await new Promise((resolve) => setImmediate(resolve));
  await front.close();
  await service.stop();
  await disk.close();
});
