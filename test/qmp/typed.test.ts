/** Nodes and jobs of a daemon by typed calls. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Daemon, QmpError } from '../../src/daemon/index.ts';
import { needs, peer, scratch } from '../harness.ts';

async function withDisks(t: TestContext): Promise<{ readonly daemon: Daemon; readonly directory: string }> {
  const directory = scratch(t);
  const daemon = await Daemon.start();
  t.after(() => daemon.close());
  for (const name of ['a', 'b']) {
    const filename = join(directory, `${name}.qcow2`);
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', filename, '8M');
    await peer('qemu-io', '-f', 'qcow2', '-c', `write -P ${name === 'a' ? 7 : 0} 0 8M`, filename);
    await daemon.graph.add({ driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename } });
  }
  return { daemon, directory };
}

test('a job is followed to its end, and is gone then', needs('qemu-img', 'qemu-io'), async (t) => {
  const { daemon, directory } = await withDisks(t);
  const job = await daemon.begin('blockdev-backup', { 'job-id': 'k', device: 'a', target: 'b', sync: 'full' });
  let last = { status: 'undefined', current: -1, total: 0 };
  for await (const progress of job) {
    assert.ok(progress.current >= last.current && progress.current <= progress.total);
    last = progress;
  }
  assert.deepEqual(last, { status: 'concluded', current: last.total, total: last.total });
  await job.ended;
  assert.deepEqual(await daemon.run('query-jobs', {}), []);
  for (const name of ['a', 'b']) await daemon.graph.remove(name);
  await peer('qemu-img', 'compare', join(directory, 'a.qcow2'), join(directory, 'b.qcow2'));
});

test('a job that is given up is told of where it is followed', needs('qemu-img', 'qemu-io'), async (t) => {
  const { daemon } = await withDisks(t);
  const slow = { 'job-id': 'k', device: 'a', target: 'b', sync: 'full', speed: 1 } as const;
  const job = await daemon.begin('blockdev-mirror', slow);
  await assert.rejects(daemon.begin('blockdev-mirror', slow), new QmpError("Job ID 'k' already in use"));
  const seen = (async () => {
    for await (const { status } of job) if (status === 'running') await job.cancel();
  })();
  await assert.rejects(seen, /canceled/i);
  await assert.rejects(job.ended, /canceled/i);
  // Its id is free again.
  const again = await daemon.begin('blockdev-mirror', { ...slow, speed: 0 });
  for await (const { status } of again) if (status === 'ready') await again.cancel(false);
  await again.ended;
});

test('nodes are added, changed and listed by methods', needs('qemu-img', 'qemu-io'), async (t) => {
  const { daemon } = await withDisks(t);
  const { graph } = daemon;
  await graph.resize('a', 16 << 20);
  await graph.setActive('b', false);
  const known = (await graph.list()).filter((node) => /^[ab]$/.test(node['node-name'] ?? ''));
  assert.deepEqual(known.map((node) => [node['node-name'], node.image['virtual-size'], node.active]).sort(), [
    ['a', 16 << 20, true],
    ['b', 8 << 20, false],
  ]);
  await assert.rejects(graph.add({ driver: 'null-co', 'node-name': 'a' }), /Duplicate nodes with node-name='a'/);
  await graph.add({ driver: 'throttle', 'node-name': 't', 'throttle-group': 'nope', file: 'a' }).then(
    () => assert.fail('there is no such group'),
    (error: unknown) => assert.match(String(error), /nope/),
  );
});

test('a job is given up by a signal, and where its block is left', needs('qemu-img', 'qemu-io'), async (t) => {
  const { daemon } = await withDisks(t);
  const slow = { 'job-id': 'k', device: 'a', target: 'b', sync: 'full', speed: 1 } as const;
  const giving = new AbortController();
  const job = await daemon.begin('blockdev-mirror', slow, { signal: giving.signal });
  giving.abort(new Error('enough'));
  await assert.rejects(job.ended, /enough/);
  await assert.rejects(daemon.begin('blockdev-mirror', slow, { signal: giving.signal }), /enough/);
  {
    await using again = await daemon.begin('blockdev-mirror', slow);
    for await (const { status } of again) if (status === 'running') break;
  }
  assert.deepEqual(await daemon.run('query-jobs'), []);
  {
    await using whole = await daemon.begin('blockdev-backup', { ...slow, speed: 0 });
    await whole.ended;
  }
  await daemon.graph.add({ driver: 'copy-before-write', 'node-name': 'c', file: 'a', target: 'b' });
  await daemon.graph.add({ driver: 'snapshot-access', 'node-name': 's', file: 'c' });
});

test('jobs of a transaction are followed, each by itself and together', needs('qemu-img', 'qemu-io'), async (t) => {
  const { daemon, directory } = await withDisks(t);
  const target = async (name: string): Promise<void> => {
    const filename = join(directory, `${name}.qcow2`);
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', filename, '8M');
    await daemon.graph.add({ driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename } });
  };
  for (const name of ['x', 'y']) await target(name);
  const backup = (id: string, device: string, target: string, more = {}) =>
    ({ type: 'blockdev-backup', data: { 'job-id': id, device, target, sync: 'full', ...more } }) as const;
  const added = (node: string) => ({ type: 'block-dirty-bitmap-add', data: { node, name: 'since' } }) as const;
  assert.deepEqual(await daemon.transaction([added('b')]), []);
  const jobs = await daemon.transaction([added('a'), backup('j', 'a', 'x'), backup('k', 'b', 'y')], { grouped: true });
  assert.deepEqual(
    jobs.map(({ id }) => id),
    ['j', 'k'],
  );
  for (const job of jobs) {
    let last = '';
    for await (const { status } of job) last = status;
    assert.equal(last, 'concluded');
  }
  assert.deepEqual(await daemon.run('query-jobs'), []);
  // One that is given up takes the others with it.
  const giving = new AbortController();
  const steps = [backup('j', 'a', 'x', { speed: 1 }), backup('k', 'b', 'y', { speed: 1 })];
  const given = await daemon.transaction(steps, { grouped: true, signal: giving.signal });
  giving.abort(new Error('enough'));
  for (const { ended } of given) await assert.rejects(ended, /enough/);
  assert.deepEqual(await daemon.run('query-jobs'), []);
  // All of it, or nothing.
  await assert.rejects(daemon.transaction([backup('j', 'a', 'x'), added('a')]), /Bitmap already exists: since/);
  assert.deepEqual(await daemon.run('query-jobs'), []);
  await assert.rejects(daemon.graph.remove('a-file'), { name: 'QmpError', code: undefined });
  await daemon.graph.add({ driver: 'raw', 'node-name': 'over', file: 'a' });
  await assert.rejects(daemon.graph.remove('a'), { name: 'QmpError', code: 'EBUSY' });
});

test('what a node takes is known when a program is compiled, by its driver', async () => {
  await using daemon = await Daemon.start();
  const { graph } = daemon;
  await daemon.run('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 4096, active: true });
  const over = { driver: 'raw', 'node-name': 'r', file: { driver: 'null-co', 'node-name': 'm' } } as const;
  await graph.add(over);
  await daemon.run('blockdev-reopen', { options: [{ ...over, offset: 512 }] });
  await assert.rejects(
    graph.add({
      driver: 'qcow2',
      'node-name': 'q',
      encrypt: { format: 'luks', 'key-secret': 'nobody' },
      file: { driver: 'file', filename: '/nowhere/x' },
    }),
    /nobody/,
  );
  type Taken = Parameters<typeof daemon.run<'blockdev-add'>>[1];
  type Takes<T> = T & { readonly 'node-name': 'x' } extends Taken ? true : false;
  const taken = [
    true satisfies Takes<{ driver: 'null-co'; size: number }>,
    true satisfies Takes<{ driver: 'raw'; file: 'n' }>,
    true satisfies Takes<{ driver: 'qcow2'; encrypt: { format: 'luks' }; file: { driver: 'file'; filename: '/x' } }>,
    false satisfies Takes<{ driver: 'nothing' }>,
    false satisfies Takes<{ driver: 'null-co'; size: string }>,
    false satisfies Takes<{ driver: 'raw' }>,
    false satisfies Takes<{ driver: 'raw'; file: { driver: 'file' } }>,
    false satisfies Takes<{ driver: 'qcow2'; encrypt: 'luks'; file: 'n' }>,
    false satisfies Takes<{ size: number }>,
    false satisfies { driver: 'null-co' } extends Taken ? true : false,
  ];
  assert.equal(taken.filter((one) => one).length, 3);
});
