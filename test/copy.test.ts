/** copy, as a command and in a program. */
import assert from 'node:assert/strict';
import { existsSync, openSync, readFileSync, statSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { copy, type JobProgress } from '../src/index.ts';
import { blockplane, needs, pattern, peer, scratch, sparse } from './harness.ts';

const MiB = 1024 * 1024;

/** 64 MiB with data at odd places. */
function sample(path: string): string {
  sparse(path, 64 * MiB + 512);
  const fd = openSync(path, 'r+');
  for (const [at, length] of [
    [0, 70_000],
    [3 * MiB + 17, 5 * MiB],
    [40 * MiB, 4096],
    [64 * MiB, 512],
  ] as const) {
    writeSync(fd, pattern(length, at + 1), 0, length, at);
  }
  return path;
}

test('a copy is what its source is, from any format into any', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  const raw = sample(`${dir}/a.raw`);
  const steps: readonly (readonly string[])[] = [
    [raw, `${dir}/b.qcow2`, '-o', 'cluster_size=4k,extended_l2=off'],
    [`${dir}/b.qcow2`, `${dir}/c.img`],
    [`${dir}/c.img`, `${dir}/d.img`, '-O', 'qcow2', '--sparse', '0'],
    [`${dir}/d.img`, `${dir}/e.qcow2`, '-f', 'qcow2', '--cache', 'none'],
  ];
  for (const [source, destination, ...options] of steps) {
    const { code, stderr } = await blockplane('copy', source!, destination!, ...options);
    assert.deepEqual([code, stderr], [0, '']);
    await peer('qemu-img', 'compare', raw, destination!);
    if (destination!.endsWith('.qcow2')) await peer('qemu-img', 'check', '-q', destination!);
  }
  assert.ok(statSync(`${dir}/c.img`).blocks * 512 < 6 * MiB, 'holes stay holes');
  // One that is there is overwritten, and its own zeroes come to be.
  const { code } = await blockplane('copy', `${dir}/b.qcow2`, `${dir}/c.img`);
  assert.equal(code, 0);
  assert.ok(readFileSync(raw).equals(readFileSync(`${dir}/c.img`)));
});

test('a copy that cannot be leaves nothing it has made, and says why in one line', async (t) => {
  const dir = scratch(t);
  const raw = sample(`${dir}/a.raw`);
  const small = sparse(`${dir}/small.raw`, MiB);
  const fails = async (message: RegExp, ...args: string[]): Promise<void> => {
    const { code, stderr } = await blockplane('copy', ...args);
    assert.notEqual(code, 0);
    assert.match(stderr, message);
    assert.match(stderr, /^blockplane: [^\n]+\n$/);
  };
  await fails(/target has 1048576/, raw, small);
  await fails(/No such file/, `${dir}/none.raw`, `${dir}/new.raw`);
  assert.equal(existsSync(`${dir}/new.raw`), false);
  await fails(/zeroes are looked for in units of/, raw, `${dir}/new.raw`, '--sparse', '1000');
  assert.equal(existsSync(`${dir}/new.raw`), false);
  await fails(/in use|lock/i, raw, raw);
  assert.equal(statSync(raw).size, 64 * MiB + 512);
});

test('a program can watch a copy, and give it up', async (t) => {
  const dir = scratch(t);
  const raw = sample(`${dir}/a.raw`);
  const seen: JobProgress[] = [];
  await copy(raw, `${dir}/b.raw`, { onProgress: (progress) => seen.push(progress) });
  assert.deepEqual(seen.at(-1), { status: 'concluded', current: 64 * MiB + 512, total: 64 * MiB + 512 });
  assert.ok(readFileSync(raw).equals(readFileSync(`${dir}/b.raw`)));

  const gone = new AbortController();
  const given = new Error('no longer wanted');
  const slow = copy(raw, `${dir}/c.raw`, {
    speed: MiB,
    signal: gone.signal,
    onProgress: () => gone.abort(given),
  });
  await assert.rejects(slow, given);
  assert.equal(existsSync(`${dir}/c.raw`), false);
});
