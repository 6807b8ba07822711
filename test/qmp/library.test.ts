/** The daemon in a program, and the client of monitors. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Daemon, type NamedNode, QmpClient, QmpError } from '../../src/daemon/index.ts';
import { connected } from '../daemon-process.ts';
import { MAIN, needs, peer, scratch } from '../harness.ts';

test('a program adds nodes, exports them and watches jobs by typed calls', needs('qemu-img', 'qemu-io'), async (t) => {
  const directory = scratch(t);
  for (const name of ['a', 'b'])
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/${name}.qcow2`, '4M');
  await using daemon = await Daemon.start();
  const node = (name: string): NamedNode => ({
    ...{ driver: 'qcow2', 'node-name': name },
    file: { driver: 'file', filename: `${directory}/${name}.qcow2` },
  });
  await daemon.run('blockdev-add', node('a'));
  await daemon.run('blockdev-add', node('b'));
  const path = join(directory, 'nbd');
  await daemon.run('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  await daemon.run('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'a', writable: true });
  await peer('qemu-io', '-f', 'raw', '-c', 'write -P 7 0 1M', `nbd+unix:///a?socket=${path}`);
  const events = daemon.watch();
  await daemon.run('blockdev-backup', { 'job-id': 'k', device: 'a', target: 'b', sync: 'full' });
  const seen: string[] = [];
  for await (const one of events) {
    if (one.event === 'JOB_STATUS_CHANGE') seen.push(one.data.status);
    if (one.event === 'JOB_STATUS_CHANGE' && one.data.status === 'null') break;
  }
  assert.deepEqual(
    seen.filter((status) => status !== 'paused' && status !== 'running'),
    ['created', 'waiting', 'pending', 'concluded', 'null'],
  );
  await assert.rejects(daemon.run('blockdev-del', { 'node-name': 'a' }), new QmpError('Node a is in use'));
  // A job that is taken back before it has begun leaves nothing behind.
  const data = { 'job-id': 'k', device: 'a', target: 'b', sync: 'full', 'auto-dismiss': false } as const;
  const actions = [{ type: 'blockdev-backup', data } as const, { type: 'abort', data: {} } as const];
  await assert.rejects(daemon.run('transaction', { actions }), /Transaction aborted using Abort action/);
  assert.deepEqual(await daemon.run('query-jobs', {}), []);
  // The server may not know yet that its client has ended.
  await daemon.run('block-export-del', { id: 'e', mode: 'hard' });
  for (const name of ['a', 'b']) await daemon.run('blockdev-del', { 'node-name': name });
  await peer('qemu-img', 'compare', `${directory}/a.qcow2`, `${directory}/b.qcow2`);
});

test('a node goes to the thread that its export asks for, and back', needs('qemu-img', 'qemu-io'), async (t) => {
  const directory = scratch(t);
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/a.qcow2`, '4M');
  await using daemon = await Daemon.start();
  await daemon.run('object-add', { 'qom-type': 'iothread', id: 'io1' });
  await daemon.run('blockdev-add', { driver: 'file', 'node-name': 'f', filename: `${directory}/a.qcow2` });
  await daemon.run('blockdev-add', { driver: 'qcow2', 'node-name': 'a', file: 'f' });
  const path = join(directory, 'nbd');
  await daemon.run('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  const entry = { type: 'nbd', id: 'e', 'node-name': 'a', writable: true, iothread: 'io1' } as const;
  await assert.rejects(
    daemon.run('block-export-add', { ...entry, iothread: 'nowhere' }),
    /iothread "nowhere" not found/,
  );
  await daemon.run('block-export-add', entry);
  assert.equal(daemon.nodes.find('a')?.name, 'io1');
  await peer('qemu-io', '-f', 'raw', '-c', 'write -P 7 0 1M', '-c', 'read -P 7 0 1M', `nbd+unix:///a?socket=${path}`);
  await assert.rejects(daemon.run('object-del', { id: 'io1' }), /in use/);
  await assert.rejects(daemon.run('x-blockdev-set-iothread', { 'node-name': 'a', iothread: null }), /in use/);
  // The server may not know yet that its client has ended.
  await daemon.run('block-export-del', { id: 'e', mode: 'hard' });
  await daemon.run('x-blockdev-set-iothread', { 'node-name': 'a', iothread: null });
  assert.equal(daemon.nodes.find('a')?.name, 'main-loop');
  await daemon.run('object-del', { id: 'io1' });
});

async function drive(t: TestContext, command: readonly string[]): Promise<void> {
  const path = join(scratch(t), 'qmp');
  const [program, ...first] = command;
  const chardev = ['--chardev', `socket,id=c,path=${path},server=on,wait=off`, '--monitor', 'c'];
  const child = spawn(program!, [...first, ...chardev], { stdio: 'ignore' });
  t.after(() => child.kill('SIGKILL'));
  await using qmp = await connected(path);
  assert.ok(qmp.version.qemu.major >= 7);
  await qmp.execute('blockdev-add', { driver: 'null-co', 'node-name': 'n0', size: 1048576 });
  const nodes = await qmp.execute('query-named-block-nodes', { flat: true });
  assert.deepEqual(
    nodes.map((node) => [node['node-name'], node.image['virtual-size']]),
    [['n0', 1048576]],
  );
  await assert.rejects(qmp.execute('blockdev-del', { 'node-name': 'x' }), (error) => {
    return error instanceof QmpError && error.errorClass === 'GenericError' && /node-name='x'/.test(error.message);
  });
  const schema = await qmp.execute('query-qmp-schema', {});
  assert.ok(schema.length > 100);
  const events = qmp.events();
  await qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path: `${path}.nbd` } } });
  await qmp.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'n0' });
  await qmp.execute('block-export-del', { id: 'e' });
  const { value } = await events.next();
  assert.deepEqual([value.event, { ...value.data }], ['BLOCK_EXPORT_DELETED', { id: 'e' }]);
  await qmp.execute('quit', {});
  assert.equal((await events.next()).done, true);
}

test('a server asks its clients for the key of its credentials', needs('qemu-img'), async (t) => {
  const directory = scratch(t);
  writeFileSync(join(directory, 'keys.psk'), 'qemu:0102030405060708090a0b0c0d0e0f10\n');
  await using daemon = await Daemon.start();
  await daemon.run('object-add', { 'qom-type': 'tls-creds-psk', id: 't', dir: directory, endpoint: 'server' });
  await daemon.run('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 1048576 });
  const addr = { type: 'inet', data: { host: '127.0.0.1', port: '0' } } as const;
  await assert.rejects(daemon.run('nbd-server-start', { addr, 'tls-creds': 'nowhere' }), /'nowhere'/);
  const unix = { type: 'unix', data: { path: join(directory, 'nbd') } } as const;
  await daemon.run('nbd-server-start', { addr: unix, 'tls-creds': 't' });
  await daemon.run('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'n' });
  const image = `driver=nbd,server.type=unix,server.path=${directory}/nbd,export=n`;
  const object = `tls-creds-psk,id=c,dir=${directory},endpoint=client,username=qemu`;
  await peer('qemu-img', 'info', '--object', object, '--image-opts', `${image},tls-creds=c,tls-hostname=x`);
  await assert.rejects(peer('qemu-img', 'info', '--image-opts', image));
});

test('clients of one monitor take turns', { timeout: 60_000 }, async (t) => {
  const path = join(scratch(t), 'qmp');
  await using daemon = await Daemon.start();
  const addr = { type: 'unix', data: { path } } as const;
  await daemon.run('chardev-add', { id: 'c', backend: { type: 'socket', data: { addr, server: true } } });
  daemon.addMonitor('c');
  const first = await QmpClient.connect({ path });
  const turns: string[] = [];
  const second = QmpClient.connect({ path }).then((client) => {
    turns.push('second');
    return client;
  });
  await first.execute('query-version', {});
  turns.push('first');
  first.close();
  await (await second).execute('query-version', {});
  assert.deepEqual(turns, ['first', 'second']);
  (await second).close();
});

test('the client drives our daemon', { timeout: 60_000 }, (t) =>
  drive(t, [process.execPath, MAIN, 'qemu-storage-daemon']),
);

test('the client drives qemu-storage-daemon', needs('qemu-storage-daemon'), (t) =>
  drive(t, ['/usr/bin/qemu-storage-daemon']),
);
