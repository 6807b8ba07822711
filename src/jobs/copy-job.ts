/** The job that makes one disk what others are, one behind the other. */

import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import type { BackendUser, BlockBackend } from '../block/backend.ts';
import { BlockCopy, type CopySource, type CopyTuning } from './block-copy.ts';
import { Job, type JobOptions } from './job.ts';

export interface CopyJobOptions extends JobOptions, CopyTuning {
  /** Told of every change of `current`. */
  readonly onProgress?: ((current: Bytes, total: Bytes) => void) | undefined;
}

/** Sources and target are of the same context, and stay open until it has ended. What the target has beyond the
 *  sources' end stays as it is. It rests while any of them is drained. */
export class CopyJob extends Job implements BackendUser {
  readonly type = 'copy';
  readonly #sources: readonly CopySource[];
  readonly #target: BlockBackend;
  readonly #options: CopyJobOptions;

  constructor(sources: readonly CopySource[], target: BlockBackend, options: CopyJobOptions) {
    super(target.context, options);
    this.#sources = sources;
    this.#target = target;
    this.#options = options;
    this.total = sources.reduce((total, { length }) => total + length, 0);
    const end = sources.reduce((end, { at, length }) => Math.max(end, at + length), 0);
    if (target.length < end) {
      throw new BlockError(Errno.ENOSPC, `Could not copy ${this.total} bytes: the target has ${target.length}`);
    }
  }

  onDrainBegin(): void {
    this.hold();
  }

  onDrainEnd(): void {
    this.release();
  }

  protected async run(): Promise<void> {
    const ends = [...this.#sources.map(({ blk }) => blk), this.#target];
    for (const blk of ends) {
      blk.users.add(this);
      if (blk.quiesce > 0) this.hold();
    }
    try {
      const copy = new BlockCopy(this.#sources, this.#target, {
        ...this.#options,
        before: (length) => this.pausePoint(length),
        onDone: (length) => {
          this.current += length;
          this.#options.onProgress?.(this.current, this.total);
        },
      });
      await copy.run();
      await this.pausePoint(0);
      await this.#target.flush();
    } finally {
      for (const blk of ends) blk.users.delete(this);
    }
  }
}

/** All of a disk, from the beginning of the target on. */
export function wholeOf(blk: BlockBackend): CopySource {
  return { blk, from: 0, length: blk.length, at: 0 };
}
