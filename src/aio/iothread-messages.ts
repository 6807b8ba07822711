/** What an IOThread and its owner say to each other over the worker's port. */
import type { PlainError } from '../base/errors.ts';
import type { BackendName } from './backend.ts';
import type { RemoteContextHandle } from './context-shared.ts';
import type { PollOptions } from './poll-policy.ts';
import type { BackendChoice } from './select.ts';

export interface ThreadData extends PollOptions {
  readonly name: string;
  readonly aio?: BackendChoice;
  /** URL of the setup module. */
  readonly setup: string;
}

/** An error on its way between threads: a BlockError has an errno, any other keeps its name and message. */
export interface CrossingError extends Omit<PlainError, 'errno'> {
  readonly errno?: number;
  readonly name?: string;
}

export type ToThread =
  | {
      readonly kind: 'call';
      readonly id: number;
      readonly method: string;
      readonly args: unknown;
      readonly abortable: boolean;
    }
  | { readonly kind: 'abort'; readonly id: number }
  | { readonly kind: 'stop' }
  /** Die now, but let the kernel finish with the thread's memory first. */
  | { readonly kind: 'die' };

export type FromThread =
  | { readonly kind: 'ready'; readonly backend: BackendInfo; readonly remote: RemoteContextHandle }
  | { readonly kind: 'failed'; readonly error: CrossingError }
  | { readonly kind: 'result'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'error'; readonly id: number; readonly error: CrossingError }
  | { readonly kind: 'event'; readonly name: string; readonly payload: unknown }
  | { readonly kind: 'stopped'; readonly error: CrossingError | undefined };

export interface BackendInfo {
  readonly name: BackendName;
  readonly detail: string;
}
