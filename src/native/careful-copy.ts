/**
 * Copies that the kernel makes for us, to and from memory that may not be there any more: where JavaScript would be
 * killed (a file that has shrunk under its mapping), they answer -EFAULT. See process_vm_readv(2).
 */
import { assert } from '../base/assert.ts';
import type { Memory } from '../base/memory.ts';
import type { Bytes } from '../base/units.ts';
import { scratch } from './lib.ts';
import { syscall, syscallNumber } from './syscall.ts';

/** Two struct iovec in the scratch area. */
const LOCAL_AT = 0;
const REMOTE_AT = 16;

/** Copies `length` bytes from `address` into `memory` at `at`. 0, or a negative errno (then some may have been). */
export function carefulRead(address: number, memory: Memory, at: number, length: Bytes): number {
  return copy('process_vm_readv', address, memory, at, length);
}

/** Copies `length` bytes of `memory` at `at` to `address`. 0, or a negative errno (then some may have been). */
export function carefulWrite(address: number, memory: Memory, at: number, length: Bytes): number {
  return copy('process_vm_writev', address, memory, at, length);
}

function copy(
  call: 'process_vm_readv' | 'process_vm_writev',
  address: number,
  memory: Memory,
  at: number,
  length: Bytes,
): number {
  assert(memory.address > 0, 'only memory with an address can be copied by the kernel');
  const area = scratch();
  putVector(area.view, LOCAL_AT, memory.address + at, length);
  putVector(area.view, REMOTE_AT, address, length);
  const { pid } = process;
  const done = syscall(syscallNumber(call), pid, area.address + LOCAL_AT, 1, area.address + REMOTE_AT, 1, 0);
  if (done < 0) return done;
  return done === length ? 0 : -14;
}

function putVector(view: DataView, at: number, address: number, length: Bytes): void {
  view.setUint32(at, address % 2 ** 32, true);
  view.setUint32(at + 4, Math.floor(address / 2 ** 32), true);
  view.setUint32(at + 8, length, true);
  view.setUint32(at + 12, 0, true);
}
