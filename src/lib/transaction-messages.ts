/** Steps on named nodes of an IOThread that happen together or not at all: see worker-transactions.ts. */
import type { BackupJobOptions } from '../jobs/backup-job.ts';
import type { NodeJobMessage } from './node-job-messages.ts';

interface BitmapStep {
  readonly node: string;
  readonly name: string;
}

type BackupOptions = Omit<BackupJobOptions, keyof NodeJobMessage | 'transaction' | 'onStatus' | 'onError'>;

export interface BackupStep extends NodeJobMessage, BackupOptions {
  readonly step: 'backup';
  readonly node: string;
  readonly target: string;
}

export type Step =
  | { readonly step: 'abort' }
  | (BitmapStep & {
      readonly step: 'bitmap-add';
      readonly granularity: number | undefined;
      readonly persistent: boolean;
      readonly disabled: boolean;
    })
  | (BitmapStep & { readonly step: 'bitmap-remove' | 'bitmap-clear' | 'bitmap-enable' | 'bitmap-disable' })
  | (BitmapStep & {
      readonly step: 'bitmap-merge';
      readonly sources: readonly (string | { readonly node: string; readonly name: string })[];
    })
  | { readonly step: 'snapshot'; readonly node: string; readonly overlay: string }
  | { readonly step: 'internal-snapshot'; readonly node: string; readonly name: string }
  | BackupStep;

/** The nodes that steps are about. */
export function nodeNamesOf(steps: readonly Step[]): string[] {
  return [...new Set(steps.flatMap((step) => ('node' in step ? [step.node] : [])))];
}

export interface TransactionMessage {
  readonly steps: readonly Step[];
  /** Jobs end well together or not at all. */
  readonly grouped: boolean;
}

/** What is done in one thread of a transaction over several; `key` is the same in all of them. */
export interface PartMessage {
  readonly key: number;
}

export interface BeginPartMessage extends PartMessage {
  /** They are drained from here on, until the end. */
  readonly nodes: readonly string[];
  /** Jobs end well together or not at all, those in other threads too. */
  readonly grouped: boolean;
}

/** What the threads of a transaction agree on about their jobs: see JobTransaction. */
export interface JobGroupMessage extends PartMessage {
  readonly step: 'becomePending' | 'prepare' | 'conclude' | 'giveUp';
  /** Of conclude. */
  readonly well?: boolean;
}

/** How the jobs of one thread stand: see JobsElsewhere. */
export interface JobGroupEvent {
  readonly service: 0;
  readonly key: number;
  readonly jobs: 'done' | 'finalize' | 'failed';
  readonly autoFinalize: boolean;
}

export interface TransactionMethods {
  transaction(args: TransactionMessage): void;
  'transaction-begin'(args: BeginPartMessage): void;
  'transaction-take'(args: PartMessage & { readonly steps: readonly Step[] }): void;
  'transaction-end'(args: PartMessage & { readonly well: boolean }): void;
  /** Of prepare: whether all went well. */
  'job-group'(args: JobGroupMessage): boolean;
}
