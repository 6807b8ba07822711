import assert from 'node:assert/strict';
import { mkdirSync, statSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { MiB } from '../../src/base/units.ts';
import { Daemon } from '../../src/daemon/index.ts';
import { canBeDirect, openFile, openFiles } from '../../src/drivers/file/testing.ts';
import { IOThread, serveNbd } from '../../src/index.ts';
import { MAIN, needs, peer, scratch, sparse, VerifyingLoad } from '../harness.ts';
import { type Fields, Peer } from './conversation.ts';

const WITH = needs('qemu-storage-daemon', 'qemu-img');
const NO_DIRECT = 'the file system of the temporary folder has no direct I/O';
const WITH_FIO = needs('fio', 'qemu-img');

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

const F = { driver: 'file', 'node-name': 'f', filename: '$DIR/x.qcow2' };
const Q = { driver: 'qcow2', 'node-name': 'q', file: 'f' };

/** The list of nodes of each reopen. */
const CACHES: readonly (readonly Fields[])[] = [
  [{ ...Q, cache: { direct: true } }],
  [{ ...Q, cache: { direct: false } }],
  [{ ...Q, cache: { 'no-flush': true } }],
  [{ ...Q, cache: { direct: true, 'no-flush': false } }],
  [Q],
  [
    { ...Q, cache: { direct: true } },
    { ...F, cache: { direct: true }, aio: 'native' },
  ],
  [
    { ...Q, cache: { direct: false } },
    { driver: 'qcow2', 'node-name': 'q', file: 'nobody' },
  ],
  [{ ...Q, cache: { direct: true } }, F],
  [F, { ...Q, cache: { direct: true } }],
  [
    { ...F, cache: { direct: false } },
    { ...Q, cache: { direct: true } },
  ],
  [
    { ...Q, cache: { direct: false } },
    { ...F, cache: { direct: true } },
  ],
  [{ ...Q, cache: { direct: false } }],
  [F],
];

test('cache is what the peer has, of every node and of the open file', WITH, async (t) => {
  const directory = scratch(t);
  if (!canBeDirect(directory)) return t.skip(NO_DIRECT);
  const peers = await Promise.all(
    [[process.execPath, MAIN, 'qemu-storage-daemon'], ['qemu-storage-daemon']].map(async (command, i) => {
      const own = join(directory, `${i}`);
      mkdirSync(own);
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', join(own, 'x.qcow2'), '1M');
      return Peer.start(t, own, command, []);
    }),
  );
  const tree = { ...Q, file: F };
  for (const one of peers) assert.ok('return' in (await one.execute('blockdev-add', tree)));
  for (const options of CACHES) {
    const [ours, theirs] = await Promise.all(
      peers.map(async (one) => {
        const reply = await one.execute('blockdev-reopen', { options });
        const nodes = (await one.execute('query-named-block-nodes', { flat: true })).return as Fields[];
        const caches = nodes.map((node) => [String(node['node-name']), node.cache] as const);
        return [
          'return' in reply,
          Object.fromEntries(caches),
          openFile(one.pid, join(one.directory, 'x.qcow2')).direct,
        ];
      }),
    );
    assert.deepEqual(ours, theirs, JSON.stringify(options));
  }
});

test('an image becomes direct and buffered under a verifying load, here and in a thread that it is lent to', {
  ...WITH_FIO,
}, async (t) => {
  const directory = scratch(t);
  if (!canBeDirect(directory)) return t.skip(NO_DIRECT);
  const qcow2 = join(directory, 'x.qcow2');
  const raw = join(directory, 'x.raw');
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', qcow2, '64M');
  // No multiple of a block.
  truncateSync(sparse(raw, 64 * MiB), 64 * MiB + 1000);
  const other = await IOThread.start({ name: 'other' });
  t.after(() => other.stop());
  await toggleUnderLoad(t, 'qcow2', qcow2);
  await toggleUnderLoad(t, 'raw', raw);
  await toggleUnderLoad(t, 'qcow2', qcow2, other);
  await toggleUnderLoad(t, 'raw', raw, other);
  await peer('qemu-img', 'check', '-q', qcow2);
  assert.equal(statSync(raw).size % 512, 0);
});

/** Clients are served in `other`; without it, where the image is. */
async function toggleUnderLoad(t: TestContext, format: string, filename: string, other?: IOThread): Promise<void> {
  await using daemon = await Daemon.start();
  const add = (options: object) => daemon.run('blockdev-add', options as never);
  await add({ driver: format, 'node-name': 'top', file: { driver: 'file', 'node-name': 'f', filename } });
  // Of a file system without direct I/O.
  const never = { driver: 'file', 'node-name': 'never', filename: '/proc/version', 'read-only': true };
  await add(never);
  const disk = await daemon.nodes.disk('top', { name: 'load', writable: true, writethrough: false });
  const service = await serveNbd(disk, other ? { iothreads: [other] } : {});
  const [{ locks } = { locks: [] }] = openFiles(process.pid, filename);
  assert.ok(locks.length > 0);
  const load = new VerifyingLoad(t, service.uri, 48);
  let lent = 0;
  const goOn = async (): Promise<void> => {
    const until = (await service.stats()).requests + 50;
    while ((await service.stats()).requests < until && !load.over)
      await new Promise((resolve) => setImmediate(resolve));
  };
  // Direct at first, when nothing can be lent: it is to be asked for again.
  for (let i = 0; i < 10; i++) {
    const direct = i % 2 === 0;
    const cached = { driver: format, 'node-name': 'top', file: 'f', cache: { direct } };
    const reopen = (...options: object[]) => daemon.run('blockdev-reopen', { options: options as never });
    await reopen(cached);
    await goOn();
    const refused = [
      { ...cached, cache: { direct: !direct } },
      { ...never, cache: { direct: true } },
    ];
    await assert.rejects(reopen(...refused), /file system has no direct I\/O/);
    await goOn();
    // A thread that it is lent to has a descriptor of its own.
    const files = openFiles(process.pid, filename);
    assert.ok(files.length > 0);
    for (const file of files) assert.deepEqual(file, { direct, locks });
    if (!direct && files.length > 1) lent++;
  }
  const { errors } = await service.stats();
  assert.deepEqual([await load.stop(), errors], [0, 0]);
  if (other?.backend.name === 'ring') assert.ok(lent > 0, 'nothing was lent');
  await service.stop();
  await disk.close();
  await daemon.close();
}

test('after a move to another thread nodes are still known as those that were opened with their parents', async () => {
  await using daemon = await Daemon.start();
  const { graph } = daemon;
  const over = (its: object) =>
    ({ driver: 'raw', 'node-name': 'r', file: { driver: 'raw', file: { driver: 'null-co', ...its } } }) as const;
  const detecting = async () =>
    (await graph.list()).filter((node) => node.detect_zeroes === 'on').map((node) => node.drv);
  await graph.add(over({}));
  await daemon.run('object-add', { 'qom-type': 'iothread', id: 'io' });
  for (const iothread of ['io', null]) {
    await daemon.run('x-blockdev-set-iothread', { 'node-name': 'r', iothread });
    await graph.reopen(over({ 'detect-zeroes': 'on' }));
    assert.deepEqual(await detecting(), ['null-co']);
    await graph.reopen(over({}));
    assert.deepEqual(await detecting(), []);
  }
});
