/**
 * Steps on named nodes that happen together or not at all. All nodes are drained from the first step to the last, so
 * that all of it is of one moment. What cannot be undone comes last; jobs begin when everything is done.
 */
import type { CoMutex } from '../aio/co-mutex.ts';
import { BlockError, Errno } from '../base/errors.ts';
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
import { JobTransaction } from '../jobs/job-transaction.ts';
import type { BackupStep, Step, TransactionMessage } from './transaction-messages.ts';
import { sharedBitmap } from './worker-bitmaps.ts';
import type { WorkerNodeJobs } from './worker-node-jobs.ts';

/** How one step is taken back, and what is left of it for the end. */
interface Taken {
  readonly undo?: () => unknown;
  readonly commit?: () => unknown;
}

export class WorkerTransactions {
  readonly #control: CoMutex;
  readonly #jobs: WorkerNodeJobs;

  constructor(jobs: WorkerNodeJobs) {
    this.#jobs = jobs;
    this.#control = jobs.control;
  }

  async run({ steps, grouped }: TransactionMessage): Promise<void> {
    using _turn = await this.#control.lock();
    using _drained = await drain(...nodesOf(steps));
    const transaction = grouped ? new JobTransaction() : undefined;
    const taken: Taken[] = [];
    try {
      for (const step of steps) taken.push(await this.#take(step, transaction));
    } catch (error) {
      for (const { undo } of taken.reverse()) await undo?.();
      throw error;
    }
    for (const { commit } of taken) await commit?.();
  }

  async #take(step: Step, transaction: JobTransaction | undefined): Promise<Taken> {
    switch (step.step) {
      case 'abort':
        throw new BlockError(Errno.ECANCELED, 'Transaction aborted using Abort action');
      case 'snapshot':
        return takeOverlay(nodeByName(step.node), nodeByName(step.overlay));
      case 'internal-snapshot':
        return takeSnapshot(nodeByName(step.node), step.name);
      case 'backup':
        return this.#backup(step, transaction);
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
        job.cancel(true);
        await job.ended;
      },
      commit: () => this.#jobs.begin(job),
    };
  }
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
    case 'bitmap-remove':
      bitmaps.assertChangeable(name);
      return { commit: () => bitmaps.remove(name) };
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

function nodesOf(steps: readonly Step[]): Set<BlockNode> {
  const nodes = new Set(steps.flatMap((step) => ('node' in step ? [nodeByName(step.node)] : [])));
  for (const node of nodes) assertActive(node);
  return nodes;
}
