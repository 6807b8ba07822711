/**
 * Encrypted images: what QEMU makes is read here, what is made and written here QEMU reads. The passphrase is 'abc'.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { needs, pattern, peer, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { Iov } from '../../base/memory.ts';
import { Prng } from '../../base/prng.ts';
import { type Bytes, KiB, MiB, type Offset, SECTOR } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { RequestFlags } from '../../block/driver.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { registerTestDrivers, testDisk } from '../../block/testing.ts';
import type { Qcow2CreateOptions } from './create-options.ts';
import type { Qcow2Node } from './driver.ts';
import { makeImage, registerQcow2 } from './testing.ts';

const SECRET = ['--object', 'secret,id=key,data=abc'];
const LUKS = { 'encrypt.format': 'luks', 'encrypt.key': 'abc', 'encrypt.iter-time': 1 } as const;

before(() => {
  registerTestDrivers();
  registerQcow2();
});

/** Options of QEMU's tools that open an encrypted image. */
function unlocking(path: string, key = 'key'): string {
  return `driver=qcow2,encrypt.key-secret=${key},file.filename=${path}`;
}

async function withContext(body: (context: AioContext) => Promise<void>): Promise<void> {
  const context = new AioContext(new PoolBackend());
  try {
    await body(context);
  } finally {
    await context.stop();
  }
}

function nodeOf(path: string, more: Record<string, unknown> = {}): NodeOptions {
  const file = { driver: 'file', filename: path };
  return { driver: 'qcow2', discard: 'unmap', 'encrypt.key': 'abc', file, ...more };
}

function memory(context: AioContext, bytes: Uint8Array): Iov {
  const shared = new Uint8Array(new SharedArrayBuffer(bytes.length));
  shared.set(bytes);
  return Iov.of(context.backend.memory(shared));
}

async function readBytes(blk: BlockBackend, at: Offset, length: Bytes): Promise<Uint8Array> {
  const iov = memory(blk.context, new Uint8Array(length));
  await blk.read(at, iov);
  return iov.run(0).slice();
}

/** Everything on the disk of an image, read-only. */
async function readImage(path: string, more: Record<string, unknown> = {}): Promise<Uint8Array> {
  let bytes: Uint8Array = new Uint8Array(0);
  await withContext(async (context) => {
    const blk = await BlockBackend.open(context, nodeOf(path, { 'read-only': true, ...more }), { readOnly: true });
    bytes = await readBytes(blk, 0, blk.length);
    await blk.close();
  });
  return bytes;
}

async function assertSameDisk(path: string, expected: Uint8Array, more: Record<string, unknown> = {}): Promise<void> {
  const bytes = await readImage(path, more);
  const differs = expected.findIndex((byte, at) => byte !== bytes[at]);
  assert.ok(differs < 0 && bytes.length === expected.length, `byte ${differs} is ${bytes[differs]}`);
}

/** Data, holes, and zeroes, which convert leaves out. */
function sampleDisk(size: Bytes): Uint8Array {
  const bytes = pattern(size, 3);
  bytes.fill(0, size / 4, size / 2);
  return bytes;
}

// Making one takes QEMU seconds: two, with as little in common as can be.
for (const options of [
  'cluster_size=2M',
  'compat=0.10,cluster_size=512,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,' +
    'encrypt.ivgen-hash-alg=md5,encrypt.hash-alg=sha1',
]) {
  test(`what qemu-img encrypts is read the same: ${options}`, needs('qemu-img'), async (t) => {
    const folder = scratch(t);
    const [raw, path] = [join(folder, 'raw'), join(folder, 'image')];
    const disk = sampleDisk(3 * MiB + 3 * SECTOR);
    writeFileSync(raw, disk);
    const luks = `encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10,${options}`;
    await peer('qemu-img', 'convert', ...SECRET, '-f', 'raw', '-O', 'qcow2', '-o', luks, raw, path);
    await assertSameDisk(path, disk);
  });
}

for (const [alg, mode, ivgen, ivgenHash, hash] of [
  ['aes-256', 'xts', 'plain64', undefined, 'sha256'],
  ['aes-192', 'xts', 'plain', undefined, 'sha512'],
  ['aes-128', 'xts', 'essiv', 'sha256', 'ripemd160'],
  ['aes-256', 'cbc', 'essiv', 'sha256', 'sha1'],
  ['aes-128', 'cbc', 'essiv', 'md5', 'sha384'],
  ['aes-256', 'cbc', 'plain64', undefined, 'sha224'],
  ['aes-256', 'ecb', 'plain64', undefined, 'md5'],
] as const) {
  const title = `${alg} ${mode} ${ivgen}${ivgenHash ? `:${ivgenHash}` : ''} ${hash}`;
  test(`QEMU opens every kind of key, and encrypts as we do: ${title}`, needs('qemu-img'), async (t) => {
    const folder = scratch(t);
    const [raw, path] = [join(folder, 'raw'), join(folder, 'image')];
    const disk = sampleDisk(MiB);
    writeFileSync(raw, disk);
    writeFileSync(path, '');
    const kind = {
      ...{ 'encrypt.cipher-alg': alg, 'encrypt.cipher-mode': mode, 'encrypt.hash-alg': hash },
      ...{ 'encrypt.ivgen-alg': ivgen, ...(ivgenHash ? { 'encrypt.ivgen-hash-alg': ivgenHash } : {}) },
    };
    const file = { driver: 'file', filename: path };
    await withContext((context) => makeImage(context, file, { size: MiB, ...LUKS, ...kind }));
    await peer('qemu-img', 'convert', '-n', ...SECRET, '-f', 'raw', '--target-image-opts', raw, unlocking(path));
    await assertSameDisk(path, disk);
  });
}

test('the old encryption is read, and not written', needs('qemu-img', 'qemu-io'), async (t) => {
  const folder = scratch(t);
  const [raw, path] = [join(folder, 'raw'), join(folder, 'image')];
  const disk = sampleDisk(MiB);
  writeFileSync(raw, disk);
  const options = 'encrypt.format=aes,encrypt.key-secret=key,cluster_size=4k';
  await peer('qemu-img', 'convert', ...SECRET, '-f', 'raw', '-O', 'qcow2', '-o', options, raw, path);
  await peer('qemu-io', ...SECRET, '--image-opts', unlocking(path), '-c', 'write -P 9 5k 1k');
  disk.fill(9, 5 * KiB, 6 * KiB);
  await assertSameDisk(path, disk);
  await withContext(async (context) => {
    await assert.rejects(BlockBackend.open(context, nodeOf(path)), { code: 'ENOTSUP', message: /for reading only/ });
  });
});

test('every key slot in use opens the image, and no other passphrase', needs('qemu-img'), async (t) => {
  const path = join(scratch(t), 'image');
  writeFileSync(path, '');
  await withContext((context) => makeImage(context, { driver: 'file', filename: path }, { size: MiB, ...LUKS }));
  const secrets = [...SECRET, '--object', 'secret,id=new,data=other'];
  const second = 'encrypt.state=active,encrypt.new-secret=new,encrypt.iter-time=10,encrypt.keyslot=5';
  await peer('qemu-img', 'amend', ...secrets, '--image-opts', unlocking(path), '-o', second);
  await assertSameDisk(path, new Uint8Array(MiB));
  await assertSameDisk(path, new Uint8Array(MiB), { 'encrypt.key': 'other' });
  const wrong = { code: 'EACCES', message: /no key slot opens with this passphrase/ };
  await assert.rejects(readImage(path, { 'encrypt.key': 'third' }), wrong);
  const first = 'encrypt.state=inactive,encrypt.old-secret=key';
  await peer('qemu-img', 'amend', ...secrets, '--image-opts', unlocking(path, 'new'), '-o', first);
  await assert.rejects(readImage(path), wrong);
  await assertSameDisk(path, new Uint8Array(MiB), { 'encrypt.key': 'other' });
});

test('without a passphrase nothing is opened, and no message shows one', () =>
  withContext(async (context) => {
    testDisk('locked', 0);
    const file = { driver: 'memory', disk: 'locked' };
    await makeImage(context, file, { size: MiB, ...LUKS });
    const open = (more: Record<string, unknown>) => BlockBackend.open(context, { driver: 'qcow2', file, ...more });
    await assert.rejects(open({}), { code: 'EACCES', message: /option 'encrypt.key' is missing/ });
    await assert.rejects(open({ 'encrypt.key': 4711 }), (error) => {
      assert.match((error as Error).message, /option 'encrypt.key' is not a string/);
      return !(error as Error).message.includes('4711');
    });
  }));

/** A disk and what is to be on it. */
interface World {
  readonly blk: BlockBackend;
  readonly model: Uint8Array;
  readonly prng: Prng;
  readonly clusterSize: Bytes;
}

/** Some requests at once, which do not overlap but meet in clusters. */
async function batch({ blk, model, prng, clusterSize }: World): Promise<void> {
  const running: Promise<void>[] = [];
  const size = model.length;
  const span = Math.min(size / 2, Math.max(64 * KiB, 2 * clusterSize));
  let next = prng.below((size - span) / SECTOR) * SECTOR;
  for (let left = 6; left > 0 && next < size; left--) {
    const at = next;
    const most = Math.min(size - at, prng.chance(0.2) ? span : 8 * KiB);
    // Sometimes not whole sectors.
    const length = prng.chance(0.2) ? prng.between(1, most) : Math.max(1, Math.floor(most / SECTOR / 2)) * SECTOR;
    if (prng.chance(0.6)) {
      const bytes = pattern(length, prng.u32());
      model.set(bytes, at);
      running.push(blk.write(at, memory(blk.context, bytes), prng.chance(0.1) ? RequestFlags.FUA : 0));
    } else if (prng.chance(0.5)) {
      model.fill(0, at, at + length);
      running.push(blk.writeZeroes(at, length, prng.chance(0.5) ? RequestFlags.MAY_UNMAP : 0));
    } else running.push(readBytes(blk, at, length).then((bytes) => same(bytes, model, at)));
    next += Math.ceil(length / SECTOR) * SECTOR;
  }
  await Promise.all(running);
}

function same(bytes: Uint8Array, model: Uint8Array, at: Offset): void {
  const differs = bytes.findIndex((byte, i) => byte !== model[at + i]);
  assert.ok(differs < 0, `byte ${at + differs} is ${bytes[differs]}, not ${model[at + differs]}`);
}

/** Whole clusters: what is left of others would stay as it is. */
async function discardSome({ blk, model, prng, clusterSize }: World): Promise<void> {
  const cluster = prng.below(Math.floor(model.length / clusterSize));
  await blk.discard(cluster * clusterSize, clusterSize);
  model.fill(0, cluster * clusterSize, (cluster + 1) * clusterSize);
}

const SHAPES: readonly (Partial<Qcow2CreateOptions> & { readonly base?: true })[] = [
  { 'cluster-size': 512 },
  { 'cluster-size': 4 * KiB, base: true },
  { 'cluster-size': 64 * KiB, 'encrypt.cipher-mode': 'cbc', 'encrypt.ivgen-alg': 'essiv' },
  { 'cluster-size': 2 * MiB },
  { 'cluster-size': 2 * MiB, base: true },
  { 'cluster-size': 16 * KiB, 'extended-l2': true, base: true },
  { 'cluster-size': 64 * KiB, 'extended-l2': true, 'encrypt.cipher-alg': 'aes-128' },
  { 'cluster-size': 4 * KiB, compat: '0.10' },
  { 'cluster-size': 64 * KiB, preallocation: 'metadata' },
  { 'cluster-size': 64 * KiB, 'extended-l2': true, preallocation: 'metadata', base: true },
  { 'cluster-size': 64 * KiB, 'data-file': 'data' },
];

for (const { base, ...options } of SHAPES) {
  const title = [...Object.entries(options).map(([name, value]) => `${name}=${value}`), ...(base ? ['on a base'] : [])];
  test(`what is written here QEMU reads the same: ${title.join(' ')}`, needs('qemu-img', 'qemu-io'), async (t) => {
    const folder = scratch(t);
    const path = join(folder, 'image');
    const clusterSize = options['cluster-size']!;
    const model = new Uint8Array(Math.max(2 * MiB, 2 * clusterSize) + 5 * SECTOR);
    if (base) {
      // Shorter than the disk, and not of whole clusters.
      writeFileSync(join(folder, 'base'), pattern(1.5 * MiB + 3 * SECTOR, 9));
      model.set(pattern(1.5 * MiB + 3 * SECTOR, 9));
    }
    const named = base ? { 'backing-file': join(folder, 'base'), 'backing-fmt': 'raw' } : {};
    const dataPath = join(folder, 'data');
    const external = options['data-file'] === undefined ? {} : { 'data-file': dataPath };
    const below = base ? { backing: { driver: 'raw', file: { driver: 'file', filename: join(folder, 'base') } } } : {};
    const data = external['data-file'] ? { driver: 'file', filename: dataPath } : undefined;
    const more = { ...below, ...(data ? { 'data-file': data } : {}) };
    for (const file of [path, dataPath]) writeFileSync(file, '');
    const compare = async (): Promise<void> => {
      writeFileSync(join(folder, 'model'), model);
      await peer('qemu-img', 'check', '-q', ...SECRET, '--image-opts', unlocking(path));
      const raw = `driver=raw,file.filename=${join(folder, 'model')}`;
      await peer('qemu-img', 'compare', '-q', ...SECRET, '--image-opts', unlocking(path), raw);
    };
    await withContext(async (context) => {
      const create = { size: model.length, ...LUKS, ...options, ...named, ...external };
      await makeImage(context, { driver: 'file', filename: path }, create, data);
      const prng = new Prng(clusterSize + title.length);
      for (let session = 0; session < 3; session++) {
        const blk = await BlockBackend.open(context, nodeOf(path, more));
        const world = { blk, model, prng, clusterSize };
        for (let i = 0; i < 20; i++) {
          await batch(world);
          if (i % 5 === 0) await discardSome(world);
          if (i % 7 === 0) await blk.flush();
        }
        same(await readBytes(blk, 0, model.length), model, 0);
        await blk.close();
        await compare();
        if (session === 2) break;
        // QEMU's turn: part of a cluster, and over the edge of two.
        const at = Math.floor(model.length / 3 / SECTOR) * SECTOR;
        await peer('qemu-io', ...SECRET, '--image-opts', unlocking(path), '-c', `write -P 77 ${at} 5120`);
        model.fill(77, at, at + 5120);
      }
    });
    await assertSameDisk(path, model, more);
  });
}

test('nothing that is written lies in the file as it is', () =>
  withContext(async (context) => {
    const disk = testDisk('ciphertext', 0);
    const file = { driver: 'memory', disk: 'ciphertext' };
    await makeImage(context, file, { size: MiB, ...LUKS });
    const blk = await BlockBackend.open(context, { ...nodeOf(''), file });
    // A cluster of a new L2 table, one beside it, over both, zeroes.
    for (const [at, length] of [
      [0, 64 * KiB],
      [100 * KiB, 4 * KiB],
      [32 * KiB, 64 * KiB],
    ] as const) {
      await blk.write(at, memory(context, new Uint8Array(length).fill(0x5a)));
    }
    await blk.close();
    const text = Buffer.from(disk.bytes);
    assert.equal(text.indexOf(Buffer.alloc(16, 0x5a)), -1);
  }));

test('a cluster that is being overwritten is not given to somebody else before that has ended', () =>
  withContext(async (context) => {
    const disk = testDisk('overwritten', 0);
    const file = { driver: 'memory', disk: 'overwritten' };
    await makeImage(context, file, { size: 8 * MiB, ...LUKS });
    const blk = await BlockBackend.open(context, { ...nodeOf(''), file });
    const fill = (at: Offset, value: number) => blk.write(at, memory(context, new Uint8Array(64 * KiB).fill(value)));
    await fill(0, 1);
    await blk.flush();
    disk.hold('write', 1);
    const overwrite = fill(0, 2);
    while (disk.waiting('write') === 0) await context.yield();
    await blk.discard(0, 64 * KiB);
    await blk.flush();
    // More than it takes to free a cluster, if nothing stands in the way.
    for (let i = 0; i < 100; i++) await context.yield();
    await fill(MiB, 3);
    disk.release('write');
    await overwrite;
    assert.deepEqual(await readBytes(blk, MiB, 64 * KiB), new Uint8Array(64 * KiB).fill(3));
    await blk.close();
  }));

test('snapshots of an encrypted disk', needs('qemu-img'), async (t) => {
  const path = join(scratch(t), 'image');
  writeFileSync(path, '');
  const [first, second] = [pattern(MiB, 1), pattern(MiB, 2)];
  await withContext(async (context) => {
    await makeImage(context, { driver: 'file', filename: path }, { size: MiB, ...LUKS });
    const blk = await BlockBackend.open(context, nodeOf(path));
    await blk.write(0, memory(context, first));
    await (blk.root!.impl as Qcow2Node).snapshots.create('before');
    // Half of each cluster: the other half is copied, and encrypted anew.
    for (let at = 0; at < MiB; at += 64 * KiB) {
      await blk.write(at, memory(context, second.subarray(at, at + 32 * KiB)));
    }
    await blk.close();
  });
  const expected = first.map((byte, at) => (at % (64 * KiB) < 32 * KiB ? second[at]! : byte));
  await assertSameDisk(path, expected);
  await assertSameDisk(path, first, { snapshot: 'before' });
  await peer('qemu-img', 'check', '-q', ...SECRET, '--image-opts', unlocking(path));
  await peer('qemu-img', 'snapshot', ...SECRET, '--image-opts', unlocking(path), '-a', 'before');
  await assertSameDisk(path, first);
});

for (const options of [{}, { 'extended-l2': true }, { 'cluster-size': 2 * MiB }] as const) {
  test(`what is added with its space reads as zeroes: ${JSON.stringify(options)}`, needs('qemu-img'), async (t) => {
    const folder = scratch(t);
    const [path, base] = [join(folder, 'image'), join(folder, 'base')];
    const size = MiB + 3 * SECTOR;
    writeFileSync(path, '');
    writeFileSync(base, pattern(size, 4));
    const backing = { driver: 'raw', file: { driver: 'file', filename: base } };
    await withContext(async (context) => {
      const below = { 'backing-file': base, 'backing-fmt': 'raw' };
      await makeImage(context, { driver: 'file', filename: path }, { size, ...LUKS, ...options, ...below });
      const blk = await BlockBackend.open(context, nodeOf(path, { backing }));
      await blk.truncate(5 * MiB, 'falloc');
      await blk.close();
    });
    const expected = new Uint8Array(5 * MiB);
    expected.set(readFileSync(base));
    await assertSameDisk(path, expected, { backing });
    await peer('qemu-img', 'check', '-q', ...SECRET, '--image-opts', unlocking(path));
  });
}
