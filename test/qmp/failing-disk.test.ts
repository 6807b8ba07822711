/** Disks that fail while commands end: the daemon, and whatever else it does, goes on. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { MAIN, needs, peer, scratch } from '../harness.ts';
import { type Fields, Peer } from './conversation.ts';

const WITH = { ...needs('qemu-img', 'qemu-io'), timeout: 60_000 };

async function daemon(t: TestContext): Promise<Peer> {
  const directory = scratch(t);
  for (const name of ['a', 'base', 'target']) {
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/${name}.qcow2`, '4M');
  }
  await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 7 0 1M', `${directory}/base.qcow2`);
  const command = [process.execPath, MAIN, 'qemu-storage-daemon'];
  return Peer.start(t, directory, command, ['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd']);
}

function image(name: string, more: Fields = {}): Fields {
  return { driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename: `$DIR/${name}.qcow2` }, ...more };
}

/** Its flushes fail. */
function unstable(name: string, more: Fields = {}): Fields {
  const rule = { event: 'flush_to_disk', errno: 5, once: false };
  const file = { driver: 'file', filename: `$DIR/${name}.qcow2` };
  return image(name, { file: { driver: 'blkdebug', image: file, 'inject-error': [rule] }, ...more });
}

async function must(ours: Peer, command: string, args: Fields = {}): Promise<unknown> {
  const reply = await ours.execute(command, args);
  assert.equal(reply.error, undefined, JSON.stringify(reply.error));
  return reply.return;
}

async function refused(ours: Peer, words: RegExp, command: string, args: Fields): Promise<void> {
  const { error } = await ours.execute(command, args);
  assert.match(String((error as Fields | undefined)?.desc), words);
}

test('a stream whose last flush fails is over, and lets go of its disk', WITH, async (t) => {
  const ours = await daemon(t);
  await must(ours, 'blockdev-add', unstable('a', { backing: image('base') }));
  const from = ours.events.length;
  await must(ours, 'block-stream', { 'job-id': 's', device: 'a' });
  await ours.told(from, ({ data }) => (data as Fields).status === 'null');
  const ended = ours.events.find(({ event }) => event === 'BLOCK_JOB_COMPLETED')!;
  assert.match(String((ended.data as Fields).error), /Input\/output error/);
  await refused(ours, /Input\/output error/, 'blockdev-del', { 'node-name': 'a' });
  assert.deepEqual(await must(ours, 'query-named-block-nodes'), []);
  assert.equal(await ours.quit(), 0);
});

test('a node whose last flush fails is gone, and its name is free', WITH, async (t) => {
  const ours = await daemon(t);
  const uri = `nbd+unix:///a?socket=${ours.directory}/nbd`;
  for (const round of [1, 2]) {
    await must(ours, 'blockdev-add', unstable('a'));
    await must(ours, 'block-export-add', { type: 'nbd', id: 'e', 'node-name': 'a', writable: true });
    await assert.rejects(peer('qemu-io', '-f', 'raw', '-c', `write -P ${round} 0 4k`, uri));
    await refused(ours, /Input\/output error/, 'block-export-del', { id: 'e', mode: 'hard' });
    await refused(ours, /Input\/output error/, 'blockdev-del', { 'node-name': 'a' });
    await refused(ours, /Failed to find node/, 'blockdev-del', { 'node-name': 'a' });
  }
  await must(ours, 'blockdev-add', image('a'));
  await must(ours, 'blockdev-del', { 'node-name': 'a' });
});

test('exports whose last flush fails go with all others when their server stops', WITH, async (t) => {
  const ours = await daemon(t);
  await must(ours, 'blockdev-add', unstable('a'));
  await must(ours, 'blockdev-add', image('target'));
  for (const name of ['a', 'target']) {
    await must(ours, 'block-export-add', { type: 'nbd', id: name, 'node-name': name, writable: true });
  }
  const uri = `nbd+unix:///a?socket=${ours.directory}/nbd`;
  await assert.rejects(peer('qemu-io', '-f', 'raw', '-c', 'write 0 4k', uri));
  await refused(ours, /Input\/output error/, 'nbd-server-stop', {});
  assert.deepEqual(await must(ours, 'query-block-exports'), []);
  await refused(ours, /not running/, 'nbd-server-stop', {});
});

test("a bitmap that a transaction removes is nobody else's in it, and nothing of it is left", WITH, async (t) => {
  const ours = await daemon(t);
  for (const name of ['a', 'target']) await must(ours, 'blockdev-add', image(name));
  for (const name of ['b', 'c'])
    await must(ours, 'block-dirty-bitmap-add', { node: 'a', name, persistent: name === 'c' });
  const graph = await must(ours, 'query-named-block-nodes');
  const remove = (name: string): Fields => ({ type: 'block-dirty-bitmap-remove', data: { node: 'a', name } });
  const backup = { device: 'a', target: 'target', sync: 'incremental', bitmap: 'b', 'job-id': 'j' };
  const attempts = [
    [remove('b'), { type: 'blockdev-backup', data: backup }],
    [{ type: 'blockdev-backup', data: backup }, remove('b')],
    [remove('c'), remove('c')],
    [remove('c'), { type: 'block-dirty-bitmap-clear', data: { node: 'a', name: 'c' } }],
  ];
  for (const actions of attempts) {
    await refused(ours, /in use/, 'transaction', { actions });
    assert.deepEqual(await must(ours, 'query-jobs'), []);
    assert.deepEqual(await must(ours, 'query-named-block-nodes'), graph);
  }
  await must(ours, 'transaction', { actions: [remove('b'), remove('c')] });
  for (const name of ['a', 'target']) await must(ours, 'blockdev-del', { 'node-name': name });
});
