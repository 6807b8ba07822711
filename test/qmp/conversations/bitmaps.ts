import { peer } from '../../harness.ts';
import { conversation, type Fields, step } from '../conversation.ts';

const add = (name: string, more: Fields = {}, how = {}) =>
  step('block-dirty-bitmap-add', { node: 'q', name, ...more }, how);
const change = (verb: string, name: string, how = {}) => step(`block-dirty-bitmap-${verb}`, { node: 'q', name }, how);
const merge = (target: string, ...bitmaps: (string | Fields)[]) =>
  step('block-dirty-bitmap-merge', { node: 'q', target, bitmaps });
const show = step('query-named-block-nodes', { flat: true });
const image: Fields = {
  driver: 'qcow2',
  'node-name': 'q',
  file: { driver: 'file', filename: '$DIR/x.qcow2', 'node-name': 'f' },
};

export const dirtyBitmaps = conversation('dirty bitmaps', () => {
  return {
    steps: [
      add('b0'),
      step('blockdev-add', image),
      step('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 67108864 }),
      step('blockdev-add', { driver: 'null-co', 'node-name': 'small', size: 1048576 }),
      add('b0'),
      add('b0'),
      add(''),
      add('b1', { granularity: 513 }),
      add('b1', { granularity: 256 }),
      add('b1', { granularity: 0 }),
      add('b1', { granularity: -5 }),
      add('b1', { granularity: 4294967296 }),
      add('b1', { granularity: 4096, persistent: true }),
      add('b2', { disabled: true }),
      add('b3', { persistent: 5 }),
      add('x'.repeat(1023)),
      add('x'.repeat(1024), {}, { words: true }),
      change('remove', 'x'.repeat(1023)),
      step('block-dirty-bitmap-add', { node: 'n', name: 'p', persistent: true }, { words: true }),
      step('block-dirty-bitmap-add', { node: 'n', name: 'n0' }),
      step('block-dirty-bitmap-add', { node: 'small', name: 's0' }),
      step('block-dirty-bitmap-add', { node: 'nowhere', name: 's0' }),
      show,
      step('x-debug-block-dirty-bitmap-sha256', { node: 'q', name: 'b0' }),
      step('x-debug-block-dirty-bitmap-sha256', { node: 'q', name: 'b1' }),
      step('x-debug-block-dirty-bitmap-sha256', { node: 'q', name: 'nowhere' }),
      change('disable', 'b0'),
      change('disable', 'b0'),
      change('enable', 'b2'),
      change('clear', 'b1'),
      change('clear', 'nowhere'),
      change('enable', 'nowhere'),
      change('disable', 'nowhere'),
      change('remove', 'nowhere'),
      merge('b0', 'b1', 'b2'),
      merge('nowhere', 'b1'),
      merge('b0', 'nowhere'),
      merge('b0', 5 as never),
      merge('b0', { node: 'n', name: 'n0' }),
      merge('b0', { node: 'nowhere', name: 'n0' }),
      step(
        'block-dirty-bitmap-merge',
        { node: 'q', target: 'b0', bitmaps: [{ node: 'small', name: 's0' }] },
        { words: true },
      ),
      show,
      step('block_resize', { 'node-name': 'q', size: 134217728 }),
      step(
        'x-debug-block-dirty-bitmap-sha256',
        { node: 'q', name: 'b1' },
        { differs: 'what a disk gains is dirty here' },
      ),
      change('clear', 'b1'),
      change('remove', 'b0'),
      step('blockdev-del', { 'node-name': 'q' }),
      step('blockdev-add', image),
      show,
      change('disable', 'b1'),
      change('remove', 'b1'),
      show,
    ],
    prepare: async (directory) =>
      void (await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/x.qcow2`, '64M')),
  };
});
