import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { needs, peer } from '../harness.ts';
import { converse, type Fields, pair, type Step, step } from './conversation.ts';

const WITH = needs('qemu-storage-daemon', 'qemu-img', 'qemu-io');

/** base <- top, each with a MiB of its own; targets that are there. */
async function images(directory: string): Promise<void> {
  const create = (...args: string[]) => peer('qemu-img', 'create', '-q', '-f', 'qcow2', ...args);
  const write = (name: string, at: string) =>
    peer('qemu-io', '-f', 'qcow2', '-c', `write -P 1 ${at} 1M`, `${directory}/${name}.qcow2`);
  await create(`${directory}/base.qcow2`, '4M');
  await write('base', '0');
  await create('-b', `${directory}/base.qcow2`, '-F', 'qcow2', `${directory}/top.qcow2`);
  await write('top', '2M');
  await create(`${directory}/there.qcow2`, '4M');
  await create('-b', 'base.qcow2', '-F', 'qcow2', `${directory}/over.qcow2`);
  await create(`${directory}/small.qcow2`, '2M');
}

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

/** Two files that are images of the same disk, one in each directory. */
async function assertSame(ours: string, theirs: string): Promise<void> {
  await peer('qemu-img', 'compare', '-q', ours, theirs);
}

/** A conversation, after which what it has made is looked at. */
async function made(t: TestContext, steps: readonly Step[], names: readonly string[]): Promise<void> {
  const { theirs, ours } = await pair(t, [], images);
  for (const one of steps) {
    const from = [theirs, ours].map(({ events }) => events.length);
    const replies = await Promise.all([theirs, ours].map((each) => each.execute(one.command, one.args)));
    assert.deepEqual(replies[1], replies[0], JSON.stringify(one));
    const { until } = one;
    if (until === undefined) continue;
    const told = (event: Fields): boolean => (event.data as Fields).status === until;
    await Promise.all([theirs.told(from[0]!, told), ours.told(from[1]!, told)]);
  }
  assert.deepEqual(await Promise.all([ours.quit(), theirs.quit()]), [0, 0]);
  const info = async (directory: string, name: string): Promise<unknown> => {
    const text = await peer('qemu-img', 'info', '--output=json', `${directory}/${name}`);
    const { 'virtual-size': size, format, 'backing-filename': below } = JSON.parse(text) as Record<string, string>;
    return [size, format, below?.replace(directory, '')];
  };
  for (const name of names) {
    assert.deepEqual(await info(ours.directory, name), await info(theirs.directory, name), name);
    await assertSame(`${ours.directory}/${name}`, `${theirs.directory}/${name}`);
  }
}

test('drive-mirror makes, opens and leaves its target as qemu-storage-daemon does', WITH, async (t) => {
  const mirror = drive('drive-mirror');
  await converse(
    t,
    [
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
    [],
    images,
  );
});

test('what drive-mirror leaves is what qemu-storage-daemon leaves', WITH, async (t) => {
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
  await made(t, steps, ['full', 'raw', 'thin', 'none', 'there.qcow2', 'over.qcow2']);
});

test('who uses the disk goes on with the target of a drive-mirror', WITH, async (t) => {
  const directory: string[] = [];
  const sock = { type: 'unix', data: { path: '$DIR/nbd' } };
  const { theirs, ours } = await pair(t, [], async (at) => {
    directory.push(at);
    await images(at);
  });
  const run = async (command: string, args: Fields): Promise<void> => {
    for (const each of [theirs, ours]) assert.deepEqual(await each.execute(command, args), { return: {} }, command);
  };
  const told = (from: readonly number[], status: string) =>
    Promise.all([theirs, ours].map((each, i) => each.told(from[i]!, ({ data }) => (data as Fields).status === status)));
  const count = (): number[] => [theirs, ours].map(({ events }) => events.length);
  await run('blockdev-add', node('top', node('base')));
  await run('nbd-server-start', { addr: sock });
  await run('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'top', name: 'x', writable: true });
  const nbd = (at: string): string => `nbd+unix:///x?socket=${at}/nbd`;
  for (const sync of ['none', 'top', 'full']) {
    const device = { none: 'top', top: 'n-none', full: 'n-top' }[sync]!;
    const from = count();
    const target = { target: `$DIR/${sync}`, 'node-name': `n-${sync}`, sync };
    await run('drive-mirror', { 'job-id': 'j', device, ...target });
    await told(from, 'ready');
    for (const at of directory) await peer('qemu-io', '-f', 'raw', '-c', `write -P 9 3M 64k`, nbd(at));
    await run('job-complete', { id: 'j' });
    await told(from, 'null');
    for (const at of directory) await peer('qemu-io', '-f', 'raw', '-c', `write -P 8 1M 64k`, nbd(at));
    const check = ['read -P 9 3M 64k', 'read -P 8 1M 64k', 'read -P 1 0 64k', 'read -P 1 2M 64k'];
    for (const at of directory) await peer('qemu-io', '-f', 'raw', ...check.flatMap((one) => ['-c', one]), nbd(at));
  }
  assert.deepEqual(await Promise.all([ours.quit(), theirs.quit()]), [0, 0]);
  for (const name of ['none', 'top', 'full']) {
    await assertSame(`${directory[0]}/${name}`, `${directory[1]}/${name}`);
    await peer('qemu-img', 'check', '-q', `${directory[1]}/${name}`);
  }
});

test('drive-backup makes, opens and leaves its target as qemu-storage-daemon does', WITH, async (t) => {
  const backup = drive('drive-backup');
  const bitmap = step('block-dirty-bitmap-add', { node: 'top', name: 'b' });
  const action = (more: Fields): Fields => ({
    type: 'drive-backup',
    data: { 'job-id': 'j', device: 'top', sync: 'full', target: '$DIR/new', ...more },
  });
  await converse(
    t,
    [
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
    [],
    images,
  );
});

test('what drive-backup leaves is what qemu-storage-daemon leaves', WITH, async (t) => {
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
  await made(t, steps, ['full', 'raw', 'again', 'through', 'small', 'thin', 'there.qcow2', 'over.qcow2', 'none']);
});

test('a target that holds what looks like an image is not taken for one by guess', WITH, async (t) => {
  const { ours } = await pair(t, [], images);
  await ours.execute('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 65536 });
  const path = `${ours.directory}/plain`;
  writeFileSync(path, readFileSync(`${ours.directory}/there.qcow2`));
  const reply = await ours.execute('drive-backup', {
    ...{ 'job-id': 'j', device: 'n', sync: 'full', target: path, mode: 'existing' },
  });
  assert.match(JSON.stringify(reply), /it looks like a qcow2 image/);
  assert.ok(existsSync(path));
});
