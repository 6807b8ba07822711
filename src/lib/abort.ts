import { Gate } from '../aio/op.ts';

/** Anything that can be given up with an AbortSignal. */
export interface Abortable {
  readonly signal?: AbortSignal | undefined;
}

/**
 * `promise`, or a rejection with the signal's reason as soon as it fires. What was begun is not undone: it goes on and
 * its outcome is dropped.
 */
export async function abortable<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise;
  if (signal.aborted) {
    promise.catch(() => undefined);
    throw signal.reason;
  }
  const gate = new Gate<never>();
  const onAbort = (): void => gate.fail(signal.reason);
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    return await Promise.race([promise, gate.promise]);
  } finally {
    signal.removeEventListener('abort', onAbort);
    gate.promise.catch(() => undefined);
    promise.catch(() => undefined);
  }
}
