/** Commands as their manual has them, with all that they may be told. */
import { peer } from '../../harness.ts';
import { conversation, type Fields, meanwhile, type Step, step } from '../conversation.ts';
import { images, SERVER } from '../images.ts';

const file = (name: string, more: Fields = {}): Fields => ({ driver: 'file', filename: `$DIR/${name}.qcow2`, ...more });
const node = (name: string, more: Fields = {}): Fields => ({
  driver: 'qcow2',
  'node-name': name,
  file: file(name),
  ...more,
});
const add = (options: Fields, how: Partial<Step> = {}) => step('blockdev-add', options, how);
const show = step('query-named-block-nodes', { flat: true });
const TOP = add(node('top', { backing: node('base', { file: file('base', { 'node-name': 'base-file' }) }) }));
/** Of jobs. */
const STAYS: Fields = { 'auto-finalize': true, 'auto-dismiss': false };
const dismissed = (id: string): readonly Step[] => [step('query-jobs'), step('job-dismiss', { id })];
const concluded: Partial<Step> = { until: 'concluded' };

export const jobsInFull = conversation('jobs are begun with all that they may be told', () => ({
  prepare: images,
  steps: [
    TOP,
    add(node('there')),
    step('block-dirty-bitmap-add', { node: 'top', name: 'b', granularity: 65536, persistent: true, disabled: false }),
    step(
      'blockdev-backup',
      {
        ...{ 'job-id': 'j', device: 'top', target: 'there', sync: 'bitmap', bitmap: 'b', 'bitmap-mode': 'on-success' },
        ...{ speed: 1 << 30, compress: false, 'on-source-error': 'report', 'on-target-error': 'enospc', ...STAYS },
        ...{ 'filter-node-name': 'cbw', 'x-perf': { 'use-copy-range': true, 'max-workers': 4, 'max-chunk': 1048576 } },
      },
      concluded,
    ),
    ...dismissed('j'),
    step(
      'blockdev-backup',
      {
        ...{ 'job-id': 'j', device: 'top', target: 'there', sync: 'top', compress: true, ...STAYS },
        ...{ 'on-source-error': 'ignore', 'on-target-error': 'ignore', speed: 0 },
      },
      concluded,
    ),
    ...dismissed('j'),
    ...[{ 'max-workers': 0 }, { 'max-workers': -1 }, { 'max-chunk': -1 }].map((perf) =>
      step(
        'blockdev-backup',
        { 'job-id': 'j', device: 'top', target: 'there', sync: 'full', 'x-perf': perf },
        { words: true },
      ),
    ),
    step('blockdev-backup', {
      ...{ 'job-id': 'j', device: 'top', target: 'there', sync: 'full', 'x-perf': { nonsense: 1 } },
    }),
    step(
      'blockdev-mirror',
      {
        ...{ 'job-id': 'j', device: 'top', target: 'there', replaces: 'top', sync: 'full', speed: 0 },
        ...{ granularity: 65536, 'buf-size': 1048576, 'on-source-error': 'stop', 'on-target-error': 'stop' },
        ...{ 'copy-mode': 'background', ...STAYS },
      },
      { event: 'BLOCK_JOB_READY' },
    ),
    step('query-block-jobs'),
    step('job-complete', { id: 'j' }, concluded),
    ...dismissed('j'),
    show,
  ],
}));

export const chainsInFull = conversation('stream and commit are begun with all that they may be told', () => ({
  prepare: images,
  steps: [
    TOP,
    step(
      'block-commit',
      {
        ...{ 'job-id': 'j', device: 'top', 'base-node': 'base', 'top-node': 'top', speed: 0, ...STAYS },
        ...{ 'on-error': 'report' },
      },
      { event: 'BLOCK_JOB_READY' },
    ),
    step('query-block-jobs'),
    step('block-job-set-speed', { device: 'j', speed: 1048576 }),
    step('query-block-jobs'),
    step('block-job-cancel', { device: 'j', force: false }, concluded),
    ...dismissed('j'),
    step('block-commit', { 'job-id': 'j', device: 'top', 'backing-file': 'x', 'base-node': 'base' }, { words: true }),
    step('block-commit', { 'job-id': 'j', device: 'top', base: 'x', 'base-node': 'base' }),
    step('block-commit', { 'job-id': 'j', device: 'top', top: 'x', 'top-node': 'top' }),
    step('block-commit', { 'job-id': 'j', device: 'top', top: 'x' }, { words: true }),
    step('block-commit', { 'job-id': 'j', device: 'top', base: 'x' }, { words: true }),
    step('block-stream', { 'job-id': 'j', device: 'top', base: 'x', 'base-node': 'base' }),
    step('block-stream', { 'job-id': 'j', device: 'top', base: 'x', bottom: 'top' }),
    step('block-stream', { 'job-id': 'j', device: 'top', bottom: 'nowhere' }),
    step('block-stream', { 'job-id': 'j', device: 'top', 'backing-file': 'x' }),
    step('block-stream', { 'job-id': 'j', device: 'top', bottom: 'base-file' }, { words: true }),
    step(
      'block-stream',
      {
        ...{ 'job-id': 'j', device: 'top', speed: 0, 'on-error': 'ignore', ...STAYS },
      },
      concluded,
    ),
    ...dismissed('j'),
    show,
  ],
}));

export const overlaysInFull = conversation('overlays are made with all that they may be told', () => {
  const overlay = (more: Fields, how: Partial<Step> = {}) => step('blockdev-snapshot-sync', more, how);
  return {
    prepare: images,
    steps: [
      TOP,
      overlay({
        ...{ 'node-name': 'top', 'snapshot-file': '$DIR/one.qcow2', 'snapshot-node-name': 'one' },
        ...{ format: 'qcow2', mode: 'absolute-paths' },
      }),
      meanwhile(async (directory) => {
        const over = ['-b', `${directory}/one.qcow2`, '-F', 'qcow2'];
        await peer('qemu-img', 'create', '-q', '-u', '-f', 'qcow2', ...over, `${directory}/two.qcow2`, '4M');
      }),
      overlay({
        ...{ 'node-name': 'one', 'snapshot-file': '$DIR/two.qcow2', 'snapshot-node-name': 'two' },
        ...{ format: 'qcow2', mode: 'existing' },
      }),
      overlay({ 'node-name': 'two', 'snapshot-file': '$DIR/three.qcow2', format: 'qcow2' }, { words: true }),
      overlay(
        {
          ...{ 'node-name': 'two', 'snapshot-file': '$DIR/three', format: 'raw', 'snapshot-node-name': 'three' },
        },
        { words: true },
      ),
      overlay(
        { 'node-name': 'two', 'snapshot-file': '$DIR/three', format: 'nonsense', 'snapshot-node-name': 'three' },
        { words: true },
      ),
      overlay(
        { 'node-name': 'two', 'snapshot-file': '/nowhere/x', format: 'qcow2', 'snapshot-node-name': 'three' },
        { words: true },
      ),
      overlay(
        { 'node-name': 'two', 'snapshot-file': '$DIR/three', format: 'qcow2', 'snapshot-node-name': 'one' },
        { words: true },
      ),
      show,
      step('change-backing-file', { device: 'two', 'image-node-name': 'one', 'backing-file': 'elsewhere.qcow2' }),
      step('x-debug-query-block-graph'),
    ],
  };
});

export const exportsInFull = conversation('exports are made with all that they may be told', () => ({
  prepare: images,
  steps: [
    TOP,
    step('object-add', { 'qom-type': 'iothread', id: 'io0', 'poll-max-ns': 0, 'poll-grow': 2, 'poll-shrink': 2 }),
    step('block-dirty-bitmap-add', { node: 'top', name: 'b', disabled: true }),
    step('nbd-server-start', {
      addr: { type: 'unix', data: { path: '$DIR/nbd' } },
      'max-connections': 3,
    }),
    step('block-export-add', {
      ...{ type: 'nbd', id: 'e', 'node-name': 'top', name: 'a name', description: 'of it', writable: true },
      ...{ writethrough: true, bitmaps: ['b'], 'allocation-depth': true, iothread: 'io0', 'fixed-iothread': false },
    }),
    step('query-block-exports'),
    step('block-export-del', { id: 'e', mode: 'safe' }, { event: 'BLOCK_EXPORT_DELETED' }),
    step('nbd-server-stop'),
    SERVER,
    step('nbd-server-add', { device: 'top', name: 'top', description: 'x', writable: false, bitmap: 'b' }),
    step('nbd-server-remove', { name: 'top', mode: 'safe' }, { event: 'BLOCK_EXPORT_DELETED' }),
    ...[{ type: 'inet', data: { host: 'x' } }, { type: 'unix' }, { type: 'vsock', data: {} }, { type: 'x' }].map(
      (addr) => step('nbd-server-start', { addr }),
    ),
  ],
}));

export const objectsInFull = conversation('objects are made with all that they may be told', () => {
  const object = (type: string, id: string, more: Fields = {}, how: Partial<Step> = {}) =>
    step('object-add', { 'qom-type': type, id, ...more }, how);
  const shown = (id: string) => step('qom-list', { path: `/objects/${id}` });
  const get = (id: string, property: string) => step('qom-get', { path: `/objects/${id}`, property });
  const limits = {
    ...{ 'bps-total': 1e6, 'bps-total-max': 1e7, 'bps-total-max-length': 2 },
    ...{ 'iops-read': 100, 'iops-read-max': 200, 'iops-write': 50, 'iops-size': 4096 },
  };
  const rules = [{ match: 'x*', policy: 'allow', format: 'glob' }];
  return {
    steps: [
      object('iothread', 'io', { 'poll-max-ns': 5, 'poll-grow': 1, 'poll-shrink': 1, 'aio-max-batch': 2 }),
      ...['poll-max-ns', 'poll-grow', 'poll-shrink', 'aio-max-batch'].map((name) => get('io', name)),
      object('iothread', 'io2', { 'poll-max-ns': -1 }),
      object('iothread', 'io2', { 'thread-pool-min': 1, 'thread-pool-max': 4 }),
      step('object-del', { id: 'io2' }),
      object('throttle-group', 'tg', { limits }),
      get('tg', 'limits'),
      object('throttle-group', 'tg2', { 'x-iops-total': 7 }),
      get('tg2', 'limits'),
      object('secret', 's', { data: 'eA==', format: 'base64' }),
      object('authz-simple', 'as', { identity: 'fred' }),
      get('as', 'identity'),
      object('authz-list', 'al', { policy: 'deny', rules }),
      get('al', 'policy'),
      get('al', 'rules'),
      object('authz-list-file', 'af', { filename: '$DIR/nowhere', refresh: false }, { words: true }),
      shown('io'),
      shown('as'),
      ...['io', 'tg', 'tg2', 's', 'as', 'al'].map((id) => step('object-del', { id })),
    ],
  };
});

export const devicesInFull = conversation('character devices are made as the manual has them', () => ({
  steps: [
    step('chardev-add', { id: 'foo', backend: { type: 'null', data: {} } }),
    step('chardev-add', { id: 'bar', backend: { type: 'file', data: { out: '$DIR/bar.log', append: true } } }),
    step('chardev-add', {
      id: 'log',
      backend: { type: 'null', data: { logfile: '$DIR/log', logappend: false } },
    }),
    step('chardev-add', {
      id: 'sock',
      backend: {
        type: 'socket',
        data: {
          addr: { type: 'unix', data: { path: '$DIR/charchannel2.socket' } },
          ...{ server: true, wait: false, telnet: false, nodelay: true },
        },
      },
    }),
    step('chardev-add', { id: 'ring', backend: { type: 'ringbuf', data: { size: 1024 } } }),
    step('ringbuf-write', { device: 'ring', data: 'abcdefgh', format: 'utf8' }),
    step('ringbuf-read', { device: 'ring', size: 1000, format: 'utf8' }),
    step('chardev-add', { id: 'm', backend: { type: 'mux', data: { chardev: 'ring' } } }),
    step('query-chardev'),
    step('chardev-change', { id: 'foo', backend: { type: 'null', data: {} } }),
    step('chardev-send-break', { id: 'foo' }),
    step('chardev-remove', { id: 'foo' }),
    step('qom-list', { path: '/chardevs' }),
    step('query-chardev'),
  ],
}));

export const nodesInFull = conversation('nodes are added with all that is common to them', () => ({
  prepare: images,
  steps: [
    add({
      ...node('top', { backing: null }),
      ...{ 'read-only': false, 'auto-read-only': false, discard: 'unmap', 'detect-zeroes': 'unmap' },
      ...{ 'force-share': false, cache: { direct: false, 'no-flush': true } },
      ...{ 'lazy-refcounts': true, 'pass-discard-request': true, 'overlap-check': 'cached' },
      ...{ 'l2-cache-size': 524288, 'l2-cache-entry-size': 4096, 'cache-clean-interval': 30 },
    }),
    show,
    add(node('base', { 'overlap-check': 'all', 'read-only': true })),
    add(node('there', { file: file('there', { locking: 'on', aio: 'threads' }) })),
    add(node('small', { file: file('small', { 'pr-manager': 'x' }) }), { words: true }),
    add(node('small', { 'force-share': true }), { words: true }),
    add(node('small', { 'force-share': true, 'read-only': true })),
    add({ driver: 'null-aio', 'node-name': 'na', size: 1048576, 'latency-ns': 5, 'read-zeroes': true }),
    add(node('top'), { words: true }),
    show,
    step('query-blockstats', { 'query-nodes': false }),
    step('query-block'),
    step('block-set-write-threshold', { 'node-name': 'top', 'write-threshold': 17179869184 }),
    step('block_resize', { 'node-name': 'top', size: 8388608 }),
    step('blockdev-snapshot-internal-sync', { device: 'top', name: 'snapshot0' }),
    step('blockdev-snapshot-delete-internal-sync', { device: 'top', name: 'snapshot0', id: '1' }, { words: true }),
    ...['top', 'base', 'there', 'small', 'na'].map((name) => step('blockdev-del', { 'node-name': name })),
    show,
  ],
}));
