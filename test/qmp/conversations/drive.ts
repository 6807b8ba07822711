import { conversation, type Fields, type Step, step } from '../conversation.ts';
import { images, sameImages } from '../images.ts';

function node(name: string, backing?: Fields): Fields {
  const file = { driver: 'file', filename: `$DIR/${name}.qcow2` };
  return { driver: 'qcow2', 'node-name': name, file, ...(backing === undefined ? {} : { backing }) };
}

const SLOW = 65536;
const TOP = step('blockdev-add', node('top', node('base')));
const graph = step('x-debug-query-block-graph');

function drive(command: 'drive-mirror' | 'drive-backup') {
  return (more: Fields, how: Omit<Step, 'command' | 'args'> = {}) =>
    step(command, { 'job-id': 'j', device: 'top', sync: 'full', target: '$DIR/new', ...more }, how);
}

export const driveMirror = conversation('drive-mirror makes, opens and leaves its target', () => {
  const mirror = drive('drive-mirror');
  return {
    steps: [
      mirror({}),
      TOP,
      mirror({ sync: 'nonsense' }),
      mirror({ mode: 'existing', target: '$DIR/nowhere' }),
      mirror({ format: 'nonsense' }),
      mirror({ format: 'throttle' }),
      mirror({ target: '/nowhere/x' }),
      mirror({ sync: 'none', format: 'raw' }),
      mirror({ sync: 'top', format: 'raw' }),
      mirror({ sync: 'incremental' }),
      mirror({ granularity: 5 }),
      mirror({ granularity: 134217728 }),
      mirror({ granularity: 1000000 }),
      mirror({ 'buf-size': -1 }),
      mirror({ speed: -1 }),
      mirror({ replaces: 'top' }),
      mirror({ 'node-name': 'top' }),
      mirror({ 'node-name': '1' }),
      mirror({ 'job-id': '1' }),
      mirror({ target: '$DIR/top.qcow2', mode: 'existing', format: 'qcow2' }, { words: true }),
      step('query-jobs'),
      graph,
      mirror({ 'node-name': 'new', speed: SLOW }),
      step('blockdev-del', { 'node-name': 'new' }),
      step('block-job-cancel', { device: 'j', force: true }, { until: 'null' }),
      graph,
      step('blockdev-del', { 'node-name': 'new' }),
      mirror({ target: '$DIR/there.qcow2', mode: 'existing' }, { until: 'ready' }),
      step('job-complete', { id: 'j' }, { until: 'null' }),
      step('query-named-block-nodes', { flat: true }),
      graph,
    ],
    prepare: images,
  };
});

export const driveBackup = conversation('drive-backup makes, opens and leaves its target', () => {
  const backup = drive('drive-backup');
  const bitmap = step('block-dirty-bitmap-add', { node: 'top', name: 'b' });
  const action = (more: Fields): Fields => ({
    type: 'drive-backup',
    data: { 'job-id': 'j', device: 'top', sync: 'full', target: '$DIR/new', ...more },
  });
  return {
    steps: [
      backup({}),
      TOP,
      backup({ sync: 'nonsense' }),
      backup({ mode: 'existing', target: '$DIR/nowhere' }),
      backup({ format: 'nonsense' }),
      backup({ format: 'throttle' }),
      backup({ target: '/nowhere/x' }),
      backup({ sync: 'top', format: 'raw' }),
      backup({ sync: 'none', format: 'raw' }),
      backup({ sync: 'incremental' }),
      backup({ sync: 'bitmap', bitmap: 'b', 'bitmap-mode': 'never' }, { words: true }),
      backup({ speed: -1 }),
      backup({ compress: true, format: 'raw' }, { words: true }),
      backup({ target: '$DIR/small.qcow2', mode: 'existing', format: 'qcow2' }, { words: true }),
      backup({ target: '$DIR/top.qcow2', mode: 'existing', format: 'qcow2' }, { words: true }),
      graph,
      backup({ 'auto-dismiss': false }, { until: 'concluded' }),
      step('query-jobs'),
      step('job-dismiss', { id: 'j' }),
      graph,
      bitmap,
      step(
        'transaction',
        { actions: [action({ sync: 'incremental', bitmap: 'b', 'auto-dismiss': false })] },
        { until: 'concluded' },
      ),
      step('job-dismiss', { id: 'j' }),
      step('query-named-block-nodes', { flat: true }),
    ],
    prepare: images,
  };
});

export const mirrored = conversation('what drive-mirror leaves', () => {
  const mirror = drive('drive-mirror');
  const steps = [
    TOP,
    ...[
      { target: '$DIR/full', sync: 'full' },
      { target: '$DIR/raw', sync: 'full', format: 'raw' },
      { target: '$DIR/thin', sync: 'top' },
      { target: '$DIR/none', sync: 'none', unmap: false },
      { target: '$DIR/there.qcow2', sync: 'full', mode: 'existing', format: 'qcow2' },
      { target: '$DIR/over.qcow2', sync: 'top', mode: 'existing', format: 'qcow2' },
    ].flatMap((more) => [
      mirror(more, { until: 'ready' }),
      step('block-job-cancel', { device: 'j' }, { until: 'null' }),
    ]),
  ];
  return { steps, prepare: images, after: sameImages(['full', 'raw', 'thin', 'none', 'there.qcow2', 'over.qcow2']) };
});

export const backedUp = conversation('what drive-backup leaves', () => {
  const backup = drive('drive-backup');
  const data = { 'job-id': 'j', device: 'top', sync: 'full', target: '$DIR/given-up' };
  const action: Fields = { type: 'drive-backup', data };
  const steps = [
    TOP,
    ...[
      { target: '$DIR/full', sync: 'full' },
      { target: '$DIR/raw', sync: 'full', format: 'raw' },
      { target: '$DIR/small', sync: 'full', compress: true },
      { target: '$DIR/thin', sync: 'top' },
      { target: '$DIR/there.qcow2', sync: 'full', mode: 'existing', format: 'qcow2' },
      { target: '$DIR/over.qcow2', sync: 'top', mode: 'existing' },
    ].map((more) => backup(more, { until: 'null' })),
    step('blockdev-add', { driver: 'raw', 'node-name': 'r', file: { driver: 'file', filename: '$DIR/raw' } }),
    backup({ device: 'r', target: '$DIR/again' }, { until: 'null' }),
    step('object-add', { 'qom-type': 'throttle-group', id: 'g' }),
    step('blockdev-add', { driver: 'throttle', 'node-name': 't', 'throttle-group': 'g', file: 'top' }),
    backup({ device: 't', target: '$DIR/through', format: 'qcow2' }, { until: 'null' }),
    backup({ target: '$DIR/none', sync: 'none' }),
    step('block-job-cancel', { device: 'j' }, { until: 'null' }),
    step('transaction', { actions: [action, { type: 'abort', data: {} }] }),
    step('query-jobs'),
  ];
  return {
    steps,
    prepare: images,
    after: sameImages(['full', 'raw', 'again', 'through', 'small', 'thin', 'there.qcow2', 'over.qcow2', 'none']),
  };
});
