/** What keeps a program alive, and what does not; the package as others import it. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { run } from './harness.ts';

const INDEX = new URL('../src/index.js', import.meta.url).href;

function projectRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
}

/** Runs a program that has imported ours. */
function program(text: string): ReturnType<typeof run> {
  const script = `import { IOThread, open, serveNbd } from ${JSON.stringify(INDEX)};\n${text}`;
  return run(process.execPath, ['--input-type=module', '-e', script]);
}

const SLOW = `{ driver: 'null-co', size: 65536, 'latency-ns': 300e6 }`;

test('an open and idle disk does not keep the process alive', async () => {
  const { code, signal, stderr, stdout } = await program(`
    const disk = await open('null-co://');
    await disk.read(new Uint8Array(512), 0, 512, 0);
    console.log('last');`);
  assert.deepEqual({ code, signal, stderr, stdout }, { code: 0, signal: null, stderr: '', stdout: 'last\n' });
});

test('a request under way keeps the process alive until it has ended', async () => {
  const { code, stdout } = await program(`
    const disk = await open(${SLOW});
    disk.write(new Uint8Array(512), 0, 512, 0).then(({ bytesWritten }) => console.log('written', bytesWritten));`);
  assert.deepEqual({ code, stdout }, { code: 0, stdout: 'written 512\n' });
});

test('a service keeps the process alive, and lets go of it when it stops', async () => {
  const { code, stdout } = await program(`
    const service = await serveNbd(await open('null-co://'));
    setTimeout(async () => {
      await service.stop();
      console.log('stopped');
    }, 500).unref();`);
  assert.deepEqual({ code, stdout }, { code: 0, stdout: 'stopped\n' });
});

test("an IOThread of the program's own keeps it alive unless it is told not to", async () => {
  const { code, stdout } = await program(`
    const thread = await IOThread.start();
    setTimeout(() => {
      console.log('alive');
      thread.unref();
    }, 300).unref();
    const disk = await open(${SLOW}, { iothread: thread });`);
  assert.deepEqual({ code, stdout }, { code: 0, stdout: 'alive\n' });
});

test('the package can be imported by its name, with what it promises for drivers', async (t) => {
  const { exports } = JSON.parse(readFileSync(join(projectRoot(), 'package.json'), 'utf8')) as {
    exports: Record<string, { default: string; types: string }>;
  };
  if (!existsSync(join(projectRoot(), exports['.']!.default))) return t.skip('dist is not built');
  const load = async (name: string): Promise<string[]> => Object.keys((await import(name)) as object);
  const wanted: Record<string, string[]> = {
    blockplane: ['BlockError', 'Disk', 'IOThread', 'NbdService', 'customNode', 'open', 'serveNbd'],
    'blockplane/driver': ['BlockError', 'Errno', 'Gate', 'Iov', 'Mapping', 'RequestFlags', 'WaitOp'],
    'blockplane/conformance': ['driverConformance', 'openImage'],
    'blockplane/daemon': ['Daemon', 'QmpClient'],
  };
  for (const [name, names] of Object.entries(wanted)) {
    const has = await load(name);
    for (const one of names) assert.ok(has.includes(one), `${name} has no ${one}`);
  }
});

test('the packed package holds everything that its files import', { timeout: 60_000 }, async (t) => {
  const root = projectRoot();
  if (!existsSync(join(root, 'dist', 'bundle', 'index.js'))) return t.skip('dist/bundle is not built');
  const { code, stdout, stderr } = await run('npm', ['pack', root, '--dry-run', '--json', '--ignore-scripts']);
  assert.equal(code, 0, stderr);
  const [{ files }] = JSON.parse(stdout) as [{ files: { path: string }[] }];
  const packed = new Set(files.map(({ path }) => path));
  for (const path of packed) {
    if (!/\.(js|d\.ts)$/.test(path)) continue;
    const text = readFileSync(join(root, path), 'utf8');
    for (const [, from] of text.matchAll(/^(?:import|export) [^'"]*?['"](\.[^'"]+)['"];$/gm)) {
      const file = join(dirname(path), from!).replace(/(?<!\.d)\.ts$/, '.d.ts');
      assert.ok(packed.has(file), `${path} imports ${from}, which is not packed`);
    }
  }
  const { exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { exports: object };
  for (const target of Object.values(exports).flatMap((entry: string | object) => Object.values(Object(entry)))) {
    if (String(target).startsWith('./')) assert.ok(packed.has(String(target).slice(2)), `${target} is not packed`);
  }
  const bundled = ['main.cjs', 'worker.js', 'iothread-worker.js'].map((name) => `dist/bundle/${name}`);
  for (const name of ['README.md', 'LICENSE', ...bundled]) assert.ok(packed.has(name), name);
});
