/** Jobs on the named nodes of an IOThread, by the ids that a daemon has for them. */
import { open } from 'node:fs/promises';
import { CoMutex } from '../aio/co-mutex.ts';
import type { AioContext } from '../aio/context.ts';
import type { SetupThread } from '../aio/iothread-worker.ts';
import type { MaybePromise } from '../aio/op.ts';
import { BlockError, Errno, errnoOf, errnoText } from '../base/errors.ts';
import { everyStep } from '../base/every-step.ts';
import { BlockBackend } from '../block/backend.ts';
import { assertUnclaimed } from '../block/claims.ts';
import { createImage } from '../block/control.ts';
import { layerOf } from '../block/copy-up.ts';
import { PERM_ALL, Perm } from '../block/driver.ts';
import type { NodeOptions } from '../block/graph.ts';
import { allNodes, nodeByName } from '../block/registry.ts';
import { setReadOnly } from '../block/reopen.ts';
import { BlockJob, type BlockJobOptions } from '../jobs/block-job.ts';
import type { Job } from '../jobs/job.ts';
import { VERBS } from '../jobs/job-states.ts';
import type { MirrorJob } from '../jobs/mirror-job.ts';
import { amendAlone } from './alone.ts';
import { baseOf, layerByName, lowestLayer } from './backing-names.ts';
import type {
  NodeCommitMessage,
  NodeCreateMessage,
  NodeJobAmendMessage,
  NodeJobErrorEvent,
  NodeJobEvent,
  NodeJobInfo,
  NodeJobMessage,
  NodeJobMethods,
  NodeMirrorMessage,
  NodeStreamMessage,
} from './node-job-messages.ts';

/** Jobs in one thread at a time, those included that nobody has dismissed. */
const MAX_JOBS = 1024;

type Handlers = {
  readonly [M in keyof NodeJobMethods]: (
    args: Parameters<NodeJobMethods[M]>[0],
  ) => Promise<ReturnType<NodeJobMethods[M]>>;
};

export class WorkerNodeJobs {
  readonly handlers: Handlers;
  /** Held by whoever changes an image as a whole. */
  readonly control = new CoMutex('named nodes');
  readonly #thread: SetupThread;
  readonly #jobs = new Map<string, Job>();

  constructor(thread: SetupThread) {
    this.#thread = thread;
    this.handlers = {
      'node-job-stream': (args) => this.#stream(args),
      'node-job-commit': (args) => this.#commit(args),
      'node-job-mirror': (args) => this.#mirror(args),
      'node-job-create': (args) => this.#create(args),
      'node-job-verb': async ({ id, verb, force = false }) => {
        const job = this.#job(id);
        if (verb === 'cancel') job.cancel(force);
        else job[verb]();
      },
      'node-job-speed': async ({ id, speed }) => this.#job(id).setSpeed(speed),
      'node-job-change': async ({ id, copyMode }) => (this.#job(id) as MirrorJob).setCopyMode(copyMode),
      'node-job-amend': (args) => this.#amend(args),
      'node-jobs': async () => [...this.#jobs.values()].map(infoOf),
    };
  }

  /** Cancels those that run, or wait for their last step, and waits for them. */
  async stop(): Promise<void> {
    const all = [...this.#jobs.values()];
    for (const job of all) if (VERBS.cancel.includes(job.status)) job.cancel(true);
    await Promise.all(all.map((job) => job.ended));
  }

  async #stream(message: NodeStreamMessage): Promise<void> {
    const { node: name, base, bottom, backingFile, filterName, onError, ...settings } = message;
    const { StreamJob } = await import('../jobs/stream-job.ts');
    const perm = Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED;
    const { context } = this.#thread;
    const layer = layerOf(nodeByName(name));
    assertUnclaimed(layer);
    // A layer that others are above of, or that was opened to be read: it is written to for as long as the job lasts.
    const wasReadOnly = layer.readOnly;
    if (wasReadOnly) await setReadOnly(layer, false);
    const release = async (): Promise<void> => {
      if (wasReadOnly && !layer.closed && !layer.readOnly) await setReadOnly(layer, true);
    };
    let blk: BlockBackend | undefined;
    try {
      const access = { perm, shared: PERM_ALL, readOnly: false };
      const disk = await BlockBackend.open(context, name, { name: settings.id, ...access });
      blk = disk;
      const wanted = bottom === undefined ? base : layerByName(disk.root!, bottom).cow?.node.name;
      const below = wanted === undefined ? undefined : baseOf(disk, wanted, backingFile);
      const alone = (step: () => Promise<void>): Promise<void> => this.#alone(step);
      const filter = { name: filterName };
      const more = { base: below, onImageError: onError, owned: true, filter, alone, release };
      await this.#start(settings, (options) => StreamJob.create(disk, { ...options, ...more }));
    } catch (error) {
      await everyStep(() => blk?.remove(), release).catch(() => undefined);
      throw error;
    }
  }

  async #commit(message: NodeCommitMessage): Promise<void> {
    const { node: name, base, top, backingFile, filterName, onError, ...settings } = message;
    const root = nodeByName(name);
    const alone = (step: () => Promise<void>): Promise<void> => this.#alone(step);
    const more = { onImageError: onError, filterName, alone };
    const from = top === undefined ? root : layerByName(root, top);
    if (from === root || from === layerOf(root)) {
      if (backingFile !== undefined) {
        throw new BlockError(Errno.EINVAL, "Could not commit: 'backing-file' is for a layer that something lies over");
      }
      const { ActiveCommitJob } = await import('../jobs/active-commit.ts');
      const target = base === undefined ? lowestLayer(root) : layerByName(root, base);
      await this.#start(settings, (options) => ActiveCommitJob.commit(root, target, { ...options, ...more }));
      return;
    }
    const { CommitJob } = await import('../jobs/commit-job.ts');
    const blk = await BlockBackend.open(this.#thread.context, name, { perm: 0, shared: PERM_ALL, readOnly: true });
    try {
      const below = baseOf(blk, base ?? lowestLayer(root).name, backingFile);
      await this.#start(settings, (options) => CommitJob.create(root, { ...options, ...more, base: below, top: from }));
    } finally {
      await blk.close();
    }
  }

  async #mirror(message: NodeMirrorMessage): Promise<void> {
    const { MirrorJob } = await import('../jobs/mirror-job.ts');
    const { id, speed, autoFinalize, autoDismiss, node, target, replaces, ...more } = message;
    const alone = (step: () => Promise<void>): Promise<void> => this.#alone(step);
    const [source, to] = [nodeByName(node), nodeByName(target)];
    const instead = replaces === undefined ? undefined : nodeByName(replaces);
    await this.#start({ id, speed, autoFinalize, autoDismiss }, (options) =>
      MirrorJob.create(source, to, { ...options, ...more, replaces: instead, alone }),
    );
  }

  async #create({ driver, nodes, options: given, ...settings }: NodeCreateMessage): Promise<void> {
    const { CreateJob } = await import('../jobs/create-job.ts');
    const { context } = this.#thread;
    const make = async (): Promise<void> => {
      if (driver === 'file') await makeFile(context, given);
      else await createImage(context, driver, nodes as never, given);
    };
    await this.#start(settings, (options) => new CreateJob(context, make, options));
  }

  async #amend({ node, changes, ...settings }: NodeJobAmendMessage): Promise<void> {
    const { CreateJob } = await import('../jobs/create-job.ts');
    const amend = () => amendAlone(this.control, node, changes);
    await this.#start(settings, (options) => new CreateJob(this.#thread.context, amend, options, 'amend'));
  }

  async #alone(step: () => Promise<void>): Promise<void> {
    using _turn = await this.control.lock();
    await step();
  }

  async #start(settings: NodeJobMessage, make: (options: BlockJobOptions) => MaybePromise<Job>): Promise<Job> {
    const job = await this.make(settings, make);
    this.begin(job);
    return job;
  }

  /** Others see it from here on. */
  begin(job: Job): void {
    this.#jobs.set(job.id, job);
    this.#tell(job, 'created');
    job.start();
  }

  /** Makes a job that has not begun, and that nobody is told of yet. */
  async make(settings: NodeJobMessage, make: (options: BlockJobOptions) => MaybePromise<Job>): Promise<Job> {
    if (this.#jobs.size >= MAX_JOBS) throw new BlockError(Errno.EAGAIN, `Could not begin: ${MAX_JOBS} jobs are there`);
    return make({
      ...settings,
      onStatus: (one) => this.#told(one),
      onError: ({ id }, { operation, action }) =>
        this.#thread.emit('job-error', { service: 0, id, operation, action } satisfies NodeJobErrorEvent),
    });
  }

  #told(job: Job): void {
    // It has not begun: whoever makes it may fail yet.
    if (this.#jobs.get(job.id) !== job) return;
    if (job.status === 'null') this.#jobs.delete(job.id);
    this.#tell(job, job.status);
  }

  #tell(job: Job, status: NodeJobInfo['status']): void {
    const names = allNodes().map(({ name }) => name);
    this.#thread.emit('job', { service: 0, job: { ...infoOf(job), status }, names } satisfies NodeJobEvent);
  }

  #job(id: string): Job {
    const job = this.#jobs.get(id);
    if (!job) throw new BlockError(Errno.ENOENT, 'Job not found');
    return job;
  }
}

function infoOf(job: Job): NodeJobInfo {
  const { id, type, status, current, total, cancelled, speed, busy, paused, autoFinalize, autoDismiss } = job;
  const onNodes = job instanceof BlockJob;
  return {
    ...{ id, type, status, current, total, cancelled, speed, busy, paused, autoFinalize, autoDismiss, onNodes },
    error: cancelled ? errnoText(Errno.ECANCELED) : job.error?.message,
    ioStatus: onNodes ? job.ioStatus : 'ok',
  };
}

/** Whatever the file was, it is empty afterwards, of that size. EAGAIN while somebody uses it. */
async function makeFile(context: AioContext, given: Readonly<Record<string, unknown>>): Promise<void> {
  const { filename: name, ...options } = given;
  const filename = String(name);
  try {
    await (await open(filename, 'a', 0o644)).close();
  } catch (error) {
    const errno = errnoOf(error);
    throw new BlockError(errno, `Could not create '${filename}': ${errnoText(errno)}`, { cause: error });
  }
  await createImage(context, 'raw', { file: { driver: 'file', filename } as NodeOptions }, options);
}
