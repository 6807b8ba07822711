import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Errno } from '../base/errors.ts';
import { check, libc, native, nativeAbsence, requireNative, scratch } from './lib.ts';
import { syscall, syscallNumber } from './syscall.ts';

const absence = nativeAbsence();
const skip = absence === undefined ? false : absence;
const here = dirname(fileURLToPath(import.meta.url));

/** Runs `code` in a process of its own, with the modules of `root`; what it prints, parsed. */
function run(code: string, env: NodeJS.ProcessEnv = {}, root = here): unknown {
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', code, root], {
    encoding: 'utf8',
    env: { ...process.env, BLOCKPLANE_NATIVE: '', ...env },
  });
  assert.equal(child.status, 0, child.stderr);
  return JSON.parse(child.stdout);
}

const ABSENT = `
  const root = process.argv[1];
  const lib = await import(root + '/lib.js');
  const { seekData } = await import(root + '/file.js');
  const { probeIoUring, nativeReport } = await import(root + '/probe.js');
  const errorOf = (f) => { try { f(); return null; } catch (e) { return [e.name, e.code, e.message]; } };
  console.log(JSON.stringify({
    present: lib.native() !== undefined,
    absence: lib.nativeAbsence(),
    required: errorOf(() => lib.requireNative('take a lock')),
    called: errorOf(() => seekData(0, 0)),
    probe: probeIoUring().reason,
    report: nativeReport().includes(lib.nativeAbsence()),
  }));`;

interface Absent {
  present: boolean;
  absence: string;
  required: [string, string, string];
  called: [string, string, string];
  probe: string;
  report: boolean;
}

function assertAbsent(found: Absent, why: RegExp): void {
  assert.equal(found.present, false);
  assert.match(found.absence, why);
  assert.deepEqual(found.required, ['BlockError', 'ENOSYS', `Could not take a lock: ${found.absence}`]);
  assert.equal(found.called[0], 'BlockError');
  assert.equal(found.called[1], 'ENOSYS');
  assert.equal(found.probe, found.absence);
  assert.equal(found.report, true);
}

test('switched off, the native layer is absent and says so', () => {
  assertAbsent(run(ABSENT, { BLOCKPLANE_NATIVE: 'off' }) as Absent, /^BLOCKPLANE_NATIVE=off is set$/);
});

test('on another system the native layer is absent and says so', () => {
  const code = `Object.defineProperty(process, 'platform', { value: 'darwin' });${ABSENT}`;
  assertAbsent(run(code) as Absent, /no native layer for darwin/);
});

test('without koffi the native layer is absent and says so', () => {
  const folder = fs.mkdtempSync(join(tmpdir(), 'blockplane-lib-'));
  try {
    // The same modules where no node_modules is above them.
    for (const room of ['native', 'base']) {
      fs.cpSync(join(here, '..', room), join(folder, room), { recursive: true });
    }
    fs.writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
    assertAbsent(run(ABSENT, {}, join(folder, 'native')) as Absent, /^koffi cannot be used here \(.*koffi/);
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
});

test('the layer is made once a thread and knows the processor', { skip }, () => {
  assert.equal(native(), native());
  assert.equal(requireNative('test'), native());
  assert.equal(native()?.arch, process.arch);
  assert.equal(scratch().bytes.length, scratch().view.byteLength);
});

test('check gives the errno of the call before it', { skip }, () => {
  assert.equal(check(libc().close(-1)), -Errno.EBADF);
  assert.equal(check(libc().lseek(0, 0, 99)), -Errno.EINVAL);
  assert.equal(check(7), 7);
});

test('system calls have the numbers of this processor', { skip }, () => {
  assert.equal(syscall(syscallNumber('gettid')), process.pid, 'the main thread has the number of the process');
  assert.equal(syscall(-1), -Errno.ENOSYS);
  assert.equal(syscall(syscallNumber('io_uring_enter'), -1, 1, 0, 0), -Errno.EBADF);
});

test('results on hot paths are numbers, exact beyond 4 GiB', { skip }, () => {
  const folder = fs.mkdtempSync(join(tmpdir(), 'blockplane-lib-'));
  const fd = fs.openSync(join(folder, 'f'), 'w+');
  try {
    for (const at of [0, 2 ** 31, 2 ** 32 + 1, 6 * 2 ** 30 + 123, 2 ** 43 - 1]) {
      assert.equal(libc().lseek(fd, at, 0), at);
    }
  } finally {
    fs.closeSync(fd);
    fs.rmSync(folder, { recursive: true, force: true });
  }
});
