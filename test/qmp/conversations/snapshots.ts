import { peer } from '../../harness.ts';
import { conversation, type Fields, step } from '../conversation.ts';

async function images(directory: string): Promise<void> {
  for (const name of ['a', 'b', 'over', 'over2']) {
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/${name}.qcow2`, '4M');
  }
}

function image(name: string, more: Fields = {}): Fields {
  const file = { driver: 'file', filename: `$DIR/${name}.qcow2` };
  return { driver: 'qcow2', 'node-name': name, file, ...more };
}

export const snapshots = conversation('snapshots are made and deleted', () => {
  const overlay = (node: string, over: string, how = {}) => step('blockdev-snapshot', { node, overlay: over }, how);
  const graph = step('x-debug-query-block-graph');
  return {
    steps: [
      step('blockdev-add', image('a')),
      step('blockdev-add', image('over', { backing: null })),
      step('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 4194304 }),
      overlay('a', 'nowhere'),
      overlay('nowhere', 'over'),
      overlay('a', 'n'),
      overlay('a', 'a', { words: true }),
      overlay('a', 'over'),
      graph,
      step('query-named-block-nodes'),
      overlay('a', 'over', { words: true }),
      step('blockdev-del', { 'node-name': 'a' }, { words: true }),
      step('blockdev-snapshot-internal-sync', { device: 'over', name: 's1' }),
      step('blockdev-snapshot-internal-sync', { device: 'over', name: 's1' }),
      step('blockdev-snapshot-internal-sync', { device: 'over', name: '' }),
      step('blockdev-snapshot-internal-sync', { device: 'nowhere', name: 's1' }),
      step('blockdev-snapshot-internal-sync', { device: 'n', name: 's1' }),
      step('blockdev-snapshot-internal-sync', { device: 'over' }),
      step('query-named-block-nodes', { flat: true }),
      step('blockdev-snapshot-delete-internal-sync', { device: 'over' }),
      step('blockdev-snapshot-delete-internal-sync', { device: 'over', name: 'nowhere' }),
      step('blockdev-snapshot-delete-internal-sync', { device: 'over', id: '7', name: 's1' }),
      step('blockdev-snapshot-delete-internal-sync', { device: 'over', name: 's1' }),
      step('change-backing-file', { device: 'over', 'image-node-name': 'over', 'backing-file': 'a.qcow2' }),
      step('change-backing-file', { device: 'over', 'image-node-name': 'nowhere', 'backing-file': 'a.qcow2' }),
      step('change-backing-file', { device: 'nowhere', 'image-node-name': 'over', 'backing-file': 'a.qcow2' }),
      step('query-named-block-nodes', { flat: true }),
      step('blockdev-snapshot-sync', { 'snapshot-file': '$DIR/new.qcow2' }),
      step('blockdev-snapshot-sync', {
        'node-name': 'over',
        'snapshot-file': '$DIR/new.qcow2',
        'snapshot-node-name': 'new',
        mode: 'foo',
      }),
      step('blockdev-del', { 'node-name': 'over' }),
      step('blockdev-del', { 'node-name': 'a' }),
    ],
    prepare: images,
  };
});

export const transactions = conversation('a transaction does all of its actions or none', () => {
  const bitmap = (verb: string, name: string, more: Fields = {}): Fields => ({
    type: `block-dirty-bitmap-${verb}`,
    data: { node: 'a', name, ...more },
  });
  const run = (actions: readonly Fields[], how = {}) => step('transaction', { actions }, how);
  const abort: Fields = { type: 'abort', data: {} };
  const bitmaps = step('query-named-block-nodes', { flat: true });
  const snapshot: Fields = { type: 'blockdev-snapshot', data: { node: 'a', overlay: 'over' } };
  const made: Fields = {
    type: 'blockdev-snapshot-sync',
    data: { 'node-name': 'b', 'snapshot-file': '$DIR/made.qcow2', 'snapshot-node-name': 'made' },
  };
  return {
    steps: [
      step('blockdev-add', image('a')),
      step('blockdev-add', image('b')),
      step('blockdev-add', image('over', { backing: null })),
      run([]),
      run([{}]),
      run([{ type: 'abort' }]),
      run([{ type: 'nonsense', data: {} }]),
      run([abort]),
      run([bitmap('add', 'x'), bitmap('add', 'y', { granularity: 4096 })]),
      run([bitmap('add', 'z'), bitmap('add', 'x')]),
      bitmaps,
      run([bitmap('disable', 'x'), bitmap('clear', 'y'), abort]),
      bitmaps,
      run([bitmap('disable', 'x'), bitmap('add', 'm', { disabled: true })]),
      run([
        bitmap('add', 'n', { disabled: true }),
        { type: 'block-dirty-bitmap-merge', data: { node: 'a', target: 'n', bitmaps: ['x', 'y'] } },
        bitmap('remove', 'y'),
      ]),
      bitmaps,
      // One of them that is not there would be its end.
      run([bitmap('enable', 'x'), abort]),
      bitmaps,
      run([bitmap('remove', 'n'), abort]),
      bitmaps,
      run([bitmap('clear', 'x'), bitmap('enable', 'x')]),
      bitmaps,
      run([snapshot, abort]),
      step('x-debug-query-block-graph'),
      run([snapshot, { type: 'blockdev-snapshot-internal-sync', data: { device: 'b', name: 's' } }]),
      step('x-debug-query-block-graph'),
      run([{ type: 'blockdev-snapshot-internal-sync', data: { device: 'b', name: 't' } }, abort]),
      run([made, abort]),
      run([made]),
      step('blockdev-snapshot-sync', {
        ...{ 'node-name': 'b', 'snapshot-file': '$DIR/second.qcow2', 'snapshot-node-name': 'second' },
      }),
      step('x-debug-query-block-graph'),
      bitmaps,
      step('transaction', { actions: [], properties: { 'completion-mode': 'grouped' } }),
      step('transaction', { actions: [], properties: { 'completion-mode': 'foo' } }),
    ],
    prepare: images,
  };
});

export const backups = conversation('backups are made, alone and grouped,', () => {
  const backup = (more: Fields, how = {}) =>
    step('blockdev-backup', { 'job-id': 'k', device: 'a', target: 'b', sync: 'full', ...more }, how);
  const action = (id: string, device: string, target: string, more: Fields = {}): Fields => ({
    type: 'blockdev-backup',
    data: { 'job-id': id, device, target, sync: 'full', 'auto-dismiss': false, ...more },
  });
  return {
    steps: [
      step('blockdev-add', image('a')),
      step('blockdev-add', image('b')),
      step('blockdev-add', image('over')),
      step('blockdev-add', image('over2')),
      backup({ target: 'nowhere' }),
      backup({ device: 'nowhere' }),
      backup({ target: 'a' }, { words: true }),
      backup({ sync: 'foo' }),
      backup({ sync: 'incremental' }),
      backup({ sync: 'bitmap' }),
      backup({ 'auto-dismiss': false }, { until: 'concluded' }),
      step('query-jobs'),
      step('job-dismiss', { id: 'k' }),
      step('query-jobs'),
      step('query-block-jobs'),
      step(
        'transaction',
        {
          actions: [action('x', 'a', 'b'), action('y', 'over', 'over2', { 'auto-finalize': false })],
          properties: { 'completion-mode': 'grouped' },
        },
        { event: 'BLOCK_JOB_PENDING' },
      ),
    ],
    prepare: images,
  };
});
