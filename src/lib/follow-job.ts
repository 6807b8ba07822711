import type { Abortable } from './abort.ts';
import type { ImageEngine } from './images.ts';
import type { JobProgress } from './job-messages.ts';

/** How the caller of a job watches it; the signal gives it up. */
export interface JobWatch extends Abortable {
  /** Told from time to time how far it has come, and at its end. */
  readonly onProgress?: ((progress: JobProgress) => void) | undefined;
}

/** Between two looks at the progress. */
const LOOK_MS = 200;

/** Waits for a job's end, tells of its progress, cancels it when its caller does. */
export async function followJob(engine: ImageEngine, job: number, { signal, onProgress }: JobWatch): Promise<void> {
  // It may have ended in the meantime.
  const ignore = (): undefined => undefined;
  const cancel = (): void => void engine.call('job-verb', { job, verb: 'cancel' }).catch(ignore);
  const look = (): void => void engine.call('job-progress', { job }).then(onProgress, ignore);
  const timer = onProgress ? setInterval(look, LOOK_MS) : undefined;
  signal?.addEventListener('abort', cancel, { once: true });
  if (signal?.aborted) cancel();
  try {
    const last = await engine.call('job-wait', { job });
    onProgress?.(last);
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  } finally {
    clearInterval(timer);
    signal?.removeEventListener('abort', cancel);
  }
}
