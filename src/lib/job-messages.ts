/** What crosses between a program's thread and an IOThread about jobs. */
import type { Bytes } from '../base/units.ts';
import type { JobStatus } from '../jobs/job-states.ts';

export interface CopyMessage {
  /** Numbers of disks that are open in the thread, and stay open until the job has ended. */
  readonly source: number;
  readonly target: number;
  readonly sparse: Bytes;
  readonly targetIsZero: boolean;
  readonly speed: Bytes;
}

export interface StreamMessage {
  /** Number of a disk that stays open until the job has ended. */
  readonly disk: number;
  /** Node-name or file name of the layer that stays below. */
  readonly base?: string | undefined;
  /** What the image is to call it. */
  readonly backingFile?: string | undefined;
  readonly speed: Bytes;
}

export interface JobMessage {
  readonly job: number;
}

export interface JobVerbMessage extends JobMessage {
  readonly verb: 'cancel' | 'pause' | 'resume';
}

export interface JobSpeedMessage extends JobMessage {
  readonly speed: Bytes;
}

/** How far a job has come. */
export interface JobProgress {
  readonly status: JobStatus;
  /** Bytes that are done, and that there are to do as far as is known. */
  readonly current: Bytes;
  readonly total: Bytes;
}

export interface JobMethods {
  /** Answers the job's number; the job runs. */
  'job-copy'(args: CopyMessage): number;
  'job-stream'(args: StreamMessage): number;
  'job-progress'(args: JobMessage): JobProgress;
  'job-verb'(args: JobVerbMessage): void;
  'job-speed'(args: JobSpeedMessage): void;
  /** Answers once it has ended, with the last state; rejects with what it failed with. It is forgotten then. */
  'job-wait'(args: JobMessage): JobProgress;
}
