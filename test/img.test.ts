/** What image tools do, as a program calls it: `blockplane/img` beside qemu-img. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import {
  amend,
  bench,
  bitmap,
  check,
  commit,
  compare,
  convert,
  create,
  dd,
  type Image,
  info,
  infoChain,
  map,
  measure,
  rebase,
  resize,
  snapshot,
} from '../src/img/index.ts';
import type { BlockError } from '../src/index.ts';
import { needs, pattern, peer, scratch } from './harness.ts';

const MIB = 2 ** 20;
const peers = needs('qemu-img', 'qemu-io');

/** A raw image: data, a hole, data. */
function source(folder: string, name = 'source.raw'): string {
  const path = join(folder, name);
  const bytes = new Uint8Array(8 * MIB);
  bytes.set(pattern(MIB), 0);
  bytes.set(pattern(MIB, 2), 6 * MIB);
  writeFileSync(path, bytes);
  return path;
}

function code(expected: string): (error: BlockError) => boolean {
  return (error) => {
    assert.equal(error.code, expected, error.message);
    return true;
  };
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const item of items) list.push(item);
  return list;
}

async function qcow2(t: TestContext): Promise<{ folder: string; raw: string; path: string }> {
  const folder = scratch(t);
  const raw = source(folder);
  const path = join(folder, 'disk.qcow2');
  await convert(raw, path);
  return { folder, raw, path };
}

test('a converted image holds the same, and its progress ends where it is whole', peers, async (t) => {
  const folder = scratch(t);
  const [raw, path, back] = [source(folder), join(folder, 'disk.qcow2'), join(folder, 'back.raw')];
  const conversion = convert(raw, path, { compress: true, create: { clusterSize: 32768 } });
  const steps = await all(conversion);
  await conversion;
  const last = steps.at(-1);
  assert.ok(last && last.current === last.total && last.total > 0, JSON.stringify(steps));
  await peer('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', raw, path);
  await peer('qemu-img', 'check', path);
  assert.equal((await info(path)).qcow2?.clusterSize, 32768);
  await convert({ name: path, format: 'probe' }, back);
  assert.deepEqual(readFileSync(back), readFileSync(raw));
  await convert([raw, { driver: 'qcow2', file: { driver: 'file', filename: path } }], join(folder, 'two.qcow2'));
  assert.equal((await info(join(folder, 'two.qcow2'))).virtualSize, 16 * MIB);
});

test('what fails leaves no target, and says why', async (t) => {
  const folder = scratch(t);
  const [raw, path] = [source(folder), join(folder, 'disk.qcow2')];
  await assert.rejects(convert(join(folder, 'none'), path), code('ENOENT'));
  await assert.rejects(convert(raw, path, { create: { clusterSize: 1000 } }), code('EINVAL'));
  await assert.rejects(convert(raw, join(folder, 'x.raw'), { create: { clusterSize: 65536 } }), code('EINVAL'));
  await assert.rejects(convert(raw, path, { signal: AbortSignal.abort(new Error('enough')) }), /enough/);
  const slow = convert(raw, path, { speed: 65536, signal: AbortSignal.timeout(200) });
  await assert.rejects(all(slow), { name: 'TimeoutError' });
  await assert.rejects(slow, { name: 'TimeoutError' });
  assert.throws(() => convert(raw, path, { targetIsZero: true }), code('EINVAL'));
  assert.ok(!existsSync(path));
});

test('a disk is mapped as qemu-img does, and compared', peers, async (t) => {
  const { folder, raw, path } = await qcow2(t);
  const theirs = JSON.parse(await peer('qemu-img', 'map', '--output=json', path)) as { start: number; data: boolean }[];
  const ours = await all(map(path));
  const shown = ({ start, data }: { start: number; data: boolean }) => [start, data];
  assert.deepEqual(ours.map(shown), theirs.map(shown));
  assert.deepEqual(
    (await all(map(path, { start: 6 * MIB, length: 4096 }))).map(({ start, length }) => [start, length]),
    [[6 * MIB, 4096]],
  );
  assert.deepEqual(await compare(raw, path), { kind: 'same' });
  const other = join(folder, 'other.raw');
  const bytes = readFileSync(raw);
  bytes[6 * MIB + 5] = bytes[6 * MIB + 5]! ^ 1;
  writeFileSync(other, bytes);
  assert.deepEqual(await compare(other, path), { kind: 'content', at: 6 * MIB });
  assert.deepEqual(await compare(raw, path, { strict: true }).then(({ kind }) => kind), 'status');
});

test('images are made, grown, amended and measured', peers, async (t) => {
  const { folder, raw, path } = await qcow2(t);
  assert.equal(await resize(path, { by: MIB }), 9 * MIB);
  assert.equal(await resize(path, 16 * MIB, { preallocation: 'falloc' }), 16 * MIB);
  await assert.rejects(resize(path, MIB), code('EINVAL'));
  assert.equal(await resize(path, 8 * MIB, { shrink: true }), 8 * MIB);
  await amend(path, { compat: '0.10' });
  assert.equal((await info(path)).qcow2?.compat, '0.10');
  const theirs = JSON.parse(await peer('qemu-img', 'measure', '--output=json', '-O', 'qcow2', '-f', 'raw', raw));
  const { required, fullyAllocated } = await measure(raw, { format: 'qcow2' });
  assert.deepEqual([required, fullyAllocated], [theirs.required, theirs['fully-allocated']]);
  const empty = JSON.parse(await peer('qemu-img', 'measure', '--output=json', '-O', 'qcow2', '--size', '1G'));
  assert.equal((await measure({ size: 2 ** 30 }, { format: 'qcow2' })).required, empty.required);
  await dd(raw, join(folder, 'part.raw'), { skip: 6 * MIB, length: MIB });
  assert.deepEqual(readFileSync(join(folder, 'part.raw')), readFileSync(raw).subarray(6 * MIB, 7 * MIB));
  assert.equal((await check(path)).corruptions, 0);
  assert.ok((await bench(path, { count: 64, depth: 8 })) > 0);
});

test('snapshots, bitmaps and backing files are changed', peers, async (t) => {
  const { folder, raw, path } = await qcow2(t);
  await snapshot(path, 'create', 'before');
  await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 9 0 64k', path);
  await snapshot(path, 'apply', 'before');
  assert.deepEqual(await compare(raw, path), { kind: 'same' });
  await snapshot(path, 'delete', 'before');
  await assert.rejects(snapshot(path, 'delete', 'before'), code('ENOENT'));
  await bitmap(path, 'b0', [{ action: 'add' }, { action: 'disable' }], { granularity: 65536 });
  await assert.rejects(bitmap(path, 'b0', [{ action: 'add' }]), code('EEXIST'));
  assert.deepEqual(
    (await info(path)).qcow2?.bitmaps.map(({ name }) => name),
    ['b0'],
  );
  const overlay = join(folder, 'overlay.qcow2');
  await create(overlay, { backingFile: path });
  assert.deepEqual(
    (await infoChain(overlay)).map(({ filename }) => filename),
    [overlay, path],
  );
  await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 9 0 64k', overlay);
  await commit(overlay);
  await peer('qemu-io', '-f', 'qcow2', '-c', 'read -P 9 0 64k', path);
  await rebase(overlay, null);
  assert.equal((await info(overlay)).qcow2?.backingFile, null);
  assert.deepEqual(await compare(overlay, path), { kind: 'same' });
});

test('an encrypted image is made with a key, and read with a secret', peers, async (t) => {
  const folder = scratch(t);
  const [raw, path] = [source(folder), join(folder, 'secret.qcow2')];
  await convert(raw, path, { create: { encrypt: { format: 'luks', key: 'sesame', iterTime: 10 } } });
  const file = { driver: 'file', filename: path } as const;
  const tree = { driver: 'qcow2', file, 'encrypt.key-secret': 'sec0' } as unknown as Image;
  const objects = [{ 'qom-type': 'secret' as const, id: 'sec0', data: 'sesame' }];
  assert.deepEqual(await compare(raw, tree, { objects }), { kind: 'same' });
  const options = `driver=qcow2,file.filename=${path},encrypt.key-secret=sec0`;
  await peer(
    'qemu-img',
    'compare',
    '--object',
    'secret,id=sec0,data=sesame',
    '--image-opts',
    options,
    `file.filename=${raw},driver=raw`,
  );
});
