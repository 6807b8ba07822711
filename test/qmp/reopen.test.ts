import { test } from 'node:test';
import { needs, peer } from '../harness.ts';
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
