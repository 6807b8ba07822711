/** Changes of what is there: objects, images, jobs, nodes that go to somebody else for a time. */
import { peer } from '../../harness.ts';
import { conversation, type Fields, step } from '../conversation.ts';

export const throttleLimits = conversation('limits of a throttle group change at run time', () => {
  const set = (property: string, value: unknown, how = {}) =>
    step('qom-set', { path: 'tg', property, value: value as Fields }, how);
  const limits = step('qom-get', { path: 'tg', property: 'limits' });
  return {
    steps: [
      step('object-add', { 'qom-type': 'throttle-group', id: 'tg', limits: { 'iops-total': 5 } }),
      limits,
      set('limits', { 'bps-read': 7, 'bps-read-max': 70, 'bps-read-max-length': 2 }),
      limits,
      set('limits', { 'iops-total': 50, 'iops-read': 7 }, { words: true }),
      limits,
      set('limits', { nope: 7 }),
      set('limits', 5),
      set('limits', { 'iops-total': 0 }),
      limits,
      step('qom-get', { path: '/objects/tg', property: 'x-bps-read-max' }),
      set('x-iops-total', 9),
      set('x-iops-total', 'a'),
      set('type', 'a'),
      set('nope', 1),
      step('qom-set', { path: 'nope', property: 'type', value: 1 }),
      step('object-add', { 'qom-type': 'iothread', id: 'io' }),
      step('qom-set', { path: 'io', property: 'poll-max-ns', value: 5 }),
      step('qom-get', { path: 'io', property: 'poll-max-ns' }),
      step('qom-set', { path: 'io', property: 'poll-max-ns', value: -5 }),
      step('qom-set', { path: 'io', property: 'aio-max-batch', value: 3 }),
      step('qom-set', { path: 'io', property: 'thread-id', value: 3 }),
    ],
  };
});

export const sharedThrottleGroup = conversation('several nodes are in one throttle group', () => {
  const limited = (name: string, file: string) =>
    step('blockdev-add', { driver: 'throttle', 'node-name': name, 'throttle-group': 'tg', file });
  return {
    steps: [
      step('object-add', { 'qom-type': 'throttle-group', id: 'tg', limits: { 'iops-total': 5 } }),
      step('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 1048576 }),
      step('blockdev-add', { driver: 'null-co', 'node-name': 'm', size: 1048576 }),
      limited('a', 'n'),
      limited('b', 'm'),
      limited('c', 'a'),
      step('blockdev-del', { 'node-name': 'c' }),
      step('object-del', { id: 'tg' }),
      step('blockdev-del', { 'node-name': 'a' }),
      step('blockdev-del', { 'node-name': 'b' }),
      step('object-del', { id: 'tg' }),
      // Another one of its name.
      step('object-add', { 'qom-type': 'throttle-group', id: 'tg' }),
      limited('a', 'n'),
    ],
  };
});

export const childrenThatComeAndGo = conversation('children that come and go are refused', () => {
  const change = (args: Fields) => step('x-blockdev-change', args);
  return {
    steps: [
      step('blockdev-add', qcow2('top')),
      step('blockdev-add', { driver: 'null-co', 'node-name': 'n' }),
      change({ parent: 'top', child: 'file' }),
      change({ parent: 'top', node: 'n' }),
      change({ parent: 'top' }),
      change({ parent: 'top', node: 'n', child: 'file' }),
      change({ parent: 'nope', node: 'n' }),
      change({ parent: 'top', node: 'nope' }),
      change({ parent: 'top', child: 'nope' }),
    ],
    prepare: images,
  };
});

function qcow2(name: string): Fields {
  return { driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename: `$DIR/${name}.qcow2` } };
}

async function images(directory: string): Promise<void> {
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/top.qcow2`, '4M');
}

export const amendedImages = conversation('an image is amended by a job', () => {
  const amend = (node: string, options: Fields, more: Fields = {}, how = {}) =>
    step('x-blockdev-amend', { 'job-id': 'a', 'node-name': node, options, ...more }, how);
  return {
    steps: [
      step('blockdev-add', qcow2('top')),
      step('blockdev-add', { driver: 'null-co', 'node-name': 'n' }),
      amend('top', { driver: 'raw' }),
      amend('nope', { driver: 'qcow2' }),
      amend('n', { driver: 'qcow2' }),
      amend('n', { driver: 'null-co' }),
      amend('top', { driver: 'qcow2' }, { 'job-id': '1a' }),
      amend('top', { driver: 'qcow2' }, {}, { until: 'concluded' }),
      step('query-jobs'),
      step('job-dismiss', { id: 'a' }),
    ],
    prepare: images,
  };
});
