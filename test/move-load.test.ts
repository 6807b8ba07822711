/** Disks that move between IOThreads under load: a verifying one, and one in which everything may end. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { Prng } from '../src/base/prng.ts';
import { RawClient } from '../src/exports/nbd/raw-client.ts';
import { type BlockError, type Disk, IOThread, open, serveNbd } from '../src/index.ts';
import { Command } from '../src/proto/nbd/constants.ts';
import { needs, scratch, socketOf, sparse, VerifyingLoad } from './harness.ts';
import { openIn, qcow2, startThreads } from './movers.ts';

const MiB = 1024 * 1024;
const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';

/** fio's verifying load over NBD while a disk moves `moves` times. */
async function fioMoves(t: TestContext, path: string, moves: number): Promise<void> {
  const threads = await startThreads(t);
  const disk = await openIn(t, path, threads[0]);
  const service = await serveNbd(disk);
  const load = new VerifyingLoad(t, service.uri, 48);
  while ((await service.stats()).requests < 500 && !load.over) await new Promise((resolve) => setTimeout(resolve, 10));
  for (let i = 1; i <= moves && !load.over; i++) {
    const before = (await service.stats()).requests;
    await disk.setAioContext(threads[i % 2]!);
    // Under load in each place.
    while ((await service.stats()).requests < before + 20 && !load.over)
      await new Promise((resolve) => setImmediate(resolve));
  }
  const { requests, errors } = await service.stats();
  assert.deepEqual([await load.stop(), errors], [0, 0]);
  assert.ok(requests >= moves * 20);
  await service.stop();
  await disk.close();
}

test('B8 dozens of moves under a verifying load', needs('fio'), async (t) => {
  await fioMoves(t, sparse(`${scratch(t)}/disk.img`, 64 * MiB), 40);
  await fioMoves(t, await qcow2(t, 64 * MiB), 40);
});

test('B8 1,000 moves under a verifying load', { ...needs('fio'), timeout: 600_000 }, async (t) => {
  if (!LONG) return t.skip('BLOCKPLANE_TEST_TIER=long runs it');
  await fioMoves(t, sparse(`${scratch(t)}/disk.img`, 64 * MiB), 1000);
  await fioMoves(t, await qcow2(t, 64 * MiB), 1000);
});

/** Writes and reads until the connection ends; whoever it is served by, answers are whole. */
async function load(client: RawClient, seed: number): Promise<number> {
  const prng = new Prng(seed);
  const bytes = new Uint8Array(4096);
  let answers = 0;
  for (;;) {
    for (let i = 0; i < 8; i++) {
      const at = prng.below(255) * 4096;
      client.request(Command.WRITE, at, 4096, i);
      client.write(prng.fill(bytes).slice());
    }
    client.request(Command.READ, prng.below(255) * 4096, 4096, 8);
    for (let left = 9; left > 0; left--) {
      const reply = await client.simpleReply();
      if (!reply) return answers;
      if (reply.cookie === 8 && reply.error === 0) await client.read(4096);
      answers++;
    }
  }
}

interface Chaos {
  readonly disk: Disk;
  readonly service: Awaited<ReturnType<typeof serveNbd>>;
  readonly clients: readonly RawClient[];
  readonly threads: readonly IOThread[];
}

const EVENTS: Readonly<Record<string, (chaos: Chaos, prng: Prng) => Promise<unknown>>> = {
  'a client leaves': ({ clients }, prng) => clients[prng.below(clients.length)]!.destroy(),
  'the export is removed': ({ service }) => service.removeExport('x'),
  'the disk is closed': ({ disk }) => disk.close(),
  'the service stops': ({ service }) => service.stop(5),
  'a thread stops': ({ threads }, prng) => threads[prng.below(2)]!.stop(),
  'it moves': async ({ disk, threads }, prng) => disk.setAioContext(threads[prng.below(2)]!),
  'it moves twice': async ({ disk, threads }) => {
    for (const thread of threads) await disk.setAioContext(thread);
  },
};

test('B8 whatever ends under load and moves, at any moment: no thread dies, and all of it ends', {
  timeout: 240_000,
}, async (t) => {
  for (let seed = 1; seed <= (LONG ? 300 : 12); seed++) {
    const prng = new Prng(seed);
    const threads = await Promise.all(['here', 'there'].map((name) => IOThread.start({ name })));
    const crashes: Error[] = [];
    for (const thread of threads) thread.on('crash', (error) => crashes.push(error));
    const disk = await open(sparse(`${scratch(t)}/disk.img`, MiB), { iothread: threads[0] });
    const service = await serveNbd(disk, { exportName: 'x' });
    const clients = await Promise.all([1, 2, 3].map(() => RawClient.connect(socketOf(service.uri))));
    for (const client of clients) await client.go('x');
    const loads = clients.map((client, i) => load(client, seed * 10 + i));
    const names = Object.keys(EVENTS);
    const story = ['it moves', ...Array.from({ length: 4 }, () => names[prng.below(names.length)]!)];
    const failures: unknown[] = [];
    const done: Promise<unknown>[] = [];
    for (const name of story) {
      const event = EVENTS[name]!({ disk, service, clients, threads }, prng);
      done.push(event.catch((error: unknown) => failures.push(error)));
      for (let turns = prng.below(30); turns > 0; turns--) await new Promise((resolve) => setImmediate(resolve));
    }
    const why = `seed ${seed}: ${story.join(', ')}`;
    await Promise.all(done);
    for (const error of failures) assert.equal(typeof (error as BlockError).errno, 'number', `${why}: ${error}`);
    await service.stop(5).catch(() => undefined);
    await disk.close().catch(() => undefined);
    for (const client of clients) await client.destroy();
    await Promise.all(loads);
    for (const thread of threads) await thread.stop();
    assert.deepEqual(crashes, [], why);
  }
});
