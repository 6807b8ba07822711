import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Errno } from '../base/errors.ts';
import { GiB, KiB, MiB } from '../base/units.ts';
import * as file from './file.ts';
import { nativeAbsence } from './lib.ts';

const absence = nativeAbsence();
const skip = absence === undefined ? false : absence;
let folder = '';

before(() => {
  folder = fs.mkdtempSync(join(tmpdir(), 'blockplane-file-'));
});
after(() => fs.rmSync(folder, { recursive: true, force: true }));

function withFile(name: string, body: (fd: number, path: string) => void): void {
  const path = join(folder, name);
  const fd = file.open(path, file.OpenFlag.RDWR | file.OpenFlag.CREAT, 0o640);
  assert.ok(fd >= 0);
  try {
    body(fd, path);
  } finally {
    assert.equal(file.close(fd), 0);
  }
}

test('open, write through node and fstat agree with node:fs', { skip }, () => {
  withFile('stat', (fd, path) => {
    fs.writeSync(fd, Buffer.alloc(5000, 1));
    const stat = file.fstat(fd);
    const theirs = fs.statSync(path);
    assert.ok(typeof stat === 'object');
    assert.deepEqual(
      { mode: stat.mode, size: stat.size, blocks: stat.blocks, dev: stat.dev, ino: stat.ino, kind: stat.kind },
      { mode: theirs.mode, size: 5000, blocks: theirs.blocks, dev: theirs.dev, ino: theirs.ino, kind: 'file' },
    );
  });
});

test('fstat tells kinds apart', { skip }, () => {
  const kindOf = (path: string) => {
    const fd = file.open(path, file.OpenFlag.RDONLY);
    const stat = file.fstat(fd);
    file.close(fd);
    return typeof stat === 'object' ? stat.kind : stat;
  };
  assert.equal(kindOf(folder), 'directory');
  assert.equal(kindOf('/dev/null'), 'char');
});

test('failures are the negative errno of the call that failed', { skip }, () => {
  assert.equal(file.open(join(folder, 'missing'), file.OpenFlag.RDONLY), -Errno.ENOENT);
  assert.equal(file.open(folder, file.OpenFlag.RDWR), -Errno.EISDIR);
  assert.equal(file.open('with\0nul', file.OpenFlag.RDONLY), -Errno.EINVAL);
  const { CREAT, EXCL, RDWR } = file.OpenFlag;
  withFile('there', (_fd, path) => assert.equal(file.open(path, CREAT | EXCL | RDWR), -Errno.EEXIST));
  assert.equal(file.close(-1), -Errno.EBADF);
  assert.equal(file.seekData(-1, 0), -Errno.EBADF);
  assert.equal(file.fstat(-1), -Errno.EBADF);
  assert.equal(file.fsync(-1), -Errno.EBADF);
  assert.equal(file.fdatasync(-1), -Errno.EBADF);
  assert.equal(file.ftruncate(-1, 0), -Errno.EBADF);
  assert.equal(file.fallocate(-1, 0, 0, 1), -Errno.EBADF);
  withFile('regular', (fd) => assert.equal(file.deviceSize(fd), -25)); // ENOTTY
});

test('holes are found to the byte at and beyond 4 GiB', { skip }, () => {
  withFile('sparse', (fd, path) => {
    const at = 6 * GiB + 8 * MiB;
    const data = Buffer.alloc(64 * KiB, 0xab);
    fs.writeSync(fd, data, 0, data.length, at);
    assert.equal(file.ftruncate(fd, at + 16 * MiB + 1), 0);
    assert.equal(fs.statSync(path).size, at + 16 * MiB + 1);
    assert.equal(file.seekData(fd, 0), at);
    assert.equal(file.seekData(fd, at + 5), at + 5);
    assert.equal(file.seekHole(fd, at), at + data.length);
    assert.equal(file.seekHole(fd, 5 * GiB + 3), 5 * GiB + 3);
    assert.equal(file.seekData(fd, at + data.length), -Errno.ENXIO);
    assert.equal(file.seekHole(fd, at + 16 * MiB + 1), -Errno.ENXIO);
    assert.equal(file.seekEnd(fd), at + 16 * MiB + 1);
  });
});

test('extent gives data, holes, the hole before the end, and 0 beyond it', { skip }, () => {
  withFile('extent', (fd) => {
    const at = 5 * GiB;
    fs.writeSync(fd, Buffer.alloc(128 * KiB, 1), 0, 128 * KiB, at);
    file.ftruncate(fd, at + MiB + 7);
    assert.equal(file.extent(fd, 0, 3 * GiB), -3 * GiB);
    assert.equal(file.extent(fd, 0, 100 * GiB), -5 * GiB);
    assert.equal(file.extent(fd, at, 512), 512);
    assert.equal(file.extent(fd, at + 1, GiB), 128 * KiB - 1);
    assert.equal(file.extent(fd, at + 128 * KiB, GiB), -(MiB + 7 - 128 * KiB));
    assert.equal(file.extent(fd, at + MiB + 7, GiB), 0);
    assert.equal(file.extent(fd, at + 2 * MiB, GiB), 0);
  });
  const fds = fs.openSync('/dev/zero', 'r');
  assert.equal(file.extent(fds, 0, 4096), 4096, 'where holes cannot be seen all is data');
  fs.closeSync(fds);
});

test('fallocate grows, punches and keeps the size', { skip }, () => {
  withFile('fallocate', (fd, path) => {
    assert.equal(file.fallocate(fd, 0, 0, 4 * MiB), 0);
    assert.equal(fs.statSync(path).size, 4 * MiB);
    assert.ok(fs.statSync(path).blocks * 512 >= 4 * MiB);
    fs.writeSync(fd, Buffer.alloc(MiB, 7), 0, MiB, 0);
    const { KEEP_SIZE, PUNCH_HOLE } = file.FallocateMode;
    assert.equal(file.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 64 * KiB, 128 * KiB), 0);
    const bytes = Buffer.alloc(MiB);
    fs.readSync(fd, bytes, 0, MiB, 0);
    assert.deepEqual([bytes[64 * KiB - 1], bytes[64 * KiB], bytes[192 * KiB - 1], bytes[192 * KiB]], [7, 0, 0, 7]);
    assert.equal(file.seekHole(fd, 0), 64 * KiB);
    assert.equal(file.fallocate(fd, KEEP_SIZE, 6 * GiB, 4096), 0);
    assert.equal(fs.statSync(path).size, 4 * MiB);
    assert.equal(file.fsync(fd), 0);
    assert.equal(file.fdatasync(fd), 0);
  });
});

test('descriptors are close-on-exec', { skip }, () => {
  withFile('cloexec', (fd) => {
    const flags = fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1').match(/flags:\s*(\d+)/)?.[1];
    assert.equal(Number.parseInt(flags ?? '', 8) & file.OpenFlag.CLOEXEC, file.OpenFlag.CLOEXEC);
  });
});

test('O_DIRECT has the number that the C library of this processor gives it', { skip }, () => {
  assert.equal(file.OpenFlag.DIRECT, fs.constants.O_DIRECT);
  assert.equal(file.OpenFlag.DIRECTORY, fs.constants.O_DIRECTORY);
  assert.equal(file.OpenFlag.NOFOLLOW, fs.constants.O_NOFOLLOW);
  assert.equal(file.OpenFlag.DSYNC, fs.constants.O_DSYNC);
});

test('a block device tells its size and sectors, and discards', { skip }, (t) => {
  const backing = join(folder, 'disk');
  fs.writeFileSync(backing, Buffer.alloc(2 * MiB, 0x55));
  const setup = spawnSync('losetup', ['--find', '--show', backing], { encoding: 'latin1' });
  if (setup.status !== 0) {
    t.skip(`no loop device can be had: ${setup.error?.message ?? setup.stderr.trim()}`);
    return;
  }
  const device = setup.stdout.trim();
  try {
    const fd = file.open(device, file.OpenFlag.RDWR | file.OpenFlag.DIRECT);
    assert.ok(fd >= 0);
    assert.equal(file.deviceSize(fd), 2 * MiB);
    assert.equal(file.deviceBlockSize(fd), 512);
    assert.ok(file.devicePhysicalBlockSize(fd) >= 512);
    assert.equal(file.seekEnd(fd), 2 * MiB);
    assert.equal(file.extent(fd, 0, 4096), 4096);
    const stat = file.fstat(fd);
    assert.ok(typeof stat === 'object' && stat.kind === 'block');
    assert.equal(file.deviceZero(fd, 4096, 8192), 0);
    assert.equal(file.deviceDiscard(fd, MiB, 64 * KiB), 0);
    assert.equal(file.fsync(fd), 0);
    assert.equal(file.close(fd), 0);
    const bytes = fs.readFileSync(backing);
    assert.deepEqual([bytes[4095], bytes[4096], bytes[12287], bytes[12288]], [0x55, 0, 0, 0x55]);
  } finally {
    execFileSync('losetup', ['--detach', device]);
  }
});
