/** A job of a daemon, for programs: its progress as it goes, and its end. */
import { onAbort } from '../aio/on-abort.ts';
import { Gate } from '../aio/op.ts';
import type { Abortable } from '../lib/abort.ts';
import { QmpError } from '../qmp/errors.ts';
import type { Arguments, Qapi } from '../qmp/schema/schema.ts';
import type { Daemon } from './daemon.ts';
import type { GivenHere } from './node-options.ts';

/** Commands that begin a job. */
export type JobCommand =
  | 'block-stream'
  | 'block-commit'
  | 'blockdev-mirror'
  | 'blockdev-backup'
  | 'drive-mirror'
  | 'drive-backup'
  | 'blockdev-create'
  | 'x-blockdev-amend';

/** Without what is the handle's affair: it takes the job away when it has ended. */
export type JobArguments<N extends JobCommand> = Omit<Arguments<N>, 'auto-dismiss' | 'job-id'> & {
  readonly 'job-id': string;
};

/** What a transaction may do; the jobs in it have ids, and are taken away by their handles. */
export type TransactionStep =
  | Exclude<Qapi<'TransactionAction'>, JobAction>
  | { readonly type: 'blockdev-backup'; readonly data: JobArguments<'blockdev-backup'> }
  | { readonly type: 'drive-backup'; readonly data: JobArguments<'drive-backup'> };
type JobAction = Extract<Qapi<'TransactionAction'>, { readonly type: JobCommand }>;

export interface TransactionOptions extends Abortable {
  /** Its jobs end well together, or not at all. */
  readonly grouped?: boolean | undefined;
}

/** Those that stay until they are dismissed anyway. */
const STAYING: ReadonlySet<JobCommand> = new Set(['blockdev-create', 'x-blockdev-amend']);
/** Between two looks at a job that does not change its status. */
const LOOK_MS = 250;

export interface JobProgress {
  readonly status: Qapi<'JobStatus'>;
  /** Bytes, as a rule. */
  readonly current: number;
  readonly total: number;
}

/**
 * A job until it has ended. `await using` gives it up where the block is left before, and waits for its end.
 *
 * ```ts
 * const what = { 'job-id': 'b', device: 'disk', target: 'copy', sync: 'full' } as const;
 * await using job = await daemon.begin('blockdev-backup', what);
 * for await (const { current, total } of job) console.log(current, 'of', total);
 * ```
 */
export class JobHandle implements AsyncIterable<JobProgress>, AsyncDisposable {
  readonly id: string;
  readonly #daemon: Daemon;
  /** Opens at the next change of its status. */
  #changed = new Gate();
  #last: Qapi<'JobInfo'> | undefined;
  /** Resolves when it is done; rejects with what it failed with, or was given up with: the reason of the signal, where
   *  that did it. */
  readonly ended: Promise<void>;

  private constructor(daemon: Daemon, id: string, signal: AbortSignal | undefined) {
    this.id = id;
    this.#daemon = daemon;
    this.ended = this.#watched(signal);
    // Who only reads its progress is told there.
    this.ended.catch(() => undefined);
  }

  /** @internal Use Daemon.begin(). */
  static async begin<N extends JobCommand>(
    daemon: Daemon,
    command: N,
    args: JobArguments<N>,
    options: Abortable,
  ): Promise<JobHandle> {
    const dismissing = STAYING.has(command) ? {} : { 'auto-dismiss': false };
    const given = [{ ...args, ...dismissing }] as unknown as GivenHere<N>;
    const run = () => daemon.run(command, ...given);
    const [handle] = await JobHandle.#begun(daemon, [args['job-id']], run, options);
    return handle!;
  }

  /** @internal Use Daemon.transaction(). */
  static async transaction(
    daemon: Daemon,
    actions: readonly TransactionStep[],
    { grouped = false, ...options }: TransactionOptions,
  ): Promise<readonly JobHandle[]> {
    const properties = { 'completion-mode': grouped ? 'grouped' : 'individual' } as const;
    const run = () => daemon.run('transaction', { actions: actions.map(staying), properties });
    const ids = actions.filter(isOfJob).map(({ data }) => data['job-id']);
    return await JobHandle.#begun(daemon, ids, run, options);
  }

  /** Of the jobs that `run` begins. */
  static async #begun(
    daemon: Daemon,
    ids: readonly string[],
    run: () => Promise<unknown>,
    { signal }: Abortable,
  ): Promise<readonly JobHandle[]> {
    signal?.throwIfAborted();
    const handles = new Map<string, JobHandle>();
    const listening = new Set(ids);
    const leave = daemon.events.listen(({ event, data }) => {
      if (event !== 'JOB_STATUS_CHANGE') return;
      const handle = handles.get(data.id);
      if (handle) handle.#tell();
      if (data.status === 'null') listening.delete(data.id);
      if (listening.size === 0) leave();
    });
    try {
      await run();
    } catch (error) {
      leave();
      throw error;
    }
    if (ids.length === 0) leave();
    for (const id of ids) handles.set(id, new JobHandle(daemon, id, signal));
    return [...handles.values()];
  }

  /** Until it has ended; then throws what it failed with. */
  async *[Symbol.asyncIterator](): AsyncGenerator<JobProgress> {
    while (this.#last === undefined) {
      const info = await this.#info();
      if (info === undefined || info.status === 'concluded') break;
      yield progressOf(info);
      await this.#change();
    }
    await this.ended;
    if (this.#last) yield progressOf(this.#last);
  }

  async pause(): Promise<void> {
    await this.#daemon.run('job-pause', { id: this.id });
  }

  async resume(): Promise<void> {
    await this.#daemon.run('job-resume', { id: this.id });
  }

  /** Of a mirror that is ready: has its users go on with the target. */
  async complete(): Promise<void> {
    await this.#daemon.run('job-complete', { id: this.id });
  }

  /** The last step of one that was begun with `auto-finalize: false`. */
  async finalize(): Promise<void> {
    await this.#daemon.run('job-finalize', { id: this.id });
  }

  /** Gives it up; where it is ready and `force` is false, its target is left as a copy of this moment. */
  async cancel(force = true): Promise<void> {
    if (force) await this.#daemon.run('job-cancel', { id: this.id });
    else await this.#daemon.run('block-job-cancel', { device: this.id, force });
  }

  /** Bytes a second; 0 for as fast as it goes. */
  async setSpeed(speed: number): Promise<void> {
    await this.#daemon.run('block-job-set-speed', { device: this.id, speed });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#last === undefined) await this.#giveUp();
    await this.ended.catch(() => undefined);
  }

  /** It may have ended by itself meanwhile. */
  async #giveUp(): Promise<void> {
    await this.cancel().catch((error: unknown) => {
      if (!(error instanceof QmpError)) throw error;
    });
  }

  async #watched(signal: AbortSignal | undefined): Promise<void> {
    if (!signal) return this.#follow();
    const off = onAbort(signal, () => void this.#giveUp());
    if (signal.aborted) void this.#giveUp();
    try {
      await this.#follow();
    } catch (error) {
      signal.throwIfAborted();
      throw error;
    } finally {
      off();
    }
  }

  async #info(): Promise<Qapi<'JobInfo'> | undefined> {
    return (await this.#daemon.run('query-jobs', {})).find(({ id }) => id === this.id);
  }

  #tell(): void {
    const changed = this.#changed;
    this.#changed = new Gate();
    changed.open();
  }

  /** Its status has changed, or time has passed. */
  async #change(): Promise<void> {
    const { promise } = this.#changed;
    const alarm = new Gate();
    const timer = setTimeout(() => alarm.open(), LOOK_MS);
    await Promise.race([promise, alarm.promise]);
    clearTimeout(timer);
  }

  async #follow(): Promise<void> {
    for (;;) {
      const { promise } = this.#changed;
      const info = await this.#info();
      if (info === undefined) throw new QmpError(`Job '${this.id}' was dismissed`);
      if (info.status === 'concluded') {
        this.#last = info;
        await this.#daemon.run('job-dismiss', { id: this.id });
        if (info.error !== undefined) throw new QmpError(info.error);
        return;
      }
      await promise;
    }
  }
}

function isOfJob(action: TransactionStep): action is Extract<TransactionStep, { readonly type: JobCommand }> {
  return action.type === 'blockdev-backup' || action.type === 'drive-backup';
}

function staying(action: TransactionStep): Qapi<'TransactionAction'> {
  if (!isOfJob(action)) return action;
  return { ...action, data: { ...action.data, 'auto-dismiss': false } } as JobAction;
}

function progressOf(info: Qapi<'JobInfo'>): JobProgress {
  return { status: info.status, current: info['current-progress'], total: info['total-progress'] };
}
