import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon } from '../../src/daemon/index.ts';
import { needs, peer, scratch } from '../harness.ts';

const WITH = needs('qemu-storage-daemon', 'qemu-img');

test('a disk stays as it was through a change of its options under load', WITH, async (t) => {
  const directory = scratch(t);
  const filename = join(directory, 'x.qcow2');
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', filename, '16M');
  await using daemon = await Daemon.start();
  const tree = { driver: 'qcow2', 'node-name': 'q', file: { driver: 'file', 'node-name': 'f', filename } };
  await daemon.run('blockdev-add', tree as never);
  const disk = await daemon.nodes.disk('q', { name: 'load', writable: true, writethrough: false });
  const buffer = (value: number) => new Uint8Array(new SharedArrayBuffer(65536)).fill(value);
  let ended = false;
  const load = (async () => {
    for (let i = 0; !ended; i++) await disk.write(buffer((i % 250) + 1), 0, 65536, (i % 256) * 65536);
  })();
  for (const size of [65536, 131072, 262144, 1048576]) {
    const change = {
      driver: 'qcow2',
      'node-name': 'q',
      file: 'f',
      'l2-cache-size': size,
      'lazy-refcounts': size > 99999,
    };
    await daemon.run('blockdev-reopen', { options: [change as never] });
    const bad = { ...change, 'l2-cache-entry-size': 3 };
    await assert.rejects(daemon.run('blockdev-reopen', { options: [bad as never] }));
  }
  ended = true;
  await load;
  const last = buffer(0);
  await disk.write(buffer(77), 0, 65536, 0);
  await disk.read(last, 0, 65536, 0);
  assert.ok(last.every((byte) => byte === 77));
  await disk.close();
  await daemon.close();
  await peer('qemu-img', 'check', '-q', filename);
});
