/** The seam's conformance suite, part 2: stream sockets. */
import assert from 'node:assert/strict';
import { existsSync, statSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { BlockError, Errno } from '../base/errors.ts';
import { Iov } from '../base/memory.ts';
import { KiB, MiB } from '../base/units.ts';
import { native } from '../native/lib.ts';
import * as nativeSocket from '../native/socket.ts';
import type { AioSocket, SocketAddress } from './backend.ts';
import { closeAll, type DefineTest, type Seam, SeenOp, wait } from './seam-harness.ts';

const LOOPBACK: SocketAddress = { kind: 'inet', host: '127.0.0.1', port: 0 };

async function rejectsWith(promise: Promise<unknown>, code: string): Promise<void> {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof BlockError, String(error));
    assert.equal(error.code, code);
    return true;
  });
}

/** Receives until the end of the stream in pieces of changing size; returns a copy of everything. */
async function drain(seam: Seam, socket: AioSocket, slow = false): Promise<Uint8Array> {
  const room = seam.memory(64 * KiB);
  const parts: Uint8Array[] = [];
  for (let round = 0; ; round++) {
    if (slow && round % 4 === 0) for (let i = 0; i < 3; i++) await seam.context.yield();
    const want = 1 + ((round * 7919) % room.bytes.length);
    const count = await wait((op) => socket.recv(op, room, 0, want, false));
    assert.ok(count >= 0 && count <= want, `recv gave ${count} of ${want}`);
    if (count === 0) return new Uint8Array(Buffer.concat(parts));
    parts.push(room.bytes.slice(0, count));
  }
}

export function socketConformance(test: DefineTest): void {
  listening(test);
  accepting(test);
  transfers(test);
  bothWays(test);
  ends(test);
  adoption(test);
}

function listening(test: DefineTest): void {
  for (const kind of ['unix', 'inet'] as const) {
    test(`${kind}: a connection is accepted and carries bytes both ways`, async (seam) => {
      const { client, server } = await seam.pair(kind === 'inet' ? LOOPBACK : undefined);
      for (const [from, to] of [
        [client, server],
        [server, client],
      ] as const) {
        const data = seam.memory(1000, 3);
        const room = seam.memory(1000);
        assert.equal(await wait((op) => from.send(op, Iov.of(data))), 1000);
        assert.equal(await wait((op) => to.recv(op, room, 0, 1000, true)), 1000);
        assert.deepEqual(room.bytes, data.bytes);
      }
      assert.match(client.peer, kind === 'unix' ? /./ : /^127\.0\.0\.1:\d+$/);
      await closeAll(client, server);
    });
  }

  test('port 0 is filled in', async (seam) => {
    const listener = await seam.backend.listen(LOOPBACK);
    assert.ok(listener.address.kind === 'inet' && listener.address.port > 0);
    await listener.close();
  });

  test('all of IPv6, and only that: nobody is there for IPv4', async (seam) => {
    const has6 = Object.values(networkInterfaces()).some((all) => all?.some(({ family }) => family === 'IPv6'));
    // Hosts are names to the simulated network.
    if (!has6 || seam.backend.name === 'sim') return;
    const listener = await seam.backend.listen({ kind: 'inet', host: '::', port: 0, only6: true });
    assert.ok(listener.address.kind === 'inet');
    const { port } = listener.address;
    const client = await seam.backend.connect({ kind: 'inet', host: '::1', port });
    await rejectsWith(seam.backend.connect({ kind: 'inet', host: '127.0.0.1', port }), 'ECONNREFUSED');
    await closeAll(client, listener);
  });

  test('a name in the abstract namespace has no file, and no mode', async (seam) => {
    const path = seam.path('s');
    const address = { kind: 'unix', path: `\0${path}` } as const;
    const listener = await seam.backend.listen(address, { mode: 0o600 });
    assert.ok(!existsSync(path));
    const client = await seam.backend.connect(address);
    const socket = await seam.accept(listener);
    await closeAll(client, socket, listener);
  });

  test('connections that came before the accept are accepted in their order', async (seam) => {
    const listener = await seam.backend.listen({ kind: 'unix', path: seam.path('s') });
    const clients: AioSocket[] = [];
    for (let i = 0; i < 3; i++) {
      const client = await seam.backend.connect(listener.address);
      clients.push(client);
      assert.equal(await wait((op) => client.send(op, Iov.of(seam.memory(1, i)))), 1);
    }
    for (let i = 0; i < 3; i++) {
      const socket = await seam.accept(listener);
      const room = seam.memory(1);
      assert.equal(await wait((op) => socket.recv(op, room, 0, 1, true)), 1);
      assert.equal(room.bytes[0], i);
      await socket.close();
    }
    await closeAll(...clients, listener);
  });
}

function accepting(test: DefineTest): void {
  test('200 connections at once are all served', async (seam) => {
    const listener = await seam.backend.listen({ kind: 'unix', path: seam.path('s') }, { backlog: 256 });
    const serve = async (): Promise<void> => {
      const done: Promise<void>[] = [];
      for (let i = 0; i < 200; i++) {
        const socket = await seam.accept(listener);
        done.push(echoOnce(seam, socket));
      }
      await Promise.all(done);
    };
    const serving = serve();
    const connects = Array.from({ length: 200 }, async (_, i) => {
      const socket = await seam.backend.connect(listener.address);
      const room = seam.memory(4);
      await wait((op) => socket.send(op, Iov.of(seam.memory(4, i))));
      assert.equal(await wait((op) => socket.recv(op, room, 0, 4, true)), 4);
      assert.deepEqual(room.bytes, seam.memory(4, i).bytes);
      await socket.close();
    });
    await Promise.all([serving, ...connects]);
    await listener.close();
  });

  test('closing a listener cancels its accept, and removes the path of its unix socket', async (seam) => {
    const address = { kind: 'unix', path: seam.path('s') } as const;
    const listener = await seam.backend.listen(address, { mode: 0o600 });
    if (seam.backend.name !== 'sim') assert.equal(statSync(address.path).mode & 0o777, 0o600);
    const accepted = wait((op) => listener.accept(op));
    await seam.context.yield();
    await listener.close();
    assert.equal(await accepted, -Errno.ECANCELED);
    await rejectsWith(seam.backend.connect(address), 'ENOENT');
    const again = await seam.backend.listen(address);
    await rejectsWith(seam.backend.listen(address), 'EADDRINUSE');
    await again.close();
  });

  test('nobody listening: ECONNREFUSED, and ENOENT for a path that is not there', async (seam) => {
    const listener = await seam.backend.listen(LOOPBACK);
    const { address } = listener;
    await listener.close();
    await rejectsWith(seam.backend.connect(address), 'ECONNREFUSED');
    await rejectsWith(seam.backend.connect({ kind: 'unix', path: seam.path('none') }), 'ENOENT');
    await rejectsWith(seam.backend.connect({ kind: 'unix', path: `/${'x'.repeat(200)}` }), 'ENAMETOOLONG');
    await rejectsWith(seam.backend.connect({ kind: 'inet', host: 'localhost', port: 1 }), 'EINVAL');
  });

  test('an accept can be cancelled, and the listener goes on', async (seam) => {
    const listener = await seam.backend.listen({ kind: 'unix', path: seam.path('s') });
    const op = new SeenOp();
    listener.accept(op);
    await seam.context.yield();
    seam.backend.cancel(op);
    assert.deepEqual(op.results, [], 'cancel does not complete inside the call');
    assert.equal(await op.result(), -Errno.ECANCELED);
    seam.backend.cancel(op);
    const [client, server] = await Promise.all([seam.backend.connect(listener.address), seam.accept(listener)]);
    assert.equal(op.results.length, 1);
    await closeAll(client, server, listener);
  });
}

async function echoOnce(seam: Seam, socket: AioSocket): Promise<void> {
  const room = seam.memory(4);
  assert.equal(await wait((op) => socket.recv(op, room, 0, 4, true)), 4);
  assert.equal(await wait((op) => socket.send(op, Iov.of(room))), 4);
  await socket.close();
}

function transfers(test: DefineTest): void {
  test('recv without `all` gives what is there, with `all` waits for everything', async (seam) => {
    const { client, server } = await seam.pair();
    const room = seam.memory(100);
    const some = wait((op) => server.recv(op, room, 10, 80, false));
    await wait((op) => client.send(op, Iov.of(seam.memory(5, 1))));
    const count = await some;
    assert.ok(count >= 1 && count <= 5);
    for (let got = count; got < 5; ) got += await wait((op) => server.recv(op, room, 10 + got, 5 - got, false));
    assert.deepEqual(room.bytes.slice(10, 15), seam.memory(5, 1).bytes.slice());
    assert.equal(room.bytes[9], 0);
    assert.equal(room.bytes[15], 0);

    const all = new SeenOp();
    server.recv(all, room, 0, 20, true);
    await wait((op) => client.send(op, Iov.of(seam.memory(15, 1))));
    for (let i = 0; i < 20; i++) await seam.context.yield();
    assert.deepEqual(all.results, [], '15 of 20 bytes are not all');
    await wait((op) => client.send(op, Iov.of(seam.memory(5, 50))));
    assert.equal(await all.result(), 20);
    assert.deepEqual(
      room.bytes.slice(0, 20),
      new Uint8Array([...seam.memory(15, 1).bytes, ...seam.memory(5, 50).bytes]),
    );
    await closeAll(client, server);
  });

  for (const kind of ['unix', 'inet'] as const) {
    test(`${kind}: 1000 runs, more than any socket buffer, reach a slow reader in order`, async (seam) => {
      const { client, server } = await seam.pair(kind === 'inet' ? LOOPBACK : undefined);
      const source = seam.memory(8 * MiB, 11);
      const iov = new Iov();
      for (let i = 0; i < 1000; i++) iov.push(source, i * 8192, 8000 + (i % 192));
      const received = drain(seam, server, true);
      assert.equal(await wait((op) => client.send(op, iov)), iov.length);
      client.shutdown();
      const expected = new Uint8Array(iov.length);
      iov.copyTo(expected);
      assert.equal(Buffer.compare(await received, expected), 0);
      await closeAll(client, server);
    });
  }
}

function bothWays(test: DefineTest): void {
  test('both directions carry data at the same time', async (seam) => {
    const { client, server } = await seam.pair();
    const exchange = async (socket: AioSocket, mine: number, theirs: number): Promise<void> => {
      const room = seam.memory(MiB);
      const sent = wait((op) => socket.send(op, Iov.of(seam.memory(MiB, mine))));
      assert.equal(await wait((op) => socket.recv(op, room, 0, MiB, true)), MiB);
      assert.equal(await sent, MiB);
      assert.equal(Buffer.compare(room.bytes, seam.memory(MiB, theirs).bytes), 0);
    };
    await Promise.all([exchange(client, 1, 2), exchange(server, 2, 1)]);
    await closeAll(client, server);
  });

  test('socket operations do not complete inside the call, even when their result is known', async (seam) => {
    const { client, server } = await seam.pair();
    await wait((op) => client.send(op, Iov.of(seam.memory(10, 1))));
    const room = seam.memory(10);
    assert.ok((await wait((op) => server.recv(op, room, 0, 1, true))) === 1);
    const recv = new SeenOp();
    server.recv(recv, room, 0, 9, true);
    assert.deepEqual(recv.results, []);
    assert.equal(await recv.result(), 9);
    const send = new SeenOp();
    client.send(send, Iov.of(room));
    assert.deepEqual(send.results, []);
    assert.equal(await send.result(), 10);
    assert.equal(send.slot, -1);
    await closeAll(client, server);
  });
}

function ends(test: DefineTest): void {
  test('the end of the stream: what was sent before it arrives, then 0 for ever', async (seam) => {
    const { client, server } = await seam.pair();
    await wait((op) => client.send(op, Iov.of(seam.memory(7, 1))));
    client.shutdown();
    const room = seam.memory(100);
    assert.equal(await wait((op) => server.recv(op, room, 0, 100, true)), 7, '`all` gives what there was');
    assert.equal(await wait((op) => server.recv(op, room, 0, 100, true)), 0);
    assert.equal(await wait((op) => server.recv(op, room, 0, 100, false)), 0);
    await closeAll(client, server);
  });

  test('shutdown ends a pending recv; sends after it fail with EPIPE; it is idempotent', async (seam) => {
    const { client, server } = await seam.pair();
    const pending = wait((op) => server.recv(op, seam.memory(10), 0, 10, true));
    await seam.context.yield();
    server.shutdown();
    server.shutdown();
    assert.ok((await pending) <= 0);
    assert.equal(await wait((op) => server.send(op, Iov.of(seam.memory(10, 1)))), -Errno.EPIPE);
    assert.ok((await wait((op) => client.recv(op, seam.memory(10), 0, 10, false))) <= 0, 'the peer sees the end');
    await closeAll(client, server);
  });

  test('shutdown ends a send that the peer does not read', async (seam) => {
    const { client, server } = await seam.pair();
    const sending = wait((op) => client.send(op, Iov.of(seam.memory(16 * MiB, 1))));
    for (let i = 0; i < 10; i++) await seam.context.yield();
    client.shutdown();
    assert.ok((await sending) < 16 * MiB);
    await closeAll(client, server);
  });

  test('a send to a peer that has gone fails with EPIPE or ECONNRESET', async (seam) => {
    const { client, server } = await seam.pair();
    await server.close();
    let result = 1;
    for (let i = 0; i < 50 && result > 0; i++) {
      result = await wait((op) => client.send(op, Iov.of(seam.memory(MiB, 1))));
    }
    assert.ok([-Errno.EPIPE, -Errno.ECONNRESET].includes(result as never), `result ${result}`);
    await client.close();
  });

  test('a recv can be cancelled, and no byte is lost by it', async (seam) => {
    const { client, server } = await seam.pair();
    const room = seam.memory(10);
    const op = new SeenOp();
    server.recv(op, room, 0, 10, true);
    await seam.context.yield();
    seam.backend.cancel(op);
    assert.equal(await op.result(), -Errno.ECANCELED);
    await wait((send) => client.send(send, Iov.of(seam.memory(10, 1))));
    assert.equal(await wait((recv) => server.recv(recv, room, 0, 10, true)), 10);
    assert.deepEqual(room.bytes, seam.memory(10, 1).bytes);
    await closeAll(client, server);
  });
}

function adoption(test: DefineTest): void {
  test('a shared socket is one more of the same connection, and each of them can end it', async (seam) => {
    const { client, server } = await seam.pair();
    if (server.fd === undefined) {
      assert.equal(seam.backend.name, 'pool');
      await closeAll(client, server);
      return;
    }
    const one = await seam.backend.adoptSocket(server.fd, true);
    const room = seam.memory(10);
    await wait((op) => client.send(op, Iov.of(seam.memory(20, 1))));
    assert.equal(await wait((op) => one.recv(op, room, 0, 10, true)), 10);
    await one.close();
    assert.equal(await wait((op) => server.recv(op, room, 0, 10, true)), 10);
    assert.deepEqual(room.bytes, seam.memory(20, 1).bytes.subarray(10));
    assert.equal(await wait((op) => server.send(op, Iov.of(seam.memory(10, 2)))), 10);
    const other = await seam.backend.adoptSocket(server.fd, true);
    const ending = wait((op) => other.recv(op, room, 0, 10, true));
    server.shutdown();
    assert.equal(await ending, 0);
    await closeAll(client, server, other);
  });

  test('inherited descriptors are taken over', async (seam) => {
    if (seam.backend.name === 'sim') {
      await rejectsWith(seam.backend.adoptSocket(0), 'ENOTSUP');
      await rejectsWith(seam.backend.adoptListener(0), 'ENOTSUP');
      return;
    }
    if (!native()) {
      seam.t.diagnostic('no native layer to make descriptors with');
      return;
    }
    const fds = nativeSocket.socketpair();
    assert.ok(typeof fds === 'object');
    const [a, b] = [await seam.backend.adoptSocket(fds[0]), await seam.backend.adoptSocket(fds[1])];
    const room = seam.memory(100);
    assert.equal(await wait((op) => a.send(op, Iov.of(seam.memory(100, 5)))), 100);
    assert.equal(await wait((op) => b.recv(op, room, 0, 100, true)), 100);
    assert.deepEqual(room.bytes, seam.memory(100, 5).bytes);
    await closeAll(a, b);

    const address = { kind: 'unix', path: seam.path('inherited') } as const;
    const fd = nativeSocket.socket(address);
    assert.equal(nativeSocket.bind(fd, address), 0);
    assert.equal(nativeSocket.listen(fd), 0);
    const listener = await seam.backend.adoptListener(fd);
    assert.deepEqual(listener.address, address);
    const [client, server] = await Promise.all([seam.backend.connect(address), seam.accept(listener)]);
    await closeAll(client, server, listener);
    assert.ok(statSync(address.path).isSocket(), "the path is not this listener's to remove");
  });
}
