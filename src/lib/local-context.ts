import { AioContext } from '../aio/context.ts';
import { chooseBackend } from '../aio/select.ts';

/**
 * Runs `body` with an AioContext of this thread, which may put it to sleep: for a program that does one thing and ends.
 * One at a time.
 */
export async function withLocalContext<T>(body: (context: AioContext) => Promise<T>): Promise<T> {
  const context = new AioContext(await chooseBackend());
  try {
    return await body(context);
  } finally {
    await context.stop();
  }
}
