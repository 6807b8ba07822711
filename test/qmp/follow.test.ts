/** Real clients whose node goes to other IOThreads while they are connected: they follow it. */
import assert from 'node:assert/strict';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { whyNoRing } from '../../src/aio/select.ts';
import { Prng } from '../../src/base/prng.ts';
import { Daemon } from '../../src/daemon/index.ts';
import { RawClient, requestBytes } from '../../src/exports/nbd/raw-client.ts';
import { Command } from '../../src/proto/nbd/constants.ts';
import { needs, pattern, peer, scratch, sparse, VerifyingLoad } from '../harness.ts';

const MIB = 1 << 20;
const BLOCK = 4096;
/** Without io_uring a connection stays where it is. */
const ring = process.env.BLOCKPLANE_AIO !== 'pool' && (await whyNoRing()) === undefined;
const RING = { skip: !ring && 'io_uring is not used here', timeout: 60_000 };
/** Threads, one after the other. */
const ROUND = ['io0', 'io1', null] as const;

interface Stage {
  readonly daemon: Daemon;
  readonly path: string;
  readonly uri: string;
  readonly move: (to: string | null) => Promise<unknown>;
}

/** A node 'n' on `filename`, which is shown for writing. */
async function stage(t: TestContext, filename: string): Promise<Stage> {
  const path = join(scratch(t), 'nbd');
  const daemon = await Daemon.start();
  t.after(() => daemon.close());
  await daemon.run('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  for (const id of ['io0', 'io1']) await daemon.run('object-add', { 'qom-type': 'iothread', id });
  await daemon.run('blockdev-add', { driver: 'raw', 'node-name': 'n', file: { driver: 'file', filename } } as never);
  await daemon.run('block-export-add', { type: 'nbd', id: 'n', 'node-name': 'n', writable: true });
  const move = (iothread: string | null) =>
    daemon.run('x-blockdev-set-iothread', { 'node-name': 'n', iothread, force: true });
  return { daemon, path, uri: `nbd+unix:///n?socket=${path}`, move };
}

function image(t: TestContext): string {
  const path = join(scratch(t), 'disk.raw');
  writeFileSync(path, pattern(MIB));
  return path;
}

async function reads(client: RawClient, at: number, length: number): Promise<Buffer> {
  client.request(Command.READ, at, length);
  assert.equal((await client.simpleReply())?.error, 0);
  return client.read(length);
}

test('B8 a client that does nothing meanwhile leaves no trace in the threads that its node was in', RING, async (t) => {
  const { daemon, path, move } = await stage(t, image(t));
  const client = await RawClient.connect(path);
  await client.go('n');
  for (const to of [...ROUND, ...ROUND]) {
    await move(to);
    const bytes = await reads(client, 8192, 8192);
    assert.ok(bytes.equals(pattern(MIB).subarray(8192, 16_384)), `in ${to}`);
  }
  // Both may go at once, although the client is there: nothing is served in them.
  for (const id of ['io0', 'io1']) await daemon.run('object-del', { id });
  await client.destroy();
});

test('B8 half a header, half a payload, and the rest after a move', RING, async (t) => {
  const { daemon, path, move } = await stage(t, image(t));
  const payload = pattern(BLOCK, 2);
  const large = pattern(256 * 1024, 3);
  const client = await RawClient.connect(path);
  await client.go('n');
  const write = (length: number) => requestBytes(Command.WRITE, 65_536, length, 0);
  for (const [i, to] of [...ROUND, ...ROUND, ...ROUND].entries()) {
    const message = Buffer.concat(i < 6 ? [write(BLOCK), payload] : [write(large.length), large]);
    // In the header; in the payload.
    const middle = i < 3 ? 11 : message.length - 1000;
    client.write(message.subarray(0, middle));
    await move(to);
    client.write(message.subarray(middle));
    assert.equal((await client.simpleReply())?.error, 0);
    const back = await reads(client, 65_536, message.length - 28);
    assert.ok(back.equals(message.subarray(28)), `in ${to}`);
  }
  // In the middle of a payload it stayed where it was. Now it goes.
  for (const to of ['io0', null]) await move(to);
  for (const id of ['io0', 'io1']) await daemon.run('object-del', { id });
  await client.destroy();
});

/** Writes and reads, 16 at a time, and looks at all of it. */
async function sixteen(client: RawClient, from: number, over: () => boolean): Promise<number> {
  const prng = new Prng(from);
  const model = new Uint8Array(16 * BLOCK);
  let rounds = 0;
  for (; !over(); rounds++) {
    prng.fill(model);
    for (let i = 0; i < 16; i++) {
      const bytes = model.slice(i * BLOCK, (i + 1) * BLOCK);
      client.write(requestBytes(Command.WRITE, from + i * BLOCK, BLOCK, i), bytes);
    }
    await answers(client, () => undefined);
    for (let i = 0; i < 16; i++) client.request(Command.READ, from + i * BLOCK, BLOCK, i);
    await answers(client, async (i) => {
      const bytes = await client.read(BLOCK);
      assert.ok(bytes.equals(model.subarray(i * BLOCK, (i + 1) * BLOCK)), `other bytes in block ${i}`);
    });
  }
  return rounds;
}

/** One answer to each of the sixteen, in any order. */
async function answers(client: RawClient, then: (cookie: number) => Promise<void> | undefined): Promise<void> {
  const open = new Set(Array.from({ length: 16 }, (_, i) => i));
  while (open.size > 0) {
    const reply = await client.simpleReply();
    assert.ok(reply && reply.error === 0 && open.delete(reply.cookie), `answer ${JSON.stringify(reply)}`);
    await then(reply.cookie);
  }
}

test('B8 clients with 16 requests in flight follow 100 moves, and all come back whole', RING, async (t) => {
  const { path, move } = await stage(t, image(t));
  let over = false;
  const clients = await Promise.all([0, 1, 2].map(() => RawClient.connect(path)));
  for (const client of clients) await client.go('n');
  const loads = clients.map((client, i) => sixteen(client, i * 16 * BLOCK, () => over));
  for (let i = 0; i < 100; i++) await move(ROUND[i % 3]!);
  over = true;
  for (const rounds of await Promise.all(loads)) assert.ok(rounds > 0);
  await Promise.all(clients.map((client) => client.destroy()));
});

test('B8 a client that reads none of its answers holds nobody up, and gets them all in the end', RING, async (t) => {
  const { path, move, daemon } = await stage(t, image(t));
  const [client, other] = [await RawClient.connect(path), await RawClient.connect(path)];
  for (const each of [client, other]) await each.go('n');
  client.socket.pause();
  // More than any socket's buffer holds.
  for (let i = 0; i < 32; i++) client.request(Command.READ, 0, MIB, i);
  await reads(other, 0, BLOCK);
  for (const to of ROUND) {
    await move(to);
    assert.ok((await reads(other, 0, BLOCK)).equals(pattern(MIB).subarray(0, BLOCK)));
  }
  client.socket.resume();
  for (let i = 0; i < 32; i++) {
    assert.equal((await client.simpleReply())?.error, 0);
    assert.ok((await client.read(MIB)).equals(pattern(MIB)));
  }
  await move('io0');
  await daemon.run('object-del', { id: 'io1' });
  await Promise.all([client.destroy(), other.destroy()]);
});

const LOAD = { ...needs('fio', 'nbdcopy'), timeout: 60_000 };

test("B8 fio's verifying load and nbdcopy follow 100 moves", LOAD, async (t) => {
  const path = sparse(join(scratch(t), 'disk.raw'), 64 * MIB);
  const { uri, move } = await stage(t, path);
  const load = new VerifyingLoad(t, uri, 48);
  const copy = join(scratch(t), 'copy.raw');
  let copies = 0;
  const copying = (async () => {
    while (!load.over) {
      await peer('nbdcopy', uri, copy);
      copies++;
    }
  })();
  for (let i = 0; i < 100 && !load.over; i++) await move(ROUND[i % 3]!);
  assert.equal(load.over, false, 'fio ended early');
  assert.equal(await load.stop(), 0);
  await copying;
  assert.ok(copies > 0);
});

test('B8 clients that leave, and exports that go, in moves: nothing stays open', RING, async (t) => {
  const { daemon, path, move } = await stage(t, image(t));
  const descriptors = (): number => readdirSync('/proc/self/fd').length;
  let before = 0;
  for (let round = 0; round < 60; round++) {
    const clients = await Promise.all([0, 1, 2].map(() => RawClient.connect(path)));
    for (const client of clients) await client.go('n');
    for (const client of clients) client.request(Command.READ, 0, 65_536);
    const moved = move(ROUND[round % 3]!);
    for (let turn = 0; turn < round % 9; turn++) await new Promise((resolve) => setImmediate(resolve));
    const left = clients[0]!.destroy();
    if (round % 4 === 3) {
      await daemon.run('block-export-del', { id: 'n', mode: 'hard' });
      await daemon.run('block-export-add', { type: 'nbd', id: 'n', 'node-name': 'n', writable: true });
      for (const client of clients) await client.closed;
    }
    await moved;
    for (const client of clients.slice(1)) await client.destroy();
    await left;
    if (round === 20) before = descriptors();
  }
  assert.ok(descriptors() <= before + 4, `${descriptors() - before} more descriptors`);
});
