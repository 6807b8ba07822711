import type { Engine } from './images.ts';
import { withLocalContext } from './local-context.ts';
import type { MethodArgs, MethodResult } from './messages.ts';
import { setup } from './worker.ts';

/**
 * Runs `body` with an engine in this thread, which may put it to sleep: for a program that does one thing and ends, and
 * would wait longer for a worker to start. One at a time.
 */
export function withLocalEngine<T>(body: (engine: Engine) => Promise<T>): Promise<T> {
  return withLocalContext(async (context) => {
    const { handlers, stop } = setup({ name: 'main', threadId: 0, context, emit: () => undefined });
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
      await stop?.();
    }
  });
}
