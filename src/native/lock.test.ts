import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Errno } from '../base/errors.ts';
import { GiB } from '../base/units.ts';
import { nativeAbsence } from './lib.ts';
import { canLock, lock, testLock } from './lock.ts';

const absence = nativeAbsence();
const skip = absence === undefined ? false : absence;
let folder = '';
let path = '';

before(() => {
  folder = fs.mkdtempSync(join(tmpdir(), 'blockplane-lock-'));
  path = join(folder, 'image');
  fs.writeFileSync(path, 'x');
});
after(() => fs.rmSync(folder, { recursive: true, force: true }));

test('two opens in one process exclude each other', { skip }, () => {
  const a = fs.openSync(path, 'r+');
  const b = fs.openSync(path, 'r+');
  assert.equal(canLock(a), true);
  assert.equal(lock(a, 'write', 100, 1), 0);
  assert.equal(lock(b, 'write', 100, 1), -Errno.EAGAIN);
  assert.equal(lock(b, 'read', 100, 1), -Errno.EAGAIN);
  assert.equal(lock(b, 'write', 101, 1), 0);
  assert.equal(testLock(b, 'read', 100, 1), true);
  assert.equal(testLock(b, 'write', 99, 1), false);
  assert.equal(testLock(a, 'write', 100, 1), false, 'an open file does not conflict with itself');
  assert.equal(lock(a, 'read', 100, 1), 0);
  assert.equal(lock(b, 'read', 100, 1), 0, 'readers share');
  assert.equal(testLock(b, 'write', 100, 1), true);
  assert.equal(lock(a, 'none', 0, 0), 0);
  assert.equal(testLock(b, 'write', 100, 1), false);
  fs.closeSync(a);
  fs.closeSync(b);
});

test('closing another descriptor of the file keeps the lock, closing its own gives it back', { skip }, () => {
  const a = fs.openSync(path, 'r+');
  const b = fs.openSync(path, 'r+');
  assert.equal(lock(a, 'write', 0, 10), 0);
  fs.closeSync(fs.openSync(path, 'r'));
  assert.equal(testLock(b, 'write', 5, 1), true);
  fs.closeSync(a);
  assert.equal(testLock(b, 'write', 5, 1), false);
  fs.closeSync(b);
});

test('ranges beyond 4 GiB are exact', { skip }, () => {
  const a = fs.openSync(path, 'r+');
  const b = fs.openSync(path, 'r+');
  assert.equal(lock(a, 'write', 6 * GiB + 3, 5 * GiB), 0);
  assert.equal(testLock(b, 'write', 6 * GiB + 2, 1), false);
  assert.equal(testLock(b, 'write', 6 * GiB + 3, 1), true);
  assert.equal(testLock(b, 'write', 11 * GiB + 2, 1), true);
  assert.equal(testLock(b, 'write', 11 * GiB + 3, 1), false);
  fs.closeSync(a);
  fs.closeSync(b);
});

test('a lock needs a descriptor of its kind, and an open one', { skip }, () => {
  const a = fs.openSync(path, 'r');
  assert.equal(lock(a, 'write', 0, 1), -Errno.EBADF);
  assert.equal(lock(a, 'read', 0, 1), 0);
  fs.closeSync(a);
  assert.equal(lock(-1, 'read', 0, 1), -Errno.EBADF);
  assert.equal(canLock(-1), false);
});

const HOLDER = `
import fcntl, struct, sys
f = open(sys.argv[1], 'r+')
flock = struct.pack('hhqqixxxx', fcntl.F_WRLCK, 0, 203, 1, 0)
fcntl.fcntl(f, 37, flock)
print('held', flush=True)
sys.stdin.readline()
`;

test("another program's lock is seen, and gone when it ends", { skip }, async (t) => {
  let holder: ChildProcess;
  try {
    holder = spawn('python3', ['-c', HOLDER, path], { stdio: ['pipe', 'pipe', 'inherit'] });
    await once(holder, 'spawn');
  } catch (error) {
    t.skip(`python3 cannot be run: ${String(error)}`);
    return;
  }
  const exited = once(holder, 'exit');
  const [line] = await once(holder.stdout!, 'data');
  assert.equal(String(line).trim(), 'held');
  const fd = fs.openSync(path, 'r+');
  assert.equal(testLock(fd, 'read', 203, 1), true);
  assert.equal(lock(fd, 'read', 200, 10), -Errno.EAGAIN);
  assert.equal(lock(fd, 'write', 100, 103), 0);
  holder.stdin!.end('\n');
  assert.deepEqual(await exited, [0, null]);
  assert.equal(lock(fd, 'write', 200, 10), 0);
  fs.closeSync(fd);
});
