import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { KiB, MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { activate, moveOut, nodesBelow } from '../../block/move.ts';
import { settle, until } from '../../block/testing.ts';
import { memoryOf } from '../../native/memory.ts';
import { isConnected, OwnBackEnd, onClient, QemuBackEnd, skip, withContext } from './testing.ts';

function filled(length: number, value: number): Memory {
  const memory = memoryOf(new Uint8Array(new SharedArrayBuffer(length)));
  memory.bytes.fill(value);
  return memory;
}

async function write(blk: BlockBackend, at: number, length: number, value: number): Promise<void> {
  await blk.write(at, Iov.of(filled(length, value)));
}

async function check(blk: BlockBackend, at: number, length: number, value: number): Promise<void> {
  const memory = filled(length, value ^ 0xff);
  await blk.read(at, Iov.of(memory));
  assert.ok(memory.bytes.every((byte) => byte === value));
}

for (const client of [{}, { packed: true }, { 'num-queues': 4 }]) {
  onClient(`more requests than there is room for wait their turn ${JSON.stringify(client)}`, { client }, async (c) => {
    const { blk } = c;
    const all = Array.from({ length: 600 }, (_, i) => write(blk, i * 4 * KiB, 4 * KiB, i & 0xff));
    await Promise.all(all);
    await Promise.all(Array.from({ length: 600 }, (_, i) => check(blk, i * 4 * KiB, 4 * KiB, i & 0xff)));
    // More than all the memory that is shared, in large pieces.
    const large = Array.from({ length: 40 }, (_, i) => write(blk, (i % 4) * MiB, MiB, 7));
    await Promise.all(large);
    await check(blk, 0, 4 * MiB, 7);
  });
}

onClient('a request that is longer than one may be is several', {}, async ({ blk, end }) => {
  await write(blk, 512, 3 * MiB, 9);
  assert.ok(end.disk.log.filter((line) => line.startsWith('write')).length >= 3);
  await check(blk, 512, 3 * MiB, 9);
});

onClient('flush, discard and writes of zeroes reach the device', {}, async ({ blk, end }) => {
  await write(blk, 0, 64 * KiB, 1);
  await blk.flush();
  await blk.writeZeroes(4096, 8192, 0);
  await blk.discard(32 * KiB, 16 * KiB);
  await check(blk, 4096, 8192, 0);
  const kinds = new Set(end.disk.log.map((line) => line.split(' ')[0]));
  for (const kind of ['write', 'flush', 'zero', 'discard']) assert.ok(kinds.has(kind), `no ${kind}`);
});

onClient('an error of the disk is the error of the request, and no more', {}, async ({ blk, end }) => {
  end.disk.script.push({ op: 'read', errno: 5 });
  await assert.rejects(blk.read(0, Iov.of(filled(512, 0))), { code: 'EIO' });
  await check(blk, 0, 512, 0);
  assert.equal(end.server.connections, 1);
});

onClient('a device that grows is seen to', {}, async ({ blk, end }) => {
  const sizes: number[] = [];
  blk.users.add({ onResize: (length) => sizes.push(length) });
  await end.blk.truncate(5 * MiB);
  await until(() => blk.length === 5 * MiB);
  assert.deepEqual(sizes, [5 * MiB]);
  await write(blk, 5 * MiB - 512, 512, 3);
});

onClient(
  'a read-only device is opened for reading only',
  { writable: false, client: { 'read-only': true } },
  async (c) => {
    await check(c.blk, 0, 4096, 0);
    // The back-end takes one front-end at a time.
    await c.blk.close();
    await assert.rejects(BlockBackend.open(c.context, c.end.options(), {}), {
      code: 'EACCES',
      message: /has it read-only/,
    });
    const blk = await BlockBackend.open(c.context, c.end.options({ 'auto-read-only': true }), {});
    assert.equal(blk.root!.readOnly, true);
    await blk.close();
  },
);

const PATIENT = { client: { 'reconnect-delay': 20 } };

onClient('what was in flight when the back-end went is done by the next', PATIENT, async ({ blk, end }) => {
  await write(blk, 0, 4096, 1);
  end.disk.hold('write');
  const writing = Promise.all([write(blk, 0, 4096, 2), write(blk, 8192, 512, 3)]);
  await until(() => end.disk.waiting('write') === 2);
  const stopping = end.stop();
  await settle(20);
  end.disk.release('write');
  await stopping;
  const reading = check(blk, 0, 4096, 2);
  await settle(20);
  await end.start();
  await Promise.all([writing, reading]);
  await check(blk, 8192, 512, 3);
  await blk.flush();
});

onClient('without a delay requests fail at once, and later ones find the next back-end', {}, async ({ blk, end }) => {
  await end.stop();
  await until(() => !isConnected(blk));
  await assert.rejects(write(blk, 0, 512, 1), { code: 'EIO' });
  await assert.rejects(blk.flush(), { code: 'EIO' });
  await end.start();
  await until(() => isConnected(blk), 'the next back-end');
  await write(blk, 0, 512, 1);
});

onClient(
  'requests wait as long as they were told to, and fail then',
  { client: { 'reconnect-delay': 0.2 } },
  async (c) => {
    await c.end.stop();
    const begin = performance.now();
    await assert.rejects(write(c.blk, 0, 512, 1), { code: 'EIO' });
    assert.ok(performance.now() - begin < 10_000);
    await c.end.start();
    await until(() => isConnected(c.blk));
  },
);

onClient('a node that moves lets go of its back-end, and comes back to it', {}, async ({ blk, end }) => {
  await write(blk, 0, 512, 4);
  const nodes = () => nodesBelow(blk.root!);
  const leaving = await moveOut({
    ...{ name: 'disk', where: 'elsewhere', nodes },
    ...{ backends: new Set([blk]), held: new Set() },
  });
  await until(() => !end.server.connected);
  await leaving.back();
  await check(blk, 0, 512, 4);
  await activate(nodesBelow(blk.root!));
  assert.equal(end.server.connections, 2);
});

test(
  'qemu-storage-daemon is found again when it was killed',
  { skip: skip || QemuBackEnd.missing, timeout: 60_000 },
  () =>
    withContext(async (context) => {
      const end = new QemuBackEnd(MiB);
      await end.start();
      const blk = await BlockBackend.open(context, end.options({ 'reconnect-delay': 30 }), {});
      for (let round = 0; round < 3; round++) {
        const all = Array.from({ length: 200 }, (_, i) => write(blk, i * 4096, 4096, i ^ round));
        await settle(3);
        await end.stop();
        await end.start();
        await Promise.all(all);
        for (let i = 0; i < 200; i += 7) await check(blk, i * 4096, 4096, i ^ round);
      }
      await blk.close();
      await end.stop();
      end.remove();
    }),
);

test('bad options are refused by name', { skip }, () =>
  withContext(async (context) => {
    const open = (more: object) =>
      BlockBackend.open(context, { driver: 'virtio-blk-vhost-user', path: '/nowhere', ...more } as never, {});
    await assert.rejects(open({ path: '' }), { message: /'path' is empty/ });
    await assert.rejects(open({ 'num-queues': 65 }), { message: /'num-queues' is 65, not 1 to 64/ });
    await assert.rejects(open({ 'num-queues': 1.5 }), { message: /'num-queues' is 1.5/ });
    await assert.rejects(open({ 'reconnect-delay': -1 }), { message: /'reconnect-delay' is -1/ });
    await assert.rejects(open({ 'request-timeout': 1e9 }), { message: /'request-timeout' is 1000000000/ });
    await assert.rejects(open({}), {
      code: 'ENOENT',
      message: /^Could not open '\/nowhere': No such file or directory$/,
    });
    await assert.rejects(open({ path: '/'.repeat(200) }), { code: 'ENAMETOOLONG' });
  }),
);

test('a node of the pool backend says that it needs io_uring', async () => {
  const context = new AioContext(new PoolBackend());
  const options = { driver: 'virtio-blk-vhost-user', path: '/nowhere' } as never;
  await assert.rejects(BlockBackend.open(context, options, {}), { code: 'ENOTSUP', message: /needs io_uring/ });
  await context.stop();
});

test('two nodes take turns at a back-end that serves one at a time', { skip, timeout: 30_000 }, () =>
  withContext(async (context) => {
    const end = new OwnBackEnd(context, MiB);
    await end.start();
    const first = await BlockBackend.open(context, end.options(), {});
    const waiting = BlockBackend.open(context, end.options(), {});
    await write(first, 0, 512, 5);
    await first.close();
    const second = await waiting;
    await check(second, 0, 512, 5);
    await second.close();
    await end.stop();
    end.remove();
  }),
);
