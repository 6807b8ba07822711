/** The jobs of a thread, by number. */

import type { MaybePromise } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { BlockBackend } from '../block/backend.ts';
import { explicitNode, layerOf } from '../block/copy-up.ts';
import { releaseNode } from '../block/graph.ts';
import type { BlockNode } from '../block/node.ts';
import { CopyJob, wholeOf } from '../jobs/copy-job.ts';
import type { Job, JobOptions } from '../jobs/job.ts';
import { baseOf, layerByName, lowestLayer } from './backing-names.ts';
import type {
  BackupMessage,
  CommitMessage,
  CopyMessage,
  JobMethods,
  JobProgress,
  MirrorMessage,
  StreamMessage,
} from './job-messages.ts';
import type { OpenMessage } from './messages.ts';
import { openTreeNode } from './open-tree.ts';
import type { ThreadDisks } from './thread-disks.ts';

/** Jobs in one thread at a time, those included whose end nobody has asked for yet. */
const MAX_JOBS = 1024;

type JobHandlers = {
  readonly [M in keyof JobMethods]: (args: Parameters<JobMethods[M]>[0]) => Promise<ReturnType<JobMethods[M]>>;
};

export class WorkerJobs {
  readonly handlers: JobHandlers;
  readonly #disks: ThreadDisks;
  readonly #jobs = new Map<number, Job>();
  #ids = 0;
  #making = 0;

  constructor(disks: ThreadDisks) {
    this.#disks = disks;
    this.handlers = {
      'job-copy': (args) => this.#copy(args),
      'job-stream': (args) => this.#stream(args),
      'job-commit': (args) => this.#commit(args),
      'job-backup': (args) => this.#backup(args),
      'job-mirror': (args) => this.#mirror(args),
      'job-ready': ({ job }) => this.#untilReady(job),
      'job-progress': async ({ job }) => progressOf(this.#job(job)),
      'job-verb': async ({ job, verb }) => this.#job(job)[verb](),
      'job-speed': async ({ job, speed }) => this.#job(job).setSpeed(speed),
      'job-wait': ({ job }) => this.#wait(job),
    };
  }

  /** Cancels those that run, and waits for them. */
  async stopAll(): Promise<void> {
    const all = [...this.#jobs.values()];
    this.#jobs.clear();
    for (const job of all) if (job.status !== 'concluded' && !job.ran) job.cancel(true);
    await Promise.all(all.map((job) => job.ended));
  }

  #copy({ source, target, ...options }: CopyMessage): Promise<number> {
    const [from, to] = [this.#disks.blk(source), this.#disks.blk(target)];
    return this.#start((number) => new CopyJob([wholeOf(from)], to, { ...optionsOf('copy', number), ...options }));
  }

  async #stream({ disk, base: name, backingFile, speed }: StreamMessage): Promise<number> {
    const { StreamJob } = await import('../jobs/stream-job.ts');
    const blk = this.#disks.blk(disk);
    const base = name === undefined ? undefined : baseOf(blk, name, backingFile);
    const alone = (step: () => Promise<void>): Promise<void> => this.#disks.control(disk, step);
    return this.#start((number) => new StreamJob(blk, { ...optionsOf('stream', number), base, alone, speed }));
  }

  async #commit({ disk, base: name, top: topName, backingFile, speed }: CommitMessage): Promise<number> {
    const blk = this.#disks.blk(disk);
    const root = rootOf(blk);
    const alone = (step: () => Promise<void>): Promise<void> => this.#disks.control(disk, step);
    const active = topName === undefined || layerByName(root, topName) === layerOf(root);
    if (active) {
      const { ActiveCommitJob } = await import('../jobs/active-commit.ts');
      const base = name === undefined ? lowestLayer(root) : baseOf(blk, name, backingFile).node;
      return this.#start((number) =>
        ActiveCommitJob.commit(root, base, { ...optionsOf('commit', number), speed, alone }),
      );
    }
    const { CommitJob } = await import('../jobs/commit-job.ts');
    const top = layerByName(root, topName);
    const base = baseOf(blk, name ?? lowestLayer(root).name, backingFile);
    return this.#start((number) => CommitJob.create(root, { ...optionsOf('commit', number), base, top, speed, alone }));
  }

  async #mirror({ disk, target: message, ...options }: MirrorMessage): Promise<number> {
    const alone = (step: () => Promise<void>): Promise<void> => this.#disks.control(disk, step);
    const { MirrorJob } = await import('../jobs/mirror-job.ts');
    return this.#into(disk, message, (root, target, number) =>
      MirrorJob.create(root, target, { ...optionsOf('mirror', number), ...options, alone }),
    );
  }

  async #backup({ disk, target: message, ...options }: BackupMessage): Promise<number> {
    const { BackupJob } = await import('../jobs/backup-job.ts');
    return this.#into(disk, message, (root, target, number) =>
      BackupJob.create(root, target, { ...optionsOf('backup', number), ...options }),
    );
  }

  /** Starts a job from a disk to a target, which it holds from then on. */
  async #into(
    disk: number,
    message: OpenMessage,
    make: (root: BlockNode, target: BlockNode, number: number) => Promise<Job>,
  ): Promise<number> {
    const { node } = await openTreeNode(this.#disks.blk(disk).context, message);
    try {
      return await this.#start((number) => make(rootOf(this.#disks.blk(disk)), node, number));
    } finally {
      await releaseNode(node);
    }
  }

  async #start(make: (number: number) => MaybePromise<Job>): Promise<number> {
    if (this.#jobs.size + this.#making >= MAX_JOBS) {
      throw new BlockError(Errno.EAGAIN, `Could not begin: ${MAX_JOBS} jobs are there`);
    }
    const number = ++this.#ids;
    this.#making++;
    try {
      const job = await make(number);
      this.#jobs.set(number, job);
      job.start();
    } finally {
      this.#making--;
    }
    return number;
  }

  async #untilReady(number: number): Promise<boolean> {
    const job = this.#job(number);
    await job.readyOrEnded;
    return job.status === 'ready' || job.status === 'standby';
  }

  async #wait(number: number): Promise<JobProgress> {
    const job = this.#job(number);
    await job.ended;
    this.#jobs.delete(number);
    if (job.error) throw job.error;
    return progressOf(job);
  }

  #job(number: number): Job {
    const job = this.#jobs.get(number);
    if (!job) throw new BlockError(Errno.ENOENT, `Could not find job ${number}`);
    return job;
  }
}

/** Whoever waits for it sees how it has ended, whenever that is. */
function optionsOf(type: string, number: number): Pick<JobOptions, 'id' | 'autoDismiss'> {
  return { id: `${type}${number}`, autoDismiss: false };
}

function rootOf(blk: BlockBackend): BlockNode {
  if (blk.root) return explicitNode(blk.root);
  throw new BlockError(Errno.ENOMEDIUM, `Could not use ${blk.describe}: it has no medium`);
}

function progressOf({ status, current, total }: Job): JobProgress {
  return { status, current, total };
}
