/**
 * Job: long work on images, in the home context of their nodes. A coroutine that the control plane can pause, slow
 * down, cancel and watch. States and verbs are in job-states.ts.
 *
 * What runs looks at {@link pausePoint} often enough: there it rests while it is paused, and learns that it was
 * cancelled. All methods: home thread.
 */
import type { AioContext } from '../aio/context.ts';
import { Gate, type MaybePromise, spawn } from '../aio/op.ts';
import { assert } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes, Nanoseconds } from '../base/units.ts';
import { type JobStatus, type JobVerb, TRANSITIONS, VERBS } from './job-states.ts';
import { RateLimit } from './rate-limit.ts';

export interface JobOptions {
  readonly id: string;
  /** Bytes a second; 0 (default) for as fast as it goes. */
  readonly speed?: Bytes;
  /** Told of every new status. */
  readonly onStatus?: (job: Job) => void;
}

export abstract class Job {
  readonly id: string;
  abstract readonly type: string;
  /** Bytes that are done, and that there are to do as far as is known: it can grow. */
  current: Bytes = 0;
  total: Bytes = 0;
  /** Why it failed, or ECANCELED. */
  error: BlockError | undefined;
  protected readonly context: AioContext;
  readonly #limit = new RateLimit();
  readonly #onStatus: ((job: Job) => void) | undefined;
  readonly #ended = new Gate();
  #status: JobStatus = 'undefined';
  #userPaused = false;
  /** Drained sections that it rests for. */
  #holds = 0;
  #cancelled = false;
  /** What it waits for: the end of a pause, or of a rest between slices. */
  #resting: Gate | undefined;

  constructor(context: AioContext, options: JobOptions) {
    this.context = context;
    this.id = options.id;
    this.#onStatus = options.onStatus;
    this.#limit.speed = options.speed ?? 0;
    this.#become('created');
  }

  get status(): JobStatus {
    return this.#status;
  }

  get cancelled(): boolean {
    return this.#cancelled;
  }

  /** Begins. What it is about is held until its end. */
  start(): void {
    assert(this.#status === 'created', `job '${this.id}' was started twice`);
    this.#become('running');
    spawn(this.#main());
  }

  /** Resolves once it has concluded, well or not: see {@link error}. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** Gives it up: what is under way ends, and nothing more begins. */
  cancel(): void {
    this.#assertAllows('cancel');
    this.#cancelled = true;
    this.#resting?.open();
    if (this.#status === 'created') {
      this.error = this.#cancellation();
      this.#become('aborting');
      this.#become('concluded');
      this.#ended.open();
    }
  }

  /** Rests from its next {@link pausePoint} on, until it is resumed. */
  pause(): void {
    this.#assertAllows('pause');
    if (this.#userPaused) throw this.#refusal('it is paused already');
    this.#userPaused = true;
  }

  resume(): void {
    this.#assertAllows('resume');
    if (!this.#userPaused) throw this.#refusal('it is not paused');
    this.#userPaused = false;
    if (this.#holds === 0) this.#resting?.open();
  }

  /** Rests from its next {@link pausePoint} on, whoever resumes it, until as many {@link release}s. */
  protected hold(): void {
    this.#holds++;
  }

  protected release(): void {
    if (--this.#holds === 0 && !this.#userPaused) this.#resting?.open();
  }

  /** Bytes a second; 0 for as fast as it goes. */
  setSpeed(speed: Bytes): void {
    this.#assertAllows('set-speed');
    if (!Number.isSafeInteger(speed) || speed < 0) throw this.#refusal(`a speed of ${speed} bytes a second cannot be`);
    this.#limit.speed = speed;
    this.#resting?.open();
  }

  /** The work. Throws BlockErrors; resolves when all is done. Lets go of everything before it ends, either way. */
  protected abstract run(): Promise<void>;

  /** `length` bytes are about to be worked on: rests as long as it is paused or too fast. Throws ECANCELED. */
  protected pausePoint(length: Bytes): MaybePromise<void> {
    this.#assertGoesOn();
    const wait = this.#limit.take(length, this.context.now());
    if (wait > 0 || this.#userPaused || this.#holds > 0) return this.#pause(wait);
  }

  async #pause(waitNs: Nanoseconds): Promise<void> {
    if (waitNs > 0) await this.#rest(waitNs);
    while ((this.#userPaused || this.#holds > 0) && !this.#cancelled) {
      this.#become('paused');
      await this.#rest();
      this.#become('running');
    }
    this.#assertGoesOn();
  }

  async #rest(ns?: Nanoseconds): Promise<void> {
    const gate = new Gate();
    this.#resting = gate;
    const timer = ns === undefined ? undefined : this.context.timer(() => gate.open(), 'job');
    timer?.armIn(ns!);
    await gate.promise;
    timer?.cancel();
    this.#resting = undefined;
  }

  #assertGoesOn(): void {
    if (this.#cancelled) throw this.#cancellation();
  }

  async #main(): Promise<void> {
    try {
      await this.run();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.error = error;
      this.#become('aborting');
      this.#become('concluded');
      this.#ended.open();
      return;
    }
    this.#become('waiting');
    this.#become('pending');
    this.#become('concluded');
    this.#ended.open();
  }

  #become(status: JobStatus): void {
    assert(TRANSITIONS[this.#status].includes(status), `job '${this.id}' cannot become ${status}: ${this.#status}`);
    this.#status = status;
    this.#onStatus?.(this);
  }

  #assertAllows(verb: JobVerb): void {
    if (!VERBS[verb].includes(this.#status))
      throw this.#refusal(`it is ${this.#status}, which does not accept ${verb}`);
  }

  #refusal(why: string): BlockError {
    return new BlockError(Errno.EINVAL, `Could not change job '${this.id}': ${why}`);
  }

  #cancellation(): BlockError {
    return new BlockError(Errno.ECANCELED, `Could not end job '${this.id}': it was cancelled`);
  }
}
