/** Chains of images that live block operations shorten and copy, as guides to them do it: one layer after another. */
import { peer } from '../../harness.ts';
import { conversation, type Fields, meanwhile, type Step, step } from '../conversation.ts';
import { client, SERVER, sameImages } from '../images.ts';

/** Has its disk of 4 MiB in the file of its name, with some of its own. */
async function base(directory: string): Promise<void> {
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/a.qcow2`, '4M');
  await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 1M', `${directory}/a.qcow2`);
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/e.qcow2`, '4M');
}

const job = { 'job-id': 'job0' };
const graph = step('x-debug-query-block-graph');
const jobs = step('query-block-jobs');

/** An overlay over what was the top until then, by the names that guides have; a guest writes to it. */
function layer(below: string, name: string, at: string): Step[] {
  return [
    step('blockdev-snapshot-sync', {
      'node-name': `node-${below}`,
      'snapshot-file': `${name}.qcow2`,
      'snapshot-node-name': `node-${name}`,
      format: 'qcow2',
    }),
    meanwhile(client(`write -P 2 ${at} 512k`)),
  ];
}

/** [a] <- [b] <- [c] <- [d], and a guest at its top. */
const CHAIN: readonly Step[] = [
  SERVER,
  step('blockdev-add', {
    ...{ driver: 'qcow2', 'node-name': 'node-a' },
    file: { driver: 'file', 'node-name': 'file', filename: 'a.qcow2' },
  }),
  step('block-export-add', { type: 'nbd', id: 'x', name: 'x', 'node-name': 'node-a', writable: true }),
  ...layer('a', 'b', '1M'),
  ...layer('b', 'c', '2M'),
  ...layer('c', 'd', '3M'),
  graph,
];

/** `steps` are done to the chain; the images that are `left` must be alike. */
function chain(steps: readonly Step[], left: readonly string[]) {
  return {
    prepare: base,
    steps: [...CHAIN, ...steps, graph, jobs, step('query-named-block-nodes', { flat: true })],
    after: sameImages(left.map((name) => `${name}.qcow2`)),
  };
}

const ended = { until: 'null' };
const ready = { event: 'BLOCK_JOB_READY' };
const stream = (more: Fields) => step('block-stream', { ...job, ...more }, ended);
const commit = (more: Fields, how: Partial<Step> = ended) =>
  step('block-commit', { device: 'node-d', ...job, ...more }, how);

export const streamAll = conversation('everything below is streamed into the top', () =>
  chain([stream({ device: 'node-d' })], ['d']),
);

export const streamSome = conversation('the middle of a chain is streamed into the top', () =>
  chain([stream({ device: 'node-d', 'base-node': 'node-a' })], ['d', 'a']),
);

export const streamBetween = conversation('one layer is streamed into the one above it', () =>
  chain([stream({ device: 'node-c', 'base-node': 'node-a' })], ['d', 'c', 'a']),
);

export const streamToBottom = conversation('a stream goes down to a layer that is named', () =>
  chain([stream({ device: 'node-d', bottom: 'node-c' })], ['d', 'b']),
);

export const streamByFile = conversation('a stream keeps a base that is named by its file', () =>
  chain([stream({ device: 'node-d', base: 'b.qcow2', 'on-error': 'stop', speed: 0 })], ['d', 'b']),
);

export const commitByFile = conversation('layers that are named by their files are committed', () =>
  chain([commit({ base: 'a.qcow2', top: 'b.qcow2' })], ['a', 'c', 'd']),
);

export const commitMiddle = conversation('the middle of a chain is committed into its base', () =>
  chain([commit({ 'base-node': 'node-a', 'top-node': 'node-c', 'backing-file': 'a.qcow2' })], ['a', 'd']),
);

export const commitOne = conversation('one layer is committed into the one below it', () =>
  chain([commit({ 'base-node': 'node-b', 'top-node': 'node-c' })], ['a', 'b', 'd']),
);

export const commitTop = conversation('the top is committed into the base, and its users go on there', () =>
  chain(
    [
      commit({ base: 'a.qcow2', top: 'd.qcow2' }, ready),
      jobs,
      meanwhile(client('write -P 5 0 64k')),
      step('block-job-complete', { device: 'job0' }, ended),
      meanwhile(client('read -P 5 0 64k', 'read -P 2 3M 512k', 'write -P 6 128k 64k')),
    ],
    ['a'],
  ),
);

export const commitToMiddle = conversation('the top is committed into a middle layer', () =>
  chain(
    [commit({ 'base-node': 'node-b', 'on-error': 'report' }, ready), step('job-complete', { id: 'job0' }, ended)],
    ['b'],
  ),
);

const mirror = (more: Fields) =>
  step('blockdev-mirror', { device: 'node-d', target: 'node-e', sync: 'full', ...job, ...more }, ready);
const TARGET = step('blockdev-add', {
  ...{ driver: 'qcow2', 'node-name': 'node-e' },
  file: { driver: 'file', filename: 'e.qcow2' },
});

export const mirrorAll = conversation('a whole chain is mirrored, and its users go on with the copy', () =>
  chain(
    [
      TARGET,
      mirror({ 'copy-mode': 'write-blocking', granularity: 65536, 'buf-size': 1048576, 'on-target-error': 'report' }),
      jobs,
      meanwhile(client('write -P 5 0 64k')),
      step('block-job-complete', { device: 'job0' }, ended),
      meanwhile(client('read -P 5 0 64k', 'write -P 6 128k 64k')),
    ],
    ['d', 'e'],
  ),
);

export const mirrorMoment = conversation('a mirror that is ready is given up: its target is a copy', () =>
  chain([TARGET, mirror({}), step('block-job-cancel', { device: 'job0' }, ended)], ['d', 'e']),
);

export const mirrorThenForced = conversation('a mirror that is ready is cancelled by force', () =>
  chain([TARGET, mirror({}), step('block-job-cancel', { device: 'job0', force: true }, ended)], ['d']),
);

export const backupAll = conversation('a whole chain is backed up', () =>
  chain(
    [
      TARGET,
      step(
        'blockdev-backup',
        { device: 'node-d', target: 'node-e', sync: 'full', ...job, 'x-perf': { 'max-workers': 2 } },
        ended,
      ),
    ],
    ['d', 'e'],
  ),
);
