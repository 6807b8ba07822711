/** Memory with a lasting address: mapped regions, and views of SharedArrayBuffers. */
import { assert } from '../base/assert.ts';
import type { Memory } from '../base/memory.ts';
import type { Bytes, Offset } from '../base/units.ts';
import { addressOf, viewOf } from './lib.ts';
import { mapAnonymous, mapShared, unmapUnderView } from './mmap.ts';

/** `bytes`, on a SharedArrayBuffer or native memory, as {@link Memory}. The result keeps them alive. */
export function memoryOf(bytes: Uint8Array): Memory {
  return new ViewedMemory(bytes);
}

class ViewedMemory implements Memory {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly address: number;
  /** Made by the first copy. */
  #plain: Uint8Array | undefined;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.address = addressOf(bytes);
  }

  get plain(): Uint8Array {
    this.#plain ??= this.#asPlain();
    return this.#plain;
  }

  #asPlain(): Uint8Array {
    const { bytes, address } = this;
    const is = bytes.buffer instanceof ArrayBuffer || bytes.length === 0;
    return is ? bytes : new Uint8Array(viewOf(address, bytes.length));
  }
}

/** One mapped region of at most 4 GiB; larger ones are mapped in windows. {@link release} ends it: nobody, the kernel
 *  included, may use it afterwards. */
export class NativeMemory implements Memory {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly address: number;
  #released = false;

  /** Takes over the mapping of `length` bytes at `address`. */
  constructor(address: number, length: Bytes) {
    const buffer = viewOf(address, length);
    this.bytes = new Uint8Array(buffer);
    this.view = new DataView(buffer);
    this.address = address;
  }

  /** Zeroes of this process alone, page-aligned. A negative errno when there is no room. */
  static anonymous(length: Bytes): NativeMemory | number {
    const address = mapAnonymous(length);
    return address < 0 ? address : new NativeMemory(address, length);
  }

  /** `length` bytes of `fd` from `offset`, shared with whoever else maps them. The fd may be closed afterwards. A
   *  file that shrinks under the mapping kills the process at the next access: check its size and seals before. */
  static ofFile(fd: number, length: Bytes, offset: Offset = 0): NativeMemory | number {
    const address = mapShared(fd, length, offset);
    return address < 0 ? address : new NativeMemory(address, length);
  }

  get released(): boolean {
    return this.#released;
  }

  /** Idempotent. Touching {@link bytes} afterwards is a crash. */
  release(): void {
    if (this.#released) return;
    this.#released = true;
    const result = unmapUnderView(this.address, this.bytes.length);
    assert(result === 0, `a mapping could not be ended: errno ${-result}`);
  }

  [Symbol.dispose](): void {
    this.release();
  }
}
