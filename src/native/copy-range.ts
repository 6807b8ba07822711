/** copy_file_range(2), in a thread of libuv's: it may take long. */
import type { Bytes, Offset } from '../base/units.ts';
import { addressOf, native } from './lib.ts';

export interface RangeEnd {
  readonly fd: number;
  readonly at: Offset;
}

type Call = (...args: readonly (number | ((error: unknown, result: number | bigint) => void))[]) => void;

let call: Call | undefined;

/** False, and nothing is begun, without the native layer. `done`: bytes that were copied, maybe fewer than asked for,
 *  or -1 where that cannot be done. Both descriptors must stay open until then. */
export function copyRange(from: RangeEnd, to: RangeEnd, length: Bytes, done: (copied: number) => void): boolean {
  const library = native()?.library;
  if (!library) return false;
  const words = ['int', 'uintptr_t', 'int', 'uintptr_t', 'size_t', 'uint'];
  call ??= library.func('copy_file_range', 'intptr_t', words).async as Call;
  const offsets = new Uint8Array(new SharedArrayBuffer(16));
  const view = new DataView(offsets.buffer);
  for (const [i, at] of [from.at, to.at].entries()) {
    view.setUint32(i * 8, at % 2 ** 32, true);
    view.setUint32(i * 8 + 4, Math.floor(at / 2 ** 32), true);
  }
  const address = addressOf(offsets);
  call(from.fd, address, to.fd, address + 8, length, 0, (error, result) => {
    // Named here, so that it stays referenced.
    done(error || offsets.length === 0 ? -1 : Number(result));
  });
  return true;
}
