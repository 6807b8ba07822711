/** qemu's tools as clients. */
import assert from 'node:assert/strict';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { needs, pattern, peer, run, scratch, serve } from './harness.ts';

const MiB = 1024 * 1024;

test('qemu-img info sees a raw image of the right size', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/a.img`, pattern(3 * MiB));
  const served = await serve(t, [`${dir}/a.img`]);
  const info = JSON.parse(await peer('qemu-img', 'info', '--output=json', served.uri())) as Record<string, unknown>;
  assert.equal(info.format, 'raw');
  assert.equal(info['virtual-size'], 3 * MiB);
});

test('qemu-img convert and compare agree with the file, both ways', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/a.img`, pattern(5 * MiB + 512));
  writeFileSync(`${dir}/b.img`, '');
  truncateSync(`${dir}/b.img`, 5 * MiB + 512);
  const a = await serve(t, ['-r', `${dir}/a.img`]);
  const b = await serve(t, [`${dir}/b.img`]);
  await peer('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', a.uri(), `${dir}/a.qcow2`);
  assert.match(await peer('qemu-img', 'compare', `${dir}/a.qcow2`, a.uri()), /identical/);
  await peer('qemu-img', 'convert', '-n', '-O', 'raw', `${dir}/a.qcow2`, b.uri());
  assert.match(await peer('qemu-img', 'compare', a.uri(), b.uri()), /identical/);
  await b.stop();
  assert.deepEqual(readFileSync(`${dir}/b.img`), readFileSync(`${dir}/a.img`));
});

test('qemu-img map sees the holes of a sparse image', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/a.img`, '');
  truncateSync(`${dir}/a.img`, 8 * MiB);
  const served = await serve(t, [`${dir}/a.img`]);
  await peer('qemu-io', '-f', 'raw', '-c', 'write -P 7 2M 1M', '-c', 'flush', served.uri());
  type Extent = { start: number; length: number; data: boolean; zero: boolean };
  const map = JSON.parse(await peer('qemu-img', 'map', '--output=json', served.uri())) as Extent[];
  assert.equal(
    map.reduce((sum, extent) => sum + extent.length, 0),
    8 * MiB,
  );
  const data = map.filter((extent) => !extent.zero);
  assert.deepEqual(
    data.map(({ start, length }) => [start, length]),
    [[2 * MiB, MiB]],
  );
});

test('qemu-io writes, zeroes, discards and flushes; patterns hold', needs('qemu-io'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/a.img`, '');
  truncateSync(`${dir}/a.img`, 4 * MiB);
  const served = await serve(t, ['--discard', 'unmap', `${dir}/a.img`]);
  const commands = [
    'write -P 0x11 0 1M',
    'write -P 0x22 -f 1000 3000',
    'write -z 64k 64k',
    'write -z -u 128k 64k',
    'discard 192k 64k',
    'flush',
    'read -P 0x11 0 1000',
    'read -P 0x22 1000 3000',
    'read -P 0x11 4000 60k',
    'read -P 0 64k 192k',
    'read -P 0 1M 3M',
    'aio_write -P 0x33 2M 64k',
    'aio_write -P 0x44 3M 64k',
    'aio_flush',
    'read -P 0x33 2M 64k',
    'read -P 0x44 3M 64k',
  ];
  const out = await peer('qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command]), served.uri());
  assert.doesNotMatch(out, /failed|verification/i);
  await served.stop();
  assert.equal(readFileSync(`${dir}/a.img`)[1000], 0x22);
});

test('a read-only export refuses writes and is served all the same', needs('qemu-io'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/a.img`, pattern(MiB));
  const served = await serve(t, ['--read-only', `${dir}/a.img`]);
  const refused = await run('qemu-io', ['-f', 'raw', '-c', 'write 0 512', served.uri()]);
  assert.match(refused.stderr + refused.stdout, /read-only|permission denied/i);
  await peer('qemu-io', '-r', '-f', 'raw', '-c', 'read 0 512', served.uri());
});

test('L7 an image that we serve is locked for qemu-io', needs('qemu-io'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/a.img`, pattern(MiB));
  const served = await serve(t, [`${dir}/a.img`]);
  const refused = await run('qemu-io', ['-f', 'raw', '-c', 'read 0 512', `${dir}/a.img`]);
  assert.match(refused.stderr + refused.stdout, /Failed to get .*lock/);
  await served.stop();
  await peer('qemu-io', '-f', 'raw', '-c', 'read 0 512', `${dir}/a.img`);
});
