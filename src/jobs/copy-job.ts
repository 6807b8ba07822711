/** The job that makes one disk what another is. */

import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import type { BackendUser, BlockBackend } from '../block/backend.ts';
import { BlockCopy } from './block-copy.ts';
import { Job, type JobOptions } from './job.ts';

export interface CopyJobOptions extends JobOptions {
  /** See BlockCopyOptions. */
  readonly sparse: Bytes;
  readonly targetIsZero: boolean;
}

/** Source and target are of the same context, and stay open until it has ended. What the target has beyond the
 *  source's end stays as it is. It rests while either is drained. */
export class CopyJob extends Job implements BackendUser {
  readonly type = 'copy';
  readonly #source: BlockBackend;
  readonly #target: BlockBackend;
  readonly #options: CopyJobOptions;

  constructor(source: BlockBackend, target: BlockBackend, options: CopyJobOptions) {
    super(source.context, options);
    this.#source = source;
    this.#target = target;
    this.#options = options;
    this.total = source.length;
    if (target.length < source.length) {
      throw new BlockError(Errno.ENOSPC, `Could not copy ${source.length} bytes: the target has ${target.length}`);
    }
  }

  onDrainBegin(): void {
    this.hold();
  }

  onDrainEnd(): void {
    this.release();
  }

  protected async run(): Promise<void> {
    const ends = [this.#source, this.#target];
    for (const blk of ends) {
      blk.users.add(this);
      if (blk.quiesce > 0) this.hold();
    }
    try {
      const { sparse, targetIsZero } = this.#options;
      const copy = new BlockCopy(this.#source, this.#target, {
        ...{ sparse, targetIsZero },
        before: (length) => this.pausePoint(length),
        onDone: (length) => {
          this.current += length;
        },
      });
      await copy.run(0, this.total);
      await this.pausePoint(0);
      await this.#target.flush();
    } finally {
      for (const blk of ends) blk.users.delete(this);
    }
  }
}
