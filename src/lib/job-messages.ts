/** What crosses between a program's thread and an IOThread about jobs. */
import type { Bytes } from '../base/units.ts';
import type { BackupJobOptions } from '../jobs/backup-job.ts';
import type { JobStatus } from '../jobs/job-states.ts';
import type { CopyMode, MirrorJobOptions } from '../jobs/mirror-job.ts';
import type { OpenMessage } from './messages.ts';

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

export interface CommitMessage {
  /** Number of a disk that stays open until the job has ended. */
  readonly disk: number;
  /** Node-names or file names of layers. */
  readonly base?: string | undefined;
  readonly top?: string | undefined;
  readonly backingFile?: string | undefined;
  readonly speed: Bytes;
}

export interface MirrorMessage {
  /** Number of a disk that stays open until the job has ended. */
  readonly disk: number;
  readonly target: OpenMessage;
  readonly sync: MirrorJobOptions['sync'];
  readonly copyMode?: CopyMode | undefined;
  readonly granularity?: Bytes | undefined;
  readonly targetIsZero: boolean;
  readonly speed: Bytes;
}

export interface BackupMessage {
  /** Number of a disk that stays open until the job has ended. */
  readonly disk: number;
  readonly target: OpenMessage;
  readonly sync: BackupJobOptions['sync'];
  readonly bitmap?: string | undefined;
  readonly bitmapMode?: BackupJobOptions['bitmapMode'];
  readonly compress?: boolean | undefined;
  readonly speed: Bytes;
}

export interface JobMessage {
  readonly job: number;
}

export interface JobVerbMessage extends JobMessage {
  readonly verb: 'cancel' | 'pause' | 'resume' | 'complete';
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
  'job-commit'(args: CommitMessage): number;
  'job-backup'(args: BackupMessage): number;
  'job-mirror'(args: MirrorMessage): number;
  /** Answers once it is ready, or has ended without that: false. */
  'job-ready'(args: JobMessage): boolean;
  'job-progress'(args: JobMessage): JobProgress;
  'job-verb'(args: JobVerbMessage): void;
  'job-speed'(args: JobSpeedMessage): void;
  /** Answers once it has ended, with the last state; rejects with what it failed with. It is forgotten then. */
  'job-wait'(args: JobMessage): JobProgress;
}
