/** The jobs of an IOThread, by number. */
import { BlockError, Errno } from '../base/errors.ts';
import { CopyJob, wholeOf } from '../jobs/copy-job.ts';
import type { Job } from '../jobs/job.ts';
import { StreamJob } from '../jobs/stream-job.ts';
import { baseOf } from './backing-names.ts';
import type { CopyMessage, JobMethods, JobProgress, StreamMessage } from './job-messages.ts';
import type { WorkerDisks } from './worker-disks.ts';

/** Jobs in one thread at a time, those included whose end nobody has asked for yet. */
const MAX_JOBS = 1024;

type JobHandlers = {
  readonly [M in keyof JobMethods]: (args: Parameters<JobMethods[M]>[0]) => Promise<ReturnType<JobMethods[M]>>;
};

export class WorkerJobs {
  readonly handlers: JobHandlers;
  readonly #disks: WorkerDisks;
  readonly #jobs = new Map<number, Job>();
  #ids = 0;

  constructor(disks: WorkerDisks) {
    this.#disks = disks;
    this.handlers = {
      'job-copy': async (args) => this.#copy(args),
      'job-stream': async (args) => this.#stream(args),
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
    for (const job of all) if (!job.cancelled && job.status !== 'concluded') job.cancel();
    await Promise.all(all.map((job) => job.ended));
  }

  #copy({ source, target, ...options }: CopyMessage): number {
    const [from, to] = [this.#disks.blk(source), this.#disks.blk(target)];
    return this.#start((number) => new CopyJob([wholeOf(from)], to, { id: `copy${number}`, ...options }));
  }

  #stream({ disk, base: name, backingFile, speed }: StreamMessage): number {
    const blk = this.#disks.blk(disk);
    const base = name === undefined ? undefined : baseOf(blk, name, backingFile);
    const alone = (step: () => Promise<void>): Promise<void> => this.#disks.control(disk, step);
    return this.#start((number) => new StreamJob(blk, { id: `stream${number}`, base, alone, speed }));
  }

  #start(make: (number: number) => Job): number {
    if (this.#jobs.size >= MAX_JOBS) throw new BlockError(Errno.EAGAIN, `Could not begin: ${MAX_JOBS} jobs are there`);
    const number = ++this.#ids;
    const job = make(number);
    this.#jobs.set(number, job);
    job.start();
    return number;
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

function progressOf({ status, current, total }: Job): JobProgress {
  return { status, current, total };
}
