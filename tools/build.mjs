/** `npm run build`: compiles and bundles what is out of date. */
import { ensureBuilt, ensureDependencies, say } from './setup.mjs';

try {
  await ensureDependencies();
  await ensureBuilt();
} catch (error) {
  say(error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}
