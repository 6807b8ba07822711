import { peer } from '../../harness.ts';
import { conversation, step } from '../conversation.ts';

const NULL = { driver: 'null-co', 'node-name': 'n0' } as const;

export const refusedNodes = conversation('what blockdev-add does not take is refused by its path', () => {
  const add = (options: Record<string, unknown>, more = {}) => step('blockdev-add', options as never, more);
  return {
    steps: [
      add({}),
      add({ driver: 'file' }),
      add({ driver: 'nonsense' }),
      add({ driver: 5 }),
      add({ driver: null }),
      add({ driver: 'null-co', size: 'x' }),
      add({ driver: 'null-co', size: 1.5 }),
      add({ driver: 'null-co', foo: -1 }),
      add({ driver: 'null-co', 'read-only': 1 }),
      add({ driver: 'null-co', 'read-only': 'on' }),
      add({ driver: 'raw' }),
      add({ driver: 'raw', file: 5 }),
      add({ driver: 'raw', file: null }),
      add({ driver: 'raw', file: [] }),
      add({ driver: 'raw', file: {} }),
      add({ driver: 'raw', file: { driver: 'nonsense' } }),
      add({ driver: 'raw', file: { driver: 'file', 'node-name': 'x' } }),
      add({ driver: 'raw', file: { driver: 'file', filename: 5 } }),
      add({ driver: 'raw', file: { driver: 'file', filename: 'x', foo: 1 } }),
      add({ driver: 'raw', file: 'nowhere' }),
      add({ driver: 'raw', 'node-name': 'r', file: 'nowhere' }),
      add({ driver: 'qcow2', file: 'x', backing: 5 }),
      add({ driver: 'null-co' }),
      add({ driver: 'null-co', 'node-name': '' }),
      add({ driver: 'null-co', 'node-name': '1' }),
      add({ driver: 'null-co', 'node-name': '#block0' }),
      add({ driver: 'null-co', 'node-name': 'a b' }),
      add({ driver: 'null-co', 'node-name': 'x'.repeat(32) }),
      add({ driver: 'null-co', 'node-name': 'x'.repeat(31) }),
      add({ driver: 'null-co', 'node-name': 'n1', cache: { direct: 1 } }),
      add({ driver: 'null-co', 'node-name': 'n1', cache: { x: 1 } }),
      add({ driver: 'null-co', 'node-name': 'n1', cache: 5 }),
      add({ driver: 'null-co', 'node-name': 'n1', discard: 'foo' }),
      add({ driver: 'null-co', 'node-name': 'n1', 'detect-zeroes': 'foo' }),
      add({ driver: 'file', 'node-name': 'f', filename: '$DIR/nowhere' }),
      add({ driver: 'null-co', 'node-name': 'n1', 'latency-ns': -1 }, { words: true }),
      step('query-named-block-nodes'),
      step('blockdev-del', {}),
      step('blockdev-del', { 'node-name': 5 }),
      step('blockdev-del', { 'node-name': 'nowhere' }),
    ],
  };
});

export const nodesComeAndGo = conversation('nodes come and go by their names', () => {
  const image = { driver: 'qcow2', 'node-name': 'q', file: { driver: 'file', filename: '$DIR/over.qcow2' } } as const;
  return {
    steps: [
      step('blockdev-add', NULL),
      step('blockdev-add', NULL),
      step('query-named-block-nodes'),
      step('query-named-block-nodes', { flat: true }),
      step('query-named-block-nodes', { flat: 5 }),
      step('query-block'),
      step('query-blockstats'),
      step('query-blockstats', { 'query-nodes': true }),
      step('x-debug-query-block-graph'),
      step('blockdev-del', { 'node-name': 'n0' }),
      step('blockdev-del', { 'node-name': 'n0' }),
      step('blockdev-add', image),
      step('blockdev-add', { driver: 'raw', 'node-name': 'q', file: { driver: 'null-co' } }),
      step('query-named-block-nodes', { flat: true }),
      step('query-named-block-nodes'),
      step('x-debug-query-block-graph'),
      step('block_resize', { 'node-name': 'q', size: 2 ** 27 }),
      step('block_resize', { 'node-name': 'q', size: 2 ** 20 }),
      step('block_resize', { 'node-name': 'q', size: -1 }),
      step('block_resize', { 'node-name': 'q', size: 1 }),
      step('block_resize', { 'node-name': 'nowhere', size: 512 }),
      step('block_resize', { size: 512 }),
      step('block-set-write-threshold', { 'node-name': 'q', 'write-threshold': 4096 }),
      step('block-set-write-threshold', { 'node-name': 'nowhere', 'write-threshold': 4096 }),
      step('query-named-block-nodes', { flat: true }),
      step('block-set-write-threshold', { 'node-name': 'q', 'write-threshold': 0 }),
      step('blockdev-del', { 'node-name': 'q' }),
      step('query-named-block-nodes'),
      step('blockdev-add', { driver: 'file', 'node-name': 'f', filename: '$DIR/base.qcow2' }),
      step('blockdev-add', { driver: 'qcow2', 'node-name': 'b', file: 'f' }),
      step('blockdev-add', { driver: 'qcow2', 'node-name': 'b2', file: 'f' }, { words: true }),
      step('blockdev-del', { 'node-name': 'f' }),
      step('x-debug-query-block-graph'),
      step('blockdev-del', { 'node-name': 'b' }),
      step('blockdev-del', { 'node-name': 'f' }),
    ],
    prepare: async (directory) => {
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/base.qcow2`, '64M');
      await peer(
        'qemu-img',
        'create',
        '-q',
        '-f',
        'qcow2',
        '-b',
        'base.qcow2',
        '-F',
        'qcow2',
        `${directory}/over.qcow2`,
      );
      await peer('qemu-img', 'snapshot', '-c', 's1', `${directory}/over.qcow2`);
    },
  };
});
