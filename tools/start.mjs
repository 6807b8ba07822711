/** `npm start`: installs and builds what is missing, then serves a disk image over NBD in this same process. */
import { ensureBuilt, ensureDependencies, say } from './setup.mjs';

try {
  await ensureDependencies();
  await ensureBuilt();
  const { main } = await import('../dist/bundle/main.cjs');
  process.exitCode = await main(['serve', ...process.argv.slice(2)]);
} catch (error) {
  say(`blockplane: ${error instanceof Error ? error.message : error}`);
  process.exitCode = 1;
}
