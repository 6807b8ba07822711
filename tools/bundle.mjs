/**
 * What is published and what `npm start` runs: the compiled modules, joined to few files. A module of its own costs
 * Node half a millisecond, twice where a worker loads it too; there are hundreds.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';

/** Name in dist/bundle -> module in dist/src. Workers are found beside the module that starts them. */
const ENTRIES = {
  main: 'cli/main.js',
  worker: 'lib/worker.js',
  'iothread-worker': 'aio/iothread-worker.js',
  index: 'index.js',
  'driver-api': 'lib/driver-api.js',
  conformance: 'lib/conformance.js',
  daemon: 'daemon/index.js',
  img: 'img/index.js',
  'img-thread': 'img/img-thread.js',
};

/** Makes dist/bundle from dist/src. Throws with the bundler's complaint. */
export async function bundle(root) {
  const { build } = await import('esbuild');
  const outdir = join(root, 'dist', 'bundle');
  rmSync(outdir, { recursive: true, force: true });
  await build({
    entryPoints: Object.fromEntries(
      Object.entries(ENTRIES).map(([name, path]) => [name, join(root, 'dist', 'src', path)]),
    ),
    outdir,
    chunkNames: '[name]-[hash]',
    bundle: true,
    // Shared modules once: classes keep their identity, whichever entry is imported.
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node20',
    packages: 'external',
    logLevel: 'warning',
  });
}
