import { CoMutex } from '../../aio/co-mutex.ts';
import type { AioContext } from '../../aio/context.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import type { Bytes, Offset } from '../../base/units.ts';
import type { Child } from '../../block/driver.ts';
import { MAGIC_BYTES, magicOf } from '../../proto/magic.ts';

/** How much of an image is guarded: what formats are known by. */
export const GUARDED_BYTES: Bytes = MAGIC_BYTES;

/**
 * The beginning of an image that is raw by guess. A guest that writes the beginning of another format there would have
 * it taken for that the next time, with all the files that it names: such a write is EPERM, and nothing of it is
 * written.
 */
export class HeadGuard {
  readonly #file: Child;
  readonly #start: Offset;
  readonly #head: Memory;
  /** Two halves of a beginning make a whole. */
  readonly #mutex = new CoMutex('raw head');

  /** `start`: where the image begins in the file. */
  constructor(aio: AioContext, file: Child, start: Offset) {
    this.#file = file;
    this.#start = start;
    this.#head = aio.backend.memory(new Uint8Array(new SharedArrayBuffer(GUARDED_BYTES)));
  }

  /** Writes that begin inside the guarded bytes. */
  async write(at: Offset, iov: Iov, flags: number): Promise<void> {
    using _turn = await this.#mutex.lock();
    await this.#check((head) => iov.copyTo(head.subarray(at)));
    await this.#file.write(this.#start + at, iov, flags);
  }

  /** As {@link write}, of zeroes. */
  async zero(at: Offset, length: Bytes, flags: number): Promise<void> {
    using _turn = await this.#mutex.lock();
    await this.#check((head) => head.fill(0, at, at + length));
    await this.#file.writeZeroes(this.#start + at, length, flags);
  }

  /** Throws where the image would look like another one after a change. */
  async #check(change: (head: Uint8Array) => void): Promise<void> {
    const { bytes } = this.#head;
    await this.#file.read(this.#start, Iov.of(this.#head));
    change(bytes);
    const format = magicOf(bytes);
    if (format === undefined) return;
    const why = `it would look like a ${format} image, and its format was not given`;
    throw new BlockError(Errno.EPERM, `Could not write to the beginning of a raw image: ${why}`);
  }
}
