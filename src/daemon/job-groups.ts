/**
 * Jobs of one transaction that are in several threads: they end well together or not at all (SEMANTICS J2). Each thread
 * has a JobTransaction for its own, and tells how they stand; what all agree on is told to each from here. A thread
 * whose jobs have failed ends them by itself.
 */
import type { IOThread } from '../lib/iothread.ts';
import type { JobGroupEvent, JobGroupMessage } from '../lib/transaction-messages.ts';

export class JobGroups {
  readonly #groups = new Map<number, JobGroup>();

  /** From here on jobs of the transaction `key` may run; each of `threads` has some. */
  add(key: number, threads: readonly IOThread[]): void {
    this.#groups.set(key, new JobGroup(key, threads));
  }

  /** Resolves when what follows from it is over. */
  async told({ key, jobs, autoFinalize }: JobGroupEvent): Promise<void> {
    const group = this.#groups.get(key);
    if (!group) return;
    if (jobs === 'done') await group.done(autoFinalize);
    else if (jobs === 'finalize') await group.finalize();
    else await group.giveUp();
    if (group.over) this.#groups.delete(key);
  }
}

class JobGroup {
  readonly #key: number;
  readonly #threads: readonly IOThread[];
  #working: number;
  #autoFinalize = true;
  /** How it ends is settled. */
  over = false;

  constructor(key: number, threads: readonly IOThread[]) {
    this.#key = key;
    this.#threads = threads;
    this.#working = threads.length;
  }

  /** The jobs of one thread have done their work. */
  async done(autoFinalize: boolean): Promise<void> {
    this.#autoFinalize &&= autoFinalize;
    if (--this.#working > 0) return;
    await this.#tell('becomePending');
    if (this.#autoFinalize) await this.finalize();
  }

  /** The last steps, one thread after the other; where one fails, all have failed. */
  async finalize(): Promise<void> {
    if (this.over) return;
    this.over = true;
    let well = true;
    for (const thread of this.#threads) {
      well = await this.#ask(thread, { key: this.#key, step: 'prepare' });
      if (!well) break;
    }
    await this.#tell('conclude', well);
  }

  async giveUp(): Promise<void> {
    if (this.over) return;
    this.over = true;
    await this.#tell('giveUp');
  }

  async #tell(step: JobGroupMessage['step'], well = false): Promise<void> {
    await Promise.all(this.#threads.map((thread) => this.#ask(thread, { key: this.#key, step, well })));
  }

  /** False, too, where the thread has gone, and its jobs with it. */
  #ask(thread: IOThread, message: JobGroupMessage): Promise<boolean> {
    return thread.call('job-group', message).catch(() => false);
  }
}
