import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError, Errno } from '../../base/errors.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { Prng } from '../../base/prng.ts';
import type { AioFile, AioListener } from '../backend.ts';
import { AioContext } from '../context.ts';
import { RemoteContext } from '../remote.ts';
import { wait } from '../seam-harness.ts';
import { Sim, type SimFaults } from './sim.ts';

const errorCode = (code: string) => (error: unknown) => error instanceof BlockError && error.code === code;

function memory(context: AioContext, length: number, value = 0): Memory {
  return context.backend.memory(new Uint8Array(new SharedArrayBuffer(length)).fill(value));
}

/** A world with one context, in which `body` runs to its end. */
async function inWorld(
  seed: number,
  faults: SimFaults,
  body: (context: AioContext, sim: Sim) => Promise<void>,
): Promise<Sim> {
  const sim = new Sim(seed, faults);
  const context = new AioContext(sim.backend('main'));
  await sim.complete(body(context, sim));
  await sim.complete(context.stop());
  return sim;
}

const create = (context: AioContext, path = '/f'): Promise<AioFile> =>
  context.backend.openFile(path, { writable: true, create: true });

const write = (context: AioContext, file: AioFile, at: number, length: number, value: number): Promise<number> =>
  wait((op) => file.write(op, Iov.of(memory(context, length, value)), at, false));

const sync = (file: AioFile): Promise<number> => wait((op) => file.datasync(op));

/** What happened in a world with some of everything, as text. */
async function trace(seed: number): Promise<string> {
  const lines: string[] = [];
  await inWorld(seed, { chances: { write: { short: 0.2, error: 0.1 }, read: { slow: 0.1 } } }, async (context) => {
    const note = (what: string): number => lines.push(`${context.now()} ${what}`);
    const file = await create(context);
    const listener = await context.backend.listen({ kind: 'unix', path: '/s' });
    const server = (async () => {
      note(`accept ${await wait((op) => listener.accept(op))}`);
      const socket = listener.takeAccepted();
      const room = memory(context, 20_000);
      for (let count = 1; count > 0; ) {
        count = await wait((op) => socket.recv(op, room, 0, 20_000, false));
        note(`recv ${count}`);
      }
      await socket.close();
    })();
    const client = await context.backend.connect({ kind: 'unix', path: '/s' });
    const writes = Array.from({ length: 20 }, async (_, i) =>
      note(`write ${i} ${await write(context, file, i * 5000, 5000, i)}`),
    );
    note(`send ${await wait((op) => client.send(op, Iov.of(memory(context, 100_000, 1))))}`);
    client.shutdown();
    await Promise.all([...writes, server]);
    await client.close();
    await listener.close();
    await file.close();
  });
  return lines.join('\n');
}

test('the same seed gives the same run, to the nanosecond; another seed another run', async () => {
  const [a, b, c] = [await trace(5), await trace(5), await trace(6)];
  assert.equal(a, b);
  assert.notEqual(a, c);
  assert.ok(a.split('\n').length > 25);
});

test('time costs nothing: an hour passes at once, and the clock says an hour', async () => {
  const real = Date.now();
  await inWorld(1, {}, async (context) => {
    const before = context.now();
    await new Promise<void>((resolve) => context.timer(resolve, 'hour').armIn(3600e9));
    assert.ok(context.now() - before >= 3600e9 && context.now() - before < 3601e9);
  });
  assert.ok(Date.now() - real < 5000);
});

test('a hang is an error that names the seed and what waits', async () => {
  const sim = new Sim(77);
  const context = new AioContext(sim.backend('io0'));
  let listener: AioListener | undefined;
  const stuck = (async () => {
    listener = await context.backend.listen({ kind: 'unix', path: '/s' });
    await wait((op) => listener!.accept(op));
  })();
  await assert.rejects(
    sim.run(() => false),
    /seed 77: .*io0: accept on '\/s'/,
  );
  await listener!.close();
  await sim.complete(stuck);
  await sim.complete(context.stop());
});

test('run without an end goes on as long as there is something to do', async () => {
  const sim = new Sim(1);
  const context = new AioContext(sim.backend());
  let ran = 0;
  context.timer(() => ran++, 't').armIn(1e9);
  await sim.run();
  assert.equal(ran, 1);
  await sim.complete(context.stop());
});

test('several contexts live in one world and wake each other', async () => {
  const sim = new Sim(3);
  const [a, b] = [new AioContext(sim.backend('a')), new AioContext(sim.backend('b'))];
  let ran = 0;
  const bh = b.bottomHalf(() => ran++, 'woken');
  const remote = new RemoteContext(b.remote());
  const handle = bh.remote();
  a.timer(() => remote.schedule(handle), 't').armIn(1000);
  await sim.run(() => ran === 1);
  bh.delete();
  await sim.complete(Promise.all([a.stop(), b.stop()]));
});

test('after any crash, everything is there that a datasync covered', async () => {
  const sim = new Sim(11);
  const context = new AioContext(sim.backend());
  const file = await sim.complete(create(context));
  await sim.complete(
    (async () => {
      for (let i = 0; i < 8; i++) await write(context, file, i * 4096, 4096, i + 1);
      assert.equal(await sync(file), 0);
      for (let i = 0; i < 8; i++) await write(context, file, i * 4096, 4096, i + 101);
    })(),
  );
  const fates = { kept: 0, dropped: 0, torn: 0 };
  for (let i = 0; i < 60; i++) {
    const bytes = sim.crash().readDisk('/f')!;
    assert.equal(bytes.length, 8 * 4096);
    for (let block = 0; block < 8; block++) {
      const values = new Set<number>();
      for (let at = 0; at < 4096; at += 512) {
        const sector = bytes.subarray(block * 4096 + at, block * 4096 + at + 512);
        assert.ok(
          sector.every((byte) => byte === sector[0]),
          'a sector is written whole or not at all',
        );
        values.add(sector[0]!);
      }
      for (const value of values) assert.ok(value === block + 1 || value === block + 101, `block ${block}: ${value}`);
      if (values.size === 2) fates.torn++;
      else fates[values.has(block + 1) ? 'dropped' : 'kept']++;
    }
  }
  assert.ok(fates.kept > 50 && fates.dropped > 50 && fates.torn > 50, JSON.stringify(fates));
  await file.close();
  await sim.complete(context.stop());
});

test('a datasync covers what had completed before it started, not what completes while it runs', async () => {
  const sim = new Sim(4, { script: [{ op: 'datasync', nth: 1, delayNs: 50e6 }] });
  const context = new AioContext(sim.backend());
  await sim.complete(
    (async () => {
      const file = await create(context);
      await write(context, file, 0, 512, 1);
      const syncing = sync(file);
      await write(context, file, 512, 512, 2);
      await syncing;
      await file.close();
    })(),
  );
  let second = 0;
  for (let i = 0; i < 40; i++) {
    const bytes = sim.crash().readDisk('/f')!;
    assert.equal(bytes[0], 1);
    if (bytes[512] === 2) second++;
  }
  assert.ok(second > 0 && second < 40, `${second} of 40`);
  await sim.complete(context.stop());
});

test('a durable write survives every crash, and so does what was dirty under it', async () => {
  const sim = new Sim(8);
  const context = new AioContext(sim.backend());
  await sim.complete(
    (async () => {
      const file = await create(context);
      await write(context, file, 0, 2048, 1);
      await wait((op) => file.write(op, Iov.of(memory(context, 512, 2)), 512, true));
      await file.close();
    })(),
  );
  for (let i = 0; i < 20; i++) {
    const bytes = sim.crash().readDisk('/f')!;
    assert.ok(bytes.subarray(512, 1024).every((byte) => byte === 2));
    assert.ok(bytes.subarray(0, 512).every((byte) => byte === 1));
  }
  await sim.complete(context.stop());
});

test('a datasync that fails makes nothing safe, and the next one does not make up for it', async () => {
  const sim = new Sim(9, { script: [{ op: 'datasync', nth: 1, errno: Errno.EIO }] });
  const context = new AioContext(sim.backend());
  await sim.complete(
    (async () => {
      const file = await create(context);
      for (let i = 0; i < 32; i++) await write(context, file, i * 4096, 4096, 1);
      assert.equal(await sync(file), -Errno.EIO);
      assert.equal(await sync(file), 0);
      await file.close();
    })(),
  );
  const running = sim.readDisk('/f')!;
  assert.ok(
    running.every((byte) => byte === 1),
    'the running system sees it all',
  );
  const after = sim.crash().readDisk('/f')!;
  const there = Array.from({ length: 32 }, (_, i) => after[i * 4096] ?? 0).filter((byte) => byte === 1).length;
  assert.ok(there > 0 && there < 32, `${there} of 32`);
  await sim.complete(context.stop());
});

test('writes in flight at a crash may have happened, wholly, partly or not', async () => {
  const seen = new Set<string>();
  for (let seed = 1; seed <= 30; seed++) {
    const sim = new Sim(seed, { script: [{ op: 'write', nth: 1, delayNs: 1e9 }] });
    const context = new AioContext(sim.backend());
    const file = await sim.complete(create(context));
    const writing = write(context, file, 0, 4096, 7);
    const bytes = sim.crash().readDisk('/f')!;
    const sevens = bytes.filter((byte) => byte === 7).length;
    seen.add(sevens === 0 ? 'not' : sevens === 4096 ? 'whole' : 'part');
    await sim.complete(writing);
    await file.close();
    await sim.complete(context.stop());
  }
  assert.deepEqual([...seen].sort(), ['not', 'part', 'whole']);
});

test('a crashed world is used like any other, and crashes again', async () => {
  let sim = new Sim(20);
  sim.writeDisk('/f', new Uint8Array(4096).fill(1));
  for (let generation = 2; generation < 6; generation++) {
    sim = sim.crash();
    const context = new AioContext(sim.backend());
    await sim.complete(
      (async () => {
        const file = await context.backend.openFile('/f', { writable: true });
        await write(context, file, generation * 4096, 4096, generation);
        await sync(file);
        await file.close();
      })(),
    );
    await sim.complete(context.stop());
  }
  const bytes = sim.crash().readDisk('/f')!;
  assert.deepEqual(
    [0, 2, 3, 4, 5].map((i) => bytes[i * 4096]),
    [1, 2, 3, 4, 5],
  );
});

test('scripted faults hit the operation they name: errno, short transfer, delay, by file', () =>
  inWorld(
    2,
    {
      script: [
        { op: 'read', nth: 2, errno: Errno.EIO },
        { op: 'read', nth: 3, short: 100 },
        { op: 'write', nth: 1, short: 512, path: '/g' },
        { op: 'write', nth: 2, delayNs: 5e9 },
      ],
    },
    async (context, sim) => {
      const [f, g] = [await create(context, '/f'), await create(context, '/g')];
      assert.equal(await write(context, f, 0, 4096, 1), 4096);
      const before = context.now();
      assert.equal(await write(context, g, 0, 4096, 1), 512, 'first of /g, second of all');
      assert.ok(context.now() - before >= 5e9);
      const read = (): Promise<number> => wait((op) => f.read(op, Iov.of(memory(context, 4096)), 0));
      assert.deepEqual([await read(), await read(), await read(), await read()], [4096, -Errno.EIO, 100, 4096]);
      sim.inject({ op: 'truncate', nth: 1, errno: Errno.ENOSPC });
      await assert.rejects(f.truncate(10), errorCode('ENOSPC'));
      await f.truncate(10);
      sim.inject({ op: 'allocate', nth: 1, errno: Errno.EIO });
      assert.equal(await wait((op) => f.allocate(op, 'punch', 0, 4096)), -Errno.EIO);
      await f.close();
      await g.close();
    },
  ).then(() => undefined));

test('chances hit about as often as they say', () =>
  inWorld(3, { chances: { read: { error: 0.1, short: 0.2 } } }, async (context) => {
    const file = await create(context);
    await write(context, file, 0, 4096, 1);
    const counts = { failed: 0, short: 0 };
    for (let i = 0; i < 1000; i++) {
      const count = await wait((op) => file.read(op, Iov.of(memory(context, 4096)), 0));
      if (count === -Errno.EIO) counts.failed++;
      else if (count < 4096) counts.short++;
    }
    assert.ok(counts.failed > 60 && counts.failed < 150, JSON.stringify(counts));
    assert.ok(counts.short > 120 && counts.short < 250, JSON.stringify(counts));
    await file.close();
  }).then(() => undefined));

test('a full disk: short write, then ENOSPC; overwriting and what was allocated still work; punching gives room', () =>
  inWorld(5, { capacity: 8 * 4096 }, async (context, sim) => {
    const [f, g] = [await create(context, '/f'), await create(context, '/g')];
    assert.equal(await wait((op) => g.allocate(op, 'allocate', 0, 2 * 4096)), 0);
    assert.equal(await write(context, f, 0, 7 * 4096, 1), 6 * 4096);
    assert.equal(await write(context, f, 6 * 4096, 4096, 1), -Errno.ENOSPC);
    assert.equal(await write(context, f, 100, 4096, 2), 4096, 'in place');
    assert.equal(await write(context, g, 0, 2 * 4096, 3), 2 * 4096, 'room set aside');
    assert.equal(await write(context, g, 2 * 4096, 1, 3), -Errno.ENOSPC);
    assert.equal(await wait((op) => g.allocate(op, 'allocate', 0, 3 * 4096)), -Errno.ENOSPC);
    assert.equal(sim.used, 8 * 4096);
    assert.equal(await wait((op) => f.allocate(op, 'punch', 0, 4096)), 0);
    assert.equal(await write(context, g, 2 * 4096, 4096, 3), 4096);
    await f.close();
    await g.close();
  }).then(() => undefined));

test('direct I/O that is not aligned fails with EINVAL', () =>
  inWorld(6, {}, async (context) => {
    const file = await context.backend.openFile('/f', { writable: true, create: true, direct: true });
    assert.equal((await file.stat()).alignment, 512);
    assert.equal(await write(context, file, 512, 1024, 1), 1024);
    assert.equal(await write(context, file, 100, 512, 1), -Errno.EINVAL);
    assert.equal(await write(context, file, 0, 100, 1), -Errno.EINVAL);
    await file.close();
  }).then(() => undefined));

test('a reset breaks both ends of a connection and loses what was under way', () =>
  inWorld(7, { script: [{ op: 'send', nth: 3, errno: Errno.ECONNRESET }] }, async (context) => {
    const listener = await context.backend.listen({ kind: 'inet', host: '127.0.0.1', port: 0 });
    const accepting = wait((op) => listener.accept(op));
    const client = await context.backend.connect(listener.address);
    await accepting;
    const server = listener.takeAccepted();
    const data = memory(context, 100, 1);
    assert.equal(await wait((op) => client.send(op, Iov.of(data))), 100);
    assert.equal(await wait((op) => client.send(op, Iov.of(data))), 100);
    const pending = wait((op) => server.recv(op, memory(context, 500), 0, 500, true));
    assert.equal(await wait((op) => client.send(op, Iov.of(data))), -Errno.ECONNRESET);
    assert.equal(await pending, -Errno.ECONNRESET);
    assert.equal(await wait((op) => server.send(op, Iov.of(data))), -Errno.ECONNRESET);
    await client.close();
    await server.close();
    await listener.close();
  }).then(() => undefined));

test('random writes, holes and syncs read like a plain array, and a crash leaves only what may be', async () => {
  for (let seed = 1; seed <= 25; seed++) await randomFile(seed);
});

/** Random operations one after the other, against a model that knows every value a byte has had since the last sync. */
async function randomFile(seed: number): Promise<void> {
  const sim = new Sim(seed);
  const random = new Prng(seed + 1000);
  const context = new AioContext(sim.backend());
  const size = 40_000;
  const model = new Uint8Array(size);
  let possible: Set<number>[] = Array.from(model, () => new Set([0]));
  const set = (from: number, length: number, value: number): void => {
    for (let i = from; i < from + length; i++) {
      model[i] = value;
      possible[i]!.add(value);
    }
  };
  await sim.complete(
    (async () => {
      const file = await create(context);
      await file.truncate(size);
      await sync(file);
      for (let step = 0; step < 40; step++) {
        const at = random.below(size);
        const length = random.between(1, Math.min(10_000, size - at));
        const what = random.below(10);
        if (what < 6) {
          assert.equal(await write(context, file, at, length, step + 1), length);
          set(at, length, step + 1);
        } else if (what < 8) {
          assert.equal(await wait((op) => file.allocate(op, what === 6 ? 'punch' : 'zero', at, length)), 0);
          set(at, length, 0);
        } else if (what === 8) {
          assert.equal(await sync(file), 0);
          possible = Array.from(model, (value) => new Set([value]));
        } else {
          const room = memory(context, length);
          assert.equal(await wait((op) => file.read(op, Iov.of(room), at)), length);
          assert.deepEqual(room.bytes.slice(), model.slice(at, at + length));
        }
      }
      await file.close();
    })(),
  );
  assert.deepEqual(sim.readDisk('/f'), model);
  for (let i = 0; i < 5; i++) {
    const after = sim.crash().readDisk('/f')!;
    assert.equal(after.length, size);
    for (let at = 0; at < size; at++)
      assert.ok(possible[at]!.has(after[at]!), `seed ${seed}, byte ${at}: ${after[at]}`);
  }
  await sim.complete(context.stop());
}

test('what is closed is not used again: that is a bug that is seen', async () => {
  await inWorld(1, {}, async (context) => {
    const file = await create(context);
    await file.close();
    assert.throws(() => void wait((op) => file.datasync(op)), { name: 'Bug' });
  });
});
