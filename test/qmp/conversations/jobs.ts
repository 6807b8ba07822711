import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { peer } from '../../harness.ts';
import { conversation, type Fields, meanwhile, step } from '../conversation.ts';

/** base <- mid <- top, each with some of its own: more than a slow job does at once. */
async function chain(directory: string): Promise<void> {
  const create = (...args: string[]) => peer('qemu-img', 'create', '-q', '-f', 'qcow2', ...args);
  const write = (name: string, at: string) =>
    peer('qemu-io', '-f', 'qcow2', '-c', `write -P 1 ${at} 4M`, `${directory}/${name}.qcow2`);
  await create(`${directory}/base.qcow2`, '16M');
  await write('base', '0');
  await create('-b', `${directory}/base.qcow2`, '-F', 'qcow2', `${directory}/mid.qcow2`);
  await write('mid', '4M');
  await create('-b', `${directory}/mid.qcow2`, '-F', 'qcow2', `${directory}/top.qcow2`);
  await write('top', '8M');
}

function node(name: string, backing?: Fields | string): Fields {
  const file = { driver: 'file', filename: `$DIR/${name}.qcow2`, 'node-name': `${name}-file` };
  return { driver: 'qcow2', 'node-name': name, file, ...(backing === undefined ? {} : { backing }) };
}

const CHAIN = node('top', node('mid', node('base')));
/** Bytes a second: nothing gets done at it. */
const SLOW = 65536;

export const stream = conversation('a stream is asked for, seen, changed and ends', () => {
  const stream = (more: Fields = {}, how = {}) => step('block-stream', { device: 'top', 'job-id': 'j', ...more }, how);
  return {
    steps: [
      step('query-jobs'),
      step('query-block-jobs'),
      step('job-cancel', { id: 'j' }),
      step('job-pause', { id: 'j' }),
      step('block-job-cancel', { device: 'j' }),
      step('block-job-set-speed', { device: 'j', speed: 1 }),
      stream(),
      step('blockdev-add', CHAIN),
      step('block-stream', { device: 'top' }),
      step('block-stream', { device: 'nowhere', 'job-id': 'j' }),
      stream({ 'job-id': '1j' }),
      stream({ 'job-id': '' }),
      stream({ speed: -1 }),
      stream({ 'base-node': 'nowhere' }),
      stream({ base: 'nowhere' }, { words: true }),
      stream({ 'base-node': 'top' }, { words: true }),
      stream({ 'on-error': 'foo' }),
      stream({ speed: SLOW, 'auto-dismiss': false, 'auto-finalize': false, 'base-node': 'base' }),
      stream({ 'job-id': 'j2' }, { words: true }),
      stream({}, { words: true }),
      step('job-complete', { id: 'j' }),
      step('job-finalize', { id: 'j' }),
      step('job-dismiss', { id: 'j' }),
      step('block-job-set-speed', { device: 'j', speed: -1 }),
      step('block-job-set-speed', { device: 'j', speed: SLOW * 2 }),
      step('job-resume', { id: 'j' }),
      step('job-pause', { id: 'j' }),
      step('job-pause', { id: 'j' }),
      step('job-resume', { id: 'j' }),
      step('blockdev-del', { 'node-name': 'top' }, { words: true }),
      step('blockdev-del', { 'node-name': 'nowhere' }),
      step('block-job-set-speed', { device: 'j', speed: 0 }, { until: 'pending' }),
      step('query-jobs'),
      step('job-finalize', { id: 'j' }, { until: 'concluded' }),
      step('job-finalize', { id: 'j' }),
      step('job-cancel', { id: 'j' }),
      step('query-jobs'),
      step('job-dismiss', { id: 'j' }),
      step('job-dismiss', { id: 'j' }),
      step('query-jobs'),
      step('x-debug-query-block-graph'),
      stream({ 'auto-dismiss': false }, { until: 'concluded' }),
      step('block-job-dismiss', { id: 'j' }),
      step('blockdev-del', { 'node-name': 'top' }),
    ],
    prepare: chain,
  };
});

export const cancelledJobs = conversation('a job that is cancelled ends', () => {
  return {
    steps: [
      step('blockdev-add', CHAIN),
      step('block-stream', { device: 'top', 'job-id': 'j', speed: SLOW, 'auto-dismiss': false }),
      step('job-cancel', { id: 'j' }, { until: 'concluded' }),
      step('query-jobs', {}, { words: true }),
      step('job-dismiss', { id: 'j' }),
      step('block-stream', { device: 'top', 'job-id': 'j', speed: SLOW }),
      step('block-job-cancel', { device: 'j' }, { until: 'null' }),
      step('query-jobs'),
      step('blockdev-del', { 'node-name': 'top' }),
    ],
    prepare: chain,
  };
});

export const commitAndMirror = conversation('commit and mirror become ready, complete and end', () => {
  const commit = (more: Fields, how = {}) => step('block-commit', { device: 'top', 'job-id': 'j', ...more }, how);
  const mirror = (more: Fields, how = {}) =>
    step('blockdev-mirror', { device: 'top', 'job-id': 'm', target: 'new', sync: 'full', ...more }, how);
  return {
    steps: [
      step('blockdev-add', CHAIN),
      step('blockdev-add', node('new')),
      commit({ 'top-node': 'nowhere' }),
      commit({ 'base-node': 'nowhere' }),
      commit({ 'top-node': 'mid', 'base-node': 'mid' }, { words: true }),
      commit({ 'top-node': 'mid', 'auto-dismiss': false }, { until: 'concluded' }),
      step('query-jobs'),
      step('job-dismiss', { id: 'j' }),
      step('x-debug-query-block-graph'),
      mirror({ target: 'nowhere' }),
      mirror({ target: 'top' }, { words: true }),
      mirror({ sync: 'incremental' }, { words: true }),
      mirror({ sync: 'foo' }),
      mirror({ granularity: 513 }, { words: true }),
      mirror({ 'copy-mode': 'foo' }),
      mirror({ 'auto-dismiss': false }, { until: 'ready' }),
      step('query-jobs'),
      step('query-block-jobs'),
      mirror({ 'job-id': 'm2' }, { words: true }),
      step('job-pause', { id: 'm' }, { until: 'standby' }),
      step('job-resume', { id: 'm' }, { until: 'ready' }),
      step('job-complete', { id: 'm' }, { until: 'concluded' }),
      step('query-jobs'),
      step('job-dismiss', { id: 'm' }),
      step('query-block-jobs'),
    ],
    prepare: async (directory) => {
      await chain(directory);
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/new.qcow2`, '16M');
    },
  };
});

export const filterNames = conversation('the filter of a job has a name that no other node has', () => {
  const jobs: readonly (readonly [command: string, args: Fields])[] = [
    ['block-stream', { device: 'top' }],
    ['block-commit', { device: 'top' }],
    ['block-commit', { device: 'top', 'top-node': 'mid' }],
    ['blockdev-mirror', { device: 'top', target: 'new', sync: 'full' }],
    ['blockdev-backup', { device: 'top', target: 'new', sync: 'full' }],
  ];
  const begin = ([command, args]: (typeof jobs)[number], name: string, how = {}) =>
    step(command, { ...args, 'job-id': 'j', speed: SLOW, 'filter-node-name': name }, how);
  return {
    steps: [
      step('blockdev-add', CHAIN),
      step('blockdev-add', node('new')),
      ...['', '1', 'a b', '#block000', 'x'.repeat(32), 'top', 'base-file'].flatMap((name) =>
        jobs.map((job) => begin(job, name)),
      ),
      ...jobs.flatMap((job) => [
        begin(job, 'f'),
        step('blockdev-add', { driver: 'null-co', 'node-name': 'f' }),
        step('block-job-cancel', { device: 'j', force: true }, { until: 'null' }),
        step('blockdev-add', { driver: 'null-co', 'node-name': 'f' }),
        begin(job, 'f'),
        step('blockdev-del', { 'node-name': 'f' }),
      ]),
    ],
    prepare: async (directory) => {
      await chain(directory);
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/new.qcow2`, '16M');
    },
  };
});

async function allocated(directory: string): Promise<void> {
  const { size, blocks } = statSync(`${directory}/full`);
  assert.deepEqual([size, blocks * 512 >= 65536], [65536, true]);
}

export const createdImages = conversation('images are made', () => {
  const create = (options: Fields, how = {}) => step('blockdev-create', { 'job-id': 'c', options }, how);
  const file = { driver: 'file', filename: '$DIR/made', size: 0 };
  return {
    steps: [
      create({}),
      create({ driver: 'nonsense' }),
      create({ driver: 'file', filename: '$DIR/made' }),
      create({ ...file, filename: '$DIR/nowhere/made' }, { until: 'concluded' }),
      step('query-jobs', {}, { words: true }),
      step('job-dismiss', { id: 'c' }),
      create(file, { until: 'concluded' }),
      step('query-jobs'),
      create(file),
      step('job-dismiss', { id: 'c' }),
      create({ ...file, filename: '$DIR/full', size: 65536, preallocation: 'full' }, { until: 'concluded' }),
      meanwhile(allocated),
      step('job-dismiss', { id: 'c' }),
      create({ ...file, filename: '$DIR/full', size: 65536, preallocation: 'metadata' }, { until: 'concluded' }),
      step('query-jobs', {}, { words: true }),
      step('job-dismiss', { id: 'c' }),
      create({ ...file, preallocation: 'nonsense' }),
      step('blockdev-add', { driver: 'file', filename: '$DIR/made', 'node-name': 'f' }),
      create({ driver: 'qcow2', size: 1048576 }),
      create({ driver: 'qcow2', file: 'f' }),
      create({ driver: 'qcow2', file: 'f', size: 1048576, 'cluster-size': 5 }, { until: 'concluded' }),
      step('job-dismiss', { id: 'c' }),
      create({ driver: 'qcow2', file: 'f', size: 1048576, version: 'v2' }, { until: 'concluded' }),
      step('job-dismiss', { id: 'c' }),
      step('blockdev-add', { driver: 'qcow2', file: 'f', 'node-name': 'q' }),
      step('query-named-block-nodes', { flat: true }),
    ],
  };
});
