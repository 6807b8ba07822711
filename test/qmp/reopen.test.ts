import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon } from '../../src/daemon/index.ts';
import { needs, peer, scratch } from '../harness.ts';
import { converse, type Fields, step } from './conversation.ts';

const WITH = needs('qemu-storage-daemon', 'qemu-img');

test('nodes are reopened as in qemu-storage-daemon', WITH, async (t) => {
  const reopen = (options: Fields, how = {}) => step('blockdev-reopen', { options: [options] }, how);
  const image = (more: Fields = {}): Fields => ({
    driver: 'qcow2',
    'node-name': 'q',
    file: 'f',
    backing: null,
    ...more,
  });
  const show = step('query-named-block-nodes', { flat: true });
  await converse(
    t,
    [
      step('blockdev-add', { driver: 'file', 'node-name': 'f', filename: '$DIR/x.qcow2' }),
      step('blockdev-add', { driver: 'file', 'node-name': 'bf', filename: '$DIR/base.qcow2' }),
      step('blockdev-add', { driver: 'qcow2', 'node-name': 'b', file: 'bf', 'read-only': true }),
      step('blockdev-add', image()),
      reopen({ driver: 'qcow2' }),
      reopen({ driver: 'qcow2', file: 'f' }),
      reopen(image({ 'node-name': 'nowhere' })),
      step('blockdev-reopen', { options: 5 }),
      step('blockdev-reopen', { options: [5] }),
      // None at all is its end.
      reopen(image()),
      reopen(image({ driver: 'raw' }), { words: true }),
      reopen(image({ 'detect-zeroes': 'on' })),
      show,
      reopen(image({ cache: { 'no-flush': true } })),
      show,
      reopen(image()),
      reopen(image({ backing: 'b' })),
      step('x-debug-query-block-graph'),
      reopen(image({ backing: 'nowhere' }), { words: true }),
      show,
      reopen(image({ backing: null })),
      step('x-debug-query-block-graph'),
      step('blockdev-del', { 'node-name': 'q' }),
    ],
    [],
    async (directory) => {
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/base.qcow2`, '4M');
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/x.qcow2`, '4M');
    },
  );
});

test("options of a driver's own change as in qemu-storage-daemon", WITH, async (t) => {
  const reopen = (options: Fields, how = {}) => step('blockdev-reopen', { options: [options] }, how);
  const image = (more: Fields): Fields => ({ driver: 'qcow2', 'node-name': 'q', file: 'f', ...more });
  const limited = (group: string): Fields => ({
    ...{ driver: 'throttle', 'node-name': 't', file: 'q', 'throttle-group': group },
  });
  const part = (more: Fields): Fields => ({ driver: 'raw', 'node-name': 'r', file: 'n', ...more });
  const show = step('query-named-block-nodes', { flat: true });
  const run = (id: string, command = 'object-del') => step(command, { id });
  await converse(
    t,
    [
      step('blockdev-add', { driver: 'file', 'node-name': 'f', filename: '$DIR/x.qcow2' }),
      step('blockdev-add', image({})),
      reopen(image({ 'lazy-refcounts': true })),
      reopen(image({ 'l2-cache-size': 131072, 'cache-clean-interval': 5 })),
      reopen(image({ 'overlap-check': 'all', 'pass-discard-request': true })),
      reopen(image({ 'l2-cache-entry-size': 1 }), { words: true }),
      reopen(image({})),
      step('object-add', { 'qom-type': 'throttle-group', id: 'g1' }),
      step('object-add', { 'qom-type': 'throttle-group', id: 'g2' }),
      step('blockdev-add', limited('g1')),
      reopen(limited('g2')),
      run('g1'),
      run('g2'),
      reopen(limited('nowhere'), { words: true }),
      run('g2'),
      step('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 1048576 }),
      step('blockdev-add', part({})),
      reopen(part({ offset: 4096 })),
      show,
      reopen(part({ size: 8192 })),
      show,
      reopen(part({ size: 2097152 }), { words: true }),
      show,
      reopen({ driver: 'null-co', 'node-name': 'n', size: 4096 }, { words: true }),
      reopen({ driver: 'file', 'node-name': 'f', filename: '$DIR/x.qcow2', locking: 'on' }, { words: true }),
      step('blockdev-del', { 'node-name': 't' }),
      run('g2'),
    ],
    [],
    async (directory) => {
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/x.qcow2`, '4M');
    },
  );
});

test('a disk stays as it was through a change of its options under load', WITH, async (t) => {
  const directory = scratch(t);
  const filename = join(directory, 'x.qcow2');
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', filename, '16M');
  await using daemon = await Daemon.start();
  const tree = { driver: 'qcow2', 'node-name': 'q', file: { driver: 'file', 'node-name': 'f', filename } };
  await daemon.run('blockdev-add', tree as never);
  const disk = await daemon.nodes.disk('q', { name: 'load', writable: true, writethrough: false });
  const buffer = (value: number) => new Uint8Array(new SharedArrayBuffer(65536)).fill(value);
  let ended = false;
  const load = (async () => {
    for (let i = 0; !ended; i++) await disk.write(buffer((i % 250) + 1), 0, 65536, (i % 256) * 65536);
  })();
  for (const size of [65536, 131072, 262144, 1048576]) {
    const change = {
      driver: 'qcow2',
      'node-name': 'q',
      file: 'f',
      'l2-cache-size': size,
      'lazy-refcounts': size > 99999,
    };
    await daemon.run('blockdev-reopen', { options: [change as never] });
    const bad = { ...change, 'l2-cache-entry-size': 3 };
    await assert.rejects(daemon.run('blockdev-reopen', { options: [bad as never] }));
  }
  ended = true;
  await load;
  const last = buffer(0);
  await disk.write(buffer(77), 0, 65536, 0);
  await disk.read(last, 0, 65536, 0);
  assert.ok(last.every((byte) => byte === 77));
  await disk.close();
  await daemon.close();
  await peer('qemu-img', 'check', '-q', filename);
});
