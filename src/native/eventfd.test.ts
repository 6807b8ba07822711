import assert from 'node:assert/strict';
import * as fs from 'node:fs';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { Errno } from '../base/errors.ts';
import * as eventfd from './eventfd.ts';
import { nativeAbsence } from './lib.ts';

const absence = nativeAbsence();
const skip = absence === undefined ? false : absence;

test('signals add up and one drain takes them all', { skip }, () => {
  const fd = eventfd.create();
  assert.ok(fd >= 0);
  assert.equal(eventfd.drain(fd), 0);
  for (let i = 0; i < 3; i++) assert.equal(eventfd.signal(fd), 0);
  assert.equal(eventfd.drain(fd), 3);
  assert.equal(eventfd.drain(fd), 0);
  assert.equal(eventfd.close(fd), 0);
  assert.equal(eventfd.signal(fd), -Errno.EBADF);
  assert.equal(eventfd.drain(fd), -Errno.EBADF);
});

test('a full counter does not make the signaller wait, and its count is whole', { skip }, () => {
  const fd = eventfd.create();
  const most = new BigUint64Array([0xffff_ffff_ffff_fffen]);
  fs.writeSync(fd, new Uint8Array(most.buffer));
  assert.equal(eventfd.signal(fd), 0);
  assert.equal(eventfd.drain(fd), Number(0xffff_ffff_ffff_fffen));
  eventfd.close(fd);
});

test('another thread signals through its own native layer', { skip }, async () => {
  const fd = eventfd.create();
  const module = new URL('./eventfd.js', import.meta.url).href;
  const code = `import(${JSON.stringify(module)}).then(({ signal }) => { for (let i = 0; i < 5; i++) signal(${fd}); })`;
  const worker = new Worker(code, { eval: true });
  await new Promise((resolve) => worker.once('exit', resolve));
  assert.equal(eventfd.drain(fd), 5);
  eventfd.close(fd);
});
