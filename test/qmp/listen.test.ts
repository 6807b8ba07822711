/** Where NBD servers and vhost-user exports listen: what qemu-storage-daemon takes and refuses. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, createConnection, createServer } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { whyNoRing } from '../../src/aio/select.ts';
import { Daemon } from '../../src/daemon/index.ts';
import { open } from '../../src/index.ts';
import { needs, peer, scratch } from '../harness.ts';
import { converse, type Fields, step } from './conversation.ts';

const NODE = { driver: 'null-co', 'node-name': 'n', size: 1048576 } as const;
const WITH_QSD = needs('qemu-storage-daemon');
const WITH_IMG = needs('qemu-img');
const RING = process.env.BLOCKPLANE_AIO !== 'pool' && (await whyNoRing()) === undefined;

test('addresses of NBD servers are taken, or refused, as there', WITH_QSD, async (t) => {
  const start = (type: string, data: Fields, how = {}) => step('nbd-server-start', { addr: { type, data } }, how);
  const unix = (data: Fields, how = {}) => [start('unix', data, how), step('nbd-server-stop')];
  const inet = (data: Fields, how = {}) => [
    start('inet', { host: '127.0.0.1', port: '0', ...data }, how),
    step('nbd-server-stop'),
  ];
  const long = 'x'.repeat(109);
  await converse(t, [
    ...unix({ path: '$DIR/abstract', abstract: true }),
    ...unix({ path: '$DIR/abstract', abstract: true, tight: false }),
    ...unix({ path: '$DIR/file', abstract: false, tight: true }),
    ...unix({ path: '$DIR/file', tight: false }),
    ...unix({ path: '/nowhere/x' }),
    ...unix({ path: long }),
    ...unix({ path: long, abstract: true }),
    ...unix({ path: 'x', abstract: 'on' }),
    ...inet({ 'keep-alive': true }),
    ...inet({ 'keep-alive': false, numeric: true }),
    ...inet({ host: 'localhost', numeric: true }),
    ...inet({ host: 'no-such-host.invalid' }),
    ...inet({ ipv4: true }),
    ...inet({ ipv4: false, ipv6: false }),
    ...inet({ ipv6: true }),
    ...inet({ host: '', ipv6: false }),
    ...inet({ host: '::1', ipv4: true }),
    // Of no machine (RFC 5737).
    ...inet({ host: '192.0.2.1' }),
    ...inet({ to: 65535 }),
    ...inet({ to: 65536 }),
    ...inet({ port: '20000', to: 19999 }, { words: true }),
  ]);
});

for (const tight of [true, false]) {
  test(`an NBD server has a name in the abstract namespace, ${tight ? 'as long as it is' : 'filled up'}`, {
    ...WITH_IMG,
    skip: WITH_IMG.skip || (tight && !RING ? 'Node.js fills up every such name' : false),
    timeout: 30_000,
  }, async (t) => {
    const path = join(scratch(t), 'ä');
    await using daemon = await Daemon.start();
    await daemon.run('nbd-server-start', { addr: { type: 'unix', data: { path, abstract: true, tight } } });
    await daemon.graph.add(NODE);
    await daemon.run('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'n' });
    const server = `server.type=unix,server.path=${path},server.abstract=on,server.tight=${tight ? 'on' : 'off'}`;
    const told = await peer('qemu-img', 'info', '--image-opts', `driver=nbd,export=n,${server}`);
    assert.match(told, /virtual size: 1 MiB/);
  });
}

/** A port that is taken until the test ends. */
async function takenPort(t: TestContext): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  t.after(() => server.close());
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

test('of a range of ports the first that is free is taken', { timeout: 30_000 }, async (t) => {
  const port = await takenPort(t);
  await using daemon = await Daemon.start();
  const addr = (to: number) => ({ type: 'inet', data: { host: '127.0.0.1', port: String(port), to } }) as const;
  const taken = /^Failed to find an available port: Address already in use$/;
  await assert.rejects(daemon.run('nbd-server-start', { addr: addr(port) }), { message: taken });
  await daemon.run('nbd-server-start', { addr: addr(Math.min(65535, port + 100)) });
  await daemon.graph.add(NODE);
  await daemon.run('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'n' });
  const found = await firstServer(port + 1, port + 100);
  assert.ok(found > port);
});

/** The first port on which the export is shown. */
async function firstServer(from: number, to: number): Promise<number> {
  for (let port = from; port <= to; port++) {
    if (!(await isTaken(port))) continue;
    const uri = `nbd://127.0.0.1:${port}/n`;
    const disk = await open(uri, { format: 'raw', readOnly: true }).catch(() => undefined);
    if (!disk) continue;
    await disk.close();
    return port;
  }
  return -1;
}

async function isTaken(port: number): Promise<boolean> {
  const socket = createConnection({ host: '127.0.0.1', port });
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

test('what a vhost-user-blk export is given is refused as there', {
  ...WITH_QSD,
  skip: WITH_QSD.skip || (RING ? false : 'io_uring is not used here'),
}, async (t) => {
  const addr = { type: 'unix', path: '$DIR/v' };
  const add = (more: Fields, how = {}) =>
    step('block-export-add', { type: 'vhost-user-blk', id: 'v', 'node-name': 'n', addr, ...more }, how);
  const both = (more: Fields) => [
    add(more),
    step('query-block-exports'),
    step('block-export-del', { id: 'v' }, { event: 'BLOCK_EXPORT_DELETED' }),
  ];
  const words = { words: true };
  await converse(t, [
    step('object-add', { 'qom-type': 'iothread', id: 't0' }),
    step('blockdev-add', NODE),
    step('blockdev-add', { ...NODE, 'node-name': 'ro', 'read-only': true }),
    ...[1, 511, 1000, 4194304, -1, -512].map((size) => add({ 'logical-block-size': size })),
    add({ 'num-queues': 0, 'logical-block-size': 1 }),
    ...[0, -1, 65536, '1'].map((queues) => add({ 'num-queues': queues })),
    add({ writable: 'on' }),
    add({ 'node-name': 'ro', writable: true }, words),
    add({ 'node-name': 'nowhere' }),
    add({ iothread: 'nowhere' }),
    add({ iothread: 5 }),
    add({ 'fixed-iothread': 'x' }),
    add({ addr: { type: 'fd', str: '77' } }, words),
    add({ addr: { type: 'fd', str: 'x' } }, words),
    add({ addr: { type: 'vsock', cid: '1', port: '1' } }),
    add({ addr: { type: 'unix', path: '/nowhere/x' } }),
    add({ addr: { type: 'unix', path: 'x'.repeat(109) } }),
    add({ addr: { type: 'unix' } }),
    add({ addr: { ...addr, nonsense: 1 } }),
    add({ name: 'x' }),
    step('query-block-exports'),
    ...both({ 'logical-block-size': 0 }),
    ...both({ 'logical-block-size': 4096, 'num-queues': 256, writethrough: true }),
    ...both({ addr: { ...addr, abstract: true } }),
    ...both({ addr: { ...addr, abstract: true, tight: false } }),
    ...both({ iothread: 't0', 'fixed-iothread': true }),
    ...both({ 'fixed-iothread': true, writable: true }),
    step('blockdev-del', { 'node-name': 'n' }),
  ]);
});
