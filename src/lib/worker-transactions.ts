/**
 * Steps on named nodes that happen together or not at all. All nodes are drained from the first step to the last, so
 * that all of it is of one moment. What cannot be undone comes last; jobs begin when everything is done.
 */
import type { SetupThread } from '../aio/iothread-worker.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { everyStep } from '../base/every-step.ts';
import { PagedBits } from '../base/paged-bits.ts';
import { BlockBackend } from '../block/backend.ts';
import { assertUnclaimed } from '../block/claims.ts';
import type { DirtyBitmap } from '../block/dirty-bitmap.ts';
import { drain } from '../block/drain.ts';
import { assertActive } from '../block/inactive.ts';
import type { BlockNode } from '../block/node.ts';
import { putOverlay } from '../block/overlay.ts';
import { nodeByName } from '../block/registry.ts';
import { setReadOnly } from '../block/reopen.ts';
import { VERBS } from '../jobs/job-states.ts';
import { JobTransaction } from '../jobs/job-transaction.ts';
import {
  type BackupStep,
  type JobGroupEvent,
  type JobGroupMessage,
  nodeNamesOf,
  type Step,
  type TransactionMessage,
  type TransactionMethods,
} from './transaction-messages.ts';
import { sharedBitmap } from './worker-bitmaps.ts';
import type { WorkerNodeJobs } from './worker-node-jobs.ts';

/** How one step is taken back, and what is left of it for the end. */
interface Taken {
  readonly undo?: () => unknown;
  /** What cannot be taken back, and may fail: then the others are taken back. */
  readonly last?: () => unknown;
  /** Once nothing can fail any more. */
  readonly commit?: () => unknown;
}

/** A transaction, or what this thread does of one, from the beginning of its drained section to the end. */
interface Part {
  readonly turn: Disposable;
  readonly drained: Disposable;
  readonly jobs: JobTransaction | undefined;
  readonly taken: Taken[];
}

type Handlers = {
  readonly [M in keyof TransactionMethods]: (
    args: Parameters<TransactionMethods[M]>[0],
  ) => Promise<ReturnType<TransactionMethods[M]>>;
};

export class WorkerTransactions {
  readonly handlers: Handlers;
  readonly #thread: SetupThread;
  readonly #jobs: WorkerNodeJobs;
  readonly #parts = new Map<number, Part>();
  /** Jobs that are grouped with others elsewhere, until they are told how they end. */
  readonly #groups = new Map<number, JobTransaction>();

  constructor(thread: SetupThread, jobs: WorkerNodeJobs) {
    this.#thread = thread;
    this.#jobs = jobs;
    this.handlers = {
      transaction: (args) => this.#run(args),
      'transaction-begin': async ({ key, nodes, grouped }) => {
        const jobs = grouped ? this.#group(key) : undefined;
        this.#parts.set(key, await this.#begin(nodes, jobs));
      },
      'transaction-take': ({ key, steps }) => this.#take(this.#parts.get(key)!, steps),
      'transaction-end': async ({ key, well }) => {
        const part = this.#parts.get(key)!;
        this.#parts.delete(key);
        if (!well) this.#groups.delete(key);
        await end(part, well);
      },
      'job-group': (args) => this.#agreed(args),
    };
  }

  async #run({ steps, grouped }: TransactionMessage): Promise<void> {
    const part = await this.#begin(nodeNamesOf(steps), grouped ? new JobTransaction() : undefined);
    let well = false;
    try {
      await this.#take(part, steps);
      well = true;
    } finally {
      await end(part, well);
    }
  }

  async #begin(names: readonly string[], jobs: JobTransaction | undefined): Promise<Part> {
    const turn = await this.#jobs.control.lock();
    try {
      const nodes = names.map(nodeByName);
      for (const node of nodes) assertActive(node);
      return { turn, drained: await drain(...nodes), jobs, taken: [] };
    } catch (error) {
      turn[Symbol.dispose]();
      throw error;
    }
  }

  async #take({ jobs, taken }: Part, steps: readonly Step[]): Promise<void> {
    for (const step of steps) taken.push(await this.#taken(step, jobs));
  }

  async #taken(step: Step, jobs: JobTransaction | undefined): Promise<Taken> {
    switch (step.step) {
      case 'abort':
        throw new BlockError(Errno.ECANCELED, 'Transaction aborted using Abort action');
      case 'snapshot':
        return takeOverlay(nodeByName(step.node), nodeByName(step.overlay));
      case 'internal-snapshot':
        return takeSnapshot(nodeByName(step.node), step.name);
      case 'backup':
        return this.#backup(step, jobs);
      default:
        return takeBitmapStep(step);
    }
  }

  async #backup({ step: _, node, target, ...options }: BackupStep, transaction: JobTransaction | undefined) {
    const { BackupJob } = await import('../jobs/backup-job.ts');
    const [source, to] = [nodeByName(node), nodeByName(target)];
    const job = await this.#jobs.make(options, (settings) =>
      BackupJob.create(source, to, { ...options, ...settings, ...(transaction ? { transaction } : {}) }),
    );
    return {
      undo: async () => {
        // Another one of its group has given it up, perhaps.
        if (VERBS.cancel.includes(job.status)) job.cancel(true);
        await job.ended;
      },
      commit: () => this.#jobs.begin(job),
    };
  }

  /** Jobs of this thread that end as those elsewhere do. */
  #group(key: number): JobTransaction {
    const tell = (jobs: JobGroupEvent['jobs'], autoFinalize = false): void =>
      this.#thread.emit('job-group', { service: 0, key, jobs, autoFinalize } satisfies JobGroupEvent);
    const group = new JobTransaction({
      done: (autoFinalize) => tell('done', autoFinalize),
      finalize: () => tell('finalize'),
      failed: () => {
        this.#groups.delete(key);
        tell('failed');
      },
    });
    this.#groups.set(key, group);
    return group;
  }

  async #agreed({ key, step, well = false }: JobGroupMessage): Promise<boolean> {
    const group = this.#groups.get(key);
    // It has failed meanwhile.
    if (!group) return false;
    if (step === 'prepare') return group.prepare();
    if (step === 'becomePending') group.becomePending();
    else {
      this.#groups.delete(key);
      if (step === 'conclude') await group.conclude(well);
      else group.giveUp();
    }
    return true;
  }
}

async function end({ turn, drained, taken }: Part, well: boolean): Promise<void> {
  try {
    if (well) await finish(taken);
    else await takeBack(taken);
  } finally {
    drained[Symbol.dispose]();
    turn[Symbol.dispose]();
  }
}

async function finish(taken: readonly Taken[]): Promise<void> {
  try {
    for (const { last } of taken) await last?.();
  } catch (error) {
    // Why it has failed comes first.
    await everyStep(
      () => Promise.reject(error),
      () => takeBack(taken),
    );
  }
  for (const { commit } of taken) await commit?.();
}

async function takeBack(taken: readonly Taken[]): Promise<void> {
  await everyStep(
    ...taken.toReversed().map(
      ({ undo }) =>
        () =>
          undo?.(),
    ),
  );
}

/** What is below an overlay is not written to any more. Where its driver cannot be told so, nobody does it anyway. */
async function takeOverlay(node: BlockNode, overlay: BlockNode): Promise<Taken> {
  const undo = await putOverlay(node, overlay);
  const commit = async (): Promise<void> => {
    try {
      await setReadOnly(node, true);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
    }
  };
  return { undo, commit };
}

type BitmapStep = Extract<Step, { readonly step: `bitmap-${string}` }>;

async function takeBitmapStep(step: BitmapStep): Promise<Taken> {
  const { bitmaps } = nodeByName(step.node);
  const { name } = step;
  switch (step.step) {
    case 'bitmap-add': {
      const { granularity, persistent, disabled } = step;
      await bitmaps.add(name, { granularity, persistent, disabled });
      return { undo: () => bitmaps.remove(name) };
    }
    case 'bitmap-remove': {
      const release = bitmaps.reserve(name);
      const last = (): Promise<void> => {
        release();
        return bitmaps.remove(name);
      };
      return { undo: release, last };
    }
    case 'bitmap-clear': {
      const undo = restorer(sharedBitmap(bitmaps, name));
      await bitmaps.clear(name);
      return { undo };
    }
    case 'bitmap-merge': {
      const undo = restorer(sharedBitmap(bitmaps, name));
      const sources = step.sources.map((source) =>
        typeof source === 'string' ? source : sharedBitmap(nodeByName(source.node).bitmaps, source.name),
      );
      await bitmaps.merge(name, sources);
      return { undo };
    }
    default: {
      const enabled = step.step === 'bitmap-enable';
      const before = sharedBitmap(bitmaps, name).enabled;
      await bitmaps.enable(name, enabled);
      return { undo: () => bitmaps.enable(name, before) };
    }
  }
}

/** Keeps what is dirty now. */
function restorer({ bits }: DirtyBitmap): () => void {
  const kept = new PagedBits(bits.length);
  kept.or(bits);
  return () => {
    bits.clear();
    bits.or(kept);
  };
}

async function takeSnapshot(node: BlockNode, name: string): Promise<Taken> {
  assertUnclaimed(node);
  for (const parent of node.parents) {
    if (!(parent instanceof BlockBackend)) continue;
    for (const user of parent.users) {
      const why = user.cannotRevert?.();
      if (why !== undefined) throw new BlockError(Errno.EBUSY, `Could not make a snapshot of '${node.name}': ${why}`);
    }
  }
  const { snapshots } = node.impl;
  if (!snapshots) {
    const why = `Block format '${node.driver.name}' used by device '${node.name}' does not support internal snapshots`;
    throw new BlockError(Errno.ENOTSUP, why);
  }
  const { id } = await snapshots.create(name);
  return { undo: () => snapshots.delete(id) };
}
