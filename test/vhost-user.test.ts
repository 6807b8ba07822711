/** Disks as vhost-user-blk devices, from outside: the library's service and the command. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { IOThread, open, serveVhostUser } from '../src/index.ts';
import { FrontRequest, HeaderFlag } from '../src/proto/vhost-user/constants.ts';
import { encodeMessage } from '../src/proto/vhost-user/message.ts';
import { BlkFeature } from '../src/proto/virtio-blk/constants.ts';
import { blockplane, scratch, serve, sparse } from './harness.ts';

const MIB = 2 ** 20;
const ring = process.env.BLOCKPLANE_AIO !== 'pool' && (await onRing());
const skip = ring ? false : 'io_uring is not used here';

async function onRing(): Promise<boolean> {
  const thread = await IOThread.start();
  const { name } = thread.backend;
  await thread.stop();
  return name === 'ring';
}

/** The low word of the features that a back-end offers. */
async function features(socket: string): Promise<number> {
  const client = connect(socket);
  client.write(encodeMessage(FrontRequest.GET_FEATURES));
  const [answer] = (await once(client, 'data')) as [Buffer];
  client.destroy();
  assert.equal(answer.readUInt32LE(4), HeaderFlag.VERSION | HeaderFlag.REPLY);
  return answer.readUInt32LE(12);
}

test('a service tells who comes and goes, and ends with its disk', { skip, timeout: 30_000 }, async (t) => {
  const disk = await open(sparse(join(scratch(t), 'a.img'), MIB));
  const service = await serveVhostUser(disk);
  const seen: string[] = [];
  service.on('client', () => seen.push('client'));
  const gone = once(service, 'disconnect');
  assert.equal((await features(service.socket)) & BlkFeature.RO, 0);
  await gone;
  assert.deepEqual(seen, ['client']);
  assert.deepEqual(await service.stats(), { connected: false, connections: 1 });
  const { socket } = service;
  await disk.close();
  assert.equal(existsSync(socket), false);
  assert.deepEqual(await service.stats(), { connected: false, connections: 1 });
});

test('options that cannot be are refused with a message that names them', { skip, timeout: 30_000 }, async (t) => {
  const folder = scratch(t);
  const disk = await open(sparse(join(folder, 'a.img'), MIB), { readOnly: true });
  for (const [options, message] of [
    [{ queues: 0 }, /queues: 0 is not from 1 to 256/],
    [{ blockSize: 8192 }, /block size: 8192 is not 512/],
    [{ readOnly: false }, /it is read-only/],
    [{ socket: join(folder, 'no', 'such') }, /its directory does not exist/],
  ] as const) {
    await assert.rejects(serveVhostUser(disk, options), message);
  }
  const aborted = AbortSignal.abort(new Error('not now'));
  await assert.rejects(serveVhostUser(disk, { signal: aborted }), /not now/);
  const controller = new AbortController();
  const service = await serveVhostUser(disk, { signal: controller.signal });
  assert.notEqual((await features(service.socket)) & BlkFeature.RO, 0);
  controller.abort();
  await service.stop();
  assert.equal(existsSync(service.socket), false);
  await disk.close();
});

test('without io_uring it says so', { timeout: 30_000 }, async (t) => {
  const thread = await IOThread.start({ aio: 'pool' });
  const disk = await open(sparse(join(scratch(t), 'a.img'), MIB), { iothread: thread });
  await assert.rejects(serveVhostUser(disk), { code: 'ENOTSUP', message: /it needs io_uring/ });
  await disk.close();
  await thread.stop();
});

test('serve --vhost-user serves each image on its socket until it is told to stop', {
  skip,
  timeout: 30_000,
}, async (t) => {
  const folder = scratch(t);
  const images = ['a', 'b'].map((name) => sparse(join(folder, `${name}.img`), MIB));
  const sockets = ['a', 'b'].map((name) => join(folder, `${name}.sock`));
  const options = [...sockets.flatMap((socket) => ['--vhost-user', socket]), '--read-only', '--iothreads', '2'];
  const served = await serve(t, [...options, ...images], { lines: 2 });
  assert.deepEqual(served.lines.slice(0, 2), sockets);
  for (const socket of sockets) assert.notEqual((await features(socket)) & BlkFeature.RO, 0);
  const { code, stdout, stderr } = await served.stop();
  assert.equal(code, 0);
  assert.equal(stderr, '');
  assert.match(stdout, /vhost-user-blk-pci/);
  for (const socket of sockets) assert.equal(existsSync(socket), false);
});

test('serve --vhost-user spreads the queues over --client-threads', { skip, timeout: 30_000 }, async (t) => {
  const folder = scratch(t);
  const sockets = ['a', 'b'].map((name) => join(folder, `${name}.sock`));
  const images = ['a', 'b'].map((name) => sparse(join(folder, `${name}.img`), MIB));
  const options = [...sockets.flatMap((socket) => ['--vhost-user', socket]), '--client-threads', '2', '--queues', '4'];
  const served = await serve(t, [...options, '--format', 'raw', ...images], { lines: 2 });
  for (const [i, path] of sockets.entries()) {
    const disk = await open({ driver: 'virtio-blk-vhost-user', path, 'num-queues': 4 });
    const writes = Array.from({ length: 64 }, (_, n) => disk.write(Buffer.alloc(4096, n + i), 0, 4096, n * 4096));
    await Promise.all(writes);
    await disk.close();
  }
  assert.equal((await served.stop()).code, 0);
  for (const [i, image] of images.entries()) assert.equal(readFileSync(image)[63 * 4096], 63 + i);
});

test('serve --vhost-user: bad usage', async (t) => {
  const image = sparse(join(scratch(t), 'a.img'), MIB);
  for (const [options, message] of [
    [['--vhost-user', 'a', '--vhost-user', 'b'], /--vhost-user: given 2 times for 1 image/],
    [['--vhost-user', 'a', '--socket', 'b'], /not with --socket/],
    [['--queues', '2'], /--queues: only with --vhost-user/],
    [['--vhost-user', 'a', '--queues', '300'], /--queues: '300' is not a whole number from 1 to 256/],
  ] as const) {
    const { code, stderr } = await blockplane('serve', ...options, image);
    assert.equal(code, 2);
    assert.match(stderr, message);
  }
});
