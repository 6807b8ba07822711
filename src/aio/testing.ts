/** For tests: runs a test on every backend that this system has and BLOCKPLANE_AIO allows. */
import { test } from 'node:test';
import { AioContext, type AioContextOptions } from './context.ts';
import { type BackendChoice, chooseBackend, whyNoRing } from './select.ts';

const only = process.env.BLOCKPLANE_AIO;
const noRing = only === 'pool' ? 'BLOCKPLANE_AIO=pool' : await whyNoRing();

/** The backends to test on. */
export function backends(): readonly BackendChoice[] {
  const ring: BackendChoice[] = noRing === undefined ? ['ring'] : [];
  return only === 'ring' ? ring : [...ring, 'pool'];
}

/** Registers `title` once for each backend; one that is absent shows as skipped, with the reason. */
export function eachBackend(title: string, body: (backend: BackendChoice) => Promise<void>): void {
  for (const backend of backends()) test(`${title} [${backend}]`, { timeout: 30_000 }, () => body(backend));
  if (noRing !== undefined) test(`${title} [ring]`, { skip: noRing }, () => {});
}

/** Registers `title` for each backend with a context on the test's own thread, which is stopped after it. */
export function inContext(
  title: string,
  body: (context: AioContext, backend: BackendChoice) => Promise<void> | void,
  options: AioContextOptions = {},
): void {
  eachBackend(title, async (backend) => {
    const context = new AioContext(await chooseBackend(backend), { name: 'test', ...options });
    try {
      await body(context, backend);
    } finally {
      await context.stop();
    }
  });
}

/** Lets the event loop go round, with everything that is ready in it. */
export function turn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}
