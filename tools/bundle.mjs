/**
 * What is published and what `npm start` runs: the compiled modules, joined to few files. A module of its own costs
 * Node half a millisecond, twice where a worker loads it too; there are hundreds.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Name in dist/bundle -> module in dist/src. Workers are found beside the module that starts them. */
const ENTRIES = {
  worker: 'lib/worker.js',
  'iothread-worker': 'aio/iothread-worker.js',
  index: 'index.js',
  'driver-api': 'lib/driver-api.js',
  conformance: 'lib/conformance.js',
  daemon: 'daemon/index.js',
  img: 'img/index.js',
  'img-thread': 'img/img-thread.js',
};

const COMMON = { bundle: true, platform: 'node', target: 'node20', logLevel: 'warning' };

/** Makes dist/bundle from dist/src. Throws with the bundler's complaint. */
export async function bundle(root) {
  const outdir = join(root, 'dist', 'bundle');
  rmSync(outdir, { recursive: true, force: true });
  await bundleLibrary(root, outdir);
  await bundleCommand(root, outdir);
}

async function bundleLibrary(root, outdir) {
  const { build } = await import('esbuild');
  await build({
    ...COMMON,
    entryPoints: Object.fromEntries(
      Object.entries(ENTRIES).map(([name, path]) => [name, join(root, 'dist', 'src', path)]),
    ),
    outdir,
    chunkNames: '[name]-[hash]',
    // Shared modules once: classes keep their identity, whichever entry is imported.
    splitting: true,
    packages: 'external',
    format: 'esm',
  });
}

/** The command is one script, of which V8 can keep what it compiled (src/cli/published.ts). */
async function bundleCommand(root, outdir) {
  const { build } = await import('esbuild');
  const source = (name) => join(root, 'dist', 'src', 'cli', name);
  const license = readFileSync(join(root, 'node_modules', 'commander', 'LICENSE'), 'utf8');
  // A script that comes out of the cache cannot import: what it loads late is required.
  const supported = { 'dynamic-import': false };
  const cjs = { ...COMMON, format: 'cjs', minifyWhitespace: true, minifySyntax: true, supported };
  const { outputFiles } = await build({
    ...cjs,
    external: ['koffi', 'basic-ftp'],
    entryPoints: [source('command-line.js')],
    write: false,
    define: { 'import.meta.url': '__url' },
    banner: { js: `(function (exports, require, module, __url) {\n/*! commander:\n${license}*/` },
    footer: { js: '})' },
  });
  const code = outputFiles[0].contents;
  const name = `command-line-${createHash('sha256').update(code).digest('hex').slice(0, 12)}.js`;
  mkdirSync(outdir, { recursive: true });
  writeFileSync(join(outdir, name), code);
  const main = join(outdir, 'main.cjs');
  await build({
    ...cjs,
    entryPoints: [source('published.js')],
    outfile: main,
    define: { CODE_FILE: JSON.stringify(name), 'import.meta.url': '__url' },
    banner: { js: "const __url = require('node:url').pathToFileURL(__filename).href;" },
  });
  const warm = spawnSync(process.execPath, [join(root, 'tools', 'warm.mjs'), main], { encoding: 'utf8' });
  if (warm.status !== 0) throw new Error(`Could not run the bundled command: ${warm.stderr}`);
}
