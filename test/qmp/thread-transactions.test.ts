/** Transactions over nodes in several IOThreads: of one moment, all or nothing, and their jobs too. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Daemon } from '../../src/daemon/index.ts';
import { open } from '../../src/index.ts';
import { scratch } from '../harness.ts';

const MIB = 1 << 20;
const SIZE = 4 * MIB;
const DISKS = ['a', 'b'] as const;

interface World {
  readonly daemon: Daemon;
  readonly path: (name: string) => string;
  readonly uri: (disk: string) => string;
  /** What has come to be of jobs: `id status`, in order. */
  readonly told: string[];
  /** Resolves when somebody has been told so. */
  readonly until: (what: string) => Promise<void>;
}

/** Two disks, each with a target, in a thread of its own, and shown by NBD. */
async function world(t: TestContext): Promise<World> {
  const directory = scratch(t);
  const path = (name: string) => join(directory, name);
  const daemon = await Daemon.start();
  t.after(() => daemon.close().catch(() => undefined));
  await daemon.run('nbd-server-start', { addr: { type: 'unix', data: { path: path('nbd') } } });
  for (const [i, disk] of DISKS.entries()) {
    await daemon.run('object-add', { 'qom-type': 'iothread', id: `io${i}` });
    for (const name of [disk, `${disk}-target`]) {
      writeFileSync(path(name), Buffer.alloc(SIZE, name === disk ? i + 1 : 0));
      const file = { driver: 'file', filename: path(name) } as const;
      await daemon.run('blockdev-add', { driver: 'raw', 'node-name': name, file });
      await daemon.run('x-blockdev-set-iothread', { 'node-name': name, iothread: `io${i}` });
    }
    await daemon.run('block-export-add', { type: 'nbd', id: disk, 'node-name': disk, writable: true });
  }
  assert.notEqual(daemon.nodes.find('a'), daemon.nodes.find('b'));
  return { daemon, path, uri: (disk) => `nbd+unix:///${disk}?socket=${path('nbd')}`, ...listening(daemon) };
}

function listening(daemon: Daemon): Pick<World, 'told' | 'until'> {
  const told: string[] = [];
  const events = daemon.watch();
  let wake = (): void => undefined;
  void (async () => {
    for await (const { event, data } of events) {
      if (event !== 'JOB_STATUS_CHANGE') continue;
      const { id, status } = data as { id: string; status: string };
      told.push(`${id} ${status}`);
      wake();
    }
  })();
  const until = async (what: string): Promise<void> => {
    while (!told.includes(what)) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  };
  return { told, until };
}

function backup(disk: string, more: object = {}) {
  const data = { 'job-id': `j${disk}`, device: disk, target: `${disk}-target`, sync: 'full', ...more };
  return { type: 'blockdev-backup', data } as never;
}

const GROUPED = { 'completion-mode': 'grouped' } as const;

test('backups of one transaction over two threads are of one moment', { timeout: 60_000 }, async (t) => {
  const { daemon, path, uri, until, told } = await world(t);
  const disks = await Promise.all(DISKS.map((disk) => open(uri(disk), { format: 'raw' })));
  // A guest that writes a number to one disk, and only then to the other.
  const buffer = new Uint8Array(512);
  const view = new DataView(buffer.buffer);
  let going = true;
  let count = 0;
  const write = async (): Promise<void> => {
    view.setUint32(0, ++count);
    for (const disk of disks) await disk.write(buffer, 0, 512, 0);
  };
  await write();
  const guest = (async () => {
    while (going) await write();
  })();
  for (let round = 0; round < 10; round++) {
    told.length = 0;
    await daemon.run('transaction', { actions: DISKS.map((disk) => backup(disk)), properties: GROUPED });
    for (const disk of DISKS) await until(`j${disk} null`);
    const [first, second] = DISKS.map((disk) => readFileSync(path(`${disk}-target`)).readUInt32BE(0));
    assert.ok(first === second! || first === second! + 1, `${first} and ${second} of ${count}`);
  }
  going = false;
  await guest;
  for (const disk of disks) await disk.close();
});

test('a target in another thread comes to where its source is', { timeout: 60_000 }, async (t) => {
  const { daemon, until } = await world(t);
  await daemon.run('x-blockdev-set-iothread', { 'node-name': 'a-target', iothread: 'io1' });
  const actions = [backup('a'), backup('b')];
  await daemon.run('transaction', { actions, properties: GROUPED });
  for (const disk of DISKS) await until(`j${disk} null`);
  assert.equal(daemon.nodes.find('a-target'), daemon.nodes.find('a'));
  // Whatever uses it goes along, but for a job.
  await daemon.run('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'b-target', writable: true });
  await daemon.run('blockdev-backup', { 'job-id': 'm', device: 'a', target: 'b-target', sync: 'full', speed: 1 });
  assert.equal(daemon.nodes.find('b-target'), daemon.nodes.find('a'));
  await assert.rejects(
    daemon.run('blockdev-mirror', { 'job-id': 'n', device: 'b', target: 'a', sync: 'full' }),
    /Could not move 'a'.*: job 'm' uses node/,
  );
  await daemon.run('job-cancel', { id: 'm' });
  await until('m null');
});

test('what one thread cannot do happens in none', { timeout: 60_000 }, async (t) => {
  const { daemon, told } = await world(t);
  const bitmap = (node: string, name = 'x') => ({ type: 'block-dirty-bitmap-add', data: { node, name } }) as never;
  const names = async (): Promise<string[]> =>
    (await daemon.run('query-named-block-nodes', {})).flatMap((node) =>
      (node['dirty-bitmaps'] ?? []).map(({ name }) => `${node['node-name']} ${name}`),
    );
  await daemon.run('transaction', { actions: [bitmap('a'), bitmap('b'), bitmap('a', 'y')] });
  assert.deepEqual((await names()).sort(), ['a x', 'a y', 'b x']);
  const later = [bitmap('a', 'z'), backup('a'), bitmap('b', 'z'), backup('b')];
  for (const last of [{ type: 'abort', data: {} } as never, backup('a', { 'job-id': 'twice', target: 'a' })]) {
    for (const properties of [GROUPED, {}]) {
      await assert.rejects(daemon.run('transaction', { actions: [...later, last], properties }));
    }
  }
  assert.deepEqual((await names()).sort(), ['a x', 'a y', 'b x']);
  assert.deepEqual([told, await daemon.run('query-jobs', {})], [[], []]);
  // Nothing is drained or held any more.
  await daemon.run('transaction', { actions: later });
});

test('grouped jobs of two threads wait for each other, and for who finalizes', { timeout: 60_000 }, async (t) => {
  const { daemon, told, until } = await world(t);
  const actions = [backup('a'), backup('b', { 'auto-finalize': false, 'auto-dismiss': false })];
  await daemon.run('transaction', { actions, properties: GROUPED });
  for (const disk of DISKS) await until(`j${disk} pending`);
  assert.ok(!told.includes('ja concluded'));
  await daemon.run('job-finalize', { id: 'ja' });
  await until('ja null');
  await until('jb concluded');
  const [job] = await daemon.run('query-jobs', {});
  assert.deepEqual([job!.id, job!.error], ['jb', undefined]);
  await daemon.run('job-dismiss', { id: 'jb' });
});

test('where a job of one thread fails or is cancelled, that of the other is given up', {
  timeout: 60_000,
}, async (t) => {
  const { daemon, path, until, told } = await world(t);
  const more = { 'auto-dismiss': false, 'auto-finalize': false };
  for (const when of ['running', 'waiting', 'pending']) {
    told.length = 0;
    const slow = when === 'pending' ? {} : { speed: MIB };
    const actions = [backup('a', { ...more, ...(when === 'waiting' ? {} : slow) }), backup('b', { ...more, ...slow })];
    await daemon.run('transaction', { actions, properties: GROUPED });
    await until(`ja ${when}`);
    if (when === 'pending') await until('jb pending');
    await daemon.run('job-cancel', { id: when === 'running' ? 'ja' : 'jb' });
    for (const disk of DISKS) await until(`j${disk} concluded`);
    for (const job of await daemon.run('query-jobs', {})) {
      assert.match(String(job.error), /cancel/i, `${when}: ${JSON.stringify(job)}`);
      await daemon.run('job-dismiss', { id: job.id });
    }
  }
  told.length = 0;
  // A target that has no room: writes behind its end fail.
  writeFileSync(path('rules'), '[inject-error]\nevent = "write_aio"\nerrno = "28"\n');
  const file = { driver: 'blkdebug', config: path('rules'), image: 'b-target' } as const;
  await daemon.run('blockdev-add', { driver: 'raw', 'node-name': 'b-full', file });
  await daemon.run('transaction', {
    actions: [backup('a', more), backup('b', { ...more, target: 'b-full' })],
    properties: GROUPED,
  });
  for (const disk of DISKS) await until(`j${disk} concluded`);
  const errors = Object.fromEntries((await daemon.run('query-jobs', {})).map(({ id, error }) => [id, error]));
  assert.match(String(errors.jb), /No space/);
  assert.match(String(errors.ja), /cancel/i);
  // What that disk lacks is told at the end, when all others have been closed.
  await assert.rejects(daemon.close(), { code: 'ENOSPC' });
});
