/** What the client says to a server, byte for byte where that matters. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { AioContext } from '../../aio/context.ts';
import { inContext } from '../../aio/testing.ts';
import { Iov } from '../../base/memory.ts';
import { MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { RequestFlags } from '../../block/driver.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { registerDriver } from '../../block/registry.ts';
import { BlockStatus } from '../../block/status.ts';
import { hint } from '../../block/testing.ts';
import { until } from '../../exports/nbd/testing.ts';
import { Command, CommandFlag, NbdError, TransmissionFlag as T } from '../../proto/nbd/constants.ts';
import { rawDriver } from '../raw/driver.ts';
import { IN_FLIGHT_MAX } from './connection.ts';
import { withServer } from './testing.ts';
import { type FakeRequest, FakeServer } from './testing-fake.ts';

registerDriver(rawDriver);

const ALL =
  T.HAS_FLAGS | T.SEND_FLUSH | T.SEND_FUA | T.SEND_TRIM | T.SEND_WRITE_ZEROES | T.SEND_FAST_ZERO | T.SEND_CACHE;

/** What an honest server with `flags` has heard when `body` is over and the node closed. */
async function heard(
  context: AioContext,
  flags: number,
  options: (file: NodeOptions) => NodeOptions,
  body: (blk: BlockBackend) => Promise<void>,
): Promise<readonly (readonly [type: number, flags: number, offset: number, length: number])[]> {
  const folder = mkdtempSync(join(tmpdir(), 'nbd-driver-'));
  const requests: FakeRequest[] = [];
  const fake = await FakeServer.listen(join(folder, 'socket'), async (peer) => {
    await peer.handshake({ flags });
    for (let request = await peer.request(); request; request = await peer.request()) {
      requests.push(request);
      if (request.type === Command.DISC) return;
      const unwanted = request.type === Command.WRITE_ZEROES && (request.flags & CommandFlag.FAST_ZERO) !== 0;
      peer.simple(request, unwanted ? NbdError.ENOTSUP : 0);
    }
  });
  try {
    const server = { type: 'unix', path: fake.path };
    const blk = await BlockBackend.open(context, options({ driver: 'nbd', server, discard: 'unmap' } as NodeOptions));
    try {
      await body(blk);
    } finally {
      await blk.close();
    }
    await until(() => requests.at(-1)?.type === Command.DISC);
  } finally {
    await fake.close();
    rmSync(folder, { recursive: true });
  }
  return requests.map(({ type, flags: sent, offset, length }) => [type, sent, offset, length] as const);
}

const plain = (file: NodeOptions): NodeOptions => file;

inContext('flags and ranges of requests are what was asked for, and a good-bye ends it', async (context) => {
  const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(512)));
  const requests = await heard(context, ALL, plain, async (blk) => {
    await blk.write(512, Iov.of(memory), RequestFlags.FUA);
    await blk.writeZeroes(1024, 512);
    await blk.writeZeroes(2048, 512, RequestFlags.MAY_UNMAP);
    await assert.rejects(blk.writeZeroes(4096, 512, RequestFlags.NO_FALLBACK), { code: 'ENOTSUP' });
    await blk.discard(8192, 512);
    await blk.flush();
    await blk.flush();
    assert.equal(await hint(blk, 16384, 512), 0);
  });
  assert.deepEqual(requests, [
    [Command.WRITE, CommandFlag.FUA, 512, 512],
    [Command.WRITE_ZEROES, CommandFlag.NO_HOLE, 1024, 512],
    [Command.WRITE_ZEROES, 0, 2048, 512],
    [Command.WRITE_ZEROES, CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO, 4096, 512],
    [Command.TRIM, 0, 8192, 512],
    [Command.FLUSH, 0, 0, 0],
    [Command.CACHE, 0, 16384, 512],
    [Command.DISC, 0, 0, 0],
  ]);
});

inContext('a server is asked for nothing that it does not offer', async (context) => {
  const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(512)));
  const requests = await heard(context, T.HAS_FLAGS, plain, async (blk) => {
    await blk.write(512, Iov.of(memory), RequestFlags.FUA);
    await blk.writeZeroes(1024, 512);
    await blk.discard(8192, 512);
    await blk.flush();
    assert.equal(await hint(blk, 16384, 512), 0);
  });
  assert.deepEqual(
    requests.map(([type, flags, offset]) => [type, flags, offset]),
    [
      [Command.WRITE, 0, 512],
      [Command.WRITE, 0, 1024],
      [Command.DISC, 0, 0],
    ],
  );
});

inContext('a hint to prefetch goes through a format to the server, in whole blocks', async (context) => {
  const raw = (file: NodeOptions): NodeOptions => ({ driver: 'raw', offset: 4096, size: 8192, file }) as NodeOptions;
  const requests = await heard(context, ALL, raw, async (blk) => {
    assert.equal(await hint(blk, 100, 1000), 0);
    assert.equal(await hint(blk, 8000, 192), 0);
  });
  assert.deepEqual(requests.slice(0, -1), [
    [Command.CACHE, 0, 4096, 1536],
    [Command.CACHE, 0, 4096 + 7680, 512],
  ]);
});

inContext(
  'what was said about block status is forgotten with each write, begun before it or after',
  async (context) => {
    await withServer(context, MiB, {}, async (blk, { disk }) => {
      const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(4096)).fill(1));
      const out = new BlockStatus();
      const zeroAt = async (at: number): Promise<boolean> => {
        await blk.blockStatus(at, 4096, out);
        return out.zero;
      };
      disk.hold('write');
      const writing = blk.write(0, Iov.of(memory));
      await until(() => disk.waiting('write') === 1);
      assert.equal(await zeroAt(0), true);
      disk.release('write');
      await writing;
      assert.equal(await zeroAt(0), false);
      assert.equal(await zeroAt(8192), true);
      await blk.write(8192, Iov.of(memory));
      assert.equal(await zeroAt(8192), false);
      await blk.writeZeroes(0, 4096);
      assert.equal(await zeroAt(0), true);
    });
  },
);

inContext('more connections are made under load only, and no more than asked for', async (context) => {
  for (const [client, expected] of [
    [{}, 4],
    [{ connections: 2 }, 2],
    [{ connections: 1 }, 1],
  ] as const) {
    await withServer(context, MiB, { client }, async (blk, { server, disk }) => {
      assert.equal(server.clients.length, 1);
      const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(4096)));
      await blk.read(0, Iov.of(memory));
      assert.equal(server.clients.length, 1);
      disk.hold('read');
      const reads = Array.from({ length: 40 }, (_, i) => blk.read(i * 4096, Iov.of(memory)));
      await until(() => disk.waiting('read') === 40);
      const late = blk.read(0, Iov.of(memory));
      await until(() => server.clients.length === expected);
      disk.release('read');
      await Promise.all([...reads, late]);
    });
  }
});

inContext('a flush behind as many requests as can be in flight is sent when there is room', async (context) => {
  await withServer(context, 2 * MiB, { client: { connections: 1 } }, async (blk, { disk }) => {
    const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(4096)));
    await blk.write(0, Iov.of(memory));
    disk.hold('read');
    const reads = Array.from({ length: IN_FLIGHT_MAX }, (_, i) => blk.read(i * 4096, Iov.of(memory)));
    await until(() => disk.waiting('read') > 0);
    await new Promise((resolve) => setTimeout(resolve, 20));
    const flushing = blk.flush();
    await new Promise((resolve) => setTimeout(resolve, 20));
    disk.release('read');
    await Promise.all([...reads, flushing]);
  });
});

inContext('a server that takes one connection gets one', async (context) => {
  await withServer(context, MiB, { multiConn: false }, async (blk, { server }) => {
    const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(4096)));
    for (let round = 0; round < 20; round++) {
      await Promise.all(Array.from({ length: 40 }, (_, i) => blk.read(i * 4096, Iov.of(memory))));
    }
    assert.equal(server.clients.length, 1);
  });
});
