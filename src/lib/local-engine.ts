import { AioContext } from '../aio/context.ts';
import { chooseBackend } from '../aio/select.ts';
import type { Engine } from './images.ts';
import type { MethodArgs, MethodResult } from './messages.ts';
import { setup } from './worker.ts';

/**
 * Runs `body` with an engine in this thread, which may put it to sleep: for a program that does one thing and ends, and
 * would wait longer for a worker to start. One at a time.
 */
export async function withLocalEngine<T>(body: (engine: Engine) => Promise<T>): Promise<T> {
  const context = new AioContext(await chooseBackend());
  const { handlers, stop } = setup({ name: 'main', context, emit: () => undefined });
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
    await context.stop();
  }
}
