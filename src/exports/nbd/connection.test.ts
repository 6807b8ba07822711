import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { AioContext } from '../../aio/context.ts';
import { inContext } from '../../aio/testing.ts';
import { Iov, isZero } from '../../base/memory.ts';
import { BlockBackend } from '../../block/backend.ts';
import { registerDriver } from '../../block/registry.ts';
import { fileDriver } from '../../drivers/file/driver.ts';
import { rawDriver } from '../../drivers/raw/driver.ts';
import { Chunk, Command, CommandFlag, NbdError, Option } from '../../proto/nbd/constants.ts';
import { encodeMetaContextRequest } from '../../proto/nbd/option.ts';
import {
  decodeErrorPayload,
  decodeReply,
  decodeStatusPayload,
  ReplyHeader,
  type StatusExtent,
} from '../../proto/nbd/reply.ts';
import { encodeExtendedRequest, encodeRequest, RequestHeader } from '../../proto/nbd/request.ts';
import { RawClient } from './raw-client.ts';
import { NbdServer } from './server.ts';
import { until } from './testing.ts';

registerDriver(fileDriver);
registerDriver(rawDriver);

const SIZE = 4 << 20;
type Mode = 'simple' | 'structured' | 'extended';

interface Answer {
  readonly error: number;
  readonly data: Buffer;
  readonly extents: readonly StatusExtent[];
  /** Bytes that came as holes. */
  readonly holes: number;
}

/** A client of the transmission phase: one request at a time, every kind of reply. */
class Client {
  readonly raw: RawClient;
  readonly mode: Mode;
  #cookie = 0;

  private constructor(raw: RawClient, mode: Mode) {
    this.raw = raw;
    this.mode = mode;
  }

  static async open(path: string, mode: Mode, contexts: readonly string[] = ['base:allocation']): Promise<Client> {
    const raw = await RawClient.connect(path);
    await raw.greet();
    if (mode !== 'simple') {
      await raw.option(mode === 'extended' ? Option.EXTENDED_HEADERS : Option.STRUCTURED_REPLY);
      await raw.option(Option.SET_META_CONTEXT, encodeMetaContextRequest('', contexts));
    }
    await raw.option(Option.GO, new Uint8Array(6));
    return new Client(raw, mode);
  }

  send(type: number, offset: number, length: number, flags = 0, payload: Uint8Array = new Uint8Array(0)): void {
    const extended = this.mode === 'extended';
    if (extended && type === Command.WRITE) flags |= CommandFlag.PAYLOAD_LEN;
    const header = Object.assign(new RequestHeader(), { type, offset, length, flags, cookieLo: ++this.#cookie });
    const bytes = Buffer.alloc(extended ? 32 : 28);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    if (extended) encodeExtendedRequest(view, 0, header);
    else encodeRequest(view, 0, header);
    this.raw.write(bytes, payload);
  }

  async call(type: number, offset: number, length: number, flags = 0, payload?: Uint8Array): Promise<Answer> {
    this.send(type, offset, length, flags, payload);
    return this.answer(type, offset, length);
  }

  async answer(type: number, offset: number, length: number): Promise<Answer> {
    const data = Buffer.alloc(type === Command.READ ? length : 0, 0xee);
    const header = new ReplyHeader();
    let extents: readonly StatusExtent[] = [];
    let error = 0;
    let holes = 0;
    for (;;) {
      const head = await this.raw.read(16);
      if (head.length < 16) throw new Error('the connection has ended');
      const more = head.readUInt32BE(0) === 0x668e33ef ? 4 : head.readUInt32BE(0) === 0x6e8a278c ? 16 : 0;
      const whole = Buffer.concat([head, await this.raw.read(more)]);
      decodeReply(new DataView(whole.buffer, whole.byteOffset, whole.length), 0, header);
      assert.equal(header.cookieLo, this.#cookie);
      if (header.kind === 'simple') {
        assert.notEqual(this.mode, 'extended');
        if (header.error === 0 && type === Command.READ) (await this.raw.read(length)).copy(data);
        return { error: header.error, data, extents, holes };
      }
      assert.equal(header.kind, this.mode);
      const payload = await this.raw.read(header.length);
      if (header.type === Chunk.OFFSET_DATA) payload.copy(data, payload.readUInt32BE(4) - offset, 8);
      else if (header.type === Chunk.OFFSET_HOLE) {
        data.fill(0, payload.readUInt32BE(4) - offset, payload.readUInt32BE(4) - offset + payload.readUInt32BE(8));
        holes += payload.readUInt32BE(8);
      } else if ((header.type & 0x8000) !== 0) error = decodeErrorPayload(payload, false)!.error;
      else if (header.type !== Chunk.NONE) {
        extents = decodeStatusPayload(payload, header.type === Chunk.BLOCK_STATUS_EXT)!.extents;
      }
      if ((header.flags & 1) !== 0) return { error, data, extents, holes };
    }
  }
}

interface Stage {
  readonly context: AioContext;
  readonly server: NbdServer;
  readonly blk: BlockBackend;
  readonly path: string;
  readonly filename: string;
}

async function serve(context: AioContext, body: (stage: Stage) => Promise<void>, writable = true): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'nbd-transmission-'));
  const filename = join(folder, 'disk.img');
  const path = join(folder, 'socket');
  writeFileSync(filename, '');
  truncateSync(filename, SIZE);
  const target = { driver: 'raw', 'read-only': !writable, file: { driver: 'file', filename } };
  const blk = await BlockBackend.open(context, target, { readOnly: !writable });
  const server = new NbdServer(context, { limits: { maxBuffered: 4 << 20, maxPayload: 1 << 20 } });
  try {
    server.addExport({ name: '', description: '', blk, writable, allocationDepth: true, multiConn: true });
    await server.listen({ kind: 'unix', path });
    await body({ context, server, blk, path, filename });
  } finally {
    await server.stop(1000);
    assert.equal(server.budget.inUse, 0, 'all payload memory has come back');
    await blk.close();
    rmSync(folder, { recursive: true });
  }
}

/** xorshift32: the same sequence every time. */
function random(seed: number): (below: number) => number {
  let x = seed;
  return (below) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % below;
  };
}

for (const mode of ['simple', 'structured', 'extended'] as const) {
  inContext(`what is written, zeroed and read is what a flat buffer would hold (${mode} replies)`, async (context) => {
    await serve(context, async ({ path }) => {
      const client = await Client.open(path, mode);
      const model = Buffer.alloc(SIZE);
      const next = random(0x5eed + mode.length);
      for (let i = 0; i < 200; i++) {
        const length = 1 + next(i % 10 === 0 ? 300_000 : 9000);
        const offset = next(SIZE - length);
        const kind = next(4);
        if (kind === 0) {
          const payload = Buffer.alloc(length, 1 + next(255));
          const flags = next(2) === 0 ? CommandFlag.FUA : 0;
          assert.equal((await client.call(Command.WRITE, offset, length, flags, payload)).error, 0);
          payload.copy(model, offset);
        } else if (kind === 1) {
          const flags = next(2) === 0 ? CommandFlag.NO_HOLE : 0;
          assert.equal((await client.call(Command.WRITE_ZEROES, offset, length, flags)).error, 0);
          model.fill(0, offset, offset + length);
        } else {
          const answer = await client.call(Command.READ, offset, length);
          assert.equal(answer.error, 0);
          assert.ok(answer.data.equals(model.subarray(offset, offset + length)), `read ${i} differs`);
        }
      }
      assert.equal((await client.call(Command.FLUSH, 0, 0)).error, 0);
      assert.equal((await client.call(Command.CACHE, 0, 4096)).error, 0);
      assert.equal((await client.call(Command.TRIM, 0, 65536, CommandFlag.FUA)).error, 0);
      assert.equal((await client.call(Command.READ, 0, 0)).error, 0);
      client.send(Command.DISC, 0, 0);
      await client.raw.closed;
    });
  });

  inContext(`an illegal request gets its error and the next one is served (${mode} replies)`, async (context) => {
    await serve(context, async ({ path }) => {
      const client = await Client.open(path, mode);
      const payload = Buffer.alloc(4096, 7);
      const cases: [number, number, number, number, number, Uint8Array?][] = [
        [Command.READ, SIZE, 1, 0, NbdError.EINVAL],
        [Command.READ, SIZE - 1, 2, 0, NbdError.EINVAL],
        [Command.READ, Number.MAX_SAFE_INTEGER - 1, 4096, 0, NbdError.EINVAL],
        [Command.READ, 0, (1 << 20) + 1, 0, mode === 'simple' ? NbdError.EINVAL : NbdError.EOVERFLOW],
        [Command.READ, 0, 512, CommandFlag.NO_HOLE, NbdError.EINVAL],
        [Command.READ, 0, 512, 1 << 15, NbdError.EINVAL],
        [Command.WRITE, SIZE - 4095, 4096, 0, NbdError.ENOSPC, payload],
        [Command.WRITE, 0, 4096, CommandFlag.DF, NbdError.EINVAL, payload],
        [Command.WRITE_ZEROES, SIZE, 512, 0, NbdError.ENOSPC],
        [Command.TRIM, SIZE, 512, 0, NbdError.EINVAL],
        [Command.FLUSH, 0, 512, 0, NbdError.EINVAL],
        [Command.BLOCK_STATUS, 0, 0, 0, NbdError.EINVAL],
        [99, 0, 0, 0, NbdError.EINVAL],
      ];
      for (const [type, offset, length, flags, error, data] of cases) {
        const answer = await client.call(type, offset, length, flags, data);
        assert.equal(answer.error, error, `command ${type} at ${offset} of ${length} with flags ${flags}`);
        assert.equal((await client.call(Command.READ, 0, 512)).error, 0);
      }
      await client.raw.destroy();
    });
  });
}

inContext('a read of zeroes comes as a hole, unless the client asked for one piece', async (context) => {
  await serve(context, async ({ path }) => {
    const client = await Client.open(path, 'structured');
    assert.equal((await client.call(Command.READ, 0, 65536)).holes, 65536);
    assert.equal((await client.call(Command.READ, 0, 65536, CommandFlag.DF)).holes, 0);
    await client.call(Command.WRITE, 65535, 1, 0, new Uint8Array([1]));
    assert.equal((await client.call(Command.READ, 0, 65536)).holes, 0);
    await client.raw.destroy();
  });
});

for (const mode of ['structured', 'extended'] as const) {
  inContext(`block status tells data from holes, one extent with REQ_ONE (${mode} replies)`, async (context) => {
    await serve(context, async ({ path, blk }) => {
      const client = await Client.open(path, mode);
      await client.call(Command.WRITE, 1 << 20, 1 << 16, 0, Buffer.alloc(1 << 16, 9));
      const all = (await client.call(Command.BLOCK_STATUS, 0, SIZE)).extents;
      const one = (await client.call(Command.BLOCK_STATUS, 0, SIZE, CommandFlag.REQ_ONE)).extents;
      assert.equal(one.length, 1);
      assert.equal(
        all.reduce((sum, extent) => sum + extent.length, 0),
        SIZE,
      );
      let at = 0;
      let data = 0;
      for (const { length, flags } of all) {
        if (flags === 0) data += length;
        if (at <= 1 << 20 && 1 << 20 < at + length) assert.equal(flags, 0, 'what was written is data');
        at += length;
      }
      // Without a way to see holes everything is data.
      const canSee = blk.context.backend.name !== 'pool' || all.length > 1;
      if (canSee) assert.ok(data < SIZE / 2, `${data} bytes are data`);
      await client.raw.destroy();
    });
  });
}

inContext('a read-only export refuses every write with EPERM and takes in the payload', async (context) => {
  await serve(
    context,
    async ({ path }) => {
      const client = await Client.open(path, 'structured');
      assert.equal((await client.call(Command.WRITE, 0, 512, 0, Buffer.alloc(512))).error, NbdError.EPERM);
      assert.equal((await client.call(Command.WRITE_ZEROES, 0, 512)).error, NbdError.EPERM);
      assert.equal((await client.call(Command.TRIM, 0, 512)).error, NbdError.EPERM);
      assert.equal((await client.call(Command.FLUSH, 0, 0)).error, 0);
      await client.raw.destroy();
    },
    false,
  );
});

inContext('D4 a drained export answers nothing, and everything once the section has ended', async (context) => {
  await serve(context, async ({ path, blk }) => {
    const client = await Client.open(path, 'simple');
    await client.call(Command.READ, 0, 512);
    const drained = await blk.drain();
    client.send(Command.READ, 0, 512);
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.equal(client.raw.available, 0);
    assert.equal(blk.inFlight, 0);
    drained.end();
    assert.equal((await client.answer(Command.READ, 0, 512)).error, 0);
    await client.raw.destroy();
  });
});

inContext('many requests sent at once are all answered, whatever their order', async (context) => {
  await serve(context, async ({ path }) => {
    const raw = await RawClient.connect(path);
    await raw.go('');
    for (let i = 0; i < 1000; i++) raw.request(Command.READ, i * 512, 512, i);
    const seen = new Set<number>();
    for (let i = 0; i < 1000; i++) {
      const reply = await raw.simpleReply();
      assert.equal(reply?.error, 0);
      seen.add(reply!.cookie);
      await raw.read(512);
    }
    assert.equal(seen.size, 1000);
    await raw.destroy();
  });
});

inContext('a stop answers what is under way and then ends the connection', async (context) => {
  await serve(context, async ({ path, server }) => {
    const client = await Client.open(path, 'simple');
    const payload = Buffer.alloc(4096, 3);
    for (let i = 0; i < 20; i++) client.send(Command.WRITE, i * 4096, 4096, 0, payload);
    await until(() => server.traffic.requests === 20);
    await server.stop(1000);
    for (let i = 0; i < 20; i++) assert.equal((await client.raw.simpleReply())?.error, 0);
    await client.raw.closed;
  });
});

inContext(
  'a client that owes a payload is cut off when the time to stop is over, and nothing of it is written',
  async (context) => {
    await serve(context, async ({ path, server, blk }) => {
      const client = await Client.open(path, 'simple');
      client.send(Command.WRITE, 0, 4096, 0, Buffer.alloc(4000, 3));
      await until(() => server.traffic.requests === 1);
      await server.stop(100);
      await client.raw.closed;
      const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(4096)));
      await blk.read(0, Iov.of(memory));
      assert.ok(isZero(memory.bytes));
    });
  },
);

inContext('a file that shrinks under a reader reads as zeroes beyond its end, in a whole reply', async (context) => {
  await serve(context, async ({ path, filename }) => {
    const client = await Client.open(path, 'structured');
    await client.call(Command.WRITE, 0, 8192, 0, Buffer.alloc(8192, 5));
    truncateSync(filename, 6000);
    for (const [offset, data] of [
      [4096, 1904],
      [8192, 0],
    ] as const) {
      const answer = await client.call(Command.READ, offset, 4096);
      assert.equal(answer.error, 0);
      const expected = Buffer.alloc(4096);
      expected.fill(5, 0, data);
      assert.ok(answer.data.equals(expected), `at ${offset}`);
    }
    truncateSync(filename, SIZE);
    await client.raw.destroy();
  });
});

inContext('D4 two exports of one disk both go on after a drain', async (context) => {
  await serve(context, async ({ path, blk, server }) => {
    server.addExport({ name: 'two', description: '', blk, writable: false, allocationDepth: false, multiConn: true });
    const client = await Client.open(path, 'simple');
    await client.call(Command.READ, 0, 512);
    const drained = await blk.drain();
    client.send(Command.READ, 0, 512);
    await new Promise((resolve) => setTimeout(resolve, 20));
    drained.end();
    assert.equal((await client.answer(Command.READ, 0, 512)).error, 0);
    await client.raw.destroy();
  });
});
