/** serveNbd() as a program uses it. */
import assert from 'node:assert/strict';
import { existsSync, truncateSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { dirname } from 'node:path';
import { type TestContext, test } from 'node:test';
import { RawClient } from '../src/exports/nbd/raw-client.ts';
import { type BlockError, type Disk, IOThread, open, serveNbd } from '../src/index.ts';
import { Command } from '../src/proto/nbd/constants.ts';
import { needs, peer, run, scratch } from './harness.ts';

const MiB = 1024 * 1024;

async function disk(t: TestContext, iothread?: IOThread): Promise<Disk> {
  const path = `${scratch(t)}/disk.img`;
  writeFileSync(path, '');
  truncateSync(path, MiB);
  const opened = await open(path, { iothread });
  t.after(() => opened.close());
  return opened;
}

function code(expected: string): (error: BlockError) => boolean {
  return (error) => {
    assert.equal(error.code, expected, error.message);
    return true;
  };
}

test('a service without an address has a socket of its own, which goes with it', needs('nbdinfo'), async (t) => {
  const service = await serveNbd(await disk(t), { exportName: 'ünï' });
  const [address] = service.addresses;
  assert.ok(address?.kind === 'unix' && existsSync(address.path));
  assert.equal((await peer('nbdinfo', '--size', service.uri)).trim(), String(MiB));
  await service.stop();
  await service.stop();
  assert.equal(existsSync(dirname(address.path)), false);
  const stats = await service.stats();
  assert.equal(stats.clients, 0);
  assert.ok(stats.connections >= 1);
});

test('what the program writes is what clients read, and the other way round', needs('qemu-io'), async (t) => {
  const image = await disk(t);
  await using service = await serveNbd(image, { host: '127.0.0.1', port: 0 });
  await image.write(new Uint8Array(512).fill(0x5a), 0, 512, 1024);
  await peer('qemu-io', '-f', 'raw', '-c', 'read -P 0x5a 1024 512', '-c', 'write -P 0xa5 0 512', service.uri);
  const { buffer } = await image.read(new Uint8Array(512), 0, 512, 0);
  assert.ok(buffer.every((byte) => byte === 0xa5));
});

test('clients are told of as they come and go', async (t) => {
  await using service = await serveNbd(await disk(t), { host: 'localhost', port: 0 });
  const [address] = service.addresses;
  assert.ok(address?.kind === 'inet' && address.port > 0);
  const events: string[] = [];
  const gone = new Promise<void>((resolve) => {
    service.on('client', () => events.push(`client ${service.clients}`));
    service.on('disconnect', () => {
      events.push(`disconnect ${service.clients}`);
      resolve();
    });
  });
  const socket = connect(address.port, address.host, () => socket.end());
  socket.resume();
  await gone;
  assert.deepEqual(events, ['client 1', 'disconnect 0']);
});

test('exports come and go while a service runs', needs('nbdinfo'), async (t) => {
  await using thread = await IOThread.start();
  const first = await disk(t, thread);
  const second = await disk(t, thread);
  await using service = await serveNbd([{ disk: first, exportName: 'first' }], {});
  await service.addExport({ disk: second, exportName: 'second', description: 'added' });
  assert.equal(service.uris.length, 2);
  await peer('nbdinfo', '--size', service.uris[1]!);
  await assert.rejects(service.addExport({ disk: second, exportName: 'first' }), code('EEXIST'));
  await service.removeExport('first');
  assert.notEqual((await run('nbdinfo', ['--size', service.uri.replace('second', 'first')])).code, 0);
  await second.close();
  assert.equal(service.uris.length, 0);
  await first.close();
});

test('many services and many requests with one signal bring no warning about listeners', async (t) => {
  const warnings: Error[] = [];
  const onWarning = (warning: Error): number => warnings.push(warning);
  process.on('warning', onWarning);
  t.after(() => process.off('warning', onWarning));
  const image = await disk(t);
  const { signal } = new AbortController();
  const services = await Promise.all(Array.from({ length: 20 }, () => serveNbd(image, { signal })));
  await Promise.all(services.map((service) => service.stop()));
  const reads = Array.from({ length: 100 }, (_, i) => image.read({ buffer: new Uint8Array(512), position: i, signal }));
  await Promise.all(reads);
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(warnings, []);
});

test('closing a disk ends its service first', async (t) => {
  const image = await disk(t);
  const service = await serveNbd(image);
  await image.close();
  assert.equal(service.uris.length, 0);
  await service.stop().catch((error: BlockError) => assert.equal(error.code, 'ESHUTDOWN'));
});

test('addresses that cannot be are refused with what is wrong', async (t) => {
  const image = await disk(t);
  const dir = scratch(t);
  writeFileSync(`${dir}/file`, '');
  await assert.rejects(serveNbd(image, { socket: `${dir}/${'x'.repeat(120)}` }), code('EINVAL'));
  await assert.rejects(serveNbd(image, { socket: `${dir}/file` }), code('EADDRINUSE'));
  await assert.rejects(serveNbd(image, { socket: `${dir}/none/nbd.sock` }), code('ENOENT'));
  await assert.rejects(serveNbd(image, { socket: `${dir}/a`, port: 1 }), code('EINVAL'));
  await assert.rejects(serveNbd(image, { port: 70_000 }), code('EINVAL'));
  await assert.rejects(serveNbd([]), code('EINVAL'));
  await using one = await serveNbd(image, { socket: `${dir}/nbd.sock`, exportName: 'one' });
  await assert.rejects(serveNbd(image, { socket: `${dir}/nbd.sock` }), code('EADDRINUSE'));
  assert.equal(one.uri, `nbd+unix:///one?socket=${dir}/nbd.sock`);
});

test('a disk that is closed while its service starts leaves no service behind', async (t) => {
  await using thread = await IOThread.start();
  for (let turns = 0; turns < 12; turns++) {
    const image = await disk(t, thread);
    const starting = serveNbd(image);
    starting.catch(() => undefined);
    for (let i = 0; i < turns; i++) await null;
    await image.close();
    const [result] = await Promise.allSettled([starting]);
    if (result.status === 'rejected') code('EBADF')(result.reason as BlockError);
    else await result.value.stop();
    assert.equal((await thread.stats()).services, 0, `after ${turns} turns`);
    assert.equal((await thread.stats()).disks, 0);
  }
});

test('a disk that is closed while it is added is not exported', async (t) => {
  await using thread = await IOThread.start();
  await using service = await serveNbd(await disk(t, thread), { exportName: 'first' });
  const second = await disk(t, thread);
  const adding = service.addExport({ disk: second, exportName: 'second' });
  await Promise.all([assert.rejects(adding, code('EBADF')), second.close()]);
  assert.equal(service.uris.length, 1);
  await service.addExport({ disk: await disk(t, thread), exportName: 'second' });
});

test('an export that is removed several times at once ends once', async (t) => {
  await using thread = await IOThread.start();
  await using service = await serveNbd(await disk(t, thread), { exportName: 'kept' });
  for (let round = 0; round < 5; round++) {
    const image = await disk(t, thread);
    await service.addExport({ disk: image, exportName: 'x' });
    const modes = ['hard', 'safe', 'hard'] as const;
    await Promise.all([...modes.map((mode) => service.removeExport('x', mode)), image.close()]);
    assert.equal(service.uris.length, 1);
  }
});

test('an export in use is not removed the safe way, and is the hard way meanwhile', async (t) => {
  await using thread = await IOThread.start();
  const image = await disk(t, thread);
  await using service = await serveNbd(image, { exportName: 'x' });
  const [address] = service.addresses;
  assert.ok(address?.kind === 'unix');
  const client = await RawClient.connect(address.path);
  await client.go('x');
  // Its answer shows that the server has taken the client in.
  client.request(Command.READ, 0, 512);
  assert.equal((await client.simpleReply())?.error, 0);
  const safe = assert.rejects(service.removeExport('x', 'safe'), code('EBUSY'));
  await Promise.all([safe, image.close()]);
  await client.closed;
  assert.equal(service.uris.length, 0);
});

test('a signal stops a service, and one that has fired starts none', async (t) => {
  await using thread = await IOThread.start();
  const image = await disk(t, thread);
  const reason = new Error('enough');
  await assert.rejects(serveNbd(image, { signal: AbortSignal.abort(reason) }), (error) => error === reason);
  const early = new AbortController();
  const starting = serveNbd(image, { signal: early.signal });
  early.abort(reason);
  await assert.rejects(starting, (error) => error === reason);
  assert.equal((await thread.stats()).services, 0);
  const late = new AbortController();
  const service = await serveNbd(image, { signal: late.signal });
  const [address] = service.addresses;
  assert.ok(address?.kind === 'unix');
  late.abort(reason);
  await service.stop();
  assert.equal((await thread.stats()).services, 0);
  assert.equal(existsSync(dirname(address.path)), false);
});

test('numbers out of their range are refused with what they may be', async (t) => {
  const image = await disk(t);
  const refused = (options: object, message: RegExp): Promise<void> =>
    assert.rejects(serveNbd(image, options), (error: BlockError) => {
      assert.equal(error.code, 'EINVAL');
      assert.match(error.message, message);
      return true;
    });
  await refused({ byteBudget: 2 ** 31 }, /^byteBudget: 2147483648 is not a number from 33554432 to 1073741824$/);
  await refused({ byteBudget: 1000 }, /^byteBudget: 1000 is not/);
  await refused({ byteBudget: 2 ** 26 + 0.5 }, /^byteBudget: /);
  await refused({ maxConnections: -1 }, /^maxConnections: -1 is not a number from 0 to 10000$/);
  await refused({ maxConnections: 1e9 }, /^maxConnections: /);
  await refused({ handshakeSeconds: Number.NaN }, /^handshakeSeconds: NaN/);
  for (const memory of [2 ** 31, 2 ** 19, 3_000_000, 0.5]) {
    await assert.rejects(IOThread.start({ memory }), code('EINVAL'));
  }
  await using service = await serveNbd(image, { byteBudget: 2 ** 25, handshakeSeconds: 0.3, maxConnections: 10_000 });
  assert.equal(service.uris.length, 1);
});
