/** A block device of this machine as a disk: a loop device over a file. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { type BlockError, open, serveNbd } from '../src/index.ts';
import { pattern, peer, scratch, serve } from './harness.ts';

const MiB = 1024 * 1024;

/** The path of a new loop device over `image`, gone with the test; or why there can be none. */
function loopDevice(t: TestContext, image: string): { device: string } | { why: string } {
  if (process.getuid?.() !== 0) return { why: 'loop devices need root' };
  const made = spawnSync('losetup', ['-f', '--show', image], { encoding: 'utf8' });
  const device = made.stdout?.trim();
  if (made.status !== 0 || !device) return { why: `losetup: ${made.error?.message ?? made.stderr.trim()}` };
  t.after(() => spawnSync('losetup', ['-d', device]));
  return { device };
}

function imageOf(t: TestContext): string {
  const image = `${scratch(t)}/loop.img`;
  writeFileSync(image, '');
  truncateSync(image, 16 * MiB);
  return image;
}

test('host_device takes block devices only', async (t) => {
  const filename = imageOf(t);
  await assert.rejects(open({ driver: 'host_device', filename }), (error: BlockError) => {
    assert.equal(error.code, 'EINVAL');
    assert.match(error.message, /'host_device' needs a block device/);
    return true;
  });
});

test('a loop device is written, read, zeroed and trimmed over NBD', { timeout: 60_000 }, async (t) => {
  const image = imageOf(t);
  const loop = loopDevice(t, image);
  if ('why' in loop) return t.skip(loop.why);
  const disk = await open({ driver: 'host_device', filename: loop.device, discard: 'unmap' });
  t.after(() => disk.close());
  assert.equal(disk.size, 16 * MiB);
  await using service = await serveNbd(disk);
  const io = (...commands: string[]): Promise<string> =>
    peer('qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command]), service.uri);
  await io('write -P 5 0 4M', 'write -P 6 1000 3000', 'flush');
  // What keeps its room comes last: where the file system below cannot do that, the device punches no more afterwards.
  await io('write -zu 2M 64k', 'discard 3M 512k', 'write -z 1M 64k', 'flush');
  await io(
    'read -P 6 1000 3000',
    'read -P 5 4000 100000',
    'read -P 0 1M 64k',
    'read -P 0 2M 64k',
    'read -P 5 1100k 4k',
  );
  await service.stop();
  const { buffer } = await disk.read(new Uint8Array(512), 0, 512, 0);
  assert.ok(buffer.every((byte) => byte === 5));
  await assert.rejects(disk.truncate(32 * MiB), (error: BlockError) => error.code === 'ENOTSUP');
  await disk.close();
  assert.equal(readFileSync(image)[1000], 6);
  assert.ok(statSync(image).blocks * 512 < 4 * MiB, 'what was trimmed takes no room');
});

test('serve takes a block device as its IMAGE, with and without the page cache', { timeout: 60_000 }, async (t) => {
  const image = imageOf(t);
  const loop = loopDevice(t, image);
  if ('why' in loop) return t.skip(loop.why);
  writeFileSync(image, pattern(4096));
  truncateSync(image, 16 * MiB);
  for (const cache of process.env.BLOCKPLANE_AIO === 'pool' ? ['writeback'] : ['writeback', 'none']) {
    const served = await serve(t, ['--format', 'raw', '--cache', cache, loop.device]);
    await peer('qemu-io', '-f', 'raw', '-c', 'write -P 9 5000 100', '-c', 'read -P 9 5000 100', served.uri());
    assert.equal((await served.stop()).code, 0);
  }
});
