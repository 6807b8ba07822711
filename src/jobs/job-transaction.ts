/**
 * Jobs that end well together or not at all (SEMANTICS J2). Their last steps wait until all have done their work; where
 * one fails, or is cancelled, the others are given up. A job by itself is a transaction of one.
 */
import { spawn } from '../aio/op.ts';
import type { BlockError } from '../base/errors.ts';
import type { Job } from './job.ts';

export class JobTransaction {
  readonly #jobs: Job[] = [];
  #failing = false;
  #finalizing = false;

  /** @internal By the job, before it begins. */
  add(job: Job): void {
    this.#jobs.push(job);
  }

  /** @internal One that could not be made after all. */
  remove(job: Job): void {
    const index = this.#jobs.indexOf(job);
    if (index >= 0) this.#jobs.splice(index, 1);
  }

  /** @internal One of them has done its work. */
  done(): void {
    if (this.#failing) this.#endFailed();
    else if (this.#jobs.every(({ status }) => status === 'waiting')) {
      for (const job of this.#jobs) job.becomePending();
      // Whoever was told of that may have cancelled one.
      if (!this.#failing && this.#jobs.every(({ autoFinalize }) => autoFinalize)) this.finalize();
    }
  }

  /** @internal The last steps, one after the other; where one of them fails, all have failed. */
  finalize(): void {
    if (!this.#finalizing && !this.#failing) spawn(this.#finalize());
  }

  async #finalize(): Promise<void> {
    this.#finalizing = true;
    let well = true;
    for (const job of this.#jobs) {
      well = job.error === undefined && (await job.prepared());
      if (!well) break;
    }
    for (const job of this.#jobs) await job.conclude(well);
  }

  /** @internal One of them has failed, or was cancelled. */
  failed(job: Job, error: BlockError): void {
    // What has begun its last step goes on to its end.
    if (this.#finalizing) return;
    job.abort(error);
    this.#failing = true;
    for (const other of this.#jobs) other.giveUp();
    this.#endFailed();
  }

  #endFailed(): void {
    if (this.#finalizing || !this.#jobs.every(({ ran }) => ran)) return;
    this.#finalizing = true;
    spawn(this.#abandon());
  }

  async #abandon(): Promise<void> {
    for (const job of this.#jobs) await job.conclude(false);
  }
}
