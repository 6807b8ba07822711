import { onAbort } from '../aio/on-abort.ts';
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
  promise.catch(() => undefined);
  if (signal.aborted) throw signal.reason;
  const gate = new Gate<never>();
  gate.promise.catch(() => undefined);
  const off = onAbort(signal, () => gate.fail(signal.reason));
  try {
    return await Promise.race([promise, gate.promise]);
  } finally {
    off();
  }
}
