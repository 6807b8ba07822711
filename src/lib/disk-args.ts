/** The forms in which FileHandle's functions take their arguments, brought into one. */
import { BlockError, Errno } from '../base/errors.ts';
import { isOffset, MAX_OFFSET, type Offset } from '../base/units.ts';
import type { Abortable } from './abort.ts';

/** Where in the disk, in bytes; null, undefined and -1 mean the current position. */
export type Position = number | bigint | null | undefined;

export interface BufferOptions<T extends ArrayBufferView> extends Abortable {
  readonly buffer?: T | undefined;
  /** First byte of the buffer to use; default 0. */
  readonly offset?: number | null | undefined;
  /** Default: the rest of the buffer. */
  readonly length?: number | null | undefined;
  readonly position?: Position;
}

export interface TransferArgs<T extends ArrayBufferView> {
  readonly buffer: T;
  /** The part of `buffer` that is meant. */
  readonly view: Uint8Array;
  readonly position: Position;
  readonly signal: AbortSignal | undefined;
}

export function viewOf(buffer: ArrayBufferView): Uint8Array {
  if (!ArrayBuffer.isView(buffer)) {
    throw new BlockError(Errno.EINVAL, `buffer: expected a TypedArray or DataView, not ${typeof buffer}`);
  }
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
}

/** The part of `buffer` from `offset`, `length` bytes; EINVAL when it does not lie inside. */
export function partOf(buffer: ArrayBufferView, offset?: number | null, length?: number | null): Uint8Array {
  const view = viewOf(buffer);
  const from = offset ?? 0;
  if (!isOffset(from) || from > view.length) {
    throw new BlockError(Errno.EINVAL, `offset: ${from} is not inside the buffer's ${view.length} bytes`);
  }
  const count = length ?? view.length - from;
  if (!isOffset(count) || from + count > view.length) {
    throw new BlockError(Errno.EINVAL, `length: ${count} bytes from ${from} exceed the buffer's ${view.length} bytes`);
  }
  return view.subarray(from, from + count);
}

export function isCurrent(position: Position): boolean {
  return position === null || position === undefined || position === -1 || position === -1n;
}

/** A position or length as a number; EINVAL when negative or fractional, EFBIG from 2^53 on. */
export function offsetOf(value: number | bigint, what: string): Offset {
  if (typeof value !== 'bigint' && typeof value !== 'number') {
    throw new BlockError(Errno.EINVAL, `${what}: expected a number or bigint, not ${typeof value}`);
  }
  if (value > MAX_OFFSET) {
    throw new BlockError(Errno.EFBIG, `${what}: ${value} is beyond the largest supported offset, ${MAX_OFFSET}`);
  }
  const number = Number(value);
  if (!isOffset(number)) throw new BlockError(Errno.EINVAL, `${what}: ${value} is not a whole number of bytes`);
  return number;
}

/** The bytes that write(string, position, encoding) means; EINVAL for an encoding that node does not know. */
export function textBytes(text: string, encoding: unknown): Uint8Array {
  const known = encoding === undefined || encoding === null || Buffer.isEncoding(encoding as string);
  if (!known) throw new BlockError(Errno.EINVAL, `encoding: '${encoding}' is not one that node knows`);
  return viewOf(Buffer.from(text, (encoding ?? 'utf8') as BufferEncoding));
}

/** What read() without a buffer reads into, as FileHandle has it. */
export function readBuffer(length: number): Buffer {
  return Buffer.alloc(length);
}

/** Makes one of FileHandle.read's and write's three forms. `fallback` makes the buffer when none is given. */
export function transferArgs<T extends ArrayBufferView>(
  first: T | BufferOptions<T> | undefined,
  second: number | null | BufferOptions<T> | undefined,
  length: number | null | undefined,
  position: Position,
  fallback: () => T,
): TransferArgs<T> {
  if (first !== undefined && ArrayBuffer.isView(first)) {
    if (typeof second === 'object' && second !== null) {
      const { offset, length: count, position: at, signal } = second;
      return { buffer: first, view: partOf(first, offset, count), position: at, signal };
    }
    return { buffer: first, view: partOf(first, second, length), position, signal: undefined };
  }
  if (first !== undefined && (typeof first !== 'object' || first === null)) {
    throw new BlockError(Errno.EINVAL, `buffer: expected a TypedArray or DataView, not ${typeof first}`);
  }
  const options = first ?? {};
  const buffer = options.buffer ?? fallback();
  const view = partOf(buffer, options.offset, options.length);
  return { buffer, view, position: options.position, signal: options.signal };
}
