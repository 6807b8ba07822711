const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * Runs `body` with a signal that fires at the first Ctrl-C (or SIGTERM, SIGHUP): it cleans up, and the process then
 * ends as it would have. The second one ends it at once.
 */
export async function interruptible<T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  let came: NodeJS.Signals | undefined;
  const stop = (signal: NodeJS.Signals): void => {
    came = signal;
    off();
    controller.abort(new Error('interrupted'));
  };
  const off = (): void => {
    for (const signal of SIGNALS) process.off(signal, stop);
  };
  for (const signal of SIGNALS) process.on(signal, stop);
  try {
    return await body(controller.signal);
  } finally {
    off();
    if (came !== undefined) process.kill(process.pid, came);
  }
}
