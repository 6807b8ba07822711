import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { MAIN, needs, peer, run as runProgram, scratch } from '../../../test/harness.ts';
import type { AioContext } from '../../aio/context.ts';
import { inContext } from '../../aio/testing.ts';
import { Errno } from '../../base/errors.ts';
import { MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { Perm, RequestFlags } from '../../block/driver.ts';
import { openNode, releaseNode } from '../../block/graph.ts';
import { registerDriver } from '../../block/registry.ts';
import { setReadOnly } from '../../block/reopen.ts';
import { bytesOf, registerTestDrivers, type TestDisk, testDisk, testIov } from '../../block/testing.ts';
import { fileDriver } from '../file/driver.ts';
import { preallocateDriver } from './driver.ts';

const OPTIONS = { driver: 'preallocate', 'prealloc-size': 10_000, 'prealloc-align': 4096 };
const FILE = { driver: 'memory', disk: 'file' };

before(() => {
  registerTestDrivers();
  registerDriver(preallocateDriver);
  registerDriver(fileDriver);
});

function growing(context: AioContext): Promise<BlockBackend> {
  return BlockBackend.open(context, { ...OPTIONS, file: FILE }, { allowWriteBeyondEnd: true });
}

const truncates = (disk: TestDisk): string[] => disk.log.filter((line) => line.startsWith('truncate'));

async function readAll(context: AioContext, blk: BlockBackend): Promise<Uint8Array> {
  const iov = testIov(context, [blk.length]);
  await blk.read(0, iov);
  return bytesOf(iov);
}

inContext('the file grows in steps; what is shown, and what is left, ends with what was written', async (context) => {
  const disk = testDisk('file', 1000);
  const blk = await growing(context);
  await blk.write(500, testIov(context, [500], 1));
  assert.deepEqual([blk.length, disk.bytes.length], [1000, 1000]);
  await Promise.all([blk.write(1000, testIov(context, [100], 2)), blk.write(3000, testIov(context, [5], 3))]);
  assert.deepEqual([blk.length, disk.bytes.length], [3005, 12_288]);
  await blk.write(12_280, testIov(context, [8], 4));
  assert.deepEqual(truncates(disk), ['truncate 12288']);
  await blk.write(12_288, testIov(context, [1], 5));
  assert.deepEqual([blk.length, disk.bytes.length], [12_289, 24_576]);
  const expected = await readAll(context, blk);
  assert.ok(expected.subarray(3005, 12_280).every((byte) => byte === 0));
  await blk.close();
  assert.deepEqual(disk.bytes, expected);
});

inContext(
  'zeroes beyond the end are those that are there, but where something may have been written',
  async (context) => {
    const disk = testDisk('file', 1000);
    disk.bytes.fill(1);
    const blk = await growing(context);
    await blk.writeZeroes(900, 2000);
    assert.deepEqual(disk.log, ['truncate 16384', 'zero 900+100 flags 0']);
    assert.equal(blk.length, 2900);
    // One that fails may have written.
    disk.script.push({ op: 'write', short: 100 }, { op: 'write', errno: Errno.EIO });
    await assert.rejects(blk.write(5000, testIov(context, [200], 1)), { code: 'EIO' });
    assert.equal(blk.length, 2900);
    assert.notEqual(disk.bytes[5001], 0);
    await blk.writeZeroes(4000, 2000, RequestFlags.MAY_UNMAP);
    assert.deepEqual([blk.length, disk.log.at(-1)], [6000, 'zero 4000+1200 flags 0']);
    assert.ok((await readAll(context, blk)).subarray(900).every((byte) => byte === 0));
    await blk.close();
    assert.equal(disk.bytes.length, 6000);
  },
);

inContext('where nothing can be allocated ahead, the file grows as it is written', async (context) => {
  const disk = testDisk('file', 0);
  disk.script.push({ op: 'truncate', errno: Errno.ENOSPC });
  const blk = await growing(context);
  await blk.write(0, testIov(context, [100], 1));
  await blk.write(100, testIov(context, [100], 2));
  await blk.writeZeroes(200, 50);
  assert.deepEqual(disk.log, ['truncate 12288', 'write 0+100', 'write 100+100', 'zero 200+50 flags 0']);
  assert.deepEqual([blk.length, disk.bytes.length], [250, 250]);
  await blk.close();
  assert.equal(disk.bytes.length, 250);
});

inContext('the file is cut off when nobody may resize it, when it rests, and when it is resized', async (context) => {
  const disk = testDisk('file', 0);
  const blk = await growing(context);
  const step = async (): Promise<void> => {
    await blk.write(blk.length, testIov(context, [10], 1));
    assert.ok(disk.bytes.length > blk.length);
  };
  await step();
  await blk.truncate(5);
  assert.deepEqual([blk.length, disk.bytes.length], [5, 5]);
  await step();
  const { length } = disk.bytes;
  await blk.truncate(1000);
  assert.deepEqual([blk.length, disk.bytes.length], [1000, length]);
  assert.ok((await readAll(context, blk)).subarray(15).every((byte) => byte === 0));
  await blk.truncate(length + 1);
  assert.deepEqual([blk.length, disk.bytes.length], [length + 1, length + 1]);
  await blk.truncate(1000);
  await step();
  await blk.setPermissions(Perm.CONSISTENT_READ | Perm.WRITE, Perm.CONSISTENT_READ);
  assert.deepEqual([blk.length, disk.bytes.length], [1010, 1010]);
  await assert.rejects(blk.write(1010, testIov(context, [1])), { code: 'EIO' });
  await blk.setPermissions(Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE, Perm.CONSISTENT_READ);
  await step();
  // As before a move.
  await blk.root!.impl.inactivate!();
  assert.deepEqual([blk.length, disk.bytes.length], [1020, 1020]);
  await blk.close();
});

inContext('nobody else may resize the file, and the sizes have to fit it', async (context) => {
  const disk = testDisk('file', 4096);
  disk.limits = { alignment: 1024 };
  const node = await openNode(context, { ...FILE, 'node-name': 'shared' });
  const options = { driver: 'preallocate', file: 'shared' };
  for (const align of [100, 512]) {
    const opening = BlockBackend.open(context, { ...options, 'prealloc-align': align });
    await assert.rejects(opening, { code: 'EINVAL', message: /prealloc-align .* no multiple of / });
  }
  await assert.rejects(BlockBackend.open(context, { driver: 'preallocate' }), {
    code: 'EINVAL',
    message: /'file' is missing/,
  });
  const blk = await BlockBackend.open(context, options, { allowWriteBeyondEnd: true });
  await assert.rejects(BlockBackend.open(context, { driver: 'preallocate', file: 'shared' }), { code: 'EPERM' });
  // The end is where the file can be cut off.
  await blk.write(4096, testIov(context, [10], 1));
  assert.equal(blk.length, 5120);
  await blk.close();
  await releaseNode(node);
  assert.equal(disk.bytes.length, 5120);
});

inContext('it becomes read-only and writable again where it is, with a whole file in between', async (context) => {
  const directory = mkdtempSync(join(tmpdir(), 'blockplane-preallocate-'));
  try {
    const filename = join(directory, 'image');
    writeFileSync(filename, '');
    const file = { driver: 'file', filename };
    const blk = await BlockBackend.open(context, { ...OPTIONS, file }, { allowWriteBeyondEnd: true });
    const write = async (end: number): Promise<void> => {
      await blk.write(blk.length, testIov(context, [100], 1));
      assert.deepEqual([blk.length, statSync(filename).size], [end, 12_288]);
    };
    const all = Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE;
    await write(100);
    for (const end of [200, 300]) {
      await blk.setPermissions(Perm.CONSISTENT_READ, all);
      await setReadOnly(blk.root!, true);
      assert.deepEqual([blk.length, statSync(filename).size], [end - 100, end - 100]);
      await setReadOnly(blk.root!, false);
      await blk.setPermissions(all, Perm.CONSISTENT_READ);
      await write(end);
    }
    const expected = await readAll(context, blk);
    await blk.close();
    assert.deepEqual(new Uint8Array(readFileSync(filename)), expected);
  } finally {
    rmSync(directory, { recursive: true });
  }
});

const COMMANDS = ['write -P 1 0 64k', 'write -z 1M 1M', 'write -P 2 8M 6M', 'write -P 3 60M 100k'];

for (const by of ['qemu-io', 'ours']) {
  const program = by === 'ours' ? [process.execPath, MAIN, 'qemu-io'] : ['qemu-io'];
  const io = (tree: string, ...commands: string[]) =>
    runProgram(program[0]!, [...program.slice(1), '--image-opts', tree, ...commands.flatMap((one) => ['-c', one])]);

  test(
    `${by}: a qcow2 image takes what a program that is killed leaves, and goes on`,
    needs('qemu-img', 'qemu-io'),
    async (t) => {
      const path = `${scratch(t)}/image.qcow2`;
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, '1G');
      const filter = 'file.driver=preallocate,file.prealloc-size=4M,file.prealloc-align=3M';
      const tree = `driver=qcow2,${filter},file.file.driver=file,file.file.filename=${path}`;
      await io(tree, ...COMMANDS, 'flush', 'abort');
      const { size, blocks } = statSync(path);
      assert.equal(size, 12 * MiB);
      assert.ok(blocks * 512 >= 12 * MiB, `${blocks} blocks`);
      await peer('qemu-img', 'check', '-q', path);
      const { stdout, code } = await io(tree, 'read -P 2 8M 6M', 'write -P 4 100M 64k', 'read -P 4 100M 64k');
      assert.equal(code, 0, stdout);
      await peer('qemu-img', 'check', '-q', path);
    },
  );
}

test('what an image takes on the disk is told through filters, as the original does', needs('qemu-img'), async (t) => {
  const path = `${scratch(t)}/image.qcow2`;
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, '64M');
  for (const tree of [
    `driver=qcow2,file.driver=preallocate,file.file.filename=${path}`,
    `driver=compress,file.driver=qcow2,file.file.filename=${path}`,
    `driver=qcow2,file.driver=blkdebug,file.image.filename=${path}`,
  ]) {
    const args = ['info', '--output=json', '--image-opts', tree];
    const ours = await peer(process.execPath, MAIN, 'qemu-img', ...args);
    const [size, expected] = [ours, await peer('qemu-img', ...args)].map((text) => JSON.parse(text)['actual-size']);
    assert.equal(size, expected, tree);
  }
});
