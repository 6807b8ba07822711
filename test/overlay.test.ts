/** Overlays that become local as they are read: `serve --overlay`, `--prefetch`, and the same in a program. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdirSync, openSync, readdirSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { type BlockExtent, create, type Disk, IOThread, inspect, open } from '../src/index.ts';
import { blockplane, needs, pattern, peer, scratch, serve, sparse } from './harness.ts';

const MiB = 1024 * 1024;
const SIZE = 24 * MiB + 512;

/** A raw image with data at odd places. */
function sample(path: string): string {
  sparse(path, SIZE);
  const fd = openSync(path, 'r+');
  for (const [at, length] of [
    [0, 70_000],
    [3 * MiB + 17, 5 * MiB],
    [24 * MiB, 512],
  ] as const) {
    writeSync(fd, pattern(length, at + 1), 0, length, at);
  }
  return path;
}

async function extents(disk: Disk): Promise<BlockExtent[]> {
  const all: BlockExtent[] = [];
  for await (const extent of disk.blockStatus()) all.push(extent);
  return all;
}

const localBytes = (all: readonly BlockExtent[]): number =>
  all.filter(({ depth }) => depth === 1).reduce((sum, { length }) => sum + length, 0);

test('what is read of an image is kept in its overlay, the image stays as it is', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  const image = sample(`${dir}/base.img`);
  const before = readFileSync(image);
  const overlay = `${dir}/mine.qcow2`;
  const disk = await open(image, { overlay });
  const { buffer } = await disk.read(Buffer.alloc(100_000), 0, 100_000, 3 * MiB);
  assert.ok(buffer.equals(before.subarray(3 * MiB, 3 * MiB + 100_000)));
  assert.equal(localBytes(await extents(disk)), 2 * 65_536);
  await disk.write(pattern(1000, 7), 0, 1000, 10 * MiB);
  await disk.close();
  assert.ok(readFileSync(image).equals(before));
  await peer('qemu-img', 'check', '-q', overlay);
  // Opened again, it goes on with what it has.
  const again = await open(image, { overlay, readOnly: true });
  assert.equal(localBytes(await extents(again)), 3 * 65_536);
  await assert.rejects(again.write(Buffer.alloc(1), 0, 1, 0), { code: 'EPERM' });
  await again.read(Buffer.alloc(1), 0, 1, 0);
  assert.equal(localBytes(await extents(again)), 4 * 65_536);
  await again.close();
});

test('what is done to an image as a whole is done to the overlay, below the filter', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  const image = sample(`${dir}/base.img`);
  const overlay = `${dir}/mine.qcow2`;
  await using disk = await open(image, { overlay });
  await disk.read(Buffer.alloc(512), 0, 512, 0);
  await disk.snapshots.create('before');
  await disk.write(pattern(512, 9), 0, 512, 0);
  await disk.snapshots.apply('before');
  const { buffer } = await disk.read(Buffer.alloc(512), 0, 512, 0);
  assert.ok(buffer.equals(readFileSync(image).subarray(0, 512)));
  assert.equal((await disk.check()).corruptions, 0);
  assert.deepEqual(
    (await disk.snapshots.list()).map(({ name }) => name),
    ['before'],
  );
  await disk.close();
  assert.match(await peer('qemu-img', 'snapshot', '-l', overlay), /before/);
});

test('the same reads make the same clusters local as with QEMU', needs('qemu-img', 'qemu-io'), async (t) => {
  const dir = scratch(t);
  const image = sample(`${dir}/base.img`);
  const [ours, theirs] = [`${dir}/ours.qcow2`, `${dir}/theirs.qcow2`];
  await (await open(image, { overlay: ours })).close();
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', image, '-F', 'raw', theirs);
  const reads = [
    [0, 512],
    [65_000, 6000],
    [3 * MiB + 100_000, 300_000],
    [12 * MiB + 5, 70_000],
    [24 * MiB, 512],
  ] as const;
  const disk = await open(image, { overlay: ours });
  for (const [at, length] of reads) await disk.read(Buffer.alloc(length), 0, length, at);
  await disk.close();
  const commands = reads.flatMap(([at, length]) => ['-c', `read ${at} ${length}`]);
  const layer = `file.driver=qcow2,file.file.driver=file,file.file.filename=${theirs}`;
  await peer('qemu-io', ...commands, '--image-opts', `driver=copy-on-read,${layer}`);
  const mapOf = async (path: string): Promise<unknown> => {
    const extents = JSON.parse(await peer('qemu-img', 'map', '--output=json', path)) as Record<string, unknown>[];
    return extents.map(({ start, length, depth, zero, data }) => ({ start, length, depth, zero, data }));
  };
  assert.deepEqual(await mapOf(ours), await mapOf(theirs));
});

test('an overlay names its image by a whole path, which others do not follow', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  const image = sample(`${dir}/base.img`);
  const overlay = `${dir}/mine.qcow2`;
  await (await open(image, { overlay })).close();
  const { qcow2 } = await inspect(overlay);
  assert.deepEqual([qcow2?.backingFile, qcow2?.backingFormat], [image, 'raw']);
  await assert.rejects(open(overlay), { code: 'EACCES', message: /absolute name/ });
  await (await open(overlay, { allowDirectories: [dir] })).close();
  const other = sample(`${dir}/other.img`);
  await assert.rejects(open(other, { overlay }), { code: 'EINVAL', message: /it is one of '.*base.img', not of/ });
  await assert.rejects(open(overlay, { overlay }), { code: 'EINVAL', message: /the image itself/ });
  await assert.rejects(open(image, { overlay, forceShare: true, readOnly: true }), { code: 'EINVAL' });
  writeFileSync(`${dir}/text.qcow2`, 'not an image');
  await assert.rejects(open(image, { overlay: `${dir}/text.qcow2` }), { code: 'EINVAL' });
  assert.equal(readFileSync(`${dir}/text.qcow2`, 'utf8'), 'not an image');
});

test('stream: the disk needs what is below no more, and reads the same', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  const image = sample(`${dir}/base.img`);
  await create(`${dir}/middle.qcow2`, { backingFile: 'base.img', backingFormat: 'raw', clusterSize: 4096 });
  await create(`${dir}/top.qcow2`, { backingFile: 'middle.qcow2' });
  await using thread = await IOThread.start();
  const disk = await open(`${dir}/top.qcow2`);
  await disk.write(pattern(5000, 3), 0, 5000, MiB);
  await disk.flush();
  await peer('qemu-img', 'convert', '-U', '-O', 'raw', `${dir}/top.qcow2`, `${dir}/before.raw`);
  await assert.rejects(disk.stream({ base: 'nowhere.img' }), { code: 'ENOENT' });
  await disk.snapshots.create('s');
  await assert.rejects(disk.stream(), { code: 'EBUSY', message: /internal snapshots/ });
  await disk.snapshots.delete('s');
  const stop = new AbortController();
  const slow = assert.rejects(disk.stream({ speed: 65_536, signal: stop.signal }), { name: 'AbortError' });
  await assert.rejects(disk.snapshots.create('s'), { code: 'EBUSY', message: /job .stream/ });
  await assert.rejects(disk.setAioContext(thread), { code: 'EBUSY', message: /job .stream/ });
  await assert.rejects(disk.stream(), { code: 'EBUSY' });
  stop.abort();
  await slow;
  await disk.stream({ base: image });
  assert.equal((await inspect(`${dir}/top.qcow2`)).qcow2?.backingFile, 'base.img');
  const seen: number[] = [];
  await disk.stream({ onProgress: ({ current }) => seen.push(current) });
  assert.equal(seen.at(-1), disk.size);
  assert.equal((await inspect(`${dir}/top.qcow2`)).qcow2?.backingFile, null);
  // It moves as what it is by now.
  await disk.setAioContext(thread);
  await disk.write(pattern(5000, 3), 0, 5000, MiB);
  assert.equal((await extents(disk)).filter(({ depth }) => depth > 1).length, 0);
  await disk.close();
  await peer('qemu-img', 'check', '-q', `${dir}/top.qcow2`);
  await peer('qemu-img', 'compare', `${dir}/before.raw`, `${dir}/top.qcow2`);
});

test('a stream ends with its signal, or with its disk, and the image goes on with what it has', async (t) => {
  const dir = scratch(t);
  const image = sample(`${dir}/base.img`);
  const overlay = `${dir}/mine.qcow2`;
  const disk = await open(image, { overlay });
  const stop = new AbortController();
  const slow = { speed: MiB, signal: stop.signal };
  const streaming = disk.stream({ ...slow, onProgress: ({ current }) => current > 0 && stop.abort() });
  await assert.rejects(streaming, { name: 'AbortError' });
  const second = assert.rejects(disk.stream({ speed: 65_536 }), { code: 'ECANCELED' });
  await disk.close();
  await second;
  const again = await open(image, { overlay });
  assert.ok(localBytes(await extents(again)) > 0);
  await again.stream();
  await again.close();
  assert.equal((await inspect(overlay)).qcow2?.backingFile, null);
  // From here on the image is not needed; the rest of it is still what opens the overlay.
  const local = await open(image, { overlay });
  const { buffer } = await local.read(Buffer.alloc(SIZE), 0, SIZE, 0);
  assert.ok(buffer.equals(readFileSync(image)));
  await local.close();
});

test('serve --overlay --prefetch makes an image local, goes on after a kill, and tells', async (t) => {
  const needed = needs('qemu-img', 'nbdcopy');
  if (needed.skip) return t.skip(needed.skip);
  const dir = scratch(t);
  const image = sample(`${dir}/base.img`);
  const overlay = `${dir}/mine.qcow2`;
  const first = await serve(t, ['--overlay', overlay, image]);
  await peer('nbdcopy', first.uri(), `${dir}/read.raw`);
  assert.ok(readFileSync(image).equals(readFileSync(`${dir}/read.raw`)));
  await first.stop('SIGKILL');
  const second = await serve(t, ['--overlay', overlay, '--prefetch', '--progress', 'json', image]);
  while (!second.text.stdout.includes(`"prefetched":${SIZE},"prefetchTotal":${SIZE}`)) {
    await Promise.race([once(second.child.stdout!, 'data'), second.exited]);
    assert.equal(second.child.exitCode, null);
  }
  assert.equal((await inspect(overlay)).qcow2?.backingFile, null);
  const { code, stderr } = await second.stop();
  assert.equal(code, 0, stderr);
  await peer('qemu-img', 'check', '-q', overlay);
  await peer('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', overlay, image);
});

test('serve refuses overlays that cannot be, in one line', async (t) => {
  const dir = scratch(t);
  const image = sample(`${dir}/base.img`);
  for (const [message, ...args] of [
    [/--prefetch: only with --overlay/, '--prefetch', image],
    [/--overlay: given 1 times for 2 images/, '--overlay', `${dir}/o.qcow2`, image, image],
    [/--overlay: given 1 times for 0 images/, '--overlay', `${dir}/o.qcow2`],
    [/--force-share: not with --overlay/, '--overlay', `${dir}/o.qcow2`, '-U', '-r', image],
  ] as const) {
    const { code, stderr } = await blockplane('serve', ...args);
    assert.equal(code, 2);
    assert.match(stderr, message);
  }
});

test('a temporary disk takes writes that are gone with it, and leaves no file', async (t) => {
  const dir = scratch(t);
  const image = sample(`${dir}/base.img`);
  const before = readFileSync(image);
  const [given, left] = [process.env.TMPDIR, `${dir}/tmp`];
  mkdirSync(left);
  process.env.TMPDIR = left;
  t.after(() => {
    if (given === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = given;
  });
  const disk = await open(image, { temporary: true, format: 'raw' });
  assert.deepEqual(readdirSync(left), []);
  await disk.write(pattern(100_000, 7), 0, 100_000, 3 * MiB + 1);
  await disk.flush();
  const { buffer } = await disk.read(Buffer.alloc(100_002), 0, 100_002, 3 * MiB);
  const expected = Buffer.from(before.subarray(3 * MiB, 3 * MiB + 100_002));
  expected.set(pattern(100_000, 7), 1);
  assert.ok(buffer.equals(expected));
  await disk.close();
  assert.ok(readFileSync(image).equals(before));
  const again = await open(image, { temporary: true, format: 'raw' });
  const { buffer: read } = await again.read(Buffer.alloc(4096), 0, 4096, 3 * MiB);
  assert.ok(read.equals(before.subarray(3 * MiB, 3 * MiB + 4096)));
  await again.close();
  for (const options of [{ readOnly: true }, { overlay: `${dir}/x.qcow2` }]) {
    await assert.rejects(open(image, { temporary: true, ...options }), { code: 'EINVAL' });
  }
  await assert.rejects(open(`${dir}/none`, { temporary: true }), { code: 'ENOENT' });
  assert.deepEqual(readdirSync(left), []);
});
