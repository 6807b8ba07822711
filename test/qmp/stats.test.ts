/** What nodes tell of what was done to them, beside qemu-storage-daemon. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, peer } from '../harness.ts';
import { alike, type Fields, type Json, type Peer, pair } from './conversation.ts';

const WITH = needs('qemu-storage-daemon', 'qemu-img', 'qemu-io');

/** Without how far a format has its file written. */
function comparable(value: Json, directory: string): Json {
  const strip = (item: Json, ofFile = false): Json => {
    if (Array.isArray(item)) return item.map((one) => strip(one));
    if (typeof item !== 'object' || item === null) return item;
    const entries = Object.entries(item as Fields);
    const file = ofFile || (item as Fields)['node-name'] === 'f';
    return Object.fromEntries(
      entries.map(([name, own]) => [name, file && name === 'wr_highest_offset' ? '(own)' : strip(own, file)]),
    );
  };
  return alike(strip(value), directory);
}

async function tell(daemon: Peer): Promise<Json> {
  const reply = await daemon.execute('query-blockstats', { 'query-nodes': true });
  return comparable(reply.return!, daemon.directory);
}

test('every node tells how far it was written, and nothing else makes that further', WITH, async (t) => {
  const { theirs, ours } = await pair(t, [], (directory) =>
    peer('qemu-img', 'create', '-q', '-f', 'qcow2', join(directory, 'a.qcow2'), '8M').then(() => undefined),
  );
  const both = async (command: string, args: Fields): Promise<void> => {
    for (const daemon of [theirs, ours]) assert.deepEqual(await daemon.execute(command, args), { return: {} });
  };
  await both('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd' } } });
  await both('blockdev-add', { driver: 'file', 'node-name': 'f', filename: '$DIR/a.qcow2' });
  await both('blockdev-add', { driver: 'qcow2', 'node-name': 'q', file: 'f', discard: 'unmap' });
  await both('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'q', writable: true });
  const seen: Json[] = [];
  for (const request of ['read 0 8M', 'write 1M 64k', 'write -z 2M 4k', 'discard 4M 1M', 'write 0 512', 'flush']) {
    for (const { directory } of [theirs, ours]) {
      await peer('qemu-io', '-f', 'raw', '-c', request, `nbd+unix:///q?socket=${join(directory, 'nbd')}`);
    }
    const told = await tell(ours);
    assert.deepEqual(told, await tell(theirs), request);
    const top = (told as readonly Fields[]).find((node) => node['node-name'] === 'q')!;
    seen.push((top.stats as Fields).wr_highest_offset!);
  }
  const [mib, kib] = [1 << 20, 1024];
  const [first, second] = [mib + 64 * kib, 2 * mib + 4 * kib];
  assert.deepEqual(seen, [0, first, second, second, second, second]);
  // The server may not know yet that its client has ended.
  await both('block-export-del', { id: 'e', mode: 'hard' });
  for (const daemon of [theirs, ours]) await daemon.told(0, ({ event }) => event === 'BLOCK_EXPORT_DELETED');
  await both('object-add', { 'qom-type': 'iothread', id: 'io' });
  await both('x-blockdev-set-iothread', { 'node-name': 'q', iothread: 'io' });
  assert.deepEqual(await tell(ours), await tell(theirs), 'after a move');
  assert.equal(await ours.quit(), 0);
});

test('a file tells of the discards that it was asked for, also after it has moved', WITH, async (t) => {
  const { theirs, ours } = await pair(t, [], (directory) =>
    peer('qemu-img', 'create', '-q', '-f', 'raw', join(directory, 'a.raw'), '8M').then(() => undefined),
  );
  const both = async (command: string, args: Fields): Promise<void> => {
    for (const daemon of [theirs, ours]) assert.deepEqual(await daemon.execute(command, args), { return: {} });
  };
  const file = { driver: 'file', 'node-name': 'f', filename: '$DIR/a.raw', discard: 'unmap' };
  await both('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd' } } });
  await both('blockdev-add', { driver: 'raw', 'node-name': 'r', discard: 'unmap', file });
  await both('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'r', writable: true });
  for (const { directory } of [theirs, ours]) {
    const words = ['discard 0 1M', 'discard 4M 64k', 'write -z -u 2M 64k', 'write 0 4k'].flatMap((one) => ['-c', one]);
    await peer('qemu-io', '-f', 'raw', ...words, `nbd+unix:///r?socket=${join(directory, 'nbd')}`);
  }
  const told = await tell(ours);
  assert.deepEqual(told, await tell(theirs));
  const found = (told as readonly Fields[]).find((node) => node['node-name'] === 'f')!;
  const counts = { 'discard-bytes-ok': 1114112, 'discard-nb-failed': 0, 'discard-nb-ok': 2, driver: 'file' };
  assert.deepEqual(found['driver-specific'], counts);
  await both('blockdev-reopen', { options: [{ ...file, discard: 'ignore' }] });
  // The server may not know yet that its client has ended.
  await both('block-export-del', { id: 'e', mode: 'hard' });
  for (const daemon of [theirs, ours]) await daemon.told(0, ({ event }) => event === 'BLOCK_EXPORT_DELETED');
  await both('object-add', { 'qom-type': 'iothread', id: 'io' });
  await both('x-blockdev-set-iothread', { 'node-name': 'r', iothread: 'io' });
  assert.deepEqual(await tell(ours), told);
  assert.equal(await ours.quit(), 0);
});
