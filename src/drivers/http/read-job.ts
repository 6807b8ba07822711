/** One read of the block layer, until all its parts have ended: from memory, from the server, or what is on its way. */
import type { AioContext } from '../../aio/context.ts';
import type { AioOp } from '../../aio/op.ts';
import type { BlockError } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import type { Bytes, Offset } from '../../base/units.ts';
import type { RangeSink } from './remote.ts';

export class ReadJob {
  readonly at: Offset;
  readonly #aio: AioContext;
  readonly #op: AioOp;
  readonly #iov: Iov;
  readonly #length: Bytes;
  /** Parts that have not ended, and one until all have been begun. */
  #open = 1;
  #failure: BlockError | null = null;

  constructor(aio: AioContext, op: AioOp, iov: Iov, at: Offset) {
    this.#aio = aio;
    this.#op = op;
    this.#iov = iov;
    this.at = at;
    this.#length = iov.length;
  }

  begin(): void {
    this.#open++;
  }

  /** Bytes of the file from `at` on, which lie inside the read. */
  put(bytes: Uint8Array, at: Offset): void {
    this.#iov.copyFrom(bytes, at - this.at);
  }

  /** A part has ended, or (at the end of the call that began the job) all have been begun. */
  end(failure: BlockError | null): void {
    this.#failure ??= failure;
    if (--this.#open > 0) return;
    this.#op.failure = this.#failure;
    // Never inside the call that began it.
    this.#aio.completeLater(this.#op, this.#failure === null ? this.#length : -this.#failure.errno);
  }
}

/** A part that comes straight from the server: body chunks go where the reader wants them. */
export class DirectPart implements RangeSink {
  readonly #job: ReadJob;
  readonly #at: Offset;

  constructor(job: ReadJob, at: Offset) {
    this.#job = job;
    this.#at = at;
    job.begin();
  }

  take(chunk: Uint8Array, from: Bytes): void {
    this.#job.put(chunk, this.#at + from);
  }

  done(failure: BlockError | null): void {
    this.#job.end(failure);
  }
}
