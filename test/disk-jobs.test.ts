/** Jobs of a disk in a program: commit, mirror and backup. */
import assert from 'node:assert/strict';
import { existsSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { type Disk, type DiskBackupOptions, type JobProgress, open } from '../src/index.ts';
import { needs, pattern, peer, scratch, sparse } from './harness.ts';

const MiB = 1024 * 1024;
const SIZE = 24 * MiB;

/** A disk with a chain of three, and data in each of the images. */
async function chain(dir: string): Promise<Disk> {
  sparse(`${dir}/base.raw`, SIZE);
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', `${dir}/middle.qcow2`);
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'middle.qcow2', '-F', 'qcow2', `${dir}/top.qcow2`);
  for (const [n, name] of ['base.raw', 'middle.qcow2', 'top.qcow2'].entries()) {
    const disk = await open(`${dir}/${name}`, { references: 'directory' });
    await disk.write(pattern(3 * MiB, n + 1), 0, 3 * MiB, n * 2 * MiB);
    await disk.close();
  }
  return open(`${dir}/top.qcow2`, { references: 'directory' });
}

async function content(disk: Disk): Promise<Buffer> {
  return (await disk.read(Buffer.alloc(SIZE), 0, SIZE, 0)).buffer;
}

/** Writes until `work` has ended; what the disk holds then. */
async function whileWriting(disk: Disk, work: Promise<void>): Promise<Buffer> {
  let over = false;
  const ended = work.finally(() => {
    over = true;
  });
  for (let n = 0; !over; n++) await disk.write(pattern(5000, n), 0, 5000, (n * 911_111) % (SIZE - 5000));
  await ended;
  return content(disk);
}

test(
  'layers are committed while the disk is used: one in between, then the active one',
  needs('qemu-img'),
  async (t) => {
    const dir = scratch(t);
    const disk = await chain(dir);
    const seen: JobProgress[] = [];
    const middle = disk.commit({ top: `${dir}/middle.qcow2`, onProgress: (progress) => seen.push(progress) });
    let held = await whileWriting(disk, middle);
    assert.deepEqual([seen.at(-1)?.status, seen.at(-1)?.current], ['concluded', seen.at(-1)?.total]);
    const info = JSON.parse(await peer('qemu-img', 'info', '-U', '--output=json', `${dir}/top.qcow2`));
    assert.equal(info['backing-filename'], 'base.raw');
    held = await whileWriting(disk, disk.commit());
    await disk.close();
    const base = await open(`${dir}/base.raw`, { format: 'raw' });
    assert.ok((await content(base)).equals(held));
    await base.close();
  },
);

for (const copyMode of ['background', 'write-blocking'] as const) {
  test(`a disk goes on with its mirror, or leaves it as it was [${copyMode}]`, needs('qemu-img'), async (t) => {
    const dir = scratch(t);
    const disk = await chain(dir);
    const copy = `${dir}/copy.raw`;
    let atReady: Buffer | undefined;
    const onReady = async (): Promise<'cancel'> => {
      atReady = await content(disk);
      // A bitmap is the disk's, whatever a job has put over it for a while.
      await disk.bitmaps.add('during');
      return 'cancel';
    };
    await disk.mirror(copy, { copyMode, onReady });
    assert.deepEqual(
      (await disk.bitmaps.list()).map(({ name }) => name),
      ['during'],
    );
    await disk.write(pattern(512, 99), 0, 512, 0);
    await peer('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', copy, copy);
    const left = await open(copy, { format: 'raw' });
    assert.ok((await content(left)).equals(atReady!));
    await left.close();
    assert.ok(statSync(copy).blocks * 512 < 12 * MiB, 'holes stay holes');
    const next = `${dir}/next.qcow2`;
    const held = await whileWriting(disk, disk.mirror(next, { copyMode }));
    await disk.write(pattern(512, 7), 0, 512, 512);
    held.set(pattern(512, 7), 512);
    await disk.close();
    await peer('qemu-img', 'check', '-q', next);
    const again = await open(next);
    assert.ok((await content(again)).equals(held));
    await again.close();
  });
}

/** A backup of the moment of the call: nothing is written before it has begun. */
async function backup(disk: Disk, copy: string, options: DiskBackupOptions): Promise<void> {
  let begin = (): void => undefined;
  const begun = new Promise<void>((resolve) => {
    begin = resolve;
  });
  const work = disk.backup(copy, { ...options, speed: 16 * MiB, onProgress: begin });
  await Promise.race([begun, work]);
  await whileWriting(disk, work);
}

test('backups of a disk that is written to: a full one, and what has changed since', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  const disk = await chain(dir);
  await disk.bitmaps.add('since');
  const copy = `${dir}/copy.qcow2`;
  const first = await content(disk);
  await backup(disk, copy, {});
  await disk.bitmaps.add('later');
  const image = await open(copy, { readOnly: true });
  assert.ok((await content(image)).equals(first));
  await image.close();
  const second = await content(disk);
  await backup(disk, copy, { bitmap: 'since' });
  const again = await open(copy, { readOnly: true });
  assert.ok((await content(again)).equals(second));
  await again.close();
  await peer('qemu-img', 'check', '-q', copy);
  const packed = `${dir}/packed.qcow2`;
  const third = await content(disk);
  await disk.backup(packed, { compress: true });
  const small = await open(packed, { readOnly: true });
  assert.ok((await content(small)).equals(third));
  await small.close();
  await disk.close();
});

test('a mirror that is given up leaves nothing that it has made', async (t) => {
  const dir = scratch(t);
  const disk = await open(sparse(`${dir}/a.raw`, SIZE), { format: 'raw' });
  await disk.write(pattern(MiB, 1), 0, MiB, 0);
  const stop = new AbortController();
  const reason = new Error('enough');
  const mirror = disk.mirror(`${dir}/b.raw`, { speed: 65_536, signal: stop.signal });
  setImmediate(() => stop.abort(reason));
  await assert.rejects(mirror, reason);
  assert.equal(existsSync(`${dir}/b.raw`), false);
  await assert.rejects(disk.mirror(sparse(`${dir}/small.raw`, MiB)), { code: 'EINVAL', message: /target 1048576/ });
  await assert.rejects(disk.mirror(`${dir}/a.raw`), { code: 'EBUSY' });
  await disk.close();
});
