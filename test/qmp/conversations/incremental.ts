/** Full and incremental backups, pushed and pulled, as guides to dirty bitmaps and management software do them. */
import assert from 'node:assert/strict';
import { peer } from '../../harness.ts';
import { conversation, type Fields, line, meanwhile, type Step, step } from '../conversation.ts';
import { client, SERVER, sameImages } from '../images.ts';

const MIB = 1 << 20;

async function drives(directory: string): Promise<void> {
  for (const name of ['drive0', 'drive1', 'full0', 'full1', 'small']) {
    const size = name === 'small' ? '1M' : '4M';
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/${name}.qcow2`, size);
  }
  for (const name of ['drive0', 'drive1']) {
    await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 2M', `${directory}/${name}.qcow2`);
  }
}

/** An image of that name over another one, for what comes next. */
const over = (name: string, below: string): Step =>
  meanwhile(async (directory) => {
    const file = `${directory}/${name}.qcow2`;
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', `${below}.qcow2`, '-F', 'qcow2', file);
  });

const add = (name: string, filename: string, more: Fields = {}) =>
  step('blockdev-add', {
    ...{ driver: 'qcow2', 'node-name': name, ...more },
    file: { driver: 'file', filename: `$DIR/${filename}.qcow2` },
  });
const del = (name: string, how: Partial<Step> = {}) => step('blockdev-del', { 'node-name': name }, how);
const bitmap = (verb: string, more: Fields = {}, node = 'drive0'): Fields => ({
  type: `block-dirty-bitmap-${verb}`,
  data: { node, name: 'bitmap0', ...more },
});
const backup = (drive: number, more: Fields): Fields => ({
  type: 'blockdev-backup',
  data: { 'job-id': `job${drive}`, device: `drive${drive}`, target: `target${drive}`, ...more },
});
const incremental = (drive: number, more: Fields = {}): Fields =>
  backup(drive, { bitmap: 'bitmap0', sync: 'incremental', ...more });
const alone = (action: Fields, how: Partial<Step> = { until: 'null' }) =>
  step(String(action.type), action.data as Fields, how);
const transaction = (actions: readonly Fields[], how: Partial<Step> = {}, properties?: Fields) =>
  step('transaction', { actions, ...(properties ? { properties } : {}) }, how);
/** Its bitmaps, among others. */
const show = step('query-named-block-nodes', { flat: true });
const hash = (node: string) => step('x-debug-block-dirty-bitmap-sha256', { node, name: 'bitmap0' });
const exported = (node: string, more: Fields = {}) =>
  step('block-export-add', { type: 'nbd', id: 'x', name: 'x', 'node-name': node, writable: true, ...more });
const writes = (...commands: string[]) => meanwhile(client(...commands));

export const pushed = conversation('a full backup is followed by incremental ones', () => ({
  prepare: drives,
  steps: [
    SERVER,
    add('drive0', 'drive0'),
    exported('drive0'),
    add('target0', 'full0'),
    // As a guide has it, with a comma too many, and without the name of a job.
    line('{"execute":"block-dirty-bitmap-add","arguments":{"node":"drive0","name":"bitmap0","persistent":true,}}'),
    alone({ ...backup(0, { sync: 'full' }), data: { device: 'drive0', target: 'target0', sync: 'full' } }, {}),
    transaction([bitmap('add', { persistent: true }), backup(0, { sync: 'full' })], { until: 'null' }),
    show,
    del('target0'),
    writes('write -P 2 1M 64k', 'write -P 2 3M 192k'),
    show,
    over('inc0', 'full0'),
    add('target0', 'inc0'),
    alone(incremental(0)),
    del('target0'),
    writes('write -P 3 0 64k', 'discard 2M 64k', 'write -z 128k 64k'),
    over('inc1', 'inc0'),
    add('target0', 'inc1'),
    alone(incremental(0, { 'auto-dismiss': false, 'auto-finalize': true }), { until: 'concluded' }),
    step('query-jobs'),
    step('job-dismiss', { id: 'job0' }),
    show,
    // And from the beginning again.
    del('target0'),
    add('target0', 'full1'),
    writes('write -P 4 512k 64k'),
    transaction([bitmap('clear'), backup(0, { sync: 'full' })], { until: 'null' }),
    show,
    step('block-export-del', { id: 'x' }, { event: 'BLOCK_EXPORT_DELETED' }),
    // It is in the image.
    del('drive0'),
    add('drive0', 'drive0'),
    show,
  ],
  after: sameImages(['full0.qcow2', 'inc0.qcow2', 'inc1.qcow2', 'full1.qcow2']),
}));

const BOTH = ['job0', 'job1'];

export const severalDrives = conversation('several drives are backed up as of one moment', () => ({
  prepare: drives,
  steps: [
    add('drive0', 'drive0'),
    add('drive1', 'drive1'),
    add('target0', 'full0'),
    add('target1', 'full1'),
    transaction(
      [...[bitmap('add'), bitmap('add', {}, 'drive1')], ...[backup(0, { sync: 'full' }), backup(1, { sync: 'full' })]],
      { until: 'null', jobs: BOTH },
    ),
    show,
    // As a guide has it: one of them is misspelled.
    transaction([{ ...incremental(0), type: 'blockev-backup' }, incremental(1)]),
  ],
}));

/** Nothing can be written to it beyond its first cluster. */
const BROKEN: Fields = {
  ...{ driver: 'blkdebug', 'node-name': 'target1', image: 'broken' },
  'inject-error': [{ event: 'none', iotype: 'write', errno: 28 }],
};

function failing(completion: string) {
  return {
    prepare: drives,
    steps: [
      SERVER,
      add('drive0', 'drive0'),
      add('drive1', 'drive1'),
      add('target0', 'full0'),
      add('broken', 'full1'),
      step('blockdev-add', BROKEN),
      transaction([bitmap('add'), bitmap('add', {}, 'drive1')]),
      exported('drive0'),
      writes('write -P 2 0 64k'),
      step('block-export-del', { id: 'x' }, { event: 'BLOCK_EXPORT_DELETED' }),
      exported('drive1'),
      writes('write -P 2 1M 64k'),
      ...['drive0', 'drive1'].map(hash),
      transaction(
        [incremental(0, { 'auto-dismiss': false }), incremental(1, { 'auto-dismiss': false })],
        { until: 'concluded', jobs: BOTH },
        { 'completion-mode': completion },
      ),
      step('query-jobs', {}, { words: true }),
      ...BOTH.map((id) => step('job-dismiss', { id })),
      ...['drive0', 'drive1'].map(hash),
    ],
  };
}

export const partlyFailed = conversation('of two backups one fails, each for itself', () => failing('individual'));

export const togetherFailed = conversation('of two grouped backups one fails, and the other is given up', () =>
  failing('grouped'),
);

export const failedThenAgain = conversation('a backup that failed is done again with its bitmap', () => ({
  prepare: drives,
  steps: [
    SERVER,
    add('drive1', 'drive1'),
    add('broken', 'full1'),
    step('blockdev-add', BROKEN),
    transaction([bitmap('add', {}, 'drive1')]),
    exported('drive1'),
    writes('write -P 2 1M 64k'),
    alone(incremental(1, { 'auto-dismiss': false }), { until: 'concluded' }),
    step('query-jobs', {}, { words: true }),
    step('job-dismiss', { id: 'job1' }),
    hash('drive1'),
    del('target1'),
    step('blockdev-add', { driver: 'raw', 'node-name': 'target1', file: 'broken' }),
    alone(incremental(1)),
    hash('drive1'),
    // Whoever wants it as it was in any case.
    writes('write -P 3 2M 64k'),
    alone(backup(1, { sync: 'bitmap', bitmap: 'bitmap0', 'bitmap-mode': 'never' })),
    hash('drive1'),
    alone(backup(1, { sync: 'bitmap', bitmap: 'bitmap0', 'bitmap-mode': 'always' })),
    hash('drive1'),
    alone(backup(1, { sync: 'bitmap', bitmap: 'bitmap0' }), {}),
    alone(backup(1, { sync: 'full', bitmap: 'bitmap0', 'bitmap-mode': 'always' })),
    alone(backup(1, { sync: 'top', bitmap: 'bitmap0', 'bitmap-mode': 'on-success' })),
    hash('drive1'),
  ],
  after: sameImages(['full1.qcow2']),
}));

/** What the bitmap of an export shows as changed, and how the export reads there. */
function pulls(...places: readonly (readonly [at: number, byte: number])[]): Step {
  return meanwhile(async (directory) => {
    const uri = `nbd+unix:///pull?socket=${directory}/nbd`;
    const map = await peer('nbdinfo', '--json', '--map=qemu:dirty-bitmap:backup0', uri);
    const dirty = (JSON.parse(map) as { offset: number; type: number }[]).filter(({ type }) => type === 1);
    assert.deepEqual(
      dirty.map(({ offset }) => offset),
      places.map(([at]) => at),
    );
    const reads = places.flatMap(([at, byte]) => ['-c', `read -P ${byte} ${at} 64k`]);
    await peer('qemu-io', '-r', '-f', 'raw', ...reads, uri);
  });
}

const scratch: Fields = { driver: 'file', 'node-name': 'scratch-file', filename: '$DIR/scratch' };

/** An empty image over the drive, in which a backup keeps what is overwritten. */
const SCRATCH: readonly Step[] = [
  step(
    'blockdev-create',
    { 'job-id': 'c', options: { driver: 'file', filename: '$DIR/scratch', size: 0 } },
    { until: 'concluded' },
  ),
  step('job-dismiss', { id: 'c' }),
  step('blockdev-add', scratch),
  step(
    'blockdev-create',
    {
      'job-id': 'c',
      options: {
        driver: 'qcow2',
        file: 'scratch-file',
        size: 4 * MIB,
        'backing-file': 'drive0.qcow2',
        'backing-fmt': 'qcow2',
      },
    },
    { until: 'concluded' },
  ),
  step('job-dismiss', { id: 'c' }),
  step('blockdev-add', { driver: 'qcow2', 'node-name': 'scratch', file: 'scratch-file', backing: 'drive0' }),
];

export const pulled = conversation('a client pulls what has changed from a moment that is kept', () => ({
  prepare: drives,
  steps: [
    SERVER,
    add('drive0', 'drive0'),
    exported('drive0'),
    transaction([bitmap('add', { persistent: true })]),
    writes('write -P 2 1M 64k', 'write -P 3 3M 64k'),
    ...SCRATCH,
    transaction([
      { type: 'block-dirty-bitmap-add', data: { node: 'scratch', name: 'backup0', disabled: true } },
      {
        type: 'block-dirty-bitmap-merge',
        data: { node: 'scratch', target: 'backup0', bitmaps: [{ node: 'drive0', name: 'bitmap0' }] },
      },
      backup(0, { target: 'scratch', sync: 'none', 'auto-dismiss': false }),
      { type: 'block-dirty-bitmap-add', data: { node: 'drive0', name: 'bitmap1', persistent: true } },
      bitmap('disable'),
    ]),
    step('block-export-add', {
      ...{ type: 'nbd', id: 'pull', name: 'pull', 'node-name': 'scratch', writable: false, bitmaps: ['backup0'] },
    }),
    step('query-block-jobs'),
    writes('write -P 8 1M 64k', 'write -P 9 2M 64k'),
    pulls([MIB, 2], [3 * MIB, 3]),
    writes('read -P 8 1M 64k'),
    step('block-export-del', { id: 'pull' }, { event: 'BLOCK_EXPORT_DELETED' }),
    step('job-cancel', { id: 'job0' }, { until: 'concluded' }),
    step('query-jobs', {}, { words: true }),
    step('job-dismiss', { id: 'job0' }),
    step('block-dirty-bitmap-remove', { node: 'scratch', name: 'backup0' }),
    del('scratch'),
    del('scratch-file'),
    show,
  ],
  after: sameImages(['drive0.qcow2']),
}));
