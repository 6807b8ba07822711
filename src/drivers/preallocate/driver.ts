/**
 * preallocate: a filter under a format that grows its file. The file grows in few large steps of allocated zeroes,
 * ahead of what is written; what the filter shows ends with what was written, and so does the file once nobody may make
 * it grow. A file that cannot be allocated ahead grows as it would without the filter.
 */
import { CoMutex } from '../../aio/co-mutex.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import { alignUp, type Bytes, MiB, type Offset, SECTOR } from '../../base/units.ts';
import {
  type Child,
  type Driver,
  type DriverNode,
  type Limits,
  type Mapping,
  type MapReason,
  type OpenContext,
  Perm,
} from '../../block/driver.ts';

export interface PreallocateSettings {
  /** The file is extended to a multiple of this: bytes, a multiple of 512. Default 1 MiB. */
  readonly 'prealloc-align'?: Bytes;
  /** At least so much is allocated ahead. Default 128 MiB. */
  readonly 'prealloc-size'?: Bytes;
}

class PreallocateNode implements DriverNode {
  readonly nativeFua = true;
  readonly #file: Child;
  readonly #align: Bytes;
  readonly #size: Bytes;
  readonly #extending = new CoMutex('preallocate');
  /** Where the disk ends; undefined while that is where the file ends. */
  #end: Offset | undefined;
  /** Nothing was written from here on, not even by a request that failed: it reads as zeroes. */
  #untouched: Offset = Number.POSITIVE_INFINITY;
  /** The file cannot be allocated ahead, or there is no room to. */
  #refused = false;

  constructor(file: Child, align: Bytes, size: Bytes) {
    this.#file = file;
    this.#align = align;
    this.#size = size;
  }

  /** Where the disk ends, the file can be cut off. */
  get limits(): Partial<Limits> {
    return { alignment: this.#file.limits.alignment };
  }

  get length(): Bytes {
    return this.#end ?? this.#file.length;
  }

  map(at: Offset, want: Bytes, why: MapReason, out: Mapping): void {
    if (why === 'write') {
      if (this.#isShort(at + want)) {
        out.other('opaque', want);
        return;
      }
      this.#touch(at + want);
    }
    out.data(want, this.#file, at);
  }

  async pwritev(at: Offset, iov: Iov, flags: number): Promise<void> {
    await this.#extend(at + iov.length);
    this.#touch(at + iov.length);
    await this.#file.write(at, iov, flags);
  }

  async zero(at: Offset, length: Bytes, flags: number): Promise<'done'> {
    const end = at + length;
    await this.#extend(end);
    // What is allocated ahead is zeroes already.
    const stop = end > this.#file.length ? end : Math.min(end, this.#untouched);
    if (at < stop) await this.#file.writeZeroes(at, stop - at, flags);
    return 'done';
  }

  grew(end: Offset): void {
    if (this.#end !== undefined && end > this.#end) this.#end = end;
  }

  async truncate(length: Bytes, prealloc: 'off' | 'falloc' | 'full'): Promise<void> {
    if (prealloc === 'off' && (await this.#moveEnd(length))) return;
    await this.#cut();
    await this.#file.truncate(length, prealloc);
  }

  /** True when the disk has become longer inside of what is allocated: formats round up their files. */
  async #moveEnd(length: Bytes): Promise<boolean> {
    const end = this.#end;
    if (end === undefined || length < end || length > this.#file.length) return false;
    const stop = Math.min(length, this.#untouched);
    if (end < stop) await this.#file.writeZeroes(end, stop - end);
    this.#end = length;
    return true;
  }

  /** The child may still be resized while this is asked. */
  async permissions(perm: number): Promise<void> {
    if ((perm & Perm.RESIZE) === 0) await this.#cut();
  }

  async inactivate(): Promise<Record<string, unknown>> {
    await this.#cut();
    return {};
  }

  #isShort(end: Offset): boolean {
    return end > this.#file.length && !this.#refused;
  }

  #touch(end: Offset): void {
    if (end > this.#untouched) this.#untouched = end;
  }

  /** The file is longer than `end` after it, unless it cannot be. */
  async #extend(end: Offset): Promise<void> {
    if (!this.#isShort(end)) return;
    using _held = await this.#extending.lock();
    if (!this.#isShort(end)) return;
    if (this.#end === undefined) {
      this.#end = this.#file.length;
      this.#untouched = this.#end;
    }
    try {
      await this.#file.truncate(alignUp(end + this.#size, this.#align), 'falloc');
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.#refused = true;
    }
  }

  /** The file ends where the disk ends. */
  async #cut(): Promise<void> {
    if (this.#end === undefined) return;
    if (this.#file.length > this.#end) await this.#file.truncate(this.#end);
    this.#end = undefined;
    this.#untouched = Number.POSITIVE_INFINITY;
  }
}

export const preallocateDriver: Driver<PreallocateSettings> = {
  name: 'preallocate',
  role: 'filter',
  children: { file: 'filtered' },
  options: {
    'prealloc-align': { type: 'size', help: 'the file is extended to a multiple of this, in bytes (default 1M)' },
    'prealloc-size': { type: 'size', help: 'bytes that are allocated ahead (default 128M)' },
  },
  // It alone knows where the file ends.
  claims: (options) => ({ perm: 0, unshared: options['read-only'] === true ? 0 : Perm.RESIZE }),
  async open(context: OpenContext, options: PreallocateSettings): Promise<DriverNode> {
    const { 'prealloc-align': align = MiB, 'prealloc-size': size = 128 * MiB } = options;
    const refuse = (why: string): BlockError =>
      new BlockError(Errno.EINVAL, `Could not open a 'preallocate' node: ${why}`);
    const unit = (bytes: Bytes, what: string): void => {
      if (align % bytes !== 0) throw refuse(`prealloc-align ${align} is no multiple of ${what}`);
    };
    unit(SECTOR, `${SECTOR}`);
    const file = await context.openChild('file', 'filtered');
    if (!file) throw refuse("option 'file' is missing");
    unit(file.limits.alignment, `the ${file.limits.alignment} bytes that the file is written in`);
    return new PreallocateNode(file, align || 1, size);
  },
};
