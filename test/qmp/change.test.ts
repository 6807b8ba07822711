/** Changes of what is there: objects, images, jobs, nodes that go to somebody else for a time. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Daemon } from '../../src/daemon/index.ts';
import { needs, peer, scratch } from '../harness.ts';

async function daemonWith(t: TestContext, names: readonly string[]): Promise<{ daemon: Daemon; directory: string }> {
  const directory = scratch(t);
  const daemon = await Daemon.start();
  t.after(() => daemon.close());
  for (const name of names) {
    const path = join(directory, `${name}.qcow2`);
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, '4M');
    const file = { driver: 'file', filename: path } as const;
    await daemon.run('blockdev-add', { driver: 'qcow2', 'node-name': name, file });
  }
  return { daemon, directory };
}

test('what waits for a throttle group goes on when its limits are taken away', { timeout: 30_000 }, async (t) => {
  await using daemon = await Daemon.start();
  const limits = { 'iops-total': 1 };
  await daemon.run('object-add', { 'qom-type': 'throttle-group', id: 'tg', limits } as never);
  const file = { driver: 'null-co', size: 1 << 20 } as const;
  await daemon.run('blockdev-add', { driver: 'throttle', 'node-name': 'n', 'throttle-group': 'tg', file });
  await daemon.run('blockdev-add', { driver: 'null-co', 'node-name': 'to', size: 1 << 20 });
  const [values] = await daemon.run('qom-list-get', { paths: ['tg'] });
  const shown = values!.properties.find(({ name }) => name === 'x-iops-total');
  assert.deepEqual({ ...shown }, { name: 'x-iops-total', type: 'int', value: 1 });
  const disk = await daemon.nodes.disk('n', { name: 't', writable: false, writethrough: false });
  t.after(() => disk.close());
  const buffer = new Uint8Array(new SharedArrayBuffer(512));
  // At one a second this would be minutes.
  const reads = Array.from({ length: 200 }, () => disk.read(buffer, 0, 512, 0));
  await daemon.run('qom-set', { path: 'tg', property: 'limits', value: { 'iops-total': 0 } });
  await Promise.all(reads);
});

test('what an amend job changes is in the image', needs('qemu-img'), async (t) => {
  const { daemon, directory } = await daemonWith(t, ['top']);
  const events = daemon.watch();
  const options = { driver: 'qcow2', version: 'v2' };
  await daemon.run('x-blockdev-amend', { 'job-id': 'a', 'node-name': 'top', options } as never);
  for await (const one of events) {
    if (one.event === 'JOB_STATUS_CHANGE' && one.data.status === 'concluded') break;
  }
  const [job] = await daemon.run('query-jobs', {});
  assert.equal(job!.error, undefined);
  await daemon.run('job-dismiss', { id: 'a' });
  const info = await peer('qemu-img', 'info', '-U', '--output=json', join(directory, 'top.qcow2'));
  assert.equal(JSON.parse(info)['format-specific'].data.compat, '0.10');
});

test('a mirror becomes write-blocking when it is told to', needs('qemu-img'), async (t) => {
  const { daemon } = await daemonWith(t, ['a', 'b']);
  const events = daemon.watch();
  await daemon.run('blockdev-mirror', { 'job-id': 'm', device: 'a', target: 'b', sync: 'full' });
  for await (const one of events) if (one.event === 'BLOCK_JOB_READY') break;
  const change = (mode: 'background' | 'write-blocking', id = 'm') =>
    daemon.run('block-job-change', { id, type: 'mirror', 'copy-mode': mode });
  await assert.rejects(change('background', 'nope'), /Block job 'nope' not found/);
  await assert.rejects(
    daemon.run('block-job-change', { id: 'm', type: 'commit' } as never),
    /is of type 'mirror', not 'commit'/,
  );
  await change('background');
  await change('write-blocking');
  await change('write-blocking');
  await assert.rejects(change('background'), /cannot become 'background'/);
  await daemon.run('job-complete', { id: 'm' });
});

test(
  "an inactive node is nobody's, and another process may have its image",
  needs('qemu-img', 'qemu-io'),
  async (t) => {
    const { daemon, directory } = await daemonWith(t, ['a', 'b']);
    const path = join(directory, 'a.qcow2');
    const write = (at: string) => peer('qemu-io', '-f', 'qcow2', '-c', `write -P 5 ${at}`, path);
    const activate = (active: boolean) => daemon.run('blockdev-set-active', { 'node-name': 'a', active });
    const nbd = join(directory, 'nbd');
    await daemon.run('nbd-server-start', { addr: { type: 'unix', data: { path: nbd } } });
    const add = () => daemon.run('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'a', writable: true });
    await add();
    await assert.rejects(activate(false), /Could not inactivate node 'a': .* uses it/);
    const remote = `nbd+unix:///a?socket=${nbd}`;
    await peer('qemu-io', '-f', 'raw', '-c', 'write -P 4 0 64k', remote);
    // The server may not know yet that its client has ended.
    const remove = () => daemon.run('block-export-del', { id: 'e', mode: 'hard' });
    await remove();
    await assert.rejects(write('1M 64k'), /lock/);
    await activate(false);
    await activate(false);
    await assert.rejects(add(), /it is inactive/);
    await assert.rejects(daemon.run('blockdev-snapshot-internal-sync', { device: 'a', name: 's' }), /it is inactive/);
    await assert.rejects(
      daemon.run('blockdev-mirror', { 'job-id': 'm', device: 'b', target: 'a', sync: 'full' }),
      /it is inactive/,
    );
    const bitmap = { node: 'a', name: 'x', persistent: true } as const;
    await assert.rejects(daemon.run('block-dirty-bitmap-add', bitmap), /it is inactive/);
    const shown = async () => {
      const nodes = await daemon.run('query-named-block-nodes', { flat: true });
      return nodes.filter((node) => node.active).map((node) => node['node-name']);
    };
    assert.ok(!(await shown()).includes('a'));
    assert.ok((await shown()).includes('b'));
    await peer('qemu-img', 'check', '-q', path);
    await write('1M 1M');
    await activate(true);
    await assert.rejects(write('1M 64k'), /lock/);
    await add();
    const reads = ['read -P 4 0 64k', 'read -P 5 1M 1M', 'write -P 6 3M 64k'].flatMap((one) => ['-c', one]);
    await peer('qemu-io', '-f', 'raw', ...reads, remote);
    await remove();
    // All of them, and one that goes while it is inactive.
    await daemon.run('blockdev-set-active', { active: false });
    assert.deepEqual(await shown(), []);
    await daemon.run('blockdev-del', { 'node-name': 'a' });
    await peer('qemu-io', '-f', 'qcow2', '-c', 'read -P 6 3M 64k', path);
    await daemon.run('blockdev-set-active', { active: true });
    assert.ok((await shown()).includes('b'));
  },
);

test('a node whose image somebody else has stays inactive', needs('qemu-img', 'qemu-storage-daemon'), async (t) => {
  const { daemon, directory } = await daemonWith(t, ['a']);
  await daemon.run('blockdev-set-active', { 'node-name': 'a', active: false });
  const path = join(directory, 'a.qcow2');
  const other = await Daemon.start();
  t.after(() => other.close());
  const tree = { driver: 'qcow2', 'node-name': 'a', file: { driver: 'file', filename: path } };
  await other.run('blockdev-add', tree as never);
  await assert.rejects(daemon.run('blockdev-set-active', { 'node-name': 'a', active: true }), /lock/);
  await other.run('blockdev-del', { 'node-name': 'a' });
  await daemon.run('blockdev-set-active', { 'node-name': 'a', active: true });
});

test('two processes hand an image to each other, and its bitmap with it', needs('qemu-img', 'qemu-io'), async (t) => {
  const { daemon, directory } = await daemonWith(t, ['a']);
  const other = await Daemon.start();
  t.after(() => other.close());
  const path = join(directory, 'a.qcow2');
  await daemon.run('block-dirty-bitmap-add', { node: 'a', name: 'b', persistent: true });
  for (const [i, one] of [daemon, other].entries()) {
    await one.run('nbd-server-start', { addr: { type: 'unix', data: { path: join(directory, `nbd${i}`) } } });
  }
  // The second one has it from the beginning, while the first one writes.
  const file = { driver: 'file', filename: path } as const;
  await other.run('blockdev-add', { driver: 'qcow2', 'node-name': 'a', active: false, file });
  const exported = { type: 'nbd', id: 'e', 'node-name': 'a', writable: true } as const;
  await assert.rejects(other.run('block-export-add', exported), /it is inactive/);
  await assert.rejects(other.run('blockdev-set-active', { 'node-name': 'a', active: true }), /lock/);
  const use = async (i: number, ...commands: string[]): Promise<void> => {
    const one = i === 0 ? daemon : other;
    await one.run('block-export-add', exported);
    const words = commands.flatMap((command) => ['-c', command]);
    await peer('qemu-io', '-f', 'raw', ...words, `nbd+unix:///a?socket=${join(directory, `nbd${i}`)}`);
    // The server may not know yet that its client has ended.
    await one.run('block-export-del', { id: 'e', mode: 'hard' });
  };
  const hand = async (from: typeof daemon, to: typeof daemon): Promise<void> => {
    await from.run('blockdev-set-active', { 'node-name': 'a', active: false });
    await to.run('blockdev-set-active', { 'node-name': 'a', active: true });
  };
  const dirty = async (one: typeof daemon): Promise<unknown[]> => {
    const nodes = await one.run('query-named-block-nodes', { flat: true });
    const bitmaps = nodes.find((node) => node['node-name'] === 'a')!['dirty-bitmaps'] ?? [];
    return bitmaps.map(({ name, count, recording, inconsistent }) => ({ name, count, recording, inconsistent }));
  };
  const bitmap = (count: number) => [{ name: 'b', count, recording: true, inconsistent: undefined }];
  await use(0, 'write -P 1 0 64k');
  await hand(daemon, other);
  assert.deepEqual([await dirty(daemon), await dirty(other)], [[], bitmap(65_536)]);
  await use(1, 'read -P 1 0 64k', 'write -P 2 1M 64k');
  await hand(other, daemon);
  assert.deepEqual([await dirty(daemon), await dirty(other)], [bitmap(131_072), []]);
  await use(0, 'read -P 1 0 64k', 'read -P 2 1M 64k', 'write -P 3 2M 64k');
  // One that is longer when it comes back.
  await hand(daemon, other);
  await other.run('block_resize', { 'node-name': 'a', size: 32 * 1024 * 1024 });
  await hand(other, daemon);
  await use(0, 'write -P 4 31M 64k');
  // It goes while another has it, and leaves it alone.
  await hand(daemon, other);
  await daemon.run('blockdev-del', { 'node-name': 'a' });
  await use(1, 'read -P 3 2M 64k', 'read -P 4 31M 64k');
  assert.ok((await dirty(other)).length === 1);
  await other.run('blockdev-del', { 'node-name': 'a' });
  await peer('qemu-img', 'check', '-q', path);
  assert.match(await peer('qemu-img', 'info', path), /name: b/);
});
