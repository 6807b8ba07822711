import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { AioContext } from '../../aio/context.ts';
import { Gate } from '../../aio/op.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { chooseBackend } from '../../aio/select.ts';
import { backends, inContext } from '../../aio/testing.ts';
import { Errno, ioError } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { KiB, MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { PERM_ALL, Perm, RequestFlags } from '../../block/driver.ts';
import { registerDriver } from '../../block/registry.ts';
import { BlockRequest, RequestKind } from '../../block/request.ts';
import { BlockStatus } from '../../block/status.ts';
import { bytesOf, testIov, testMemory, until } from '../../block/testing.ts';
import { rawDriver } from '../raw/driver.ts';
import { fileDriver, hostDeviceDriver } from './driver.ts';

const run = promisify(execFile);
let directory: string;
before(async () => {
  registerDriver(fileDriver);
  registerDriver(hostDeviceDriver);
  registerDriver(rawDriver);
  directory = await mkdtemp(join(tmpdir(), 'blockplane-file-'));
});
after(() => rm(directory, { recursive: true }));

let files = 0;
async function image(size: number, content?: Uint8Array): Promise<string> {
  const path = join(directory, `image${files++}`);
  await writeFile(path, content ?? '');
  await truncate(path, size);
  return path;
}

const noQemuIo = existsSync('/usr/bin/qemu-io') ? undefined : 'qemu-io is not installed';

inContext('what is written is in the file, and the first write stays on the fast path', async (context) => {
  const path = await image(MiB);
  const blk = await BlockBackend.open(context, { driver: 'file', filename: path });
  assert.equal(blk.length, MiB);
  const iov = testIov(context, [4096, 100, 3000], 3);
  await blk.write(12_345, iov);
  assert.equal(blk.stats.slow, 0);
  await blk.write(0, testIov(context, [512], 1), RequestFlags.FUA);
  await blk.flush();
  assert.deepEqual(new Uint8Array((await readFile(path)).subarray(12_345, 12_345 + iov.length)), bytesOf(iov));
  assert.deepEqual(await blk.root!.impl.info?.(), {
    filename: path,
    kind: 'file',
    allocated: 0,
    direct: false,
    readOnly: false,
  });
  await blk.close();
});

inContext(
  'a missing file, a directory, a device that is none, and an empty name are one clear error',
  async (context) => {
    const missing = join(directory, 'missing');
    const cases: [Record<string, unknown>, string, string][] = [
      [{ driver: 'file', filename: missing }, 'ENOENT', `Could not open '${missing}': No such file or directory`],
      [
        { driver: 'file', filename: missing, 'read-only': true },
        'ENOENT',
        `Could not open '${missing}': No such file or directory`,
      ],
      [{ driver: 'file', filename: '' }, 'ENOENT', "Could not open '': No such file or directory"],
      [{ driver: 'file', filename: directory }, 'EISDIR', `Could not open '${directory}': Is a directory`],
      [
        { driver: 'file', filename: directory, 'read-only': true },
        'EISDIR',
        `Could not open '${directory}': Is a directory`,
      ],
      [
        { driver: 'file', filename: '/dev/null' },
        'EINVAL',
        "Could not open '/dev/null': neither a regular file nor a block device",
      ],
    ];
    const regular = await image(512);
    cases.push([
      { driver: 'host_device', filename: regular },
      'EINVAL',
      `Could not open '${regular}': driver 'host_device' needs a block device`,
    ]);
    const before = await openFiles();
    for (const [options, code, message] of cases) {
      await assert.rejects(BlockBackend.open(context, options as never), { name: 'BlockError', code, message });
    }
    assert.equal(await openFiles(), before, 'a descriptor was left open');
  },
);

async function openFiles(): Promise<number> {
  const { readdir, readlink } = await import('node:fs/promises');
  const links = await Promise.all(
    (await readdir('/proc/self/fd')).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')),
  );
  return links.filter((link) => link.startsWith(directory)).length;
}

test('auto-read-only falls back to reading where writing is not allowed', async () => {
  const context = new AioContext(new PoolBackend());
  const { backend } = context;
  const openFile = backend.openFile.bind(backend);
  backend.openFile = async (path, options) => {
    if (options.writable) throw ioError(Errno.EACCES, `Could not open '${path}'`);
    return openFile(path, options);
  };
  const filename = await image(4096);
  await assert.rejects(BlockBackend.open(context, { driver: 'file', filename }), { code: 'EACCES' });
  const blk = await BlockBackend.open(context, {
    driver: 'raw',
    'auto-read-only': true,
    file: { driver: 'file', filename },
  });
  assert.equal(blk.readOnly, true);
  assert.equal(blk.root!.children[0]!.node.readOnly, true);
  await blk.read(0, testIov(context, [512]));
  await blk.close();
  await context.stop();
});

test('L6 a failed fdatasync is never forgotten when the page cache is used', async () => {
  const context = new AioContext(new PoolBackend());
  const { backend } = context;
  const openFile = backend.openFile.bind(backend);
  let failures = 0;
  backend.openFile = async (path, options) => {
    const file = await openFile(path, options);
    const datasync = file.datasync.bind(file);
    file.datasync = (op) => {
      if (failures-- > 0) context.completeLater(op, -Errno.EIO);
      else datasync(op);
    };
    return file;
  };
  const filename = await image(4096);
  const blk = await BlockBackend.open(context, { driver: 'raw', file: { driver: 'file', filename } });
  await blk.write(0, testIov(context, [512]));
  await blk.flush();
  await blk.write(0, testIov(context, [512]));
  failures = 1;
  const message = `Could not flush '${filename}': Input/output error`;
  await assert.rejects(blk.flush(), { code: 'EIO', message });
  await assert.rejects(blk.flush(), { code: 'EIO', message }, 'the disk is well again, the data is lost all the same');
  await blk.write(0, testIov(context, [512]));
  await assert.rejects(blk.flush(), { code: 'EIO' });
  await assert.rejects(blk.write(0, testIov(context, [512]), RequestFlags.FUA), { code: 'EIO' });
  await assert.rejects(blk.close(), { code: 'EIO' });
  await context.stop();
});

inContext('zeroes, discards and status agree with the holes of the file', async (context) => {
  const filename = await image(MiB);
  const blk = await BlockBackend.open(context, { driver: 'file', filename, discard: 'unmap' });
  await blk.write(0, testIov(context, [MiB], 1));
  const out = new BlockStatus();
  await blk.blockStatus(0, MiB, out);
  assert.deepEqual([out.length, out.data, out.zero], [MiB, true, false]);
  await blk.writeZeroes(64 * KiB, 64 * KiB, RequestFlags.MAY_UNMAP);
  await blk.discard(256 * KiB, 128 * KiB);
  const seen: string[] = [];
  for (let at = 0; at < MiB; at += out.length) {
    await blk.wholeExtent(at, MiB - at, out);
    seen.push(`${at / KiB}+${out.length / KiB} ${out.zero ? 'zero' : 'data'}`);
  }
  const holes = (await stat(filename)).blocks * 512 < MiB;
  if (holes) {
    assert.deepEqual(seen, ['0+64 data', '64+64 zero', '128+128 data', '256+128 zero', '384+640 data']);
  }
  const zero = testIov(context, [64 * KiB], 2);
  await blk.read(64 * KiB, zero);
  assert.ok(zero.isZero());
  await blk.close();
});

inContext('truncate grows and shrinks the file, with and without preallocation', async (context) => {
  const filename = await image(64 * KiB);
  const blk = await BlockBackend.open(context, { driver: 'file', filename });
  await blk.truncate(MiB);
  assert.equal((await stat(filename)).size, MiB);
  await blk.truncate(2 * MiB, 'full');
  const full = await stat(filename);
  assert.equal(full.size, 2 * MiB);
  assert.ok(full.blocks * 512 >= MiB);
  await blk.truncate(2 * MiB + 100, 'off');
  await blk.truncate(1000);
  assert.equal((await stat(filename)).size, 1000);
  assert.equal(blk.length, 1000);
  await assert.rejects(blk.truncate(2 ** 53), { code: 'EFBIG' });
  await blk.close();
});

inContext('cache.direct works on any memory and offset, or says why it cannot', async (context, backend) => {
  const content = new Uint8Array(64 * KiB).map((_, i) => i % 253);
  const filename = await image(64 * KiB, content);
  let blk: BlockBackend;
  try {
    blk = await BlockBackend.open(context, { driver: 'file', filename, cache: { direct: true } });
  } catch (error) {
    // tmpfs of older kernels has no O_DIRECT; the pool does not know addresses without the native layer.
    assert.match(String(error), /cache.direct is not possible|Invalid argument|not supported/);
    console.log(`# direct I/O not tested on ${backend}: ${String(error)}`);
    return;
  }
  const memory = testMemory(context, 20_000, 1);
  await blk.read(777, Iov.of(memory, 13, 5000));
  assert.deepEqual(memory.bytes.slice(13, 5013), content.slice(777, 5777));
  await blk.write(3000, Iov.of(memory, 1, 10_000));
  await blk.write(16 * KiB, Iov.of(memory, 3, 4096));
  await blk.flush();
  content.set(memory.bytes.subarray(1, 10_001), 3000);
  content.set(memory.bytes.subarray(3, 4099), 16 * KiB);
  assert.deepEqual(new Uint8Array(await readFile(filename)), content);
  await blk.close();
  const odd = await image(1000);
  const readable = await BlockBackend.open(context, {
    driver: 'file',
    filename: odd,
    'read-only': true,
    cache: { direct: true },
  });
  const all = testIov(context, [1000], 5);
  await readable.read(0, all);
  assert.ok(all.isZero());
  assert.equal(readable.length, 1000);
  await readable.close();
  assert.equal((await stat(odd)).size, 1000);
  // Who writes has it end with a block.
  const writable = await BlockBackend.open(context, { driver: 'file', filename: odd, cache: { direct: true } });
  const { length } = writable;
  assert.ok(length > 1000 && length % 512 === 0);
  assert.equal((await stat(odd)).size, length);
  await writable.write(990, Iov.of(memory, 1, 20));
  await writable.read(0, all);
  await writable.close();
  assert.equal((await stat(odd)).size, length);
  assert.deepEqual(new Uint8Array(await readFile(odd)).subarray(990, 1010), memory.bytes.subarray(1, 21));
});

inContext(
  'L7 two of our own opens of one file: the second writer is refused, readers and force-share are not',
  async (context) => {
    const filename = await image(4096);
    const one = await BlockBackend.open(context, { driver: 'file', filename });
    if (!(await canLock(context, filename))) {
      console.log('# no OFD locks here: not tested');
      await one.close();
      return;
    }
    const message = `Could not open '${filename}': Failed to get "write" lock; is another process using it?`;
    await assert.rejects(BlockBackend.open(context, { driver: 'file', filename }), { code: 'EBUSY', message });
    await assert.rejects(BlockBackend.open(context, { driver: 'file', filename, 'read-only': true }), {
      message: `Could not open '${filename}': Failed to get shared "write" lock; is another process using it?`,
    });
    const forced = await BlockBackend.open(context, {
      driver: 'file',
      filename,
      'read-only': true,
      'force-share': true,
    });
    await forced.close();
    const unlocked = await BlockBackend.open(context, { driver: 'file', filename, locking: 'off' });
    await unlocked.close();
    await one.close();
    const readers = await Promise.all(
      [0, 1, 2].map(() => BlockBackend.open(context, { driver: 'file', filename, 'read-only': true })),
    );
    await assert.rejects(BlockBackend.open(context, { driver: 'file', filename }), /Failed to get "write" lock/);
    for (const reader of readers) await reader.close();
    const again = await BlockBackend.open(context, { driver: 'file', filename });
    await again.close();
  },
);

async function canLock(context: AioContext, path: string): Promise<boolean> {
  const file = await context.backend.openFile(path, { writable: false });
  const { canLock: can } = file;
  await file.close();
  return can;
}

inContext('L7 a permission change that a lock stands against leaves the locks as they were', async (context) => {
  const filename = await image(4096);
  if (!(await canLock(context, filename))) {
    console.log('# no OFD locks here: not tested');
    return;
  }
  const open = (perm: number, shared: number): Promise<BlockBackend> =>
    BlockBackend.open(context, { driver: 'file', filename }, { perm, shared });
  const one = await open(Perm.CONSISTENT_READ, PERM_ALL & ~Perm.RESIZE);
  const two = await open(Perm.CONSISTENT_READ, PERM_ALL);
  await assert.rejects(two.setPermissions(PERM_ALL, PERM_ALL), /Failed to get "resize" lock/);
  await two.setPermissions(Perm.WRITE, PERM_ALL);
  await assert.rejects(one.setPermissions(1, 1), /Failed to get shared "write" lock/);
  await two.close();
  await one.setPermissions(1, 1);
  await one.close();
});

test('L7 qemu-io and we keep each other out', { skip: noQemuIo }, async () => {
  const context = new AioContext(await chooseBackend(backends().at(-1)!));
  const filename = await image(MiB);
  const blk = await BlockBackend.open(context, { driver: 'raw', file: { driver: 'file', filename } });
  if (!(await canLock(context, filename))) {
    console.log('# no OFD locks here: not tested');
  } else {
    const refused = await run('qemu-io', ['-f', 'raw', '-c', 'write 0 512', filename]).then(
      ({ stdout, stderr }) => stdout + stderr,
      (error: { stdout: string; stderr: string }) => error.stdout + error.stderr,
    );
    assert.match(refused, /Failed to get (shared )?"write" lock/);
    const { stdout } = await run('qemu-img', ['info', '-U', '-f', 'raw', filename]);
    assert.match(stdout, /virtual size: 1 MiB/);
  }
  await blk.close();

  const qemu = spawn('qemu-io', ['-f', 'raw', filename]);
  let output = '';
  qemu.stdout.on('data', (chunk) => {
    output += String(chunk);
  });
  try {
    qemu.stdin.write('write -P 7 0 4096\n');
    await until(() => output.includes('wrote 4096'), 'qemu-io to write');
    if (await canLock(context, filename)) {
      await assert.rejects(BlockBackend.open(context, { driver: 'file', filename }), {
        code: 'EBUSY',
        message: /Failed to get shared "write" lock; is another process using it\?$/,
      });
    }
    const shared = await BlockBackend.open(context, {
      driver: 'file',
      filename,
      'read-only': true,
      'force-share': true,
    });
    const iov = testIov(context, [512]);
    await shared.read(0, iov);
    assert.ok(bytesOf(iov).every((byte) => byte === 7));
    await shared.close();
  } finally {
    const ended = new Promise((resolve) => qemu.once('exit', resolve));
    qemu.stdin.end('quit\n');
    await ended;
  }
  const free = await BlockBackend.open(context, { driver: 'file', filename });
  await free.close();
  await context.stop();
});

class Loop extends BlockRequest {
  /** Those that go on, and what opens when none does any more. */
  static going = 0;
  static over = new Gate();
  blkAgain: BlockBackend | null = null;
  left = 0;
  failed = 0;
  done(error: number): void {
    if (error !== 0) this.failed = error;
    if (this.left-- > 0) this.blkAgain!.submit(this);
    else if (--Loop.going === 0) Loop.over.open();
  }
}

test('reads of a file on the ring allocate nothing', { timeout: 60_000 }, async (t) => {
  if (!backends().includes('ring')) {
    t.skip('no ring here: what node:fs allocates is not ours');
    return;
  }
  const { setFlagsFromString } = await import('node:v8');
  const { runInNewContext } = await import('node:vm');
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const context = new AioContext(await chooseBackend('ring'));
  const filename = await image(MiB, new Uint8Array(MiB).fill(1));
  const blk = await BlockBackend.open(context, { driver: 'raw', file: { driver: 'file', filename } });
  const memory = testMemory(context, MiB);
  const loops = Array.from({ length: 128 }, (_, n) => {
    const loop = new Loop();
    loop.kind = RequestKind.READ;
    loop.at = n * 4096;
    loop.length = 4096;
    loop.iov.push(memory, n * 4096, 4096);
    loop.blkAgain = blk;
    return loop;
  });
  const round = async (each: number): Promise<number> => {
    Loop.going = loops.length;
    Loop.over = new Gate();
    collect();
    const start = process.memoryUsage().heapUsed;
    for (const loop of loops) {
      loop.left = each - 1;
      blk.submit(loop);
    }
    // Looking again and again would allocate, the more often the slower the file is.
    await Loop.over.promise;
    return (process.memoryUsage().heapUsed - start) / (each * loops.length);
  };
  await round(400);
  const growth: number[] = [];
  for (let i = 0; i < 4; i++) growth.push(await round(400));
  assert.ok(Math.min(...growth) < 8, `bytes per request: ${growth.map((n) => n.toFixed(1)).join(' ')}`);
  assert.ok(loops.every((loop) => loop.failed === 0));
  assert.equal(blk.stats.slow, 0);
  await blk.close();
  await context.stop();
});
