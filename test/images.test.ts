/** Images as a whole, in the library: made, looked at and changed by us, judged by qemu-img, and the reverse. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import {
  type BlockError,
  type CreateOptions,
  check,
  create,
  type Disk,
  type ImageInfo,
  IOThread,
  inspect,
  type OpenOptions,
  open,
} from '../src/index.ts';
import { needs, pattern, peer, run, scratch } from './harness.ts';

const MiB = 1024 * 1024;
const KiB = 1024;

let iothread: IOThread;
before(async () => {
  iothread = await IOThread.start();
});
after(() => iothread.stop());

function code(expected: string, message = /./): (error: BlockError) => boolean {
  return (error) => {
    assert.equal(error.code, expected, error.message);
    assert.match(error.message, message);
    return true;
  };
}

async function withDisk(path: string, body: (disk: Disk) => Promise<void>, options: OpenOptions = {}): Promise<void> {
  await using disk = await open(path, { iothread, ...options });
  await body(disk);
}

async function fill(path: string, value: number, at: number, length: number, options: OpenOptions = {}): Promise<void> {
  await withDisk(
    path,
    async (disk) => void (await disk.write(new Uint8Array(length).fill(value), 0, length, at)),
    options,
  );
}

async function byteAt(path: string, at: number, options: OpenOptions = {}): Promise<number> {
  let byte = -1;
  await withDisk(
    path,
    async (disk) => {
      byte = (await disk.read(new Uint8Array(1), 0, 1, at)).buffer[0]!;
    },
    options,
  );
  return byte;
}

async function theirInfo(path: string): Promise<Record<string, unknown>> {
  return JSON.parse(await peer('qemu-img', 'info', '-U', '--output=json', path)) as Record<string, unknown>;
}

async function isClean(path: string): Promise<void> {
  await peer('qemu-img', 'check', '-q', '-f', 'qcow2', path);
}

/** What both sides say of an image. */
function shared({ virtualSize, qcow2 }: ImageInfo): Record<string, unknown> {
  const { compat, clusterSize, compressionType, refcountBits, lazyRefcounts, extendedL2, corrupt } = qcow2!;
  const data = {
    ...{ compat, 'compression-type': compressionType, 'refcount-bits': refcountBits },
    ...(compat === '0.10' ? {} : { 'lazy-refcounts': lazyRefcounts, corrupt, 'extended-l2': extendedL2 }),
  };
  return { size: virtualSize, cluster: clusterSize, dirty: qcow2!.dirty, data };
}

function theirShared(info: Record<string, unknown>): Record<string, unknown> {
  const { data } = info['format-specific'] as { data: Record<string, unknown> };
  const { 'data-file': _file, 'data-file-raw': _raw, bitmaps: _bitmaps, encrypt: _encrypt, ...rest } = data;
  return { size: info['virtual-size'], cluster: info['cluster-size'], dirty: info['dirty-flag'], data: rest };
}

test(
  'images that create() makes are those that qemu-img knows, and inspect() says the same',
  needs('qemu-img'),
  async (t) => {
    const dir = scratch(t);
    const cases: CreateOptions[] = [
      { size: 10 * MiB },
      { size: 10 * MiB, compat: '0.10', clusterSize: 4 * KiB },
      { size: 10 * MiB, extendedL2: true, clusterSize: 128 * KiB, lazyRefcounts: true, refcountBits: 32 },
      { size: 10 * MiB, compressionType: 'zstd', preallocation: 'metadata' },
      { size: 10 * MiB, dataFile: `${dir}/data.raw`, dataFileRaw: true },
    ];
    for (const [i, options] of cases.entries()) {
      const path = `${dir}/${i}.qcow2`;
      await create(path, { ...options, iothread });
      await isClean(path);
      const ours = await inspect(path);
      assert.deepEqual(shared(ours), theirShared(await theirInfo(path)), JSON.stringify(options));
      assert.deepEqual(JSON.parse(JSON.stringify(ours)), ours);
      const qcow2 = options.encrypt ? { 'encrypt.key': 'secret' } : {};
      const allow = { qcow2, allowDirectories: [dir] };
      await fill(path, 7, 5 * MiB + 100, 1000, allow);
      assert.equal(await byteAt(path, 5 * MiB + 100, allow), 7);
      assert.equal(await byteAt(path, 5 * MiB + 1200, allow), 0);
      await isClean(path);
    }
    assert.equal((await inspect(`${dir}/4.qcow2`)).qcow2?.dataFile, `${dir}/data.raw`);
    await assert.rejects(open(`${dir}/4.qcow2`, { iothread }), code('EACCES', /data file '.*data\.raw' that/));
  },
);

test(
  'an overlay is as large as what it is over, of which only the size is looked at',
  needs('qemu-img', 'qemu-io'),
  async (t) => {
    const dir = scratch(t);
    mkdirSync(`${dir}/sub`);
    const base = pattern(3 * MiB + 512, 5);
    writeFileSync(`${dir}/base.img`, base);
    await create(`${dir}/sub/mid.qcow2`, { backingFile: '../base.img', backingFormat: 'raw', iothread });
    await create(`${dir}/top.qcow2`, { backingFile: 'sub/mid.qcow2', iothread });
    assert.equal((await inspect(`${dir}/top.qcow2`)).virtualSize, base.length);
    assert.equal((await theirInfo(`${dir}/top.qcow2`))['backing-filename-format'], 'qcow2');
    await fill(`${dir}/top.qcow2`, 9, MiB + 5, 10);
    const want = base.slice();
    want.fill(9, MiB + 5, MiB + 15);
    writeFileSync(`${dir}/want.img`, want);
    await peer('qemu-img', 'compare', '-q', '-f', 'qcow2', '-F', 'raw', `${dir}/top.qcow2`, `${dir}/want.img`);
    assert.deepEqual(new Uint8Array(readFileSync(`${dir}/base.img`)), base);
    await create(`${dir}/large.qcow2`, { backingFile: 'base.img', backingFormat: 'raw', size: 8 * MiB, iothread });
    assert.equal(await byteAt(`${dir}/large.qcow2`, 7 * MiB), 0);
    const create2 = (options: CreateOptions) => create(`${dir}/no.qcow2`, { ...options, iothread });
    await assert.rejects(create2({ backingFile: 'base.img' }), code('EINVAL', /format of the backing file/));
    await assert.rejects(create2({ backingFile: 'none.qcow2' }), code('ENOENT', /none\.qcow2/));
    await assert.rejects(create2({ backingFile: 'json:{}', backingFormat: 'raw' }), code('ENOENT'));
    assert.equal(existsSync(`${dir}/no.qcow2`), false);
  },
);

test('create() does not overwrite unless it is told to, and leaves nothing behind when it fails', async (t) => {
  const dir = scratch(t);
  const path = `${dir}/a.qcow2`;
  await assert.rejects(create(path, { iothread }), code('EINVAL', /'size' is missing/));
  await assert.rejects(create(path, { size: MiB, clusterSize: 1000, iothread }), code('EINVAL', /cluster-size/));
  await assert.rejects(create(path, { size: -1, iothread }), code('EINVAL', /'size' is -1/));
  await assert.rejects(create(path, { size: MiB, colour: 'red', iothread } as never), code('EINVAL', /'colour'/));
  await assert.rejects(create(`${dir}/no/a.qcow2`, { size: MiB, iothread }), code('ENOENT', /no\/a\.qcow2/));
  const data = { size: MiB, dataFile: 'data.raw', preallocation: 'nothing' as never };
  await assert.rejects(create(path, { ...data, iothread }), code('EINVAL'));
  assert.equal(existsSync(path) || existsSync(`${dir}/data.raw`), false);
  writeFileSync(path, 'mine');
  await assert.rejects(create(path, { size: MiB, iothread }), code('EEXIST'));
  assert.equal(readFileSync(path, 'utf8'), 'mine');
  await create(path, { size: MiB, overwrite: true, iothread });
  assert.equal((await inspect(path)).virtualSize, MiB);
  await withDisk(path, async () => {
    await assert.rejects(create(path, { size: 2 * MiB, overwrite: true, iothread }), code('EBUSY'));
  });
  assert.equal((await inspect(path)).virtualSize, MiB);
  await create(`${dir}/a.img`, { size: MiB + 1, preallocation: 'falloc', iothread });
  assert.equal(statSync(`${dir}/a.img`).size, MiB + 1);
  assert.ok(statSync(`${dir}/a.img`).blocks * 512 >= MiB);
  await assert.rejects(
    create(`${dir}/b.img`, { size: MiB, clusterSize: 512, iothread }),
    code('EINVAL', /cluster-size/),
  );
});

test(
  'snapshots are made, applied and deleted while the disk is in use, and qemu-img sees them',
  needs('qemu-img'),
  async (t) => {
    const path = `${scratch(t)}/a.qcow2`;
    await create(path, { size: 4 * MiB, iothread });
    await withDisk(path, async (disk) => {
      const put = (value: number) => disk.write(new Uint8Array(MiB).fill(value), 0, MiB, 0);
      await put(1);
      const made = await disk.snapshots.create('one');
      assert.deepEqual([made.id, made.name, made.diskSize], ['1', 'one', 4 * MiB]);
      await disk.truncate(6 * MiB);
      // At the same time: one after the other, whatever the order.
      await Promise.all([put(2), disk.snapshots.create('two'), disk.snapshots.create('three'), put(2)]);
      const names = (await disk.snapshots.list()).map(({ name }) => name);
      assert.deepEqual(names, ['one', 'two', 'three']);
      await disk.snapshots.apply('one');
      assert.equal(disk.size, 4 * MiB);
      assert.equal((await disk.read(new Uint8Array(1), 0, 1, MiB - 1)).buffer[0], 1);
      await disk.snapshots.delete('2');
      await assert.rejects(disk.snapshots.apply('two'), code('ENOENT'));
      await assert.rejects(disk.snapshots.create(''), code('EINVAL'));
    });
    await isClean(path);
    const { snapshots } = (await theirInfo(path)) as { snapshots: { name: string; id: string }[] };
    assert.deepEqual(
      snapshots.map(({ id, name }) => [id, name]),
      [
        ['1', 'one'],
        ['3', 'three'],
      ],
    );
    assert.deepEqual(
      (await inspect(path)).qcow2?.snapshots.map(({ name }) => name),
      ['one', 'three'],
    );
    // Theirs, shown by us.
    await peer('qemu-img', 'snapshot', '-c', 'theirs', path);
    await fill(path, 5, 0, 100);
    const old = { readOnly: true, qcow2: { snapshot: 'theirs' } };
    assert.deepEqual([await byteAt(path, 0), await byteAt(path, 0, old)], [5, 1]);
    await assert.rejects(open(path, { iothread, qcow2: { snapshot: 'theirs' } }), code('EINVAL', /read-only only/));
    await assert.rejects(
      open(path, { ...old, iothread, qcow2: { snapshot: 'no' } }),
      code('ENOENT', /no snapshot 'no'/),
    );
  },
);

test('a disk is resized with its space allocated, and amended', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  const path = `${dir}/a.qcow2`;
  await create(path, { size: MiB, compat: '0.10', iothread });
  await withDisk(path, async (disk) => {
    await disk.truncate(9 * MiB, { preallocation: 'full' });
    assert.equal(disk.size, 9 * MiB);
    assert.ok(statSync(path).blocks * 512 >= 8 * MiB);
    await disk.truncate(5 * MiB);
    await assert.rejects(disk.truncate(5 * MiB + 1), code('EINVAL'));
    await disk.amend({
      compat: '1.1',
      lazyRefcounts: true,
      refcountBits: 8,
      backingFile: 'base.img',
      backingFormat: 'raw',
    });
    await assert.rejects(disk.amend({ clusterSize: 512 } as never), code('EINVAL', /'cluster-size' cannot be changed/));
  });
  writeFileSync(`${dir}/base.img`, pattern(MiB));
  await isClean(path);
  const { qcow2, virtualSize } = await inspect(path);
  const { compat, lazyRefcounts, refcountBits, backingFile, backingFormat } = qcow2!;
  const seen = [compat, lazyRefcounts, refcountBits, backingFile, backingFormat, virtualSize];
  assert.deepEqual(seen, ['1.1', true, 8, 'base.img', 'raw', 5 * MiB]);
  await withDisk(path, (disk) => disk.amend({ backingFile: null }));
  assert.equal((await theirInfo(path))['backing-filename'], undefined);
  writeFileSync(`${dir}/raw.img`, pattern(MiB));
  await withDisk(`${dir}/raw.img`, async (disk) => {
    await assert.rejects(disk.amend({ compat: '1.1' }), code('ENOTSUP'));
    await assert.rejects(disk.snapshots.list(), code('ENOTSUP'));
    await assert.rejects(disk.check(), code('ENOTSUP'));
  });
  await assert.rejects(check(`${dir}/raw.img`, { iothread }), code('ENOTSUP'));
  await assert.rejects(check(path, { repair: 'some' as never, iothread }), code('EINVAL'));
});

test('inspect() takes no lock, follows nothing, and names what is wrong', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  const path = `${dir}/a.qcow2`;
  await create(path, { size: 64 * MiB, iothread });
  await peer('qemu-img', 'bitmap', '--add', '-g', '128k', path, 'b0');
  await withDisk(path, async () => {
    assert.equal((await inspect(path)).virtualSize, 64 * MiB);
  });
  await peer('qemu-img', 'bitmap', '--add', path, 'b1').catch(() => undefined);
  const { qcow2 } = await inspect(path);
  for (const bitmap of qcow2!.bitmaps) assert.deepEqual([bitmap.auto, bitmap.inUse], [true, false]);
  writeFileSync(`${dir}/raw.img`, pattern(MiB));
  assert.deepEqual(await inspect(`${dir}/raw.img`), {
    ...{ filename: `${dir}/raw.img`, format: 'raw', virtualSize: MiB, fileSize: MiB },
    allocatedSize: statSync(`${dir}/raw.img`).blocks * 512,
  });
  await peer('qemu-img', 'create', '-q', '-f', 'vmdk', `${dir}/a.vmdk`, '1M');
  const { format, virtualSize } = await inspect(`${dir}/a.vmdk`);
  assert.deepEqual([format, virtualSize], ['vmdk', null]);
  const bytes = readFileSync(path);
  bytes.writeUInt32BE(99, 20);
  writeFileSync(path, bytes);
  await assert.rejects(inspect(path), code('EINVAL', /a\.qcow2': cluster_bits is 99/));
  await assert.rejects(inspect(`${dir}/none`), code('ENOENT', /Could not open '.*none'/));
  await assert.rejects(inspect(dir), code('EINVAL', /neither a regular file/));
  await assert.rejects(inspect('a\0b'), code('EINVAL'));
  symlinkSync('/dev/null', `${dir}/null.qcow2`);
  await assert.rejects(inspect(`${dir}/null.qcow2`), code('EINVAL', /neither a regular file/));
});

test(
  'what qemu-img refuses to open writable, because we have it, it shows with -U',
  needs('qemu-img', 'qemu-io'),
  async (t) => {
    const path = `${scratch(t)}/a.qcow2`;
    await create(path, { size: MiB, iothread });
    await withDisk(path, async (disk) => {
      const { code: exit, stderr } = await run('qemu-io', ['-f', 'qcow2', '-c', 'read 0 512', path]);
      assert.equal(exit, 1);
      assert.match(stderr, /lock/);
      assert.equal((await theirInfo(path))['virtual-size'], MiB);
      assert.equal(disk.readOnly, false);
    });
  },
);

test('an encrypted image is known as one, and is not opened without its key', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  const path = `${dir}/a.qcow2`;
  const secret = ['--object', 'secret,id=s,data=secret'];
  const luks = ['-o', 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=100'];
  await peer('qemu-img', 'create', '-q', ...secret, '-f', 'qcow2', ...luks, path, '1M');
  assert.equal((await inspect(path)).qcow2?.encryption, 'luks');
  await assert.rejects(open(path, { iothread }), code('EACCES', /a\.qcow2': it is encrypted: option 'encrypt\.key'/));
});
