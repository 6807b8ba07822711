/** Listening to an AbortSignal on behalf of many requests. */

interface Watch {
  readonly callbacks: Set<() => void>;
  readonly listener: () => void;
}

const watches = new WeakMap<AbortSignal, Watch>();

/**
 * Calls `callback` once when the signal fires; the answer takes that back. All share one listener of the signal: one a
 * request would have node warn of a leak as soon as there are eleven.
 */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  const { callbacks, listener } = watches.get(signal) ?? watch(signal);
  callbacks.add(callback);
  return () => {
    if (!callbacks.delete(callback) || callbacks.size > 0) return;
    watches.delete(signal);
    signal.removeEventListener('abort', listener);
  };
}

function watch(signal: AbortSignal): Watch {
  const callbacks = new Set<() => void>();
  const listener = (): void => {
    watches.delete(signal);
    for (const callback of [...callbacks]) callback();
  };
  const made = { callbacks, listener };
  watches.set(signal, made);
  signal.addEventListener('abort', listener, { once: true });
  return made;
}
