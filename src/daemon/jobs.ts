/** The jobs of a daemon: which thread each is in, what clients are told of them, and what they may ask. */
import type { ErrorPolicy } from '../jobs/block-job.ts';
import { type JobStatus, type JobVerb, VERBS } from '../jobs/job-states.ts';
import type { IOThread } from '../lib/iothread.ts';
import type { NodeJobErrorEvent, NodeJobEvent, NodeJobInfo, NodeJobMessage } from '../lib/node-job-messages.ts';
import { QmpError } from '../qmp/errors.ts';
import type { Qapi } from '../qmp/schema/schema.ts';
import type { Events } from './events.ts';

export interface JobSettings {
  readonly 'job-id'?: string;
  readonly speed?: number;
  readonly 'auto-finalize'?: boolean;
  readonly 'auto-dismiss'?: boolean;
}

/** A job that there is room for. */
interface Reserved {
  readonly message: NodeJobMessage;
  /** There will be no such job. */
  readonly undo: () => Promise<void>;
}

type Verb = Exclude<JobVerb, 'set-speed'>;

type JobChange = Qapi<'BlockJobChangeOptions'> extends infer C ? (C extends unknown ? Omit<C, 'id'> : never) : never;

/** How a job that is not there is told of: by its id, or by the name of a device that it would be of. */
type Asked = 'job' | 'block-job';

export class Jobs {
  readonly #events: Events;
  /** Those that have told so: after a pause they are ready once more. */
  readonly #ready = new Set<string>();
  /** The thread of each. */
  readonly #byId = new Map<string, IOThread>();

  constructor(events: Events) {
    this.#events = events;
  }

  /** Begins a job in `thread`. `manual`: it stays until it is dismissed, unless that is said otherwise. */
  async start(
    thread: IOThread,
    settings: JobSettings,
    begin: (message: NodeJobMessage) => Promise<void>,
    manual = false,
  ): Promise<void> {
    const { message, undo } = this.reserve(thread, settings, manual);
    try {
      await begin(message);
    } catch (error) {
      await undo();
      throw error;
    }
  }

  /** Takes the id of a job that is about to be made. */
  reserve(thread: IOThread, settings: JobSettings, manual = false): Reserved {
    const { 'job-id': id = '', speed = 0 } = settings;
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) throw new QmpError(`Invalid job ID '${id}'`);
    if (this.#byId.has(id)) throw new QmpError(`Job ID '${id}' already in use`);
    if (speed < 0) throw new QmpError("Parameter 'speed' expects a non-negative value");
    this.#byId.set(id, thread);
    const autoFinalize = settings['auto-finalize'] ?? true;
    const autoDismiss = settings['auto-dismiss'] ?? !manual;
    return {
      message: { id, speed, autoFinalize, autoDismiss },
      undo: async () => void this.#byId.delete(id),
    };
  }

  async do(id: string, verb: Verb, asked: Asked, force = false): Promise<void> {
    const { thread, info } = await this.#find(id, asked);
    if (verb === 'resume' && !info.paused) throw new QmpError("Can't resume a job that was not paused");
    this.#assertAllows(info, verb);
    if (verb === 'pause' && info.paused) throw new QmpError('Job is already paused');
    if (verb === 'cancel' && asked === 'block-job' && !force && info.paused) {
      throw new QmpError(`The block job for device '${id}' is currently paused`);
    }
    await thread.call('node-job-verb', { id, verb, force });
  }

  async setSpeed(id: string, speed: number): Promise<void> {
    const { thread, info } = await this.#find(id, 'block-job');
    this.#assertAllows(info, 'set-speed');
    if (speed < 0) throw new QmpError("Parameter 'speed' expects a non-negative value");
    await thread.call('node-job-speed', { id, speed });
  }

  async change(id: string, change: JobChange): Promise<void> {
    const { thread, info } = await this.#find(id, 'block-job');
    if (info.type !== change.type) throw new QmpError(`Job '${id}' is of type '${info.type}', not '${change.type}'`);
    if (change.type !== 'mirror') throw new QmpError('Job type does not support change');
    await thread.call('node-job-change', { id, copyMode: change['copy-mode'] });
  }

  async list(): Promise<Qapi<'JobInfo'>[]> {
    return (await this.#infos()).map(({ id, type, status, current, total, error }) => ({
      id,
      type: type as Qapi<'JobType'>,
      status,
      'current-progress': current,
      'total-progress': total,
      ...(error === undefined ? {} : { error }),
    }));
  }

  async listBlockJobs(): Promise<Qapi<'BlockJobInfo'>[]> {
    return (await this.#infos())
      .filter(({ onNodes }) => onNodes)
      .map((job) => ({
        type: job.type,
        device: job.id,
        len: job.total,
        offset: job.current,
        busy: job.busy,
        paused: job.paused,
        speed: job.speed,
        'io-status': job.ioStatus,
        ready: isReady(job.status),
        status: job.status,
        'auto-finalize': job.autoFinalize,
        'auto-dismiss': job.autoDismiss,
        ...(job.error === undefined ? {} : { error: job.error }),
      }));
  }

  /** What a thread tells of a job. */
  told({ job }: NodeJobEvent): void {
    const { id, status } = job;
    if (job.onNodes && status === 'concluded') this.#ended(job);
    this.#events.emit('JOB_STATUS_CHANGE', { id, status });
    if (status === 'null') {
      this.#byId.delete(id);
      this.#ready.delete(id);
    }
    if (!job.onNodes) return;
    if (status === 'ready' && !this.#ready.has(id)) {
      this.#ready.add(id);
      this.#events.emit('BLOCK_JOB_READY', ofJob(job));
    }
    if (status === 'pending' && !job.autoFinalize) {
      this.#events.emit('BLOCK_JOB_PENDING', { type: job.type as Qapi<'JobType'>, id });
    }
  }

  failed({ id, operation, action }: NodeJobErrorEvent): void {
    this.#events.emit('BLOCK_JOB_ERROR', { device: id, operation, action });
  }

  #ended(job: NodeJobInfo): void {
    if (job.cancelled) this.#events.emit('BLOCK_JOB_CANCELLED', ofJob(job));
    else {
      const error = job.error === undefined ? {} : { error: job.error };
      this.#events.emit('BLOCK_JOB_COMPLETED', { ...ofJob(job), ...error });
    }
  }

  async #infos(): Promise<NodeJobInfo[]> {
    const threads = new Set(this.#byId.values());
    return (await Promise.all([...threads].map((thread) => thread.call('node-jobs', undefined)))).flat();
  }

  /** How it stands now. */
  async #find(id: string, asked: Asked): Promise<{ readonly thread: IOThread; readonly info: NodeJobInfo }> {
    const thread = this.#byId.get(id);
    const info = (await thread?.call('node-jobs', undefined))?.find((job) => job.id === id);
    if (thread && info && (asked === 'job' || info.onNodes)) return { thread, info };
    if (asked === 'job') throw new QmpError('Job not found');
    throw new QmpError(`Block job '${id}' not found`, 'DeviceNotActive');
  }

  #assertAllows({ id, status }: NodeJobInfo, verb: JobVerb): void {
    if (VERBS[verb].includes(status)) return;
    throw new QmpError(`Job '${id}' in state '${status}' cannot accept command verb '${verb}'`);
  }
}

/** `auto` is for devices of guests that have a policy of their own. */
export function errorPolicy(policy: Qapi<'BlockdevOnError'> = 'report'): ErrorPolicy {
  return policy === 'auto' ? 'report' : policy;
}

function isReady(status: JobStatus): boolean {
  return status === 'ready' || status === 'standby';
}

function ofJob({ id, type, total, current, speed }: NodeJobInfo) {
  return { type: type as Qapi<'JobType'>, device: id, len: total, offset: current, speed };
}
