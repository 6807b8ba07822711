import assert from 'node:assert/strict';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Errno } from '../base/errors.ts';
import { close } from './file.ts';
import { nativeAbsence } from './lib.ts';
import * as socket from './socket.ts';

const absence = nativeAbsence();
const skip = absence === undefined ? false : absence;
let folder = '';

before(() => {
  folder = fs.mkdtempSync(join(tmpdir(), 'blockplane-socket-'));
});
after(() => fs.rmSync(folder, { recursive: true, force: true }));

function pair(): readonly [number, number] {
  const made = socket.socketpair();
  assert.ok(typeof made !== 'number');
  return made;
}

function received(result: socket.Received | number): socket.Received {
  assert.ok(typeof result !== 'number', `recvFds failed with ${String(result)}`);
  return result;
}

/** Listens natively, lets node:net connect, and gives both ends to `body`. */
async function withNodeClient(
  address: socket.NativeAddress,
  connect: (bound: socket.NativeAddress) => net.Socket,
  body: (accepted: number, client: net.Socket, listener: number) => void | Promise<void>,
): Promise<void> {
  const listener = socket.socket(address);
  assert.ok(listener >= 0);
  if (address.kind === 'inet') assert.equal(socket.setsockopt(listener, 'reuseaddr', 1), 0);
  assert.equal(socket.bind(listener, address), 0);
  assert.equal(socket.listen(listener), 0);
  assert.equal(socket.getsockopt(listener, 'acceptconn'), 1);
  const bound = socket.getsockname(listener);
  assert.ok(typeof bound === 'object');
  const client = connect(bound);
  await once(client, 'connect');
  const accepted = socket.accept4(listener);
  assert.ok(accepted >= 0);
  try {
    await body(accepted, client, listener);
  } finally {
    client.destroy();
    close(accepted);
    close(listener);
  }
}

for (const host of ['127.0.0.1', '::1']) {
  test(`a node:net client reaches a native listener on ${host}`, { skip }, async (t) => {
    const address = { kind: 'inet', host, port: 0 } as const;
    const probe = socket.socket(address);
    const usable = socket.bind(probe, address);
    close(probe);
    if (usable < 0) {
      t.skip(`${host} cannot be bound here: errno ${-usable}`);
      return;
    }
    const connect = (bound: socket.NativeAddress) => {
      assert.ok(bound.kind === 'inet' && bound.port > 0 && bound.host === host);
      return net.connect(bound.port, bound.host);
    };
    await withNodeClient(address, connect, async (accepted, client) => {
      assert.deepEqual(socket.getpeername(accepted), { kind: 'inet', host, port: client.localPort });
      assert.equal(socket.setsockopt(accepted, 'nodelay', 1), 0);
      assert.equal(socket.getsockopt(accepted, 'nodelay'), 1);
      assert.equal(socket.setsockopt(accepted, 'sndbuf', 50_000), 0);
      assert.ok(socket.getsockopt(accepted, 'sndbuf') >= 50_000);
      assert.equal(socket.getsockopt(accepted, 'error'), 0);
      assert.equal(socket.sendFds(accepted, Buffer.from('hello'), []), 5);
      assert.equal(String((await once(client, 'data'))[0]), 'hello');
      const ended = once(client, 'end');
      assert.equal(socket.shutdown(accepted, 'write'), 0);
      await ended;
    });
  });
}

test('unix listeners work by path and by abstract name', { skip }, async () => {
  for (const path of [join(folder, 'listen.sock'), `\0blockplane-test-${process.pid}`]) {
    const address = { kind: 'unix', path } as const;
    const listener = socket.socket(address, true);
    assert.equal(socket.bind(listener, address), 0);
    assert.equal(socket.listen(listener), 0);
    assert.deepEqual(socket.getsockname(listener), address);
    assert.equal(socket.accept4(listener), -Errno.EAGAIN);
    const client = socket.socket(address);
    assert.equal(socket.connect(client, address), 0);
    const accepted = socket.accept4(listener, true);
    assert.ok(accepted >= 0);
    assert.deepEqual(socket.getpeername(client), address);
    assert.deepEqual(socket.getpeername(accepted), { kind: 'unix', path: '' });
    const uid = process.getuid?.();
    const gid = process.getgid?.();
    assert.deepEqual(socket.peerCredentials(accepted), { pid: process.pid, uid, gid });
    for (const fd of [client, accepted, listener]) assert.equal(close(fd), 0);
  }
});

test('a native client reaches a node:net server', { skip }, async () => {
  const path = join(folder, 'node.sock');
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const client = socket.socket({ kind: 'unix', path });
  assert.equal(socket.connect(client, { kind: 'unix', path }), 0);
  const [peer] = (await once(server, 'connection')) as [net.Socket];
  peer.end('from node');
  await once(peer, 'finish');
  assert.equal(Buffer.from(received(socket.recvFds(client, 100, 0)).bytes).toString(), 'from node');
  assert.equal(received(socket.recvFds(client, 100, 0)).bytes.length, 0, 'then the end of the stream');
  close(client);
  peer.destroy();
  await new Promise<void>((resolve) => server.close(() => resolve()));
});

test('failures are negative errnos, bad addresses before there is a socket', { skip }, () => {
  const long = { kind: 'unix', path: join(folder, 'x'.repeat(120)) } as const;
  assert.equal(socket.socket(long), -Errno.ENAMETOOLONG);
  const missing = { kind: 'unix', path: join(folder, 'missing.sock') } as const;
  const fd = socket.socket(missing);
  assert.equal(socket.connect(fd, missing), -Errno.ENOENT);
  assert.equal(socket.bind(fd, long), -Errno.ENAMETOOLONG);
  assert.equal(socket.connect(fd, long), -Errno.ENAMETOOLONG);
  assert.equal(socket.getpeername(fd), -Errno.ENOTCONN);
  close(fd);
  assert.equal(socket.listen(-1), -Errno.EBADF);
  assert.equal(socket.accept4(-1), -Errno.EBADF);
  assert.equal(socket.getsockopt(-1, 'type'), -Errno.EBADF);
  const busy = { kind: 'inet', host: '127.0.0.1', port: 0 } as const;
  const one = socket.socket(busy);
  socket.bind(one, busy);
  socket.listen(one);
  const bound = socket.getsockname(one);
  assert.ok(typeof bound === 'object');
  const two = socket.socket(busy);
  assert.equal(socket.shutdown(two), -Errno.ENOTCONN);
  assert.equal(socket.bind(two, bound), -Errno.EADDRINUSE);
  close(one);
  assert.equal(socket.connect(two, bound), -Errno.ECONNREFUSED);
  close(two);
});

test('descriptors arrive with their bytes, as new close-on-exec descriptors of the same files', { skip }, () => {
  const [a, b] = pair();
  const paths = ['one', 'two', 'three'].map((name) => join(folder, name));
  const fds = paths.map((path) => fs.openSync(path, 'w+'));
  assert.equal(socket.sendFds(a, Uint8Array.of(1, 2, 3, 4), fds), 4);
  const message = received(socket.recvFds(b, 4096, 8));
  assert.deepEqual([...message.bytes], [1, 2, 3, 4]);
  assert.equal(message.truncated, false);
  assert.equal(message.fds.length, 3);
  message.fds.forEach((fd, i) => {
    assert.equal(fs.readlinkSync(`/proc/self/fd/${fd}`), paths[i]);
    assert.match(fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'), /flags:\s*02\d{6}\n/);
    fs.closeSync(fd);
  });
  for (const fd of [...fds, a, b]) fs.closeSync(fd);
});

test('more descriptors than asked for are closed by the kernel and reported', { skip }, () => {
  const [a, b] = pair();
  for (const [sent, wanted] of [
    [2, 1],
    [4, 3],
    [1, 0],
  ] as const) {
    assert.equal(socket.sendFds(a, Uint8Array.of(9), new Array(sent).fill(a)), 1);
    const before = fs.readdirSync('/proc/self/fd').length;
    const message = received(socket.recvFds(b, 16, wanted));
    assert.equal(message.truncated, true);
    assert.equal(message.fds.length, wanted);
    assert.equal(fs.readdirSync('/proc/self/fd').length, before + wanted);
    for (const fd of message.fds) close(fd);
  }
  close(a);
  close(b);
});

test('253 descriptors fit one message, and messages never wait', { skip }, () => {
  const [a, b] = pair();
  assert.equal(socket.recvFds(b, 16, 1), -Errno.EAGAIN);
  assert.equal(socket.sendFds(a, Uint8Array.of(1), new Array(socket.MAX_FDS).fill(a)), 1);
  const message = received(socket.recvFds(b, 16, socket.MAX_FDS));
  assert.equal(message.fds.length, socket.MAX_FDS);
  for (const fd of message.fds) close(fd);
  const big = new Uint8Array(socket.MAX_MESSAGE_BYTES);
  let sent = 0;
  for (let i = 0; i < 1000 && sent >= 0; i++) sent = socket.sendFds(a, big, []);
  assert.equal(sent, -Errno.EAGAIN);
  close(b);
  assert.equal(socket.sendFds(a, Uint8Array.of(1), []), -Errno.EPIPE, 'and raise no SIGPIPE');
  close(a);
});
