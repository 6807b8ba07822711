/** Clients that others have made. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon } from '../../src/daemon/index.ts';
import { needs, peer, scratch } from '../harness.ts';

/** As far as it is used here. */
interface NodeQemuClient {
  connect(): Promise<void>;
  execute(command: string, args?: object): Promise<unknown>;
  queryNamedBlockNodes(): Promise<readonly { readonly 'node-name': string }[]>;
  blockdevBackup(options: object): Promise<void>;
  transaction(actions: readonly object[]): Promise<void>;
  queryJobs(): Promise<readonly unknown[]>;
  qomGet(path: string, property: string): Promise<unknown>;
  queryQmpSchema(): Promise<readonly unknown[]>;
  close(): Promise<void>;
  on(name: string, listener: (event: { readonly data?: { readonly status?: string } }) => void): void;
}

/** Not a literal: where it is not installed there is nothing to compile against. */
const NAME: string = 'node-qemu';
const nodeQemu = (await import(NAME).catch(() => undefined)) as
  | { readonly QMPClient: new (options: { readonly socketPath: string }) => NodeQemuClient }
  | undefined;

const WITH = nodeQemu ? needs('qemu-img') : { skip: `${NAME} is not installed`, timeout: 60_000 };

test('node-qemu drives the monitor', WITH, async (t) => {
  const directory = scratch(t);
  const path = join(directory, 'qmp');
  await using daemon = await Daemon.start();
  const addr = { type: 'unix', data: { path } } as const;
  await daemon.run('chardev-add', { id: 'c', backend: { type: 'socket', data: { addr, server: true } } });
  daemon.addMonitor('c');
  const client = new nodeQemu!.QMPClient({ socketPath: path });
  await client.connect();
  for (const name of ['a', 'b']) {
    const filename = join(directory, `${name}.qcow2`);
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', filename, '4M');
    const file = { driver: 'file', filename };
    await client.execute('blockdev-add', { driver: 'qcow2', 'node-name': name, file });
  }
  const nodes = await client.queryNamedBlockNodes();
  assert.ok(['a', 'b'].every((name) => nodes.some((node) => node['node-name'] === name)));
  await assert.rejects(client.execute('blockdev-add', { driver: 'null-co', 'node-name': 'a' }), /Duplicate nodes/);
  await client.transaction([{ type: 'block-dirty-bitmap-add', data: { node: 'a', name: 'm' } }]);
  const done = new Promise<void>((resolve) => {
    client.on('JOB_STATUS_CHANGE', (event) => {
      if (JSON.stringify(event).includes('"null"')) resolve();
    });
  });
  await client.blockdevBackup({ 'job-id': 'k', device: 'a', target: 'b', sync: 'full' });
  await done;
  assert.deepEqual(await client.queryJobs(), []);
  await client.execute('object-add', { 'qom-type': 'iothread', id: 'io' });
  assert.equal(await client.qomGet('/objects/io', 'type'), 'iothread');
  assert.ok((await client.queryQmpSchema()).length > 300);
  await client.close();
});
