/**
 * Clients that mean harm, or behave as if. Each test is named after a row of the threat list or a CVE of another
 * server, runs against a whole server on a unix socket, and ends with the same question: does everybody else still get
 * served, and has everything that the client made us hold come back?
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import type { AioContext } from '../../aio/context.ts';
import { inContext } from '../../aio/testing.ts';
import type { Iov } from '../../base/memory.ts';
import { GiB, KiB, MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import type { Driver, DriverNode } from '../../block/driver.ts';
import { registerDriver } from '../../block/registry.ts';
import { nullDriver } from '../../drivers/null-co/driver.ts';
import { Chunk, Command, CommandFlag, NbdError, Option, OptionReply } from '../../proto/nbd/constants.ts';
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from '../../proto/nbd/option.ts';
import { decodeReply, decodeStatusPayload, ReplyHeader, replyHeaderSize } from '../../proto/nbd/reply.ts';
import type { NbdLimits } from './limits.ts';
import { RawClient, requestBytes } from './raw-client.ts';
import { NbdServer } from './server.ts';
import { until } from './testing.ts';

const DISK = 4 * MiB;
const long = process.env.BLOCKPLANE_TEST_TIER === 'long';

/** What a fresh disk holds there. */
function pattern(at: number, length: number): Uint8Array {
  return new Uint8Array(length).map((_, i) => (at + i) % 251);
}

/** A disk in memory. */
class MemoryNode implements DriverNode {
  readonly bytes = pattern(0, DISK);
  readonly length = DISK;

  preadv(at: number, iov: Iov): void {
    iov.copyFrom(this.bytes.subarray(at, at + iov.length));
  }

  pwritev(at: number, iov: Iov): void {
    iov.copyTo(this.bytes.subarray(at, at + iov.length));
  }
}

const memoryDriver: Driver = {
  name: 'hostile-memory',
  role: 'protocol',
  options: {},
  open: () => new MemoryNode(),
};

interface Stage {
  readonly server: NbdServer;
  readonly path: string;
  /** A TCP port of it, for clients that reset the connection. */
  readonly port: number;
  /** Everybody else is served, and nothing is held for those who have gone. */
  check(): Promise<void>;
}

const openFiles = (): number => readdirSync('/proc/self/fd').length;

/** Where nothing else is said nobody is cut off for the time he takes: who is served has not waited for that. */
const PATIENT = { handshakeNs: 3600e9 };

async function withServer(
  context: AioContext,
  limits: Partial<NbdLimits>,
  body: (stage: Stage) => Promise<void>,
): Promise<void> {
  registerDriver(memoryDriver);
  registerDriver(nullDriver);
  const folder = mkdtempSync(join(tmpdir(), 'nbd-hostile-'));
  const path = join(folder, 'socket');
  const server = new NbdServer(context, { limits: { ...PATIENT, ...limits } });
  const disk = await BlockBackend.open(context, { driver: 'hostile-memory' });
  const big = await BlockBackend.open(context, { driver: 'null-co', size: 8 * GiB });
  const common = { description: '', writable: true, allocationDepth: true, multiConn: true };
  const check = async (): Promise<void> => {
    const data = await RawClient.readOnce(path, 'disk', 512, 512);
    assert.ok(data.equals(pattern(512, 512)));
    await until(() => server.clients.length === 0);
    assert.equal(server.budget.inUse, 0, 'all payload memory has come back');
    assert.deepEqual([disk.inFlight, big.inFlight], [0, 0]);
  };
  try {
    server.addExport({ ...common, name: 'disk', blk: disk });
    server.addExport({ ...common, name: 'big', blk: big });
    await server.listen({ kind: 'unix', path });
    const address = await server.listen({ kind: 'inet', host: '127.0.0.1', port: 0 });
    await check();
    const files = openFiles();
    await body({ server, path, port: address.kind === 'inet' ? address.port : 0, check });
    await check();
    await until(() => openFiles() <= files);
  } finally {
    await server.stop(200);
    await disk.close();
    await big.close();
    rmSync(folder, { recursive: true });
  }
}

const hex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text.replaceAll(' ', ''), 'hex'));
const MODERN = hex('00000003');

/** Sends `bytes` to a new connection and waits until the server ends it (or, with `leave`, leaves at once). */
async function say(path: string, bytes: Uint8Array, leave = false): Promise<void> {
  const client = await RawClient.connect(path);
  client.write(bytes);
  if (!leave) await client.closed;
  await client.destroy();
}

inContext('row 10: malformed handshakes are refused and hurt nobody', async (context) => {
  await withServer(context, { handshakeNs: 1e9 }, async ({ path, check }) => {
    const go = encodeOption(Option.GO, encodeInfoRequest('disk', []));
    const cases = [
      hex(''),
      hex('00'),
      Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'),
      hex('ffffffff'),
      // 2019-14851, 2017-9524: commands before the handshake is over.
      Buffer.concat([MODERN, requestBytes(Command.READ, 0, 512)]),
      Buffer.concat([requestBytes(Command.WRITE, 0, 512), Buffer.alloc(512)]),
      Buffer.concat([MODERN, go.subarray(0, -1)]),
      Buffer.concat([MODERN, Buffer.from(go).fill(0, 0, 1)]),
      // 2017-7539, 2022-26495: lengths of 2^32-1 and around.
      Buffer.concat([MODERN, hex('49484156454f5054 00000001 ffffffff')]),
      Buffer.concat([MODERN, hex('49484156454f5054 00000007 ffffffff')]),
      Buffer.concat([MODERN, hex('49484156454f5054 00000006 7fffffff'), Buffer.alloc(1 << 16)]),
      Buffer.concat([MODERN, encodeOption(Option.GO, hex('ffffffff')), encodeOption(Option.ABORT)]),
      // 2011-1925
      Buffer.concat([MODERN, encodeOption(Option.EXPORT_NAME, Buffer.from('nosuch'))]),
      Buffer.concat([MODERN, encodeOption(Option.EXPORT_NAME, Buffer.alloc(5000, 0x61))]),
    ];
    await Promise.all(cases.map((bytes) => say(path, bytes)));
    await check();
    for (const bytes of cases) await say(path, bytes, true);
  });
});

inContext('2017-15119: floods of options end, read or not', async (context) => {
  await withServer(context, { handshakeNs: 1e9 }, async ({ path }) => {
    const list = encodeOption(Option.LIST);
    const flood = Buffer.concat([MODERN, ...Array.from({ length: 10_000 }, () => list)]);
    await say(path, flood);
    const big = Buffer.concat([MODERN, encodeOption(99, new Uint8Array(1 << 20))]);
    await say(path, Buffer.concat([big, ...Array.from({ length: 8 }, () => big.subarray(4))]));
    const deaf = await RawClient.connect(path);
    deaf.socket.pause();
    deaf.write(flood);
    await until(() => deaf.socket.destroyed || deaf.socket.writableLength === 0 || !deaf.socket.writable);
    await deaf.destroy();
  });
});

inContext('a request with a wrong magic number ends the connection', async (context) => {
  await withServer(context, {}, async ({ path, check }) => {
    for (const options of [[], [Option.STRUCTURED_REPLY], [Option.EXTENDED_HEADERS]]) {
      const client = await RawClient.connect(path);
      await client.go('disk', ...options);
      client.write(Buffer.alloc(64, 0x55));
      await client.closed;
      await check();
    }
  });
});

const FAR = [DISK - 511, DISK, DISK + 512, 2 ** 32, 2 ** 53 - 1];

inContext(
  '2005-3534 2011-0530 row 10: every bad command gets its error, and the next one is served',
  async (context) => {
    await withServer(context, {}, async ({ path }) => {
      const client = await RawClient.connect(path);
      await client.go('disk');
      let cookie = 10;
      const ask = async (bytes: Buffer, expected: readonly number[], what: string): Promise<void> => {
        bytes.writeUInt32BE(++cookie, 12);
        client.write(bytes);
        const reply = await client.simpleReply();
        assert.equal(reply?.cookie, cookie, what);
        assert.ok(expected.includes(reply.error), `${what}: ${reply.error}`);
      };
      const { EINVAL, ENOSPC, EOVERFLOW } = NbdError;
      const raw = (type: number, offset: bigint, length: number, flags = 0): Buffer => {
        const bytes = requestBytes(type, 0, length, 0, flags);
        bytes.writeBigUInt64BE(offset, 16);
        return bytes;
      };
      for (const type of [8, 9, 100, 0x7fff, 0xffff]) await ask(raw(type, 0n, 512), [EINVAL], `command ${type}`);
      for (const type of [Command.READ, Command.FLUSH, Command.TRIM, Command.CACHE, Command.WRITE_ZEROES]) {
        for (const bit of [5, 6, 7, 15]) await ask(raw(type, 0n, 0, 1 << bit), [EINVAL], `${type} with flag ${bit}`);
      }
      const wide = [...FAR.map(BigInt), 2n ** 53n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 512n, 2n ** 64n - 1n];
      for (const type of [Command.READ, Command.TRIM, Command.CACHE, Command.WRITE_ZEROES]) {
        const bad = type === Command.WRITE_ZEROES ? [ENOSPC] : [EINVAL];
        for (const offset of wide) await ask(raw(type, offset, 512), bad, `${type} at ${offset}`);
        for (const length of [DISK + 1, 0x7fffffff, 0x80000000, 0xffffffff]) {
          await ask(raw(type, 0n, length), [...bad, EINVAL, EOVERFLOW], `${type} of ${length}`);
        }
        await ask(raw(type, 0n, 0), [0, EINVAL], `${type} of nothing`);
        await ask(raw(type, BigInt(DISK), 0), [0, EINVAL], `${type} of nothing at the end`);
      }
      await ask(raw(Command.BLOCK_STATUS, 0n, 512), [EINVAL], 'block status without a context');
      await ask(raw(Command.FLUSH, 0n, 512), [EINVAL], 'a flush with a length');
      await ask(raw(Command.READ, 0n, 512, CommandFlag.DF), [EINVAL], 'DF without structured replies');
      for (const offset of wide) {
        const write = Buffer.concat([raw(Command.WRITE, offset, 512), Buffer.alloc(512, 0xee)]);
        await ask(write, [ENOSPC, EINVAL], `write at ${offset}`);
      }
      const flagged = Buffer.concat([raw(Command.WRITE, 0n, 512, 1 << 9), Buffer.alloc(512, 0xee)]);
      await ask(flagged, [EINVAL], 'a write with an unknown flag');
      await ask(raw(Command.WRITE, 0n, 0), [0, EINVAL], 'a write of nothing');
      await ask(raw(Command.FLUSH, 0n, 0), [0], 'a flush');
      await client.destroy();
    });
  },
);

inContext('2005-3534 2011-0530: a write longer than any buffer is refused, whatever follows', async (context) => {
  await withServer(context, {}, async ({ path, check }) => {
    for (const length of [32 * MiB + 1, 64 * MiB + 1, 0x7fffffff, 0xffffffff]) {
      const client = await RawClient.connect(path);
      await client.go('disk');
      client.request(Command.WRITE, 0, length);
      client.write(new Uint8Array(1 << 20));
      const reply = await client.simpleReply();
      assert.ok(reply === undefined || reply.error === NbdError.EINVAL, `error ${reply?.error}`);
      await client.destroy();
      await check();
    }
  });
});

/** Reads one structured or extended reply chunk. */
async function chunk(client: RawClient): Promise<{ header: ReplyHeader; payload: Buffer } | undefined> {
  const magic = await client.read(4);
  if (magic.length < 4) return undefined;
  const size = replyHeaderSize(magic.readUInt32BE(0));
  assert.notEqual(size, 0, `reply magic ${magic.toString('hex')}`);
  const bytes = new Uint8Array(Buffer.concat([magic, await client.read(size - 4)]));
  const header = new ReplyHeader();
  decodeReply(new DataView(bytes.buffer), 0, header);
  return { header, payload: await client.read(header.length) };
}

function extendedBytes(type: number, offset: bigint, length: bigint, flags = 0): Buffer {
  const bytes = Buffer.alloc(32);
  bytes.writeUInt32BE(0x21e41c71, 0);
  bytes.writeUInt16BE(flags, 4);
  bytes.writeUInt16BE(type, 6);
  bytes.writeBigUInt64BE(offset, 16);
  bytes.writeBigUInt64BE(length, 24);
  return bytes;
}

inContext('row 10: 64-bit lengths and PAYLOAD_LEN misuse with extended headers are refused', async (context) => {
  await withServer(context, {}, async ({ path }) => {
    const client = await RawClient.connect(path);
    await client.go('disk', Option.EXTENDED_HEADERS);
    const lengths = [BigInt(DISK) + 1n, 2n ** 32n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];
    const refused = async (bytes: Buffer, what: string): Promise<void> => {
      client.write(bytes);
      const reply = await chunk(client);
      assert.equal(reply?.header.kind, 'extended', what);
      assert.equal(reply.header.type, Chunk.ERROR, what);
    };
    for (const type of [Command.READ, Command.TRIM, Command.CACHE, Command.WRITE_ZEROES, Command.BLOCK_STATUS]) {
      for (const length of lengths) {
        await refused(extendedBytes(type, 0n, length), `${type} of ${length}`);
        await refused(extendedBytes(type, length, 512n), `${type} at ${length}`);
        await refused(extendedBytes(type, length, length), `${type} at and of ${length}`);
      }
    }
    const payload = Buffer.alloc(512);
    const misuse = extendedBytes(Command.READ, 0n, 512n, CommandFlag.PAYLOAD_LEN);
    await refused(Buffer.concat([misuse, payload]), 'a read with a payload');
    // Without the flag nobody can tell whether a payload follows: the connection may end.
    const bare = await RawClient.connect(path);
    await bare.go('disk', Option.EXTENDED_HEADERS);
    bare.write(Buffer.concat([extendedBytes(Command.WRITE, 0n, 512n), payload]));
    assert.notEqual((await chunk(bare))?.header.type, Chunk.NONE);
    const huge = await RawClient.connect(path);
    await huge.go('disk', Option.EXTENDED_HEADERS);
    huge.write(extendedBytes(Command.WRITE, 0n, 2n ** 63n, CommandFlag.PAYLOAD_LEN));
    assert.notEqual((await chunk(huge))?.header.type, Chunk.NONE);
    for (const each of [client, bare, huge]) await each.destroy();
  });
});

inContext('2025-47711 2025-47712: block status near 4 GiB has extents that fit their field', async (context) => {
  await withServer(context, {}, async ({ path }) => {
    for (const extended of [false, true]) {
      const client = await RawClient.connect(path);
      await client.greet();
      const option = extended ? Option.EXTENDED_HEADERS : Option.STRUCTURED_REPLY;
      assert.equal((await client.option(option)).at(-1)!.type, OptionReply.ACK);
      await client.option(Option.SET_META_CONTEXT, encodeMetaContextRequest('big', ['base:allocation']));
      await client.option(Option.GO, encodeInfoRequest('big', []));
      for (const length of [1, 2 ** 32 - 1, 2 ** 32 - 512, 2 ** 31, 2 ** 31 - 1]) {
        for (const offset of [0, 1, 4 * GiB - 1, 4 * GiB]) {
          if (extended) client.write(extendedBytes(Command.BLOCK_STATUS, BigInt(offset), BigInt(length)));
          else client.request(Command.BLOCK_STATUS, offset, length);
          const reply = await chunk(client);
          assert.equal(reply?.header.type, extended ? Chunk.BLOCK_STATUS_EXT : Chunk.BLOCK_STATUS);
          const status = decodeStatusPayload(reply.payload, extended);
          assert.ok(status && status.extents.length > 0);
          const sum = status.extents.reduce((total, extent) => total + extent.length, 0);
          assert.ok(sum > 0 && sum <= length, `${sum} of ${length}`);
        }
      }
      client.write(
        extended
          ? extendedBytes(Command.BLOCK_STATUS, 8n * BigInt(GiB) - 1n, 2n)
          : requestBytes(Command.BLOCK_STATUS, 8 * GiB - 1, 2),
      );
      assert.equal((await chunk(client))?.header.type, Chunk.ERROR);
      await client.destroy();
    }
  });
});

inContext('row 14: a client that leaves at any point of a write leaves nothing behind', async (context) => {
  await withServer(context, {}, async ({ path, port, server }) => {
    const whole = Buffer.concat([requestBytes(Command.WRITE, 64 * KiB, 256 * KiB), Buffer.alloc(256 * KiB, 0xee)]);
    const cuts = [...Array.from({ length: 28 }, (_, i) => i)];
    for (let cut = 28; cut < whole.length; cut += 4096) cuts.push(cut, cut + 1);
    for (const cut of cuts) {
      const client = await RawClient.connect(port);
      await client.go('disk');
      client.write(whole.subarray(0, cut));
      if (cut % 3 === 0) await client.reset();
      else if (cut % 3 === 1) client.socket.end();
      else client.socket.destroy();
      await client.closed;
    }
    await until(() => server.clients.length === 0);
    const data = await RawClient.readOnce(path, 'disk', 64 * KiB, 256 * KiB);
    assert.ok(data.equals(pattern(64 * KiB, 256 * KiB)), 'no part of an unfinished write was applied');
  });
});

inContext('2017-10664: a client that leaves while replies are being sent leaves nothing behind', async (context) => {
  await withServer(context, {}, async ({ port, check }) => {
    const reads = Buffer.concat(Array.from({ length: 16 }, (_, i) => requestBytes(Command.READ, 0, MiB, i)));
    for (let i = 0; i < 48; i++) {
      const client = await RawClient.connect(port);
      await client.go('disk');
      client.write(reads);
      // A half-sent write beside the replies: both directions end at the same time.
      if (i % 2 === 1) client.write(requestBytes(Command.WRITE, 0, MiB), new Uint8Array(i * 5000));
      if (i % 4 < 2) client.socket.pause();
      else await client.read(i * 1000);
      if (i % 3 === 0) await new Promise((resolve) => setTimeout(resolve, 3));
      await (i % 5 < 3 ? client.reset() : client.destroy());
    }
    await check();
  });
});

inContext('row 15: readers that never read hold no more memory than the budget', async (context) => {
  await withServer(context, { maxBuffered: 64 * MiB }, async ({ path, server }) => {
    const before = process.memoryUsage.rss();
    const reads = Buffer.concat(Array.from({ length: 16 }, (_, i) => requestBytes(Command.READ, 0, 32 * MiB, i)));
    const deaf: RawClient[] = [];
    for (let i = 0; i < 3; i++) {
      const client = await RawClient.connect(path);
      await client.go('big');
      client.socket.pause();
      client.write(reads);
      deaf.push(client);
    }
    await until(() => server.budget.inUse > 0);
    await new Promise((resolve) => setTimeout(resolve, 100));
    assert.ok(server.budget.inUse <= 64 * MiB);
    const grown = process.memoryUsage.rss() - before;
    assert.ok(grown < 150 * MiB, `memory grew by ${Math.round(grown / MiB)} MiB`);
    for (const client of deaf) await client.destroy();
  });
});

inContext('row 14: readers that never read keep nobody else from being served', async (context) => {
  await withServer(context, { maxBuffered: 64 * MiB }, async ({ path, server }) => {
    const reads = Buffer.concat(Array.from({ length: 16 }, (_, i) => requestBytes(Command.READ, 0, 32 * MiB, i)));
    const deaf = await RawClient.connect(path);
    await deaf.go('big');
    deaf.socket.pause();
    deaf.write(reads);
    await until(() => server.budget.inUse > 0);
    await new Promise((resolve) => setTimeout(resolve, 50));
    await RawClient.readOnce(path, 'disk', 0, 64 * KiB);
    await deaf.destroy();
  });
});

inContext(`row 14: ${long ? '10,000' : '2,000'} connects in a row leave nothing behind`, async (context) => {
  await withServer(context, {}, async ({ path, server, check }) => {
    const burst = async (count: number): Promise<void> => {
      for (let done = 0; done < count; done += 20) {
        await Promise.all(
          Array.from({ length: 20 }, async (_, i) => {
            const client = await RawClient.connect(path);
            if (i % 4 === 1) client.write(MODERN);
            if (i % 4 === 2) await client.go('disk');
            if (i % 4 === 3) client.write(MODERN, encodeOption(Option.LIST));
            await client.destroy();
          }),
        );
      }
    };
    await burst(400);
    await check();
    globalThis.gc?.();
    const before = process.memoryUsage.rss();
    await burst(long ? 9600 : 1600);
    await check();
    const grown = process.memoryUsage.rss() - before;
    assert.ok(grown < 100 * MiB, `memory grew by ${Math.round(grown / MiB)} MiB`);
    assert.ok(server.stats.accepted >= 2000);
  });
});

inContext('2024-7409: a server stops within its time, whatever its clients are about', async (context) => {
  const folder = mkdtempSync(join(tmpdir(), 'nbd-hostile-'));
  const path = join(folder, 'socket');
  registerDriver(nullDriver);
  const big = await BlockBackend.open(context, { driver: 'null-co', size: 8 * GiB });
  try {
    const server = new NbdServer(context, { limits: PATIENT });
    const common = { description: '', writable: true, allocationDepth: false, multiConn: true };
    server.addExport({ ...common, name: 'big', blk: big });
    await server.listen({ kind: 'unix', path });
    const clients: RawClient[] = [];
    for (let i = 0; i < 12; i++) {
      const client = await RawClient.connect(path);
      clients.push(client);
      if (i % 4 === 0) continue;
      await client.go('big');
      client.socket.pause();
      if (i % 4 === 1) client.write(requestBytes(Command.WRITE, 0, MiB), new Uint8Array(1000));
      if (i % 4 === 2) client.write(...Array.from({ length: 40 }, () => requestBytes(Command.READ, 0, MiB)));
    }
    await until(() => server.clients.length === 12);
    await server.stop(300);
    assert.equal(server.budget.inUse, 0);
    for (const client of clients) await client.destroy();
  } finally {
    await big.close();
    rmSync(folder, { recursive: true });
  }
});

inContext('row 10: no stream of requests does anything but end or be answered', async (context) => {
  const type = fc.oneof({ weight: 8, arbitrary: fc.integer({ min: 0, max: 8 }) }, fc.integer({ min: 0, max: 0xffff }));
  const flags = fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, fc.integer({ min: 0, max: 0xffff }));
  const offset = fc.oneof(fc.integer({ min: 0, max: DISK }), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }));
  const length = fc.oneof(fc.integer({ min: 0, max: 8192 }), fc.integer({ min: 0, max: 0xffffffff }));
  const command = fc.tuple(type, flags, offset, length, fc.nat({ max: 8192 })).map(([t, f, at, size, data]) => {
    const bytes = requestBytes(t, 0, size, 1, f);
    bytes.writeBigUInt64BE(BigInt(at), 16);
    return Buffer.concat([
      bytes,
      t === Command.WRITE ? Buffer.alloc(size <= 8192 ? size : data, 0x5a) : Buffer.alloc(0),
    ]);
  });
  const stream = fc.array(fc.oneof({ weight: 20, arbitrary: command }, fc.uint8Array({ maxLength: 40 })), {
    maxLength: 12,
  });
  const mode = fc.constantFrom([], [Option.STRUCTURED_REPLY]);
  await withServer(context, {}, async ({ path, server }) => {
    await fc.assert(
      fc.asyncProperty(mode, stream, async (options, parts) => {
        const client = await RawClient.connect(path);
        await client.go('big', ...options);
        client.socket.resume();
        client.write(...parts, requestBytes(Command.DISC, 0, 0));
        client.socket.end();
        await client.closed;
      }),
      { numRuns: long ? 5000 : 200 },
    );
    await until(() => server.clients.length === 0);
  });
});
