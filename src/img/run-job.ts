import type { BlockError } from '../base/errors.ts';
import type { Job } from '../jobs/job.ts';
import type { Abortable } from '../lib/abort.ts';

/** Runs a job to its end in this thread. Throws what it failed with, or the signal's reason. */
export async function runJob(job: Job, { signal }: Abortable): Promise<void> {
  signal?.throwIfAborted();
  let ended = false;
  const cancel = (): void => {
    if (!ended) job.cancel();
  };
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    job.start();
    await job.ended;
  } finally {
    ended = true;
    signal?.removeEventListener('abort', cancel);
  }
  if (job.error === undefined) return;
  signal?.throwIfAborted();
  throw job.error satisfies BlockError;
}
