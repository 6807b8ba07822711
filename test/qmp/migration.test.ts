/** Migration with shared storage: two daemons have one image, and their exports stay open while it changes hands. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon, type QmpClient } from '../../src/daemon/index.ts';
import { type Disk, open } from '../../src/index.ts';
import { withDaemon } from '../daemon-process.ts';
import { needs, needsPythonNbd, peer, python, scratch } from '../harness.ts';

const ROUNDS = 5;
const PIECE = 64 * 1024;
const SIZE = 16 * 1024 * 1024;

/** What both daemons are given; the first one has it active. */
function blockdev(path: string, active: boolean) {
  return { driver: 'qcow2', 'node-name': 'a', active, file: { driver: 'file', filename: path } } as const;
}

const EXPORT = { type: 'nbd', id: 'e', 'node-name': 'a', writable: true, 'allow-inactive': true } as const;

type Runner = Pick<Daemon, 'run'>;

function runnerOf(client: QmpClient): Runner {
  return { run: client.execute.bind(client) as Daemon['run'] };
}

async function setUp(one: Runner, path: string, nbd: string, active: boolean): Promise<void> {
  await one.run('blockdev-add', blockdev(path, active));
  await one.run('nbd-server-start', { addr: { type: 'unix', data: { path: nbd } } });
  await one.run('block-export-add', EXPORT);
}

function setActive(one: Runner, active: boolean): Promise<unknown> {
  return one.run('blockdev-set-active', { 'node-name': 'a', active });
}

async function dirtyOf(one: Runner): Promise<number | undefined> {
  const nodes = await one.run('query-named-block-nodes', { flat: true });
  const bitmaps = nodes.find((node) => node['node-name'] === 'a')!['dirty-bitmaps'] ?? [];
  return bitmaps.find(({ name }) => name === 'b')?.count;
}

function shared(fill = 0): Uint8Array {
  return new Uint8Array(new SharedArrayBuffer(PIECE)).fill(fill);
}

async function assertRefused(disk: Disk): Promise<void> {
  const refused = { code: 'EPERM' };
  await assert.rejects(disk.read(shared(), 0, PIECE, 0), refused);
  await assert.rejects(disk.write(shared(1), 0, PIECE, 0), refused);
  await assert.rejects(disk.flush(), refused);
}

test(
  'two processes hand an image back and forth while clients keep their connections to both',
  needs('qemu-img', 'qemu-io'),
  async (t) => {
    const directory = scratch(t);
    const path = join(directory, 'a.qcow2');
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, `${SIZE}`);
    const places = ['one', 'two'].map((name) => join(directory, name));
    for (const place of places) mkdirSync(place);
    const [first, second] = places as [string, string];
    await withDaemon(first, [], (firstClient) =>
      withDaemon(second, [], async (secondClient) => {
        const [one, two] = [runnerOf(firstClient), runnerOf(secondClient)];
        const sides = [one, two];
        const nbds = places.map((place) => join(place, 'nbd'));
        await setUp(one, path, nbds[0]!, true);
        await one.run('block-dirty-bitmap-add', { node: 'a', name: 'b', persistent: true });
        await setUp(two, path, nbds[1]!, false);
        const disks: Disk[] = [];
        for (const nbd of nbds) disks.push(await open(`nbd+unix:///a?socket=${nbd}`, { format: 'raw' }));
        assert.deepEqual(
          disks.map(({ size }) => size),
          [SIZE, SIZE],
        );
        let pieces = 0;
        const use = async (side: number): Promise<void> => {
          const [here, there] = side === 0 ? [disks[0]!, disks[1]!] : [disks[1]!, disks[0]!];
          for (let i = 0; i < pieces; i++) {
            const buffer = shared();
            await here.read(buffer, 0, PIECE, i * PIECE);
            assert.deepEqual(buffer, shared(i + 1), `piece ${i} on side ${side}`);
          }
          await here.write(shared(++pieces), 0, PIECE, (pieces - 1) * PIECE);
          await here.flush();
          await assertRefused(there);
          assert.equal(await dirtyOf(sides[side]!), pieces * PIECE);
        };
        await use(0);
        for (let round = 0; round < ROUNDS; round++) {
          await assert.rejects(setActive(two, true), /lock/);
          await assertRefused(disks[1]!);
          await setActive(one, false);
          await assertRefused(disks[0]!);
          await setActive(two, true);
          await use(1);
          await setActive(two, false);
          await setActive(one, true);
          await use(0);
        }
        await disks[0]!.close();
        // It would make stable what it could not write.
        await assert.rejects(disks[1]!.close(), { code: 'EPERM' });
        // In any order: one of them has it, the other leaves it alone.
        for (const side of [two, one]) {
          // The server may not know yet that its client has ended.
          await side.run('block-export-del', { id: 'e', mode: 'hard' });
          await side.run('blockdev-del', { 'node-name': 'a' });
        }
        await peer('qemu-img', 'check', '-q', path);
        const raw = join(directory, 'wanted.raw');
        const wanted = new Uint8Array(SIZE);
        for (let i = 0; i < pieces; i++) wanted.fill(i + 1, i * PIECE, (i + 1) * PIECE);
        writeFileSync(raw, wanted);
        await peer('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', path, raw);
        assert.match(await peer('qemu-img', 'info', path), /name: b/);
      }),
    );
  },
);

test('a client of an inactive node is told its size, and that nothing may be done', {
  ...needsPythonNbd(),
}, async (t) => {
  const directory = scratch(t);
  const path = join(directory, 'a.qcow2');
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, `${SIZE}`);
  await using daemon = await Daemon.start();
  const nbd = join(directory, 'nbd');
  await setUp(daemon, path, nbd, false);
  const script = `
import nbd
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.set_export_name("a")
h.connect_unix("${nbd}")
print(h.get_size(), h.is_read_only(), h.can_flush())
def tried(what, *args):
    try:
        what(*args)
        print("done")
    except nbd.Error as error:
        print(error.errno)
tried(h.pread, 512, 0)
tried(h.pwrite, b"x" * 512, 0)
tried(h.zero, 512, 0)
tried(h.trim, 512, 0)
tried(h.flush)
tried(h.block_status, 512, 0, lambda *args: 0)
print(h.aio_is_ready())
h.shutdown()
`;
  const { stdout, stderr } = await python(script);
  assert.deepEqual(stdout.trim().split('\n'), [
    `${SIZE} False True`,
    ...Array.from({ length: 6 }, () => 'EPERM'),
    'True',
  ]);
  assert.equal(stderr, '');
});

test('a client that reaches the node through a channel gets the same answers', needs('qemu-img'), async (t) => {
  const directory = scratch(t);
  const path = join(directory, 'a.qcow2');
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, `${SIZE}`);
  await using daemon = await Daemon.start();
  await daemon.run('object-add', { 'qom-type': 'iothread', id: 'io1' });
  const nbd = join(directory, 'nbd');
  await setUp(daemon, path, nbd, true);
  await using disk = await open(`nbd+unix:///a?socket=${nbd}`, { format: 'raw' });
  await disk.write(shared(1), 0, PIECE, 0);
  // The export goes along, and the connection stays.
  await daemon.run('x-blockdev-set-iothread', { 'node-name': 'a', iothread: 'io1', force: true });
  for (let round = 1; round <= ROUNDS; round++) {
    const buffer = shared();
    await disk.read(buffer, 0, PIECE, 0);
    assert.deepEqual(buffer, shared(round));
    await setActive(daemon, false);
    await assertRefused(disk);
    await setActive(daemon, true);
    await disk.write(shared(round + 1), 0, PIECE, 0);
    await disk.flush();
  }
});

test('exports that do not allow it, or cannot, are refused', needs('qemu-img'), async (t) => {
  const directory = scratch(t);
  const path = join(directory, 'a.qcow2');
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, `${SIZE}`);
  await using daemon = await Daemon.start();
  await setUp(daemon, path, join(directory, 'nbd'), true);
  const plain = { ...EXPORT, id: 'plain', name: 'plain', 'allow-inactive': false };
  await daemon.run('block-export-add', plain);
  await assert.rejects(setActive(daemon, false), /Could not inactivate node 'a': export 'plain' uses it/);
  await daemon.run('block-export-del', { id: 'plain' });
  await setActive(daemon, false);
  await assert.rejects(daemon.run('block-export-add', plain), /for export 'plain': it is inactive/);
  const addr = { type: 'unix', path: join(directory, 'vhost') } as const;
  const vhost = { type: 'vhost-user-blk', id: 'v', 'node-name': 'a', 'allow-inactive': true, addr } as const;
  await assert.rejects(daemon.run('block-export-add', vhost), /type 'vhost-user-blk' do not support 'allow-inactive'/);
  const bitmaps = { ...EXPORT, id: 'b', name: 'b', bitmaps: ['b'] };
  await assert.rejects(daemon.run('block-export-add', bitmaps), /'bitmaps' and 'allow-inactive' exclude each other/);
  await assert.rejects(daemon.run('blockdev-del', { 'node-name': 'a' }), /in use/);
  await daemon.run('block-export-del', { id: 'e' });
  await daemon.run('blockdev-del', { 'node-name': 'a' });
});

test(
  'an image that cannot be read when its node is to become active leaves it inactive',
  needs('qemu-img'),
  async (t) => {
    const directory = scratch(t);
    const path = join(directory, 'a.qcow2');
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, `${SIZE}`);
    await using daemon = await Daemon.start();
    const nbd = join(directory, 'nbd');
    await setUp(daemon, path, nbd, true);
    await using disk = await open(`nbd+unix:///a?socket=${nbd}`, { format: 'raw' });
    await disk.write(shared(7), 0, PIECE, 0);
    await setActive(daemon, false);
    const image = readFileSync(path);
    writeFileSync(path, Buffer.from(image).fill(0, 0, 4), { flag: 'r+' });
    await assert.rejects(setActive(daemon, true), /Could not open|magic|qcow2/);
    await assertRefused(disk);
    writeFileSync(path, image, { flag: 'r+' });
    await setActive(daemon, true);
    const buffer = shared();
    await disk.read(buffer, 0, PIECE, 0);
    assert.deepEqual(buffer, shared(7));
    await disk.write(shared(8), 0, PIECE, PIECE);
    await disk.flush();
  },
);
