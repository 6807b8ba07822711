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

export interface TransactionMessage {
  readonly steps: readonly Step[];
  /** Jobs end well together or not at all. */
  readonly grouped: boolean;
}

export interface TransactionMethods {
  transaction(args: TransactionMessage): void;
}
