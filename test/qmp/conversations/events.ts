/** What a daemon tells of by itself while somebody uses its exports. */
import assert from 'node:assert/strict';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { peer, run } from '../../harness.ts';
import { conversation, type Fields, meanwhile, step } from '../conversation.ts';
import { client, SERVER } from '../images.ts';

async function image(directory: string): Promise<void> {
  for (const name of ['a', 'b']) await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/${name}`, '4M');
  await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 1M', `${directory}/a`);
}

function node(name: string, more: Fields = {}): Fields {
  return { driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename: `$DIR/${name}` }, ...more };
}

export const writeThresholds = conversation('a write beyond the threshold of a node', () => {
  const threshold = (bytes: number) =>
    step('block-set-write-threshold', { 'node-name': 'a', 'write-threshold': bytes });
  const crossed = { event: 'BLOCK_WRITE_THRESHOLD' };
  const shown = step('query-named-block-nodes', { flat: true });
  return {
    prepare: image,
    steps: [
      SERVER,
      step('blockdev-add', node('a')),
      step('block-export-add', { type: 'nbd', id: 'x', 'node-name': 'a', name: 'x', writable: true }),
      threshold(65536),
      meanwhile(client('write 0 64k')),
      shown,
      meanwhile(client('write 64k 64k', 'write 128k 64k'), crossed),
      // It has been told of once.
      shown,
      meanwhile(client('write 256k 64k')),
      threshold(1048576),
      threshold(2097152),
      meanwhile(client('write -z 1M 1536k'), crossed),
      threshold(3145728),
      threshold(0),
      meanwhile(client('write 3M 64k')),
    ],
  };
});

export const jobErrors = conversation('what a job fails at', () => {
  const broken: Fields = {
    ...{ driver: 'blkdebug', 'node-name': 'broken', image: 'a' },
    'inject-error': [{ event: 'none', iotype: 'read', errno: 5, once: true, sector: 512 }],
  };
  const backup = (policy: string, how = {}) =>
    step(
      'blockdev-mirror',
      {
        ...{ 'job-id': 'j', device: 'broken', target: 'b', sync: 'full', 'on-source-error': policy },
        ...{ 'auto-dismiss': false, granularity: 65536, 'buf-size': 65536 },
      },
      how,
    );
  const again = [step('blockdev-add', broken), step('query-jobs')];
  return {
    prepare: image,
    steps: [
      step('blockdev-add', node('a')),
      step('blockdev-add', node('b')),
      step('blockdev-add', broken),
      backup('report', { until: 'concluded' }),
      step('query-jobs', {}, { words: true }),
      step('job-dismiss', { id: 'j' }),
      step('blockdev-del', { 'node-name': 'broken' }),
      ...again,
      backup('ignore', { event: 'BLOCK_JOB_READY' }),
      step('job-cancel', { id: 'j' }, { until: 'concluded' }),
      step('job-dismiss', { id: 'j' }),
      step('blockdev-del', { 'node-name': 'broken' }),
      ...again,
      backup('stop', { until: 'paused' }),
      step('query-block-jobs'),
      step('job-resume', { id: 'j' }, { event: 'BLOCK_JOB_READY' }),
      step('job-complete', { id: 'j' }, { until: 'concluded' }),
      step('job-dismiss', { id: 'j' }),
    ],
  };
});

/** The first cluster is said to be where no cluster can be. */
function misplace(path: string): void {
  const file = openSync(path, 'r+');
  const word = Buffer.alloc(8);
  const read = (at: number): number => {
    readSync(file, word, 0, 8, at);
    // The flags are in the two bytes before.
    return word.readUIntBE(2, 6);
  };
  const entry = read(read(40));
  word.writeUInt32BE(0x80000000);
  word.writeUInt32BE(0x50200, 4);
  writeSync(file, word, 0, 8, entry);
  closeSync(file);
}

export const damagedImages = conversation('an image that is found damaged', () => {
  const refused = async (directory: string): Promise<void> => {
    const { code } = await run('qemu-io', [
      '-r',
      '-f',
      'raw',
      '-c',
      'read 0 4k',
      `nbd+unix:///x?socket=${directory}/nbd`,
    ]);
    assert.notEqual(code, 0);
  };
  const told = { event: 'BLOCK_IMAGE_CORRUPTED' };
  const entry = { type: 'nbd', id: 'x', name: 'x' };
  return {
    prepare: async (directory) => {
      await image(directory);
      misplace(`${directory}/a`);
    },
    steps: [
      SERVER,
      step('blockdev-add', node('a', { 'read-only': true })),
      step('block-export-add', { ...entry, 'node-name': 'a' }),
      meanwhile(refused, told),
      meanwhile(refused),
      // The server may not know yet that its client has ended.
      step('block-export-del', { id: 'x', mode: 'hard' }, { event: 'BLOCK_EXPORT_DELETED' }),
      step('blockdev-del', { 'node-name': 'a' }),
      step('blockdev-add', node('a')),
      step('block-export-add', { ...entry, 'node-name': 'a', writable: true }),
      meanwhile(refused, told),
      meanwhile(refused),
    ],
  };
});
