import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { needs, peer } from '../harness.ts';
import { type Fields, pair } from './conversation.ts';
import { images } from './images.ts';

const WITH = needs('qemu-storage-daemon', 'qemu-img', 'qemu-io');

function node(name: string, backing?: Fields): Fields {
  const file = { driver: 'file', filename: `$DIR/${name}.qcow2` };
  return { driver: 'qcow2', 'node-name': name, file, ...(backing === undefined ? {} : { backing }) };
}

/** Two files that are images of the same disk, one in each directory. */
async function assertSame(ours: string, theirs: string): Promise<void> {
  await peer('qemu-img', 'compare', '-q', ours, theirs);
}

test('who uses the disk goes on with the target of a drive-mirror', WITH, async (t) => {
  const sock = { type: 'unix', data: { path: '$DIR/nbd' } };
  const { theirs, ours } = await pair(t, [], images);
  const directory = [theirs.directory, ours.directory];
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
