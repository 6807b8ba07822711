import { peer } from '../../harness.ts';
import { conversation, type Fields, step } from '../conversation.ts';

export const reopenedNodes = conversation('nodes are reopened', () => {
  const reopen = (options: Fields, how = {}) => step('blockdev-reopen', { options: [options] }, how);
  const image = (more: Fields = {}): Fields => ({
    driver: 'qcow2',
    'node-name': 'q',
    file: 'f',
    backing: null,
    ...more,
  });
  const show = step('query-named-block-nodes', { flat: true });
  return {
    steps: [
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
    prepare: async (directory) => {
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/base.qcow2`, '4M');
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/x.qcow2`, '4M');
    },
  };
});

export const reopenedOptions = conversation("options of a driver's own change", () => {
  const reopen = (options: Fields, how = {}) => step('blockdev-reopen', { options: [options] }, how);
  const image = (more: Fields): Fields => ({ driver: 'qcow2', 'node-name': 'q', file: 'f', ...more });
  const limited = (group: string): Fields => ({
    ...{ driver: 'throttle', 'node-name': 't', file: 'q', 'throttle-group': group },
  });
  const part = (more: Fields): Fields => ({ driver: 'raw', 'node-name': 'r', file: 'n', ...more });
  const show = step('query-named-block-nodes', { flat: true });
  const run = (id: string, command = 'object-del') => step(command, { id });
  return {
    steps: [
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
    prepare: async (directory) => {
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/x.qcow2`, '4M');
    },
  };
});
