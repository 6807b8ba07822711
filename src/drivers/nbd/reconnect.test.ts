/** A server that goes away and comes back: nothing is lost, nothing done that must not be, and flush does not lie. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { Sim } from '../../aio/sim/sim.ts';
import { inContext } from '../../aio/testing.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { Prng } from '../../base/prng.ts';
import { KiB, MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { RequestFlags } from '../../block/driver.ts';
import { until } from '../../exports/nbd/testing.ts';
import { TestServer, withServer } from './testing.ts';

const BLOCK = 4 * KiB;
const SEEDS = process.env.BLOCKPLANE_TEST_TIER === 'long' ? 300 : 12;

function memoryOf(context: AioContext, length: number, value = 0): Memory {
  const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(length)));
  memory.bytes.fill(value);
  return memory;
}

async function write(context: AioContext, blk: BlockBackend, at: number, value: number, flags = 0): Promise<void> {
  await blk.write(at, Iov.of(memoryOf(context, BLOCK, value)), flags);
}

async function read(context: AioContext, blk: BlockBackend, at: number): Promise<number> {
  const memory = memoryOf(context, BLOCK);
  await blk.read(at, Iov.of(memory));
  const value = memory.bytes[0]!;
  assert.ok(memory.bytes.every((byte) => byte === value));
  return value;
}

/** Writers and readers that know what each block must hold; they go on until told to stop. */
class Load {
  readonly #context: AioContext;
  readonly #blk: BlockBackend;
  readonly #random = new Prng(7);
  /** What each block holds: its writer is alone on it. */
  readonly #model: Uint8Array;
  ended = 0;
  stopped = false;

  constructor(context: AioContext, blk: BlockBackend) {
    this.#context = context;
    this.#blk = blk;
    this.#model = new Uint8Array(blk.length / BLOCK);
  }

  async run(workers: number): Promise<void> {
    await Promise.all(Array.from({ length: workers }, (_, index) => this.#work(index, workers)));
    for (let block = 0; block < this.#model.length; block++) {
      assert.equal(await read(this.#context, this.#blk, block * BLOCK), this.#model[block], `block ${block}`);
    }
  }

  async #work(index: number, workers: number): Promise<void> {
    while (!this.stopped) {
      const block = index + workers * this.#random.below(Math.floor(this.#model.length / workers));
      if (this.#random.below(2) === 0) {
        const value = this.#random.below(256);
        await write(this.#context, this.#blk, block * BLOCK, value);
        this.#model[block] = value;
      } else {
        assert.equal(await read(this.#context, this.#blk, block * BLOCK), this.#model[block], `block ${block}`);
      }
      this.ended++;
    }
  }
}

inContext('under load, a server that is ended and started 20 times costs no request and no byte', async (context) => {
  const client = { 'reconnect-delay': 10, 'restart-loses-cache': false };
  await withServer(context, 2 * MiB, { client }, async (blk, server) => {
    const load = new Load(context, blk);
    const running = load.run(32);
    for (let round = 0; round < 20; round++) {
      const before = load.ended;
      await until(() => load.ended > before + 200);
      await server.stop();
      await server.start();
    }
    load.stopped = true;
    await running;
    await blk.flush();
    assert.equal(blk.inFlight, 0);
  });
});

inContext('under load, connections that are cut at any byte cost no request and no byte', async (context) => {
  const client = { 'reconnect-delay': 10, 'restart-loses-cache': false };
  await withServer(context, 2 * MiB, { client, proxy: true }, async (blk, { proxy }) => {
    const load = new Load(context, blk);
    const running = load.run(32);
    for (let round = 0; round < 40; round++) {
      const before = load.ended;
      await until(() => load.ended > before + 50 + round);
      proxy.cut(1 + (round % 5));
    }
    load.stopped = true;
    await running;
  });
});

for (let seed = 1; seed <= SEEDS; seed++) {
  test(`in sim, sockets that fail at random cost no request and no byte (seed ${seed})`, async () => {
    const sim = new Sim(seed, {
      chances: { recv: { error: 0.01, short: 0.2 }, send: { error: 0.01 }, connect: { error: 0.1 } },
    });
    sim.driveItself();
    const context = new AioContext(sim.backend());
    const client = { 'open-timeout': 60, 'reconnect-delay': 60, 'restart-loses-cache': false };
    await withServer(context, MiB, { client }, async (blk) => {
      const load = new Load(context, blk);
      const running = load.run(16);
      await until(() => load.ended > 1500);
      load.stopped = true;
      await running;
    });
    await context.stop();
  });
}

inContext('one of several connections that is lost is not noticed, even without reconnect-delay', async (context) => {
  await withServer(context, 2 * MiB, { proxy: true }, async (blk, { proxy }) => {
    const load = new Load(context, blk);
    const running = load.run(32);
    for (let round = 0; round < 10; round++) {
      await until(() => proxy.connections === 4);
      const before = load.ended;
      proxy.cut();
      await until(() => load.ended > before + 100);
    }
    load.stopped = true;
    await running;
    await until(() => proxy.connections === 4);
  });
});

inContext('without reconnect-delay requests fail with their server, and later ones find the next', async (context) => {
  await withServer(context, MiB, { proxy: true }, async (blk, { proxy, disk }) => {
    await write(context, blk, 0, 5, RequestFlags.FUA);
    disk.hold('read');
    const stuck = assert.rejects(read(context, blk, 0), { code: 'EIO' });
    await until(() => disk.waiting('read') > 0);
    proxy.open = false;
    proxy.cut(4);
    await stuck;
    await assert.rejects(read(context, blk, 0), { code: 'EIO' });
    disk.release('read');
    proxy.open = true;
    await retry(async () => assert.equal(await read(context, blk, 0), 5));
  });
});

/** Answers how long a read waited for a server that does not come back, and 50 more after that, in seconds. */
async function delayEnds(context: AioContext): Promise<{ readonly first: number; readonly more: number }> {
  let [first, more] = [0, 0];
  await withServer(context, MiB, { client: { 'reconnect-delay': 0.2 } }, async (blk, server) => {
    assert.equal(await read(context, blk, 0), 0);
    await server.stop();
    const began = context.now();
    await assert.rejects(read(context, blk, 0), { code: 'EIO' });
    const then = context.now();
    await until(() => blk.inFlight === 0);
    for (let i = 0; i < 50; i++) await assert.rejects(read(context, blk, 0), { code: 'EIO' });
    [first, more] = [(then - began) / 1e9, (context.now() - then) / 1e9];
    await server.start();
    await retry(async () => assert.equal(await read(context, blk, 0), 0));
  });
  return { first, more };
}

inContext('reconnect-delay ends: what waits then fails, and what comes later too', async (context) => {
  await delayEnds(context);
});

test('in sim, what comes when reconnect-delay is over fails at once', async () => {
  const sim = new Sim(1);
  sim.driveItself();
  const context = new AioContext(sim.backend());
  const { first, more } = await delayEnds(context);
  assert.ok(first > 0.15 && first <= 0.25, `${first} s`);
  assert.ok(more < 0.01, `${more} s`);
  await context.stop();
});

inContext('L6 a flush after all connections were lost fails for ever where writes were at risk', async (context) => {
  await withServer(context, MiB, { lossy: true, client: { 'reconnect-delay': 10 } }, async (blk, server) => {
    await write(context, blk, 0, 1);
    await blk.flush();
    await server.stop();
    await server.start();
    await write(context, blk, BLOCK, 2);
    await blk.flush();
    assert.equal(await read(context, blk, 0), 1);
    // Acknowledged and not flushed: the next server cannot know of it.
    await write(context, blk, 0, 3);
    await server.stop();
    await server.start();
    assert.equal(await read(context, blk, 0), 3);
    for (let i = 0; i < 2; i++) await assert.rejects(blk.flush(), { code: 'EIO', message: /may be lost/ });
    await write(context, blk, BLOCK, 4);
    await assert.rejects(blk.flush(), { code: 'EIO', message: /may be lost/ });
    assert.equal(await read(context, blk, BLOCK), 4);
  });
});

inContext('writes with FUA are at no risk', async (context) => {
  await withServer(context, MiB, { client: { 'reconnect-delay': 10 } }, async (blk, server) => {
    for (let round = 0; round < 3; round++) {
      await write(context, blk, 0, round, RequestFlags.FUA);
      await server.stop();
      await server.start();
      assert.equal(await read(context, blk, 0), round);
      await write(context, blk, BLOCK, round, RequestFlags.FUA);
      await blk.flush();
    }
  });
});

inContext('a flush under which the server goes is not said to have been done', async (context) => {
  await withServer(
    context,
    MiB,
    { lossy: true, proxy: true, client: { 'reconnect-delay': 10 } },
    async (blk, server) => {
      await write(context, blk, 0, 1);
      server.disk.hold('flush');
      const flushing = blk.flush();
      await until(() => server.disk.waiting('flush') > 0);
      server.proxy.cut();
      server.disk.release('flush');
      await assert.rejects(flushing, { code: 'EIO', message: /may be lost/ });
    },
  );
});

inContext('a server that comes back with another size is not used', async (context) => {
  await withServer(context, MiB, { client: { 'reconnect-delay': 10 } }, async (blk, server) => {
    assert.equal(await read(context, blk, 0), 0);
    await server.stop();
    server.disk.bytes = new Uint8Array(2 * MiB);
    await server.start();
    const reading = read(context, blk, 0);
    await until(() => server.server.stats.handshakes >= 2);
    assert.equal(blk.inFlight, 1);
    await server.stop();
    server.disk.bytes = new Uint8Array(MiB);
    await server.start();
    assert.equal(await reading, 0);
  });
});

inContext('open-timeout waits for a server that is not there yet', async (context) => {
  const server = new TestServer(context, MiB);
  try {
    await assert.rejects(BlockBackend.open(context, server.options()), { code: 'ENOENT' });
    await assert.rejects(BlockBackend.open(context, server.options({ 'open-timeout': 0.1 })), { code: 'ENOENT' });
    const opening = BlockBackend.open(context, server.options({ 'open-timeout': 10 }));
    await server.start();
    const blk = await opening;
    assert.equal(blk.length, MiB);
    await blk.close();
  } finally {
    await server.remove();
  }
});

inContext('a node can be closed while its server is away', async (context) => {
  await withServer(context, MiB, { client: { 'reconnect-delay': 100 } }, async (blk, server) => {
    assert.equal(await read(context, blk, 0), 0);
    await server.stop();
  });
});

/** Until it works: the client finds out by trying. */
async function retry(attempt: () => Promise<void>): Promise<void> {
  for (let left = 200; ; left--) {
    try {
      return await attempt();
    } catch (error) {
      if (left === 0 || (error as { code?: string }).code !== 'EIO') throw error;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
}
