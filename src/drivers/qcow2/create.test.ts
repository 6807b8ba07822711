import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, type TestContext, test } from 'node:test';
import { needs, pattern, peer, run, scratch, sparse } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import { alignUp, GiB, KiB, MiB } from '../../base/units.ts';
import type { Child } from '../../block/driver.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { registerTestDrivers, testDisk } from '../../block/testing.ts';
import { parseHeader } from '../../proto/qcow2/header.ts';
import { createImage } from './create.ts';
import { planOf, type Qcow2CreateOptions } from './create-options.ts';
import { makeImage, registerQcow2 } from './testing.ts';
import { qemuOptions } from './testing-image.ts';
import { coveringRows } from './testing-pairs.ts';

before(() => {
  registerTestDrivers();
  registerQcow2();
});

async function withContext(body: (context: AioContext) => Promise<void>): Promise<void> {
  const context = new AioContext(new PoolBackend());
  try {
    await body(context);
  } finally {
    await context.stop();
  }
}

function make(options: Qcow2CreateOptions, file: NodeOptions, data?: NodeOptions): Promise<void> {
  return withContext((context) => makeImage(context, file, options, data));
}

/** The same, in files, which are there before and hold old bytes. */
async function makeFile(path: string, options: Qcow2CreateOptions): Promise<void> {
  const node = (filename: string): NodeOptions => {
    writeFileSync(filename, pattern(1 * MiB));
    return { driver: 'file', filename };
  };
  const name = options['data-file'];
  await make(options, node(path), name === undefined ? undefined : node(name));
}

/** The values of each dimension; a row takes one of each. */
const DIMENSIONS: readonly (readonly (readonly [keyof Qcow2CreateOptions, unknown] | undefined)[])[] = [
  [
    ['compat', '1.1'],
    ['compat', '0.10'],
  ],
  [64 * KiB, 512, 4 * KiB, 2 * MiB].map((size) => ['cluster-size', size] as const),
  [16, 1, 8, 64].map((bits) => ['refcount-bits', bits] as const),
  [undefined, ['extended-l2', true]],
  [undefined, ['lazy-refcounts', true]],
  [undefined, 'metadata', 'falloc', 'full'].map((mode) => mode && (['preallocation', mode] as const)),
  [undefined, ['data-file', 'data.raw'], ['data-file-raw', true]],
  [
    ['compression-type', 'zlib'],
    ['compression-type', 'zstd'],
  ],
  [undefined, ['backing-file', 'base.raw']],
] as never;

const SIZE = 5 * MiB + 512;

function optionsOf(row: readonly number[]): Qcow2CreateOptions {
  const options: Record<string, unknown> = { size: SIZE };
  row.forEach((value, dimension) => {
    const [name, setting] = DIMENSIONS[dimension]![value] ?? [];
    if (name !== undefined) options[name] = setting;
  });
  if (options['data-file-raw']) options['data-file'] = 'data.raw';
  if (options['backing-file'] !== undefined) options['backing-fmt'] = 'raw';
  return options as unknown as Qcow2CreateOptions;
}

function possible(row: readonly number[]): boolean {
  try {
    planOf(optionsOf(row));
    return true;
  } catch (error) {
    assert.ok(error instanceof BlockError);
    return false;
  }
}

/** What `qemu-img info` says of the image, without what depends on where and how full it is. */
async function info(path: string): Promise<Record<string, unknown>> {
  const all = JSON.parse(await peer('qemu-img', 'info', '--output=json', path)) as Record<string, unknown>;
  const { filename, 'full-backing-filename': full, 'actual-size': actual, children, ...rest } = all;
  return rest;
}

async function checkClean(path: string): Promise<void> {
  const report = JSON.parse(await peer('qemu-img', 'check', '-f', 'qcow2', '--output=json', path));
  const { corruptions = 0, leaks = 0, 'check-errors': errors } = report as Record<string, number>;
  assert.deepEqual({ corruptions, leaks, errors }, { corruptions: 0, leaks: 0, errors: 0 });
}

/** How much is allocated, in the file that has the disk's data. */
function checkAllocation(folder: string, options: Qcow2CreateOptions, theirs: string): void {
  const external = options['data-file'] !== undefined;
  const image = statSync(join(folder, 'image.qcow2'));
  const data = external ? statSync(join(folder, 'data.raw')) : image;
  const mode = options.preallocation ?? 'off';
  const least = mode === 'falloc' || mode === 'full' ? SIZE : 0;
  assert.ok(data.blocks * 512 >= least, `${data.blocks} sectors are allocated`);
  // Tables alone can be more than the disk: then no more than QEMU takes for them.
  const bound = Math.max(SIZE - 512, statSync(theirs).blocks * 512);
  if (least === 0 && !external) assert.ok(data.blocks * 512 <= bound, `${data.blocks} sectors are allocated`);
  if (external) assert.equal(data.size, SIZE);
  const cluster = options['cluster-size']!;
  const most = alignUp(statSync(theirs).size, cluster) + cluster;
  assert.ok(image.size <= most, `the file has ${image.size} bytes; QEMU's has ${statSync(theirs).size}`);
}

/** With the names of files in `folder`. */
function within(folder: string, options: Qcow2CreateOptions): Qcow2CreateOptions {
  const at = (name: 'backing-file' | 'data-file') =>
    options[name] === undefined ? {} : { [name]: join(folder, options[name]) };
  return { ...options, ...at('backing-file'), ...at('data-file') };
}

async function compareWithQemu(t: TestContext, options: Qcow2CreateOptions): Promise<void> {
  const folder = scratch(t);
  const [our, their] = [join(folder, 'ours'), join(folder, 'theirs')];
  for (const one of [our, their]) {
    mkdirSync(one);
    writeFileSync(join(one, 'base.raw'), pattern(SIZE, 7));
  }
  const [ours, theirs] = [join(our, 'image.qcow2'), join(their, 'image.qcow2')];
  await makeFile(ours, within(our, options));
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', ...qemuOptions(within(their, options)), theirs, `${SIZE}`);
  await checkClean(ours);
  const bytes = readFileSync(ours);
  assert.equal(parseHeader(bytes.subarray(0, options['cluster-size']), bytes.length).size, SIZE);
  assert.equal(JSON.stringify(await info(ours)), JSON.stringify(await info(theirs)).replaceAll(their, our));
  checkAllocation(our, options, theirs);
  const reference = options['backing-file'] ? join(our, 'base.raw') : sparse(join(folder, 'empty'), SIZE);
  await peer('qemu-img', 'compare', '-q', '-f', 'qcow2', '-F', 'raw', ours, reference);
  const { size } = statSync(ours);
  await peer('qemu-io', '-f', 'qcow2', '-c', `write -P 7 0 ${SIZE}`, '-c', `read -P 7 0 ${SIZE}`, ours);
  await checkClean(ours);
  if (planOf(options).preallocation !== 'off') assert.equal(statSync(ours).size, size, 'it had a place for everything');
}

for (const row of coveringRows(
  DIMENSIONS.map((settings) => settings.length),
  possible,
)) {
  const options = optionsOf(row);
  const { size, ...shown } = options;
  const title = Object.entries(shown).map(([name, value]) => `${name}=${value}`);
  test(`as qemu-img makes it: ${title.join(' ')}`, needs('qemu-img', 'qemu-io'), (t) => compareWithQemu(t, options));
}

test('disks of no bytes and of no whole sector', needs('qemu-img'), async (t) => {
  const path = join(scratch(t), 'image.qcow2');
  for (const [asked, size] of [
    [0, 0],
    [1, 512],
    [1000, 1024],
  ] as const) {
    for (const preallocation of ['off', 'full'] as const) {
      await makeFile(path, { size: asked, preallocation });
      assert.equal((await info(path))['virtual-size'], size);
      await checkClean(path);
    }
  }
});

test('what is refused, and QEMU refuses too', needs('qemu-img'), async (t) => {
  const path = join(scratch(t), 'image.qcow2');
  const cases: readonly (readonly [Partial<Qcow2CreateOptions>, RegExp])[] = [
    [{ compat: '0.10', 'lazy-refcounts': true }, /'lazy-refcounts' needs 'compat' 1.1/],
    [{ compat: 'v2', 'extended-l2': true }, /'extended-l2' needs 'compat'/],
    [{ compat: 'v2', 'refcount-bits': 8 }, /'refcount-bits' 8 needs 'compat'/],
    [{ compat: 'v2', 'data-file': 'data.raw' }, /'data-file' needs 'compat'/],
    [{ compat: 'v2', 'compression-type': 'zstd' }, /'compression-type' zstd needs 'compat'/],
    [{ 'extended-l2': true, 'cluster-size': 8 * KiB }, /'extended-l2' needs a 'cluster-size' of 16384/],
    [{ 'cluster-size': 256 }, /'cluster-size' is 256/],
    [{ 'cluster-size': 4 * MiB }, /'cluster-size' is 4194304/],
    [{ 'cluster-size': 12_288 }, /'cluster-size' is 12288/],
    [{ 'refcount-bits': 3 }, /'refcount-bits' is 3/],
    [{ 'refcount-bits': 128 }, /'refcount-bits' is 128/],
    [{ 'data-file-raw': true }, /'data-file-raw' needs 'data-file'/],
    [{ 'data-file-raw': true, 'data-file': 'd', 'backing-file': 'base.raw', 'backing-fmt': 'raw' }, /exclude/],
    [{ 'backing-fmt': 'raw' }, /'backing-fmt' needs 'backing-file'/],
    [{ preallocation: 'metadata', 'backing-file': 'base.raw', 'backing-fmt': 'raw' }, /'extended-l2' only/],
    [{ size: 129 * GiB, 'cluster-size': 512 }, /L1 table/],
  ];
  sparse(join(path, '../base.raw'), MiB);
  for (const [changed, why] of cases) {
    const options = within(join(path, '..'), { size: MiB, ...changed });
    await assert.rejects(makeFile(path, options), why);
    const { code } = await run('qemu-img', ['create', '-f', 'qcow2', ...qemuOptions(options), path, `${options.size}`]);
    assert.equal(code, 1, `QEMU takes ${JSON.stringify(changed)}`);
  }
});

test('what is refused although QEMU may take it', () => {
  const refused = (changed: Partial<Qcow2CreateOptions>, why: RegExp): void => {
    assert.throws(() => planOf({ size: MiB, ...changed }), why);
  };
  const luks = { 'encrypt.format': 'luks', 'encrypt.key': 'abc' } as const;
  refused({ 'encrypt.key': 'abc' }, /'encrypt.key' needs 'encrypt.format'/);
  refused({ 'encrypt.format': 'luks' }, /'encrypt.format' needs 'encrypt.key'/);
  refused({ ...luks, 'encrypt.format': 'aes' }, /aes is for reading/);
  refused({ ...luks, 'data-file': 'd', 'data-file-raw': true }, /exclude each other/);
  refused({ ...luks, compat: '0.10', preallocation: 'full' }, /'preallocation' of an encrypted image needs/);
  refused({ 'backing-file': 'b', 'backing-fmt': 'x'.repeat(16) }, /'backing-fmt' is a name of 16 bytes/);
  refused({ 'backing-file': '' }, /empty name/);
  refused({ 'data-file': '' }, /'data-file' is a name of 0 bytes/);
  refused({ size: Number.MAX_SAFE_INTEGER }, /'size' is 9007199254740992/);
});

test('a backing name that the first cluster has no room for is refused, and the file is left alone', async () => {
  const disk = testDisk('kept', MiB);
  disk.bytes.fill(1);
  const long = make(
    { size: MiB, 'cluster-size': 512, 'backing-file': 'x'.repeat(500) },
    { driver: 'memory', disk: 'kept' },
  );
  await assert.rejects(long, /Could not write the header/);
  assert.ok(disk.bytes.length === MiB && disk.bytes.every((byte) => byte === 1));
  const none = make({ size: MiB, 'data-file': 'data.raw' }, { driver: 'memory', disk: 'kept' });
  await assert.rejects(none, /need each other/);
});

test('on a device that cannot be resized, old bytes do not show', needs('qemu-img'), async (t) => {
  const disk = testDisk('device', 8 * MiB);
  disk.bytes.fill(0xff);
  disk.missing.add('truncate');
  disk.growing = false;
  const node = { driver: 'memory', disk: 'device' };
  await make({ size: 4 * MiB, preallocation: 'metadata', 'cluster-size': 4 * KiB }, node);
  // The old header goes first, the new one comes last.
  const changes = disk.log.filter((line) => !line.startsWith('read'));
  assert.deepEqual(changes.slice(0, 2), ['zero 0+4096 flags 0', 'flush']);
  assert.match(changes.slice(-4).join(', '), /^flush, write 0\+\d+, flush, close$/);
  const path = join(scratch(t), 'image.qcow2');
  writeFileSync(path, disk.bytes);
  await checkClean(path);
  await peer('qemu-img', 'compare', '-q', '-f', 'qcow2', '-F', 'raw', path, sparse(`${path}.empty`, 4 * MiB));
  disk.bytes.fill(0xff);
  await make({ size: GiB }, node);
  writeFileSync(path, disk.bytes);
  await checkClean(path);
  const tooSmall = make({ size: 8 * MiB, preallocation: 'metadata' }, node);
  await assert.rejects(tooSmall, (error) => error instanceof BlockError && error.errno === Errno.ENOSPC);
});

/** A file without bytes that remembers what is done to it. */
class LogChild {
  readonly log: string[] = [];
  readonly limits: { readonly alignment: number };
  length = 0;
  written = 0;
  longest = 0;
  /** Writes go on where the one before has ended, and no part is left out or written twice. */
  next = 0;

  constructor(alignment = 1) {
    this.limits = { alignment };
  }

  async truncate(length: number): Promise<void> {
    this.length = length;
    this.log.push(`truncate ${length}`);
  }

  async write(at: number, iov: Iov): Promise<void> {
    if (at === 0) this.log.push('header');
    else {
      assert.ok(at === this.next || this.next === 0, `a write at ${at} after one that ends at ${this.next}`);
      this.next = at + iov.length;
      this.longest = Math.max(this.longest, iov.length);
      this.written += iov.length;
    }
  }

  async flush(): Promise<void> {
    this.log.push('flush');
  }
}

test('metadata of 1 TiB goes out in pieces of 1 MiB, and the header after it is down', () =>
  withContext(async (aio) => {
    const file = new LogChild();
    const options: Qcow2CreateOptions = { size: 1024 * GiB, preallocation: 'metadata' };
    await createImage({ aio, file: file as unknown as Child }, { ...options });
    assert.equal(file.longest, MiB);
    // L2 tables, an L1 cluster, a table cluster, and refcount blocks for all of it.
    const clusters = 2048 + 1 + 1 + 513;
    assert.equal(file.written, clusters * 64 * KiB);
    const dataAt = file.written + 64 * KiB;
    const rest = ['flush', 'header', 'flush'];
    assert.deepEqual(file.log, ['truncate 0', `truncate ${dataAt}`, `truncate ${dataAt + 1024 * GiB}`, ...rest]);
  }));

test('a file that must be aligned gets an aligned length', () =>
  withContext(async (aio) => {
    const file = new LogChild(4 * KiB);
    const options: Qcow2CreateOptions = { size: 10_240, 'cluster-size': 512, preallocation: 'falloc' };
    await createImage({ aio, file: file as unknown as Child }, { ...options });
    const lengths = file.log.filter((line) => line.startsWith('truncate')).map((line) => Number(line.slice(9)));
    assert.deepEqual(lengths, [0, 4 * KiB, 16 * KiB]);
  }));

/** Options of QEMU's tools that open an encrypted image. */
function unlocking(path: string): string[] {
  const secret = ['--object', 'secret,id=key,data=abc'];
  return [...secret, '--image-opts', `driver=qcow2,encrypt.key-secret=key,file.filename=${path}`];
}

for (const changed of [
  { compat: '0.10' },
  { preallocation: 'metadata', 'cluster-size': 4 * KiB },
  { preallocation: 'falloc', 'extended-l2': true },
  { 'data-file': 'data.raw', preallocation: 'full' },
] as const) {
  const title = Object.entries(changed).map(([name, value]) => `${name}=${value}`);
  test(`QEMU opens what is encrypted, which is empty: ${title.join(' ')}`, needs('qemu-img', 'qemu-io'), async (t) => {
    const folder = scratch(t);
    const path = join(folder, 'image.qcow2');
    const luks = { 'encrypt.format': 'luks', 'encrypt.key': 'abc', 'encrypt.iter-time': 10 } as const;
    await makeFile(path, within(folder, { size: SIZE, ...luks, ...changed }));
    const all = (await info(path)) as { 'format-specific': { data: { encrypt: Record<string, unknown> } } };
    const { encrypt } = all['format-specific'].data;
    const { format, 'cipher-alg': cipher, 'cipher-mode': mode, 'ivgen-alg': ivgen } = encrypt;
    assert.deepEqual([format, cipher, mode, ivgen], ['luks', 'aes-256', 'xts', 'plain64']);
    const empty = `driver=raw,file.filename=${sparse(join(folder, 'empty'), SIZE)}`;
    await peer('qemu-img', 'compare', '-q', ...unlocking(path), empty);
    await peer('qemu-img', 'check', '-q', ...unlocking(path));
    await peer('qemu-io', ...unlocking(path), '-c', `write -P 7 1000 ${3 * MiB}`, '-c', `read -P 7 1000 ${3 * MiB}`);
    await peer('qemu-img', 'check', '-q', ...unlocking(path));
  });
}
