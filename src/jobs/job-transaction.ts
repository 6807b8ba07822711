/**
 * Jobs that end well together or not at all (SEMANTICS J2). Their last steps wait until all have done their work; where
 * one fails, or is cancelled, the others are given up. A job by itself is a transaction of one.
 *
 * Where some of the jobs are in other threads, each thread has one of these for its own, and they agree through
 * somebody who knows all threads ({@link JobsElsewhere}).
 */
import { spawn } from '../aio/op.ts';
import type { BlockError } from '../base/errors.ts';
import type { Job } from './job.ts';

/** Who is told how the jobs of this thread stand, and has them go on as all have agreed. */
export interface JobsElsewhere {
  /** All of them have done their work. Answered by {@link JobTransaction.becomePending}. */
  done(autoFinalize: boolean): void;
  /** Somebody wants the last steps. Answered by {@link JobTransaction.prepare}, then `conclude`. */
  finalize(): void;
  /** One of them has failed, or was cancelled. The others of this thread are given up already. */
  failed(): void;
}

export class JobTransaction {
  readonly #jobs: Job[] = [];
  readonly #elsewhere: JobsElsewhere | undefined;
  #state: 'working' | 'failing' | 'prepared' | 'ended' = 'working';

  constructor(elsewhere?: JobsElsewhere) {
    this.#elsewhere = elsewhere;
  }

  /** @internal By the job, before it begins. */
  add(job: Job): void {
    this.#jobs.push(job);
  }

  /** @internal One that could not be made after all. */
  remove(job: Job): void {
    const index = this.#jobs.indexOf(job);
    if (index >= 0) this.#jobs.splice(index, 1);
  }

  /** @internal The last steps have begun: nobody gives up any more. */
  get ending(): boolean {
    return this.#state === 'prepared' || this.#state === 'ended';
  }

  /** @internal One of them has done its work. */
  done(): void {
    if (this.#state === 'failing') this.#endFailed();
    else if (this.#jobs.every(({ status }) => status === 'waiting')) this.#allDone();
  }

  #allDone(): void {
    const autoFinalize = this.#jobs.every((job) => job.autoFinalize);
    if (this.#elsewhere) this.#elsewhere.done(autoFinalize);
    else {
      this.becomePending();
      if (autoFinalize) this.finalize();
    }
  }

  /** All have done their work, elsewhere too. */
  becomePending(): void {
    // Whoever is told of one may cancel another.
    for (const job of this.#jobs) if (this.#state === 'working') job.becomePending();
  }

  /** @internal The last steps of all; where one of them fails, all have failed. */
  finalize(): void {
    if (this.#state !== 'working') return;
    if (this.#elsewhere) this.#elsewhere.finalize();
    else spawn(this.#finalize());
  }

  async #finalize(): Promise<void> {
    await this.conclude(await this.prepare());
  }

  /** The last steps of the jobs here, one after the other, up to the first that fails: then false. */
  async prepare(): Promise<boolean> {
    if (this.#state !== 'working') return false;
    this.#state = 'prepared';
    for (const job of this.#jobs) if (!(await job.prepared())) return false;
    return true;
  }

  /** Their end, well or not. */
  async conclude(well: boolean): Promise<void> {
    if (this.#state !== 'prepared') return this.giveUp();
    this.#state = 'ended';
    for (const job of this.#jobs) await job.conclude(well);
  }

  /** @internal One of them has failed, or was cancelled. */
  failed(job: Job, error: BlockError): void {
    // What has begun its last step goes on to its end.
    if (this.ending) return;
    job.abort(error);
    if (this.#state === 'working') this.#elsewhere?.failed();
    this.#fail();
  }

  /** One elsewhere has failed. Those whose last step has begun go on to their end. */
  giveUp(): void {
    if (this.#state === 'working') this.#fail();
  }

  #fail(): void {
    this.#state = 'failing';
    for (const job of this.#jobs) job.giveUp();
    this.#endFailed();
  }

  #endFailed(): void {
    if (this.#state !== 'failing' || !this.#jobs.every(({ ran }) => ran)) return;
    this.#state = 'ended';
    spawn(this.#abandon());
  }

  async #abandon(): Promise<void> {
    for (const job of this.#jobs) await job.conclude(false);
  }
}
