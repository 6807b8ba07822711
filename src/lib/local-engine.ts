import { imageHandlers } from './image-handlers.ts';
import type { ImageEngine } from './images.ts';
import { withLocalContext } from './local-context.ts';
import type { MethodArgs, MethodResult } from './messages.ts';
import { ThreadDisks } from './thread-disks.ts';
import { WorkerJobs } from './worker-jobs.ts';

/**
 * Runs `body` with an engine in this thread, which may put it to sleep: for a program that does one thing and ends, and
 * would wait longer for a worker to start. One at a time.
 */
export function withLocalEngine<T>(body: (engine: ImageEngine) => Promise<T>): Promise<T> {
  return withLocalContext(async (context) => {
    const disks = new ThreadDisks(context, 0);
    const jobs = new WorkerJobs(disks);
    const handlers = imageHandlers(context, disks, jobs);
    try {
      return await body({
        call: async (method, args) => {
          const handler = handlers[method] as unknown as (
            args: MethodArgs<typeof method>,
          ) => Promise<MethodResult<typeof method>>;
          return await handler(args);
        },
      });
    } finally {
      await jobs.stopAll();
      await disks.closeAll();
    }
  });
}
