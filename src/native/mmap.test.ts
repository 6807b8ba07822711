import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import { test } from 'node:test';
import { Errno } from '../base/errors.ts';
import { forCopying, Iov } from '../base/memory.ts';
import { GiB, MiB } from '../base/units.ts';
import { close, ftruncate } from './file.ts';
import { addressOf, nativeAbsence, viewOf } from './lib.ts';
import { memoryOf, NativeMemory } from './memory.ts';
import * as mmap from './mmap.ts';

const absence = nativeAbsence();
const skip = absence === undefined ? false : absence;

function memory(result: NativeMemory | number): NativeMemory {
  assert.ok(typeof result !== 'number', `errno ${String(result)}`);
  return result;
}

test('a memfd maps where its offset says, and both mappings and the file show the same bytes', { skip }, () => {
  const fd = mmap.memfdCreate('blockplane test');
  assert.ok(fd >= 0);
  assert.match(fs.readlinkSync(`/proc/self/fd/${fd}`), /memfd:blockplane test/);
  assert.equal(ftruncate(fd, 6 * GiB), 0);
  const low = memory(NativeMemory.ofFile(fd, MiB));
  const high = memory(NativeMemory.ofFile(fd, MiB, 5 * GiB));
  const twin = memory(NativeMemory.ofFile(fd, MiB, 5 * GiB));
  high.bytes[0] = 0x5a;
  high.view.setUint32(4, 0xcafe);
  assert.equal(twin.bytes[0], 0x5a);
  assert.equal(twin.view.getUint32(4), 0xcafe);
  assert.equal(low.bytes[0], 0);
  const read = Buffer.alloc(1);
  fs.readSync(fd, read, 0, 1, 5 * GiB);
  assert.equal(read[0], 0x5a);
  for (const each of [low, high, twin]) each.release();
  close(fd);
});

test('a sealed memfd cannot shrink', { skip }, () => {
  const fd = mmap.memfdCreate('sealed');
  ftruncate(fd, 8192);
  assert.equal(mmap.getSeals(fd), 0);
  assert.equal(mmap.addSeals(fd, mmap.Seal.SHRINK | mmap.Seal.GROW), 0);
  assert.equal(mmap.getSeals(fd), mmap.Seal.SHRINK | mmap.Seal.GROW);
  assert.equal(ftruncate(fd, 4096), -Errno.EPERM);
  close(fd);
});

test('a read-only mapping shows what a writable one writes', { skip }, () => {
  const fd = mmap.memfdCreate('read only');
  ftruncate(fd, 4096);
  const writable = memory(NativeMemory.ofFile(fd, 4096));
  const readOnly = memory(new NativeMemory(mmap.mapSharedReadOnly(fd, 4096), 4096));
  writable.bytes[9] = 9;
  assert.equal(readOnly.bytes[9], 9);
  writable.release();
  readOnly.release();
  close(fd);
});

test('anonymous memory is zero, page-aligned, fit for an Iov, and given back by release', { skip }, () => {
  const region = memory(NativeMemory.anonymous(64 * MiB));
  assert.equal(region.address % 4096, 0);
  assert.equal(Iov.of(region).isZero(), true);
  region.bytes.fill(1);
  const grown = process.memoryUsage.rss();
  region.release();
  region.release();
  assert.equal(region.released, true);
  assert.ok(process.memoryUsage.rss() < grown - 32 * MiB);
});

test('touching memory after its release ends the process instead of reading what is there now', { skip }, () => {
  const module = new URL('./memory.js', import.meta.url).href;
  const code = `const { NativeMemory } = await import(${JSON.stringify(module)});
    const memory = NativeMemory.anonymous(4096);
    memory.bytes[0] = 1;
    memory.release();
    console.log(memory.bytes[0]);`;
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', code], { encoding: 'latin1' });
  assert.equal(child.stdout, '');
  assert.equal(child.signal, 'SIGSEGV');
});

test('failed mappings are negative errnos', { skip }, () => {
  assert.equal(mmap.mapShared(-1, 4096), -Errno.EBADF);
  assert.equal(mmap.mapAnonymous(0), -Errno.EINVAL);
  assert.equal(mmap.mapAnonymous(2 ** 52), -Errno.ENOMEM);
  assert.equal(NativeMemory.ofFile(-1, 4096), -Errno.EBADF);
  assert.equal(mmap.addSeals(-1, 1), -Errno.EBADF);
  const address = mmap.mapAnonymous(4096);
  assert.equal(mmap.unmapUnseen(address, 4096), 0);
});

test('addresses count bytes within shared and within native memory', { skip }, () => {
  const shared = new Uint8Array(new SharedArrayBuffer(100));
  assert.equal(addressOf(shared.subarray(7)), addressOf(shared) + 7);
  const region = memory(NativeMemory.anonymous(8192));
  assert.equal(addressOf(region.bytes), region.address);
  assert.equal(addressOf(region.bytes.subarray(4097)), region.address + 4097);
  const again = memoryOf(region.bytes.subarray(16, 32));
  assert.deepEqual([again.address, again.view.byteLength], [region.address + 16, 16]);
  again.bytes[0] = 3;
  assert.equal(region.view.getUint8(16), 3);
  assert.equal(new Uint8Array(viewOf(region.address, 8192))[16], 3);
  region.release();
});

test('memory that may move has no address, and a view must be real', { skip }, () => {
  assert.throws(() => addressOf(new Uint8Array(8)), /only shared or native memory/);
  assert.throws(() => addressOf(Buffer.from('x')), /only shared or native memory/);
  assert.throws(() => viewOf(0, 8), /bad address/);
  assert.throws(() => viewOf(4096, 5 * GiB), /bad view length/);
  assert.throws(() => viewOf(4096, 0), /bad view length/);
});

test('what is copied through the plain view of shared memory is in it, whatever its alignment', { skip }, () => {
  const shared = memoryOf(new Uint8Array(new SharedArrayBuffer(64)).subarray(3));
  const plain = forCopying(shared);
  assert.ok(plain.buffer instanceof ArrayBuffer);
  assert.deepEqual([plain.length, addressOf(plain)], [61, shared.address]);
  const bytes = Uint8Array.from({ length: 40 }, (_, i) => i + 1);
  const iov = new Iov().push(shared, 5, 20).push(shared, 30, 20);
  assert.equal(iov.copyFrom(bytes), 40);
  assert.deepEqual([...shared.bytes.subarray(5, 25), ...shared.bytes.subarray(30, 50)], [...bytes]);
  const back = new Uint8Array(33);
  assert.equal(iov.copyTo(back, 7), 33);
  assert.deepEqual(back, bytes.subarray(7));
  assert.deepEqual(iov.runForCopying(1), bytes.subarray(20));
});
