import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { AioListener } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import type { AioOp } from '../../aio/op.ts';
import { inContext } from '../../aio/testing.ts';
import { Errno } from '../../base/errors.ts';
import { Option, OptionReply } from '../../proto/nbd/constants.ts';
import { encodeOption } from '../../proto/nbd/option.ts';
import { DEFAULT_LIMITS, type NbdLimits, resolveLimits } from './limits.ts';
import { RawClient } from './raw-client.ts';
import { addressText, NbdServer } from './server.ts';
import { fakeExport, MemorySocket, until } from './testing.ts';

interface Stage {
  readonly server: NbdServer;
  readonly path: string;
  readonly ends: string[];
}

/** A server with the export 'disk' on a unix socket; stopped afterwards. */
async function withServer(
  context: AioContext,
  limits: Partial<NbdLimits>,
  body: (stage: Stage) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'nbd-server-'));
  const path = join(folder, 'socket');
  const ends: string[] = [];
  const server = new NbdServer(context, {
    limits: { maxPayload: 1 << 16, maxBuffered: 1 << 20, ...limits },
    onClientEnd: (_peer, why) => ends.push(why),
  });
  try {
    server.addExport(fakeExport({ name: 'disk' }));
    await server.listen({ kind: 'unix', path }, { mode: 0o600 });
    await body({ server, path, ends });
  } finally {
    await server.stop(100);
    rmSync(folder, { recursive: true });
  }
}

inContext('a server listens on several addresses and says where', async (context) => {
  await withServer(context, {}, async ({ server, path }) => {
    const address = await server.listen({ kind: 'inet', host: '127.0.0.1', port: 0 });
    assert.ok(address.kind === 'inet' && address.port > 0);
    assert.deepEqual(server.addresses, [{ kind: 'unix', path }, address]);
    assert.equal(addressText(address), `127.0.0.1:${address.port}`);
    for (const where of [path, address.port]) {
      const client = await RawClient.connect(where);
      await client.go('disk');
      await until(() => server.clients[0]?.state === 'transmission');
      assert.deepEqual([server.clients.length, server.clients[0]!.exportName], [1, 'disk']);
      await client.destroy();
      await until(() => server.clients.length === 0);
    }
    assert.equal(server.stats.handshakes, 2);
  });
});

inContext('2024-7409 clients beyond the limit wait outside until one leaves', async (context) => {
  await withServer(context, { maxConnections: 2 }, async ({ server, path }) => {
    const inside = [await RawClient.connect(path), await RawClient.connect(path)];
    for (const client of inside) await client.go('disk');
    const outside = [await RawClient.connect(path), await RawClient.connect(path)];
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.deepEqual([server.clients.length, outside[0]!.available, outside[1]!.available], [2, 0, 0]);
    await inside[0]!.destroy();
    await outside[0]!.go('disk');
    assert.equal(server.clients.length, 2);
    await inside[1]!.destroy();
    await outside[1]!.go('disk');
    for (const client of outside) await client.destroy();
  });
});

inContext('row 14: half-open handshakes at the limit make room for a new client', async (context) => {
  await withServer(context, { maxConnections: 3, handshakeNs: 3600e9 }, async ({ server, path, ends }) => {
    const slow: RawClient[] = [];
    for (let i = 0; i < 3; i++) slow.push(await RawClient.connect(path));
    await until(() => server.clients.length === 3);
    const client = await RawClient.connect(path);
    await client.go('disk');
    assert.equal(server.stats.evicted, 1);
    await slow[0]!.closed;
    assert.match(ends[0]!, /others waited/);
    assert.equal(slow[1]!.socket.destroyed, false);
    for (const each of [client, ...slow]) await each.destroy();
  });
});

inContext('row 14: a handshake is cut at its deadline', async (context) => {
  await withServer(context, { handshakeNs: 50e6 }, async ({ server, path, ends }) => {
    const client = await RawClient.connect(path);
    await client.closed;
    await until(() => server.clients.length === 0);
    assert.deepEqual(ends, ['the handshake took too long']);
    assert.equal(server.stats.handshakeFailures, 1);
  });
});

inContext('2024-7409 a server stops at once with clients in every state, and may be stopped twice', async (context) => {
  await withServer(context, { maxConnections: 4 }, async ({ server, path }) => {
    const clients: RawClient[] = [];
    for (let i = 0; i < 4; i++) clients.push(await RawClient.connect(path));
    await clients[0]!.go('disk');
    await clients[1]!.go('disk', Option.STRUCTURED_REPLY);
    clients[2]!.write(encodeOption(Option.LIST).subarray(0, 5));
    await until(() => server.clients.length === 4);
    // The fifth is held at the door.
    clients.push(await RawClient.connect(path));
    // None of them has anything under way that it could wait for.
    await Promise.all([server.stop(3_600_000), server.stop()]);
    assert.deepEqual([server.clients.length, server.addresses.length], [0, 0]);
    for (const client of clients) await client.destroy();
    await assert.rejects(RawClient.connect(path), { code: 'ENOENT' });
    await assert.rejects(server.listen({ kind: 'unix', path }), { code: 'ESHUTDOWN' });
  });
});

inContext('an export in use is removed by force only, and its clients are cut off', async (context) => {
  await withServer(context, {}, async ({ server, path }) => {
    const client = await RawClient.connect(path);
    await client.go('disk');
    await until(() => server.clients[0]?.state === 'transmission');
    const idle = await RawClient.connect(path);
    await idle.greet();
    await assert.rejects(server.removeExport('disk'), { code: 'EBUSY' });
    await assert.rejects(server.removeExport('nosuch', 'hard'), { code: 'ENOENT' });
    await server.removeExport('disk', 'hard');
    await client.closed;
    assert.deepEqual(server.exports, []);
    const replies = await idle.option(Option.LIST);
    assert.deepEqual(
      replies.map(({ type }) => type),
      [OptionReply.ACK],
    );
    server.addExport(fakeExport({ name: 'disk' }));
    await server.removeExport('disk');
    await idle.destroy();
  });
});

inContext('a socket that came otherwise is served, and closed when the server is stopping', async (context) => {
  const ends: string[] = [];
  const server = new NbdServer(context, { onClientEnd: (peer, why) => ends.push(`${peer}: ${why}`) });
  const socket = new MemorySocket();
  const serving = server.serve(socket);
  await until(() => socket.output.length === 18);
  await server.stop();
  await serving;
  await server.serve(new MemorySocket());
  assert.deepEqual(ends, ['memory: the client has left', 'memory: the server is stopping']);
});

/** Accepts as it is told, then waits. */
class ScriptedListener implements AioListener {
  readonly address = { kind: 'unix', path: 'scripted' } as const;
  readonly sockets: MemorySocket[] = [];
  readonly #context: AioContext;
  readonly #script: number[];
  #pending: AioOp | undefined;

  constructor(context: AioContext, script: number[]) {
    this.#context = context;
    this.#script = script;
  }

  accept(op: AioOp): void {
    const result = this.#script.shift();
    if (result === undefined) this.#pending = op;
    else this.#context.completeLater(op, result);
  }

  takeAccepted(): MemorySocket {
    const socket = new MemorySocket();
    this.sockets.push(socket);
    return socket;
  }

  async close(): Promise<void> {
    if (this.#pending) this.#context.completeLater(this.#pending, -Errno.ECANCELED);
  }
}

inContext('accepting goes on after errors, rested and without spinning', async (context) => {
  const listener = new ScriptedListener(context, [-Errno.EMFILE, -Errno.ECONNABORTED, 0]);
  const { backend } = context;
  const stage = {
    now: () => context.now(),
    timer: (callback: () => void, name: string) => context.timer(callback, name),
    run: (name: string, body: () => Promise<void>) => context.run(name, body),
    backend: { memory: (bytes: Uint8Array) => backend.memory(bytes), listen: async () => listener },
  } as unknown as AioContext;
  const server = new NbdServer(stage);
  const start = context.now();
  await server.listen({ kind: 'unix', path: 'scripted' });
  await until(() => listener.sockets.length === 1);
  assert.ok(context.now() - start >= 200e6, 'rested after each error');
  assert.equal(server.stats.acceptErrors, 2);
  await server.stop();
  assert.equal(listener.sockets[0]!.shut, true);
});

inContext('limits that cannot work are refused', (context) => {
  assert.deepEqual(resolveLimits(), DEFAULT_LIMITS);
  for (const limits of [
    { maxPayload: 1000 },
    { maxPayload: 64 << 20 },
    { maxBuffered: 1 << 20 },
    { maxOptionBytes: 1 << 20 },
    { maxRequests: 0 },
    { maxConnections: -1 },
    { handshakeNs: Number.NaN },
  ]) {
    assert.throws(() => resolveLimits(limits), { code: 'EINVAL' }, JSON.stringify(limits));
    assert.throws(() => new NbdServer(context, { limits }), { code: 'EINVAL' });
  }
});
