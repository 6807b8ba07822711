/** What an operator does to read a moment of a disk that is in use. */
import assert from 'node:assert/strict';
import { run } from '../../harness.ts';
import { conversation, type Fields, meanwhile, step } from '../conversation.ts';
import { client, images, SERVER } from '../images.ts';

const add = (options: Fields, how = {}) => step('blockdev-add', options, how);
const file = (name: string): Fields => ({ driver: 'file', filename: `$DIR/${name}` });
const throttle = (over: string): Fields => ({
  driver: 'throttle',
  'node-name': 't',
  'throttle-group': 'g',
  file: over,
});
const reopen = (over: string, how = {}) => step('blockdev-reopen', { options: [throttle(over)] }, how);
const exported = (id: string, node: string, writable: boolean, how = {}) =>
  step('block-export-add', { type: 'nbd', id, 'node-name': node, name: id, writable }, how);
/** The server may not know yet that its clients have ended. */
const unexported = (id: string) => step('block-export-del', { id, mode: 'hard' }, { event: 'BLOCK_EXPORT_DELETED' });
const del = (name: string, how = {}) => step('blockdev-del', { 'node-name': name }, how);

function reads(...commands: string[]): (directory: string) => Promise<void> {
  const steps = commands.flatMap((one) => ['-c', one]);
  return async (directory) => {
    const args = ['-r', '-f', 'raw', ...steps, `nbd+unix:///old?socket=${directory}/nbd`];
    const { code, stdout } = await run('qemu-io', args);
    assert.equal(code, 0, stdout);
  };
}

export const fleecing = conversation('a moment of a disk is read while the disk is written to', () => ({
  prepare: images,
  steps: [
    SERVER,
    step('object-add', { 'qom-type': 'throttle-group', id: 'g' }),
    add({ driver: 'qcow2', 'node-name': 'top', file: file('top.qcow2'), backing: null }),
    add({ driver: 'qcow2', 'node-name': 'keep', file: file('there.qcow2') }),
    add(throttle('top')),
    exported('x', 't', true),
    exported('past', 'top', true),
    meanwhile(client('write -P 1 0 64k', 'write -P 2 1M 64k')),
    add({ driver: 'copy-before-write', 'node-name': 'cbw', file: 'top', target: 'keep' }),
    // It would not be kept what is written past the filter.
    reopen('cbw', { words: true }),
    unexported('past'),
    reopen('cbw'),
    exported('past', 'top', true, { words: true }),
    add({ driver: 'snapshot-access', 'node-name': 'sa', file: 'cbw' }),
    exported('old', 'sa', false),
    meanwhile(client('write -P 8 0 64k', 'write -P 9 2M 64k')),
    meanwhile(reads('read -P 1 0 64k', 'read -P 2 1M 64k', 'read -P 1 2M 1M')),
    meanwhile(client('read -P 8 0 64k', 'read -P 9 2M 64k')),
    step('query-block-exports'),
    del('cbw', { words: true }),
    unexported('old'),
    del('sa'),
    reopen('top'),
    del('cbw'),
    del('keep'),
    exported('past', 'top', true),
  ],
  after: async (ours, theirs) => {
    for (const name of ['top.qcow2', 'there.qcow2']) {
      const { code, stdout } = await run('qemu-img', ['compare', '-U', `${ours}/${name}`, `${theirs}/${name}`]);
      assert.equal(code, 0, stdout);
    }
  },
}));
