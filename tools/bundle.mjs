/**
 * What is published and what `npm start` runs: the compiled modules, joined to few files. A module of its own costs
 * Node half a millisecond, twice where a worker loads it too; there are hundreds.
 *
 * The bundler makes a file of the modules that the same entries need, and each module that is loaded on demand is an
 * entry: that alone would make hundreds of small files. So what every thread with disks needs, the engine, is asked for
 * by all entries that are for such threads, and comes in few files.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
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

const SOURCES = 'dist/src/';
/** The engine is what these import, and so on. */
const ENGINE_ROOTS = ['lib/local-engine.js', 'lib/copy.js'].map((path) => SOURCES + path);
/** Who imports this uses disks in its own thread. */
const ENGINE_MARK = `${SOURCES}block/node.js`;
/** Loaded in such threads only, though it does not import that. */
const ENGINE_PARTS = /^dist\/src\/(drivers|jobs|aio\/ring|aio\/pool)\/|\/(local-context|iothread-worker)\.js$/;
const ENGINE = 'bundle:engine';

/** What `roots` import, and so on; not what they load on demand. */
function importedBy(roots, inputs) {
  const found = new Set();
  const visit = (path) => {
    if (found.has(path) || !inputs[path]) return;
    found.add(path);
    for (const { kind, path: next } of inputs[path].imports) if (kind === 'import-statement') visit(next);
  };
  roots.forEach(visit);
  return found;
}

/** The bundler's plugin that adds the engine to its entries. */
function engineFirst(root, inputs) {
  const entries = new Set(Object.values(ENTRIES).map((path) => SOURCES + path));
  for (const { imports } of Object.values(inputs)) {
    for (const { kind, path } of imports) if (kind === 'dynamic-import') entries.add(path);
  }
  const users = [...entries].filter((path) => ENGINE_PARTS.test(path) || importedBy([path], inputs).has(ENGINE_MARK));
  const files = new Set(users.map((path) => join(root, path)));
  const engine = [...importedBy(ENGINE_ROOTS, inputs)];
  const contents = engine.map((path) => `import ${JSON.stringify(join(root, path))};`).join('\n');
  return {
    name: 'engine',
    setup(build) {
      build.onResolve({ filter: new RegExp(`^${ENGINE}$`) }, ({ path }) => ({ path, namespace: 'engine' }));
      build.onLoad({ filter: /./, namespace: 'engine' }, () => ({ contents, resolveDir: root }));
      build.onLoad({ filter: /\.js$/, namespace: 'file' }, async ({ path }) =>
        files.has(path) ? { contents: `${await readFile(path, 'utf8')}\nimport '${ENGINE}';\n` } : undefined,
      );
    },
  };
}

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
  const options = {
    ...COMMON,
    absWorkingDir: root,
    entryPoints: Object.fromEntries(Object.entries(ENTRIES).map(([name, path]) => [name, join(root, SOURCES, path)])),
    outdir,
    chunkNames: '[name]-[hash]',
    // Shared modules once: classes keep their identity, whichever entry is imported.
    splitting: true,
    packages: 'external',
    format: 'esm',
    // The engine's modules are asked for without a name of theirs being used.
    ignoreAnnotations: true,
  };
  const { metafile } = await build({ ...options, metafile: true, write: false });
  await build({ ...options, plugins: [engineFirst(root, metafile.inputs)] });
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
  const manual = spawnSync(process.execPath, [main, 'manual'], { encoding: 'utf8' });
  if (manual.status !== 0) throw new Error(`Could not print the manual: ${manual.stderr}`);
  const folder = join(root, 'dist', 'man');
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'blockplane.1'), manual.stdout);
}
