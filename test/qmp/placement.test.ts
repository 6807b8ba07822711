/** Nodes that go to other IOThreads while they are used, as qemu-storage-daemon has it and beyond. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { renameSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Daemon } from '../../src/daemon/index.ts';
import { open } from '../../src/index.ts';
import { MAIN, needs, peer, scratch } from '../harness.ts';
import { converse, type Fields, Peer, step } from './conversation.ts';

const MIB = 1 << 20;
const WITH = needs('qemu-storage-daemon', 'qemu-img', 'qemu-io');

async function images(directory: string): Promise<void> {
  const make = (...args: string[]) => peer('qemu-img', 'create', '-q', '-f', 'qcow2', ...args);
  await make(join(directory, 'a.qcow2'), '8M');
  await make('-b', join(directory, 'a.qcow2'), '-F', 'qcow2', join(directory, 'o.qcow2'));
}

const move = (node: string, iothread: string | null, force?: boolean, more = {}) =>
  step('x-blockdev-set-iothread', { 'node-name': node, iothread, ...(force === undefined ? {} : { force }) }, more);
const add = (driver: string, name: string, more: Fields) =>
  step('blockdev-add', { driver, 'node-name': name, ...more });
const show = (id: string, node: string, more: Fields = {}, how = {}) =>
  step('block-export-add', { type: 'nbd', id, name: id, 'node-name': node, ...more }, how);
const hide = (id: string) => step('block-export-del', { id });
const nodes = step('query-named-block-nodes', { flat: true });

test('x-blockdev-set-iothread and the iothread of an export, as in qemu-storage-daemon', WITH, async (t) => {
  await converse(
    t,
    [
      step('object-add', { 'qom-type': 'iothread', id: 't0' }),
      step('object-add', { 'qom-type': 'iothread', id: 't1' }),
      step('object-add', { 'qom-type': 'throttle-group', id: 'g' }),
      step('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd' } } }),
      add('file', 'f', { filename: '$DIR/a.qcow2' }),
      add('qcow2', 'q', { file: 'f' }),
      add('throttle', 'th', { file: 'q', 'throttle-group': 'g' }),
      add('copy-on-read', 'cor', { file: 'th' }),
      // All is put together before it moves: qemu-storage-daemon 7.2 dies of what is put on a node in an iothread.
      add('qcow2', 'o', { file: { driver: 'file', filename: '$DIR/o.qcow2' }, backing: 'q' }),
      move('q', 't0'),
      move('f', 't1'),
      move('o', null),
      move('q', 'nowhere'),
      move('nothing', 't0'),
      move('q', 't0', true),
      show('e', 'cor'),
      move('cor', 't1'),
      move('cor', 't1', true),
      move('q', 't0'),
      move('f', null, false),
      nodes,
      show('e1', 'o', { iothread: 't1' }),
      show('e2', 'o', { iothread: 'nowhere' }),
      show('e3', 'o', { 'fixed-iothread': true }),
      // Ours says who it is that stays.
      move('q', 't0', false, { words: true }),
      move('o', 't0', true, { words: true }),
      show('e4', 'cor', { iothread: 't0' }),
      show('e5', 'cor', { iothread: 't0', 'fixed-iothread': true }, { words: true }),
      hide('e3'),
      move('o', 't0'),
      move('o', 't0', true),
      step('query-block-exports'),
      hide('e'),
      hide('e1'),
      hide('e4'),
      move('o', null),
      step('blockdev-del', { 'node-name': 'o' }),
      step('blockdev-del', { 'node-name': 'cor' }),
      step('blockdev-del', { 'node-name': 'th' }),
      step('blockdev-del', { 'node-name': 'q' }),
      step('blockdev-del', { 'node-name': 'f' }),
      nodes,
    ],
    [],
    images,
  );
});

/** fio's verifying load, over several connections, until it is told to end. */
function fio(t: TestContext, uri: string) {
  const args = ['--name=v', '--ioengine=nbd', `--uri=${uri}`, '--rw=randrw', '--bs=4k', '--iodepth=8', '--size=12m'];
  const verify = ['--verify=crc32c', '--verify_fatal=1', '--verify_backlog=128', '--verify_dump=0'];
  const how = ['--verify_state_save=0', '--time_based', '--runtime=3600', '--output-format=json'];
  const jobs = ['--numjobs=2', '--offset_increment=16m', '--group_reporting'];
  const child = spawn('fio', [...args, ...verify, ...how, ...jobs], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  let text = '';
  let over = false;
  child.stdout.setEncoding('utf8').on('data', (data: string) => {
    text += data;
  });
  const closed = once(child, 'close').finally(() => {
    over = true;
  });
  return {
    get over(): boolean {
      return over;
    },
    async end(): Promise<{ readonly error: number; readonly read: { readonly total_ios: number } }> {
      child.kill('SIGINT');
      await closed;
      return JSON.parse(text.slice(text.indexOf('{'))).jobs[0];
    },
  };
}

async function command(qmp: Peer, name: string, args: Fields): Promise<void> {
  assert.deepEqual(await qmp.execute(name, args), { return: {} }, `${name} ${JSON.stringify(args)}`);
}

const LOAD = { ...needs('fio', 'qemu-img', 'qemu-io'), timeout: 60_000 };

test('an exported image moves 50 times between three threads under a verifying load', LOAD, async (t) => {
  const directory = scratch(t);
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', join(directory, 'a.qcow2'), '64M');
  const qmp = await Peer.start(t, directory, [process.execPath, MAIN, 'qemu-storage-daemon'], []);
  for (const id of ['t0', 't1']) await command(qmp, 'object-add', { 'qom-type': 'iothread', id });
  await command(qmp, 'nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd' } } });
  await command(qmp, 'blockdev-add', { driver: 'file', 'node-name': 'f', filename: '$DIR/a.qcow2' });
  await command(qmp, 'blockdev-add', { driver: 'qcow2', 'node-name': 'q', file: 'f' });
  await command(qmp, 'block-export-add', { type: 'nbd', id: 'e', 'node-name': 'q', writable: true });
  const uri = `nbd+unix:///q?socket=${join(directory, 'nbd')}`;
  const load = fio(t, uri);
  for (let i = 1; i <= 50 && !load.over; i++) {
    const iothread = ['t0', 't1', null][i % 3]!;
    await command(qmp, 'x-blockdev-set-iothread', { 'node-name': i % 2 === 0 ? 'q' : 'f', iothread, force: true });
    // One more client in each place.
    await peer('qemu-io', '-f', 'raw', '-c', `write -P ${i} 60M 64k`, '-c', `read -P ${i} 60M 64k`, uri);
  }
  assert.equal(load.over, false, 'fio ended early');
  const { error, read } = await load.end();
  assert.equal(error, 0);
  assert.ok(read.total_ios > 1000, `${read.total_ios} reads`);
  // The server may not know yet that its clients have ended.
  await command(qmp, 'block-export-del', { id: 'e', mode: 'hard' });
  assert.equal(await qmp.quit(), 0);
  await peer('qemu-img', 'check', '-q', join(directory, 'a.qcow2'));
});

/** A daemon of this process with two more threads, images and an NBD server. */
async function started(t: TestContext): Promise<{ readonly daemon: Daemon; readonly directory: string }> {
  const directory = scratch(t);
  await images(directory);
  const daemon = await Daemon.start();
  t.after(() => daemon.close());
  for (const id of ['t0', 't1']) await daemon.run('object-add', { 'qom-type': 'iothread', id });
  await daemon.run('nbd-server-start', { addr: { type: 'unix', data: { path: join(directory, 'nbd') } } });
  return { daemon, directory };
}

const place = (daemon: Daemon, node: string, iothread: string | null) =>
  daemon.run('x-blockdev-set-iothread', { 'node-name': node, iothread, force: true });
const threadsOf = (daemon: Daemon, ...names: string[]) => names.map((name) => daemon.nodes.find(name)?.name);

/** Threads, one after the other, each with the others idle. */
const ROUND = ['t0', 't1', null] as const;

test('B8 names, bitmaps, thresholds, groups and permissions go along', WITH, async (t) => {
  const { daemon, directory } = await started(t);
  await daemon.run('object-add', { 'qom-type': 'throttle-group', id: 'g', limits: { 'iops-total': 1e6 } } as never);
  const file = (name: string) => ({ driver: 'file', filename: join(directory, name) });
  for (const node of [
    { ...file('a.qcow2'), 'node-name': 'f' },
    { driver: 'qcow2', 'node-name': 'q', file: 'f', 'read-only': true },
    { driver: 'qcow2', 'node-name': 'o', file: file('o.qcow2'), backing: 'q', 'detect-zeroes': 'on' },
    { driver: 'throttle', 'node-name': 'th', file: 'o', 'throttle-group': 'g' },
    { driver: 'raw', 'node-name': 'r', file: 'q', 'read-only': true },
  ]) {
    await daemon.run('blockdev-add', node as never);
  }
  await daemon.run('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'th', writable: true });
  await daemon.run('block-export-add', { type: 'nbd', id: 'r', 'node-name': 'r' });
  const bitmap = { node: 'o', name: 'b', granularity: 4096 };
  await daemon.run('block-dirty-bitmap-add', bitmap);
  await daemon.run('block-dirty-bitmap-add', { ...bitmap, name: 'kept', persistent: true });
  const disk = await open(`nbd+unix:///th?socket=${directory}/nbd`, { format: 'raw' });
  t.after(() => disk.close());
  const buffer = new Uint8Array(new SharedArrayBuffer(4096)).fill(5);
  await disk.write(buffer, 0, 4096, 8192);
  const shown = async () => ({
    nodes: (await daemon.nodes.list()).sort((a, b) => a.name.localeCompare(b.name)),
    graph: (await daemon.run('x-debug-query-block-graph', {})).edges.length,
  });
  const before = await shown();
  assert.deepEqual([...new Set(before.nodes.flatMap(({ bitmaps }) => bitmaps.map(({ dirty }) => dirty)))], [4096]);
  const events = daemon.watch();
  for (const to of ROUND) {
    await daemon.run('block-set-write-threshold', { 'node-name': 'o', 'write-threshold': MIB });
    await place(daemon, 'f', to);
    assert.deepEqual(new Set(threadsOf(daemon, 'f', 'q', 'o', 'th', 'r')), new Set([to ?? 'main-loop']));
    await disk.write(buffer, 0, 4096, 8192);
    await disk.read(buffer, 0, 4096, 8192);
    assert.equal(buffer[0], 5);
    await assert.rejects(daemon.run('object-del', { id: 'g' }), /in use/);
    await assert.rejects(daemon.run('blockdev-del', { 'node-name': 'q' }), /in use/);
    // The threshold is there; the one who crosses it is told of.
    await disk.write(buffer, 0, 4096, 2 * MIB);
    const { value: event } = await events.next();
    assert.deepEqual(
      [event.event, event.data['node-name'], event.data['amount-exceeded']],
      ['BLOCK_WRITE_THRESHOLD', 'o', MIB + 4096],
    );
  }
  await disk.close();
  const after = await shown();
  assert.equal(after.graph, before.graph);
  for (const [i, node] of after.nodes.entries()) {
    // Another place of the disk has been written to, and a bitmap has come to be in the image.
    const { allocated: _, image: _i, highestWrite, bitmaps, length, ...more } = node;
    const { allocated: __, image: __i, highestWrite: highest, bitmaps: had, length: long, ...same } = before.nodes[i]!;
    assert.deepEqual(more, same);
    assert.ok(highestWrite >= highest);
    if (node.driver !== 'file') assert.equal(length, long);
    const byName = new Map(bitmaps.map(({ dirty, ...rest }) => [rest.name, { ...rest, dirty: dirty - 4096 }]));
    assert.deepEqual(byName, new Map(had.map((bitmap) => [bitmap.name, bitmap])));
  }
  // The server may not know yet that its client has ended.
  for (const id of ['e', 'r']) await daemon.run('block-export-del', { id, mode: 'hard' });
  for (const name of ['r', 'th', 'o', 'q', 'f']) await daemon.run('blockdev-del', { 'node-name': name });
  for (const id of ['g', 't0', 't1']) await daemon.run('object-del', { id });
  assert.deepEqual(await daemon.nodes.list(), []);
});

test('B8 whoever stands against a move is named, and all is where and as it was', WITH, async (t) => {
  const { daemon, directory } = await started(t);
  const q = { driver: 'qcow2', 'node-name': 'q', file: { driver: 'file', filename: join(directory, 'a.qcow2') } };
  await daemon.run('blockdev-add', q as never);
  await daemon.run('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'q', writable: true });
  const uri = `nbd+unix:///q?socket=${directory}/nbd`;
  const stays = async (why: RegExp) => {
    await assert.rejects(place(daemon, 'q', 't0'), why);
    assert.deepEqual(threadsOf(daemon, 'q'), ['main-loop']);
    await peer('qemu-io', '-f', 'raw', '-c', 'write -P 3 0 64k', '-c', 'read -P 3 0 64k', uri);
    // Nothing is left of it there.
    await daemon.run('object-del', { id: 't0' });
    await daemon.run('object-add', { 'qom-type': 'iothread', id: 't0' });
  };
  await daemon.run('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 8 * MIB });
  const job = { device: 'q', 'job-id': 'j', target: 'n', sync: 'full', speed: 1 } as const;
  await daemon.run('blockdev-mirror', job);
  await stays(/^QmpError: Could not move 'q' to IOThread 't0': job 'j' uses node '.*'$/);
  const events = daemon.watch();
  await daemon.run('block-job-cancel', { device: 'j', force: true });
  for await (const { event, data } of events) {
    if (event === 'JOB_STATUS_CHANGE' && (data as { readonly status: string }).status === 'null') break;
  }
  await daemon.run('block-export-add', { type: 'nbd', id: 'x', name: 'x', 'node-name': 'q', 'fixed-iothread': true });
  await stays(/^QmpError: Could not move 'q' to IOThread 't0': an export of 'q' wants to stay in its thread$/);
  await daemon.run('block-export-del', { id: 'x' });
  await daemon.run('block-dirty-bitmap-add', { node: 'q', name: 'b' });
  const exported = { type: 'nbd', id: 'x', name: 'x', 'node-name': 'q', writable: true, bitmaps: ['b'] };
  await daemon.run('block-export-add', exported as never);
  await stays(/^QmpError: Could not move 'q' to IOThread 't0': NBD export 'x' shows dirty bitmaps$/);
  await daemon.run('block-export-del', { id: 'x' });
  await daemon.run('blockdev-add', { driver: 'blkdebug', 'node-name': 'd', image: 'q' });
  await stays(/^QmpError: Could not move 'q' to IOThread 't0': driver 'blkdebug' of node 'd' does not support it$/);
  await daemon.run('blockdev-del', { 'node-name': 'd' });
  await place(daemon, 'q', 't0');
  assert.deepEqual(threadsOf(daemon, 'q'), ['t0']);
});

test('B8 nodes that cannot be opened in their new thread go on where they were', WITH, async (t) => {
  const { daemon, directory } = await started(t);
  const [upstream, path] = [join(directory, 'nbd'), join(directory, 'nbd2')];
  await daemon.run('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  const a = { driver: 'qcow2', 'node-name': 'a', file: { driver: 'file', filename: join(directory, 'a.qcow2') } };
  await daemon.run('blockdev-add', a as never);
  await daemon.run('block-export-add', { type: 'nbd', id: 'a', 'node-name': 'a', writable: true });
  const server = { type: 'unix', path: upstream };
  const node = { driver: 'nbd', 'node-name': 'far', export: 'a', server };
  await daemon.run('blockdev-add', node as never);
  await daemon.run('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'far' });
  await daemon.run('block-export-add', { type: 'nbd', id: 'r', 'node-name': 'r', writable: true });
  const io = (...steps: string[]) =>
    peer('qemu-io', '-f', 'raw', ...steps.flatMap((one) => ['-c', one]), `nbd+unix:///r?socket=${path}`);
  await io('write -P 4 0 64k');
  renameSync(upstream, `${upstream}.away`);
  for (const name of ['r', 'far']) {
    await assert.rejects(place(daemon, name, 't0'), /No such file or directory/);
    assert.deepEqual(threadsOf(daemon, 'r', 'far'), ['main-loop', 'main-loop']);
    await io('read -P 4 0 64k', 'write -P 5 64k 64k');
  }
  renameSync(`${upstream}.away`, upstream);
  await place(daemon, 'far', 't0');
  assert.deepEqual(threadsOf(daemon, 'a', 'r', 'far'), ['main-loop', 't0', 't0']);
  await io('read -P 4 0 64k', 'read -P 5 64k 64k');
});
