/** Nodes in IOThreads of their own, and who serves their clients. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Daemon } from '../../src/daemon/index.ts';
import { open } from '../../src/index.ts';
import type { NbdStats } from '../../src/lib/messages.ts';
import { needs, peer, scratch } from '../harness.ts';

const MIB = 1 << 20;

interface Served {
  readonly daemon: Daemon;
  readonly uri: string;
  /** Of the server in the node's thread, and of the one that greets clients. */
  readonly stats: () => Promise<readonly [NbdStats, NbdStats]>;
}

/** A node in a thread of its own, and a server in main-loop. */
async function served(t: TestContext, limit: number): Promise<Served> {
  const directory = scratch(t);
  const filename = join(directory, 'a.qcow2');
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', filename, '64M');
  const daemon = await Daemon.start();
  t.after(() => daemon.close());
  await daemon.run('object-add', { 'qom-type': 'iothread', id: 'io1' });
  await daemon.run('blockdev-add', { driver: 'qcow2', 'node-name': 'a', file: { driver: 'file', filename } });
  const path = join(directory, 'nbd');
  await daemon.run('nbd-server-start', { addr: { type: 'unix', data: { path } }, 'max-connections': limit });
  await daemon.run('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'a', writable: true, iothread: 'io1' });
  const inner = daemon.nodes.find('a')!;
  assert.equal(inner.name, 'io1');
  const outer = daemon.nodes.home;
  return {
    daemon,
    uri: `nbd+unix:///a?socket=${path}`,
    stats: async () => Promise.all([inner, outer].map((thread) => thread.call('nbd-stats', { service: 1 }))) as never,
  };
}

// Descriptors of connections are the ring's.
const RING = { ...needs('qemu-img', 'qemu-io'), timeout: 60_000 };

test('clients are served in the thread of the node that they use', RING, async (t) => {
  const { daemon, uri, stats } = await served(t, 100);
  if (daemon.nodes.home.backend.name !== 'ring') return t.skip('connections stay in their threads without io_uring');
  const steps = ['write -P 7 0 1M', 'read -P 7 0 1M', 'flush'].flatMap((one) => ['-c', one]);
  await peer('qemu-io', '-f', 'raw', ...steps, uri);
  const map = JSON.parse(await peer('qemu-img', 'map', '--output=json', uri));
  assert.ok(map.some(({ data, start }: { data: boolean; start: number }) => data && start === 0));
  const [inner, outer] = await stats();
  assert.ok(inner.requests >= 3, `${inner.requests} requests in the node's thread`);
  assert.deepEqual([outer.requests, outer.connections, inner.connections], [0, 2, 0]);
  // The server may not know yet that its clients have ended.
  await daemon.run('block-export-del', { id: 'e', mode: 'hard' });
  // Nothing is left of the server in the thread.
  await daemon.run('blockdev-del', { 'node-name': 'a' });
  await daemon.run('object-del', { id: 'io1' });
});

test('a client that another thread serves counts, holds its export, and goes with it', RING, async (t) => {
  const { daemon, uri, stats } = await served(t, 2);
  if (daemon.nodes.home.backend.name !== 'ring') return t.skip('connections stay in their threads without io_uring');
  const tree = (connections: number) => ({
    ...{ driver: 'nbd', export: 'a', connections },
    server: { type: 'unix', path: uri.slice(uri.indexOf('=') + 1) },
  });
  const disks = [await open(tree(1) as never), await open(tree(1) as never)];
  t.after(() => Promise.all(disks.map((disk) => disk.close().catch(() => undefined))));
  const buffer = new Uint8Array(new SharedArrayBuffer(MIB)).fill(3);
  for (const disk of disks) await disk.write(buffer, 0, MIB, 0);
  const [inner, outer] = await stats();
  assert.deepEqual([inner.clients, outer.clients], [0, 2]);
  let third = false;
  const waiting = open(tree(1) as never).then(async (disk) => {
    third = true;
    await disk.close();
  });
  await disks[0]!.read(buffer, 0, MIB, 0);
  assert.equal(third, false, 'there was room for two');
  await assert.rejects(daemon.run('block-export-del', { id: 'e' }), /still in use/);
  await disks.pop()!.close();
  await waiting;
  await daemon.run('block-export-del', { id: 'e', mode: 'hard' });
  await assert.rejects(disks[0]!.read(buffer, 0, MIB, 0));
  await daemon.run('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'a', iothread: 'io1' });
  await peer('qemu-io', '-r', '-f', 'raw', '-c', 'read -P 3 0 1M', uri);
});

test('a daemon ends while clients are served in several threads', RING, async (t) => {
  const { daemon, uri } = await served(t, 0);
  await daemon.run('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: MIB });
  await daemon.run('block-export-add', { type: 'nbd', id: 'f', 'node-name': 'n', writable: true });
  const disks = [await open(uri, { format: 'raw' }), await open(uri.replace('/a?', '/n?'), { format: 'raw' })];
  t.after(() => Promise.all(disks.map((disk) => disk.close().catch(() => undefined))));
  const buffer = new Uint8Array(new SharedArrayBuffer(4096));
  for (const disk of disks) await disk.read(buffer, 0, 4096, 0);
  await daemon.close();
  for (const disk of disks) await assert.rejects(disk.read(buffer, 0, 4096, 0));
});
