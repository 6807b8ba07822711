import assert from 'node:assert/strict';
import { once } from 'node:events';
import * as net from 'node:net';
import { test } from 'node:test';
import { Prng } from '../../base/prng.ts';
import { KiB, MiB } from '../../base/units.ts';
import { WaitOp } from '../op.ts';
import { inContext } from '../testing.ts';
import { receiveInto } from './staging.ts';

/** Two ends of a connection. */
async function pair(): Promise<[net.Socket, net.Socket]> {
  const server = net.createServer({ pauseOnConnect: true });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const one = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1');
  const [other] = (await once(server, 'connection')) as [net.Socket];
  server.close();
  return [one, other];
}

const BYTES = 12 * MiB;
const LARGEST = 300 * KiB;

/** As in a Node.js whose sockets are built otherwise. */
function withoutUserBuffer(socket: net.Socket): void {
  const { _handle: handle } = socket as unknown as { readonly _handle: object };
  Object.defineProperty(handle, 'useUserBuffer', { value: undefined });
}

for (const [how, spoil] of [
  ['our memory', () => undefined],
  ["Node's buffers", withoutUserBuffer],
] as const) {
  inContext(`a stream that comes into ${how} loses nothing, however much is asked for`, async ({ backend }) => {
    const [writer, stream] = await pair();
    spoil(stream);
    const socket = await backend.fromStream!(stream);
    const bytes = new Uint8Array(BYTES);
    const words = new Prng(7);
    for (let i = 0; i < BYTES; i++) bytes[i] = words.below(256);
    writer.end(bytes);
    const random = new Prng(11);
    const memory = backend.memory(new Uint8Array(new SharedArrayBuffer(LARGEST)));
    const op = new WaitOp();
    for (let at = 0; at < BYTES; ) {
      // Messages of a few bytes and payloads, as they come in NBD.
      const want = random.below(2) === 0 ? 1 + random.below(64) : 1 + random.below(LARGEST);
      const all = random.below(2) === 0;
      const done = op.wait();
      socket.recv(op, memory, 0, want, all);
      const count = await done;
      assert.ok(count > 0 && count <= want);
      if (all) assert.equal(count, Math.min(want, BYTES - at));
      assert.ok(Buffer.from(memory.bytes.subarray(0, count)).equals(bytes.subarray(at, at + count)), `at ${at}`);
      at += count;
    }
    const end = op.wait();
    socket.recv(op, memory, 0, 1, false);
    assert.equal(await end, 0);
    await socket.close();
    writer.destroy();
  });
}

test('a socket that has no connection cannot receive into our memory', () => {
  const none = receiveInto(
    new net.Socket(),
    new Uint8Array(16),
    () => true,
    () => 0,
  );
  assert.equal(none, false);
});
