/** The dirty bitmaps of a disk, as programs see them. */
import { type Bytes, MAX_OFFSET } from '../base/units.ts';
import type { BitmapInfo, BitmapMethods, DirtyExtent } from './bitmap-messages.ts';
import { offsetOf } from './disk-args.ts';

export interface AddBitmapOptions {
  /** Bytes that a bit stands for: a power of two from 512 bytes to 2 GiB. Default: the image's cluster size, but 4 KiB
   *  at least and 64 KiB at most. */
  readonly granularity?: Bytes | undefined;
  /** Kept in the image, for the next who opens it: formats that can (qcow2). Default false. */
  readonly persistent?: boolean | undefined;
  /** Records no writes until it is enabled. Default false. */
  readonly disabled?: boolean | undefined;
}

/** @internal How a disk asks its IOThread. */
export type BitmapCall = <M extends keyof BitmapMethods>(
  method: M,
  args: Omit<Parameters<BitmapMethods[M]>[0], 'disk'>,
) => Promise<ReturnType<BitmapMethods[M]>>;

/**
 * Which parts of a disk may have been written since when: `disk.bitmaps`. All calls reject with BlockError: ENOENT
 * where there is no bitmap of that name, EINVAL for one that is inconsistent, EBUSY while an export shows it, EPERM for
 * a persistent one of a disk that is open read-only.
 *
 * ```ts
 * await disk.bitmaps.add('backup', { persistent: true });
 * for await (const { offset, length, dirty } of disk.bitmaps.extents('backup')) if (dirty) await save(offset, length);
 * ```
 */
export class DiskBitmaps {
  readonly #call: BitmapCall;

  /** @internal */
  constructor(call: BitmapCall) {
    this.#call = call;
  }

  list(): Promise<readonly BitmapInfo[]> {
    return this.#call('bitmap-list', {});
  }

  /** EEXIST for a name that is taken, ENOTSUP where the image cannot keep a persistent one, EFBIG for too many bits. */
  add(name: string, options: AddBitmapOptions = {}): Promise<void> {
    const { granularity, persistent = false, disabled = false } = options;
    return this.#call('bitmap-add', { name, granularity, persistent, disabled });
  }

  /** From the image too. */
  remove(name: string): Promise<void> {
    return this.#call('bitmap-change', { name, change: 'remove' });
  }

  /** Nothing is dirty any more. */
  clear(name: string): Promise<void> {
    return this.#call('bitmap-change', { name, change: 'clear' });
  }

  /** Writes are recorded from now on. */
  enable(name: string): Promise<void> {
    return this.#call('bitmap-change', { name, change: 'enable' });
  }

  /** Writes are not recorded any more. */
  disable(name: string): Promise<void> {
    return this.#call('bitmap-change', { name, change: 'disable' });
  }

  /** What is dirty in any of `sources` becomes dirty in `name`. */
  merge(name: string, sources: readonly string[]): Promise<void> {
    return this.#call('bitmap-merge', { name, sources: [...sources] });
  }

  /**
   * Dirty and clean ranges from `position` on, in order and without gaps; default: the whole disk. Writes may change a
   * bitmap meanwhile, unless it is disabled.
   */
  async *extents(
    name: string,
    position: number | bigint = 0,
    length?: number | bigint,
  ): AsyncGenerator<DirtyExtent, void, undefined> {
    let at = offsetOf(position, 'position');
    const want = length === undefined ? MAX_OFFSET - at : offsetOf(length, 'length');
    for (let left = want; left > 0; ) {
      const extents = await this.#call('bitmap-extents', { name, at, length: left });
      if (extents.length === 0) return;
      for (const extent of extents) {
        yield extent;
        at += extent.length;
        left -= extent.length;
      }
    }
  }
}
