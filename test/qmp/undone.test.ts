/** Transactions that fail at each of their actions, and nodes that are reopened half: all is as it was. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MAIN, needs, peer, scratch } from '../harness.ts';
import { alike, type Fields, type Json, Peer } from './conversation.ts';

const WITH = { ...needs('qemu-img', 'qemu-io'), timeout: 120_000 };

async function images(directory: string): Promise<void> {
  for (const name of ['base', 'top', 'other', 'over', 'copy', 'spare']) {
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/${name}.qcow2`, '16M');
  }
  for (const name of ['base', 'top']) {
    await peer('qemu-io', '-f', 'qcow2', '-c', 'write 0 4M', `${directory}/${name}.qcow2`);
  }
}

function node(name: string, backing: Json = null): Fields {
  return { driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename: `$DIR/${name}.qcow2` }, backing };
}

const BITMAP = { node: 'top', name: 'kept' };
const ACTIONS: readonly Fields[] = [
  { type: 'block-dirty-bitmap-add', data: { node: 'top', name: 'made', persistent: true } },
  { type: 'block-dirty-bitmap-clear', data: BITMAP },
  { type: 'block-dirty-bitmap-disable', data: BITMAP },
  { type: 'block-dirty-bitmap-enable', data: BITMAP },
  { type: 'block-dirty-bitmap-merge', data: { node: 'top', target: 'kept', bitmaps: ['made'] } },
  { type: 'blockdev-snapshot-internal-sync', data: { device: 'top', name: 'moment' } },
  { type: 'blockdev-backup', data: { device: 'base', target: 'copy', sync: 'full', 'job-id': 'b' } },
  {
    type: 'drive-backup',
    data: { device: 'other', target: '$DIR/made.qcow2', format: 'qcow2', sync: 'full', 'job-id': 'd' },
  },
  { type: 'block-dirty-bitmap-remove', data: { node: 'top', name: 'gone' } },
  { type: 'blockdev-snapshot', data: { node: 'top', overlay: 'over' } },
  {
    type: 'blockdev-snapshot-sync',
    data: { 'node-name': 'spare', 'snapshot-file': '$DIR/sync.qcow2', 'snapshot-node-name': 'sync' },
  },
];

const OURS = [process.execPath, MAIN, 'qemu-storage-daemon'];

test('a transaction that fails at any of its actions, for any reason, leaves all as it was', WITH, async (t) => {
  const directory = scratch(t);
  await images(directory);
  const ours = await Peer.start(t, directory, OURS, []);
  const must = async (command: string, args: Fields): Promise<void> => {
    assert.deepEqual(await ours.execute(command, args), { return: {} }, `${command} ${JSON.stringify(args)}`);
  };
  const overlay = { driver: 'qcow2', 'node-name': 'over', file: { driver: 'file', filename: '$DIR/over.qcow2' } };
  for (const options of [node('base'), node('top'), node('other'), node('copy'), node('spare')])
    await must('blockdev-add', options);
  await must('blockdev-add', { ...overlay, backing: null });
  for (const name of ['kept', 'gone']) await must('block-dirty-bitmap-add', { node: 'top', name });
  const state = async (): Promise<Json> => {
    const nodes = await ours.execute('query-named-block-nodes', { flat: true });
    const graph = await ours.execute('x-debug-query-block-graph', {});
    return alike([nodes, graph, await ours.execute('query-jobs', {})], directory);
  };
  const before = await state();
  const failing: readonly Fields[] = [
    { type: 'abort', data: {} },
    { type: 'block-dirty-bitmap-add', data: BITMAP },
    { type: 'blockdev-snapshot', data: { node: 'other', overlay: 'other' } },
    { type: 'blockdev-backup', data: { device: 'other', target: 'base', sync: 'full', 'job-id': 'b' } },
    { type: 'drive-backup', data: { device: 'other', target: '$DIR/no/x', sync: 'full', 'job-id': 'e' } },
  ];
  for (const wrong of failing) {
    for (let at = 0; at <= ACTIONS.length; at++) {
      const actions = [...ACTIONS.slice(0, at), wrong, ...ACTIONS.slice(at)];
      const reply = await ours.execute('transaction', { actions });
      const what = `${wrong.type} at ${at}`;
      assert.ok('error' in reply, what);
      assert.deepEqual(await state(), before, `${what}: ${(reply.error as Fields).desc}`);
    }
  }
  // Reopened half: the last one cannot be what is asked.
  for (const bad of [{ ...node('copy'), 'read-only': 'x' }, { ...node('copy'), driver: 'raw' }, node('nowhere')]) {
    const options = [{ ...node('other'), 'read-only': true }, { ...node('spare'), discard: 'unmap' }, bad];
    assert.ok('error' in (await ours.execute('blockdev-reopen', { options } as unknown as Fields)));
    assert.deepEqual(await state(), before);
  }
  await must('transaction', { actions: ACTIONS });
  assert.equal(await ours.quit(), 0);
});
