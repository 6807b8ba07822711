import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import { release } from 'node:os';
import { dirname } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Errno } from '../base/errors.ts';
import { nativeAbsence } from './lib.ts';
import { ioUringRefusal, nativeReport, probeIoUring } from './probe.ts';

const absence = nativeAbsence();
const skip = absence === undefined ? false : absence;
const here = dirname(fileURLToPath(import.meta.url));

test('the probe tells what the kernel does, and leaves no descriptor behind', { skip }, (t) => {
  const before = fs.readdirSync('/proc/self/fd').length;
  const probe = probeIoUring();
  assert.equal(fs.readdirSync('/proc/self/fd').length, before);
  assert.equal(probe.kernel, release());
  assert.equal(probeIoUring(), probe, 'asked once');
  if (!probe.available) {
    t.skip(`io_uring is not to be had here: ${probe.reason}`);
    return;
  }
  assert.equal(probe.reason, undefined);
  for (const op of [0, 1, 2, 22, 23]) assert.ok(probe.ops.has(op), `operation ${op} is as old as READ and WRITE`);
  assert.equal(probe.ops.has(255), false);
  assert.equal(probe.flags.noDrop, true);
  if (probe.flags.deferTaskrun) assert.equal(probe.flags.singleIssuer, true);
});

/** A process that forbids itself io_uring_setup (seccomp filter, as containers have) and prints its probe. */
const FORBIDDEN = `
  const [root, errno] = process.argv.slice(1);
  const { addressOf } = await import(root + '/lib.js');
  const { syscall, syscallNumber } = await import(root + '/syscall.js');
  const filter = new DataView(new SharedArrayBuffer(64));
  const put = (i, code, jt, jf, k) => {
    filter.setUint16(i * 8, code, true); filter.setUint8(i * 8 + 2, jt); filter.setUint8(i * 8 + 3, jf);
    filter.setUint32(i * 8 + 4, k, true);
  };
  put(0, 0x20, 0, 0, 0);                              // load the system call's number
  put(1, 0x15, 0, 1, syscallNumber('io_uring_setup')); // is it io_uring_setup
  put(2, 0x06, 0, 0, 0x00050000 + Number(errno));     // then this errno
  put(3, 0x06, 0, 0, 0x7fff0000);                     // else go on
  const at = addressOf(new Uint8Array(filter.buffer));
  filter.setUint16(32, 4, true);
  filter.setBigUint64(40, BigInt(at), true);
  const PR_SET_NO_NEW_PRIVS = 38, SET_MODE_FILTER = 1;
  const refused = syscall(syscallNumber('prctl'), PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    || syscall(syscallNumber('seccomp'), SET_MODE_FILTER, 0, at + 32);
  const { probeIoUring, nativeReport } = await import(root + '/probe.js');
  const { available, reason, flags, ops } = probeIoUring();
  console.log(JSON.stringify({ refused, available, reason, any: Object.values(flags).some(Boolean), ops: ops.size,
    report: nativeReport() }));`;

for (const [name, pattern] of [
  ['EPERM', /not permitted here \(the seccomp filter of a container/],
  ['ENOSYS', /no io_uring, or a seccomp filter hides it/],
] as const) {
  test(`a container that answers ${name} is told so`, { skip }, (t) => {
    const args = ['--input-type=module', '-e', FORBIDDEN, here, String(Errno[name])];
    const child = spawnSync(process.execPath, args, { encoding: 'utf8' });
    assert.equal(child.status, 0, child.stderr);
    const found = JSON.parse(child.stdout);
    if (found.refused !== 0) {
      t.skip(`no seccomp filter can be set here: errno ${-found.refused}`);
      return;
    }
    assert.equal(found.available, false);
    assert.match(found.reason, pattern);
    assert.equal(found.any, false);
    assert.equal(found.ops, 0);
    assert.ok(found.report.includes(found.reason));
  });
}

test('every refusal is a sentence', () => {
  assert.match(ioUringRefusal(-Errno.EPERM, '2'), /switched off \(sysctl kernel.io_uring_disabled = 2\)/);
  assert.match(ioUringRefusal(-Errno.EPERM, '1'), /a group of users only/);
  assert.match(ioUringRefusal(-Errno.EPERM, '0'), /container/);
  assert.match(ioUringRefusal(-Errno.EPERM, undefined), /container/);
  assert.match(ioUringRefusal(-Errno.ENOMEM, undefined), /lock memory/);
  assert.match(ioUringRefusal(-Errno.EMFILE, undefined), /EMFILE \(Too many open files\)/);
});

test('the report names the versions in use', { skip }, () => {
  const report = nativeReport();
  assert.match(report, new RegExp(`^kernel {4}${release().replaceAll('.', '\\.')}$`, 'm'));
  assert.match(report, /^koffi {5}\d+\.\d+\.\d+/m);
  assert.match(report, /^libc {6}(glibc \d|not glibc)/m);
  assert.match(report, /^io_uring {2}\S/m);
});
