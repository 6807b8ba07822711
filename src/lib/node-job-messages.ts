/** What crosses between a daemon and an IOThread about jobs on named nodes: see worker-node-jobs.ts. */
import type { Bytes } from '../base/units.ts';
import type { ErrorPolicy } from '../jobs/block-job.ts';
import type { JobStatus } from '../jobs/job-states.ts';
import type { CopyMode } from '../jobs/mirror-job.ts';
import type { NodeAmendMessage } from './node-messages.ts';

/** What every job takes. Ids are the daemon's. */
export interface NodeJobMessage {
  readonly id: string;
  readonly speed: Bytes;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
}

export interface NodeStreamMessage extends NodeJobMessage {
  readonly node: string;
  /** The layer that stays below, or the lowest that is copied: a node-name or file name. */
  readonly base: string | undefined;
  readonly bottom: string | undefined;
  readonly backingFile: string | undefined;
  readonly filterName: string | undefined;
  readonly onError: ErrorPolicy;
}

export interface NodeCommitMessage extends NodeJobMessage {
  readonly node: string;
  readonly base: string | undefined;
  readonly top: string | undefined;
  readonly backingFile: string | undefined;
  readonly filterName: string | undefined;
  readonly onError: ErrorPolicy;
}

export interface NodeMirrorMessage extends NodeJobMessage {
  readonly node: string;
  readonly target: string;
  readonly replaces: string | undefined;
  readonly sync: 'full' | 'top' | 'none';
  readonly copyMode: CopyMode;
  readonly granularity: Bytes | undefined;
  readonly bufSize: Bytes | undefined;
  readonly filterName?: string | undefined;
  readonly unmap?: boolean;
  readonly onSourceError: ErrorPolicy;
  readonly onTargetError: ErrorPolicy;
}

/** Makes an image in nodes that are there, or a file. */
export interface NodeCreateMessage extends NodeJobMessage {
  readonly driver: string;
  /** Of a format: the nodes of its files, by what they are to it. */
  readonly nodes: { readonly file?: string; readonly 'data-file'?: string };
  readonly options: Readonly<Record<string, unknown>>;
}

export interface NodeJobAmendMessage extends NodeJobMessage, NodeAmendMessage {}

/** How a job stands. */
export interface NodeJobInfo {
  readonly id: string;
  readonly type: string;
  readonly status: JobStatus;
  readonly current: Bytes;
  readonly total: Bytes;
  readonly error: string | undefined;
  readonly cancelled: boolean;
  readonly speed: Bytes;
  readonly busy: boolean;
  readonly paused: boolean;
  readonly ioStatus: 'ok' | 'failed' | 'nospace';
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  /** It works on nodes, and not on a new image. */
  readonly onNodes: boolean;
}

/** A job has another status. */
export interface NodeJobEvent {
  readonly service: 0;
  readonly job: NodeJobInfo;
  /** Nodes that there are in the thread by now. */
  readonly names: readonly string[];
}

export interface NodeJobErrorEvent {
  readonly service: 0;
  readonly id: string;
  readonly operation: 'read' | 'write';
  readonly action: 'report' | 'ignore' | 'stop';
}

export interface NodeJobVerbMessage {
  readonly id: string;
  readonly verb: 'cancel' | 'pause' | 'resume' | 'complete' | 'finalize' | 'dismiss';
  /** Of cancel. */
  readonly force?: boolean;
}

export interface NodeJobMethods {
  'node-job-stream'(args: NodeStreamMessage): void;
  'node-job-commit'(args: NodeCommitMessage): void;
  'node-job-mirror'(args: NodeMirrorMessage): void;
  'node-job-create'(args: NodeCreateMessage): void;
  'node-job-verb'(args: NodeJobVerbMessage): void;
  'node-job-speed'(args: { readonly id: string; readonly speed: Bytes }): void;
  /** Of a mirror. */
  'node-job-change'(args: { readonly id: string; readonly copyMode: CopyMode }): void;
  'node-job-amend'(args: NodeJobAmendMessage): void;
  'node-jobs'(): NodeJobInfo[];
}
