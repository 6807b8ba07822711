import assert from 'node:assert/strict';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { Errno } from '../base/errors.ts';
import { claimParallelPort, hungUp, makeRaw, openDevice, openPseudoTerminal } from './char-device.ts';
import { close } from './file.ts';
import { nativeAbsence } from './lib.ts';

const absence = nativeAbsence();
const skip = absence === undefined ? false : absence;

test('a pseudo-terminal passes all bytes as they are, and says whether anybody has it open', { skip }, () => {
  const terminal = openPseudoTerminal();
  assert.ok(typeof terminal === 'object');
  const { fd, path } = terminal;
  assert.equal(hungUp(fd), true);
  const other = openSync(path, 'r+');
  assert.equal(hungUp(fd), false);
  const all = Uint8Array.from({ length: 256 }, (_, i) => i);
  const got = new Uint8Array(256);
  writeSync(other, all);
  assert.equal(readSync(fd, got), 256);
  assert.deepEqual(got, all);
  writeSync(fd, all.fill(3));
  assert.equal(readSync(other, got), 256);
  assert.deepEqual(got, all);
  closeSync(other);
  assert.equal(hungUp(fd), true);
  assert.equal(close(fd), 0);
});

test('what is no terminal, and no parallel port, is told apart', { skip }, () => {
  const fd = openDevice('/dev/null');
  assert.ok(fd >= 0);
  assert.equal(makeRaw(fd), -Errno.ENOTTY);
  assert.equal(claimParallelPort(fd), -Errno.ENOTTY);
  close(fd);
  assert.equal(openDevice('/dev/there-is-none'), -Errno.ENOENT);
});
