/**
 * Job: long work on images, in the home context of their nodes. A coroutine that the control plane can pause, slow
 * down, cancel, complete and watch. States and verbs are in job-states.ts.
 *
 * What runs looks at {@link pausePoint} often enough: there it rests while it is paused, and learns that it was
 * cancelled. When the work is done it waits for the other jobs of its transaction, and perhaps to be finalized; then
 * comes its last step ({@link prepare}), and it concludes. All methods: home thread.
 */
import type { AioContext } from '../aio/context.ts';
import { Gate, type MaybePromise, spawn } from '../aio/op.ts';
import { assert } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes, Nanoseconds } from '../base/units.ts';
import { type JobStatus, type JobVerb, TRANSITIONS, VERBS } from './job-states.ts';
import { JobTransaction } from './job-transaction.ts';
import { RateLimit } from './rate-limit.ts';

export interface JobOptions {
  readonly id: string;
  /** Bytes a second; 0 (default) for as fast as it goes. */
  readonly speed?: Bytes | undefined;
  /** Told of every new status. */
  readonly onStatus?: ((job: Job) => void) | undefined;
  /** False: its last step waits for {@link Job.finalize}. Default true. */
  readonly autoFinalize?: boolean | undefined;
  /** False: once concluded it stays until {@link Job.dismiss}. Default true. */
  readonly autoDismiss?: boolean | undefined;
  /** Jobs that end well together or not at all. Default: it is alone. */
  readonly transaction?: JobTransaction | undefined;
}

export abstract class Job {
  readonly id: string;
  abstract readonly type: string;
  /** Bytes that are done, and that there are to do as far as is known: it can grow. */
  current: Bytes = 0;
  total: Bytes = 0;
  /** Why it failed, or ECANCELED. */
  error: BlockError | undefined;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  protected readonly context: AioContext;
  readonly #limit = new RateLimit();
  readonly #onStatus: ((job: Job) => void) | undefined;
  readonly #transaction: JobTransaction;
  readonly #ended = new Gate();
  readonly #ready = new Gate();
  #status: JobStatus = 'undefined';
  #speed: Bytes;
  #userPaused = false;
  /** Drained sections that it rests for. */
  #holds = 0;
  #cancelled = false;
  #completing = false;
  #gentle = false;
  #ran = false;
  /** What it waits for: the end of a pause, or of a rest between slices. */
  #resting: Gate | undefined;
  /** When its speed lets it go on. A pause in between does not shorten it. */
  #restsUntil: Nanoseconds = 0;

  constructor(context: AioContext, options: JobOptions) {
    this.context = context;
    this.id = options.id;
    this.autoFinalize = options.autoFinalize ?? true;
    this.autoDismiss = options.autoDismiss ?? true;
    this.#onStatus = options.onStatus;
    this.#speed = this.#checkedSpeed(options.speed ?? 0);
    this.#limit.speed = this.#speed;
    this.#transaction = options.transaction ?? new JobTransaction();
    this.#transaction.add(this);
    this.#become('created');
  }

  get status(): JobStatus {
    return this.#status;
  }

  get speed(): Bytes {
    return this.#speed;
  }

  /** It was given up, and ends with ECANCELED. */
  get cancelled(): boolean {
    return this.#cancelled;
  }

  /** Somebody has paused it, or an error has. */
  get paused(): boolean {
    return this.#userPaused;
  }

  /** It is not expected to go on by itself: it rests, or has not begun, or is over. */
  get busy(): boolean {
    return (this.#status === 'running' || this.#status === 'ready') && this.#resting === undefined;
  }

  /** What was there to do before the last step is over, well or not. */
  get ran(): boolean {
    return this.#ran;
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

  /** Resolves once it is ready, or has concluded without that. */
  get readyOrEnded(): Promise<void> {
    return this.#ready.promise;
  }

  /** Gives it up: what is under way ends, and nothing more begins. One that is ready and can ends well instead, with
   *  what there is by now, unless `force`. */
  cancel(force = false): void {
    this.#assertAllows('cancel');
    if (!force && this.#isReady && this.endsGently()) {
      this.#gentle = true;
      this.#hurry();
      return;
    }
    // Its last step has begun, and goes on to its end.
    if (this.#cancelled || this.#transaction.ending) return;
    this.#cancelled = true;
    this.#wake();
    if (this.#status === 'created') this.#over(this.#cancellation());
    else if (this.#ran) this.#transaction.failed(this, this.#cancellation());
  }

  /** Rests from its next {@link pausePoint} on, until it is resumed. */
  pause(): void {
    this.#assertAllows('pause');
    if (this.#userPaused) throw this.#refusal('it is paused already');
    this.#userPaused = true;
    // It may rest for its speed, or between two rounds, for long.
    if (this.#status === 'running' || this.#status === 'ready') this.#wake();
  }

  resume(): void {
    this.#assertAllows('resume');
    if (!this.#userPaused) throw this.#refusal('it is not paused');
    this.#userPaused = false;
    this.onResume();
    if (this.#holds === 0) this.#wake();
  }

  /** Bytes a second; 0 for as fast as it goes. */
  setSpeed(speed: Bytes): void {
    this.#assertAllows('set-speed');
    this.#speed = this.#checkedSpeed(speed);
    this.#limit.speed = speed;
    this.#hurry();
  }

  /** One that is ready goes on to its end. */
  complete(): void {
    this.#assertAllows('complete');
    if (this.#cancelled || this.#gentle || !this.canComplete()) throw this.#refusal('it cannot be completed');
    this.#completing = true;
    this.#hurry();
  }

  /** Its last step, and that of all jobs of its transaction. */
  finalize(): void {
    this.#assertAllows('finalize');
    this.#transaction.finalize();
  }

  /** Nobody will ask for it any more. */
  dismiss(): void {
    this.#assertAllows('dismiss');
    this.#become('null');
  }

  /** The work. Throws BlockErrors; resolves when all is done. */
  protected abstract run(): Promise<void>;

  /** The last step, once all of its transaction have done their work. Where it throws all of them fail. */
  protected async prepare(): Promise<void> {}

  /** Comes at the end in any case, `error` says how that is. Lets go of everything. */
  protected async clean(): Promise<void> {}

  /** It could not be made: the others of its transaction do not wait for it. */
  protected withdraw(): void {
    this.#transaction.remove(this);
  }

  /** True where one that is ready may be cancelled and end well. */
  protected endsGently(): boolean {
    return false;
  }

  /** False where `complete` means nothing to it. */
  protected canComplete(): boolean {
    return false;
  }

  /** Somebody has it go on after a pause. */
  protected onResume(): void {}

  /** Of one that is ready: it was told to go on to its end. */
  protected get completing(): boolean {
    return this.#completing;
  }

  /** Of one that is ready: it was told to stop where it is, and to end well. */
  protected get endingGently(): boolean {
    return this.#gentle;
  }

  protected becomeReady(): void {
    this.#become('ready');
  }

  /** As {@link pause}, for a reason of its own. */
  protected pauseItself(): void {
    this.#userPaused = true;
  }

  /** Rests from its next {@link pausePoint} on, whoever resumes it, until as many {@link release}s. */
  protected hold(): void {
    this.#holds++;
  }

  protected release(): void {
    if (--this.#holds === 0 && !this.#userPaused) this.#wake();
  }

  /** `length` bytes are about to be worked on: rests as long as it is paused or too fast. Throws ECANCELED. */
  protected pausePoint(length: Bytes): MaybePromise<void> {
    this.#assertGoesOn();
    const wait = this.#limit.take(length, this.context.now());
    if (wait > 0 || this.#userPaused || this.#holds > 0) return this.#pause(wait);
  }

  async #pause(waitNs: Nanoseconds): Promise<void> {
    this.#restsUntil = this.context.now() + waitNs;
    while (!this.#cancelled) {
      const left = this.#restsUntil - this.context.now();
      if (this.#userPaused || (this.#holds > 0 && left <= 0)) await this.#standStill();
      else if (left > 0) await this.#rest(left);
      else break;
    }
    this.#assertGoesOn();
  }

  async #standStill(): Promise<void> {
    const ready = this.#isReady;
    this.#become(ready ? 'standby' : 'paused');
    await this.#rest();
    this.#become(ready ? 'ready' : 'running');
  }

  /** Waits until somebody wants something else of it: a verb, the end of a drained section; at most `ns`. */
  protected async idle(ns?: Nanoseconds): Promise<void> {
    await this.pausePoint(0);
    // May interleave: it may have been told in between, and nobody wakes it again.
    if (!this.#completing && !this.#gentle && !this.#cancelled) await this.#rest(ns);
    await this.pausePoint(0);
  }

  /** Ends an {@link idle}. */
  protected wake(): void {
    this.#wake();
  }

  get #isReady(): boolean {
    return this.#status === 'ready' || this.#status === 'standby';
  }

  #wake(): void {
    this.#resting?.open();
  }

  /** {@link #wake}, whatever its speed. */
  #hurry(): void {
    this.#restsUntil = 0;
    this.#wake();
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
      this.#assertGoesOn();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.#over(error);
      return;
    }
    this.#over(undefined);
  }

  #over(error: BlockError | undefined): void {
    this.#ran = true;
    if (error === undefined) {
      this.#become('waiting');
      this.#transaction.done();
    } else this.#transaction.failed(this, error);
  }

  /** @internal By its transaction: all have done their work. */
  becomePending(): void {
    this.#become('pending');
  }

  /** @internal By its transaction: another one has failed. */
  giveUp(): void {
    if (this.#cancelled || this.#ran) return;
    this.#cancelled = true;
    this.#wake();
    if (this.#status === 'created') this.#over(this.#cancellation());
  }

  /** @internal By its transaction. False where it fails. */
  async prepared(): Promise<boolean> {
    try {
      await this.prepare();
      return true;
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.error = error;
      return false;
    }
  }

  /** @internal By its transaction: the end. */
  async conclude(well: boolean): Promise<void> {
    if (!well) {
      this.error ??= this.#cancellation();
      if (this.#status !== 'aborting') this.#become('aborting');
    }
    try {
      await this.clean();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.error ??= error;
    }
    this.#become('concluded');
    this.#ended.open();
    if (this.autoDismiss) this.#become('null');
  }

  /** @internal By its transaction: it has failed, and the others have not ended yet. */
  abort(error: BlockError): void {
    this.error = error;
    this.#become('aborting');
  }

  #become(status: JobStatus): void {
    assert(TRANSITIONS[this.#status].includes(status), `job '${this.id}' cannot become ${status}: ${this.#status}`);
    this.#status = status;
    if (status === 'ready' || status === 'concluded') this.#ready.open();
    this.#onStatus?.(this);
  }

  #assertAllows(verb: JobVerb): void {
    if (!VERBS[verb].includes(this.#status))
      throw this.#refusal(`it is ${this.#status}, which does not accept ${verb}`);
  }

  #checkedSpeed(speed: Bytes): Bytes {
    if (Number.isSafeInteger(speed) && speed >= 0) return speed;
    throw this.#refusal(`a speed of ${speed} bytes a second cannot be`);
  }

  #refusal(why: string): BlockError {
    return new BlockError(Errno.EINVAL, `Could not change job '${this.id}': ${why}`);
  }

  #cancellation(): BlockError {
    return new BlockError(Errno.ECANCELED, `Could not end job '${this.id}': it was cancelled`);
  }
}
