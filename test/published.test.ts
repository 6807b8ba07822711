/** The command as it is published: the names that it answers to, and what V8 keeps of it. */
import assert from 'node:assert/strict';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { run, scratch } from './harness.ts';

function bundleFolder(): string {
  let root = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(root, 'package.json'))) root = dirname(root);
  return join(root, 'dist', 'bundle');
}

const bundle = bundleFolder();
const built = { skip: existsSync(join(bundle, 'main.cjs')) ? false : 'dist/bundle is not built', timeout: 60_000 };
const isCache = (name: string): boolean => name.endsWith('.cache');

/** The published command alone, without what V8 kept of it. */
function install(t: TestContext): string {
  const folder = join(scratch(t), 'installed');
  mkdirSync(folder);
  for (const name of readdirSync(bundle)) {
    if (/^(main\.cjs|command-line-.*\.js)$/.test(name)) copyFileSync(join(bundle, name), join(folder, name));
  }
  return folder;
}

const version = (folder: string): ReturnType<typeof run> =>
  run(process.execPath, [join(folder, 'main.cjs'), 'qemu-img', '--version']);

for (const name of ['qemu-img', 'qemu-io', 'qemu-nbd', 'qemu-storage-daemon']) {
  test(`called through a link '${name}' it is that program, and its messages say so`, built, async (t) => {
    const link = join(scratch(t), name);
    symlinkSync(join(bundle, 'main.cjs'), link);
    const asked = await run(process.execPath, [link, '--version']);
    assert.equal(asked.code, 0);
    assert.match(asked.stdout, new RegExp(`^${name} .*\\(blockplane\\)$`, 'm'));
    const wrong = await run(process.execPath, [link, '--no-such-option']);
    assert.equal(wrong.code, 1);
    assert.match(wrong.stderr, new RegExp(`^${name}: `));
  });
}

test('the bundle comes with what V8 keeps of it for the Node that made it', built, () => {
  // Another Node that has run it since has added its own.
  const kept = readdirSync(bundle).filter(isCache);
  assert.notEqual(kept.length, 0);
  for (const name of kept) assert.match(name, /^command-line-[0-9a-f]{12}\.js\.v\d+\.\d+\.\d+-\w+\.cache$/);
});

test('the first command makes what the next ones start with', built, async (t) => {
  const folder = install(t);
  const first = await version(folder);
  assert.deepEqual([first.code, first.stderr], [0, '']);
  const [kept, ...others] = readdirSync(folder).filter((name) => name.includes('.cache'));
  assert.deepEqual([isCache(kept!), others], [true, []]);
  const before = readFileSync(join(folder, kept!));
  assert.equal((await version(folder)).stdout, first.stdout);
  assert.ok(readFileSync(join(folder, kept!)).equals(before), 'made once');
});

test('what V8 does not take is left alone, and the command runs without', built, async (t) => {
  const folder = install(t);
  const whole = await version(folder);
  const kept = join(folder, readdirSync(folder).find(isCache)!);
  for (const damaged of [new Uint8Array(0), readFileSync(kept).subarray(0, 4096), new Uint8Array(4096).fill(0xa5)]) {
    writeFileSync(kept, damaged);
    const { code, stdout, stderr } = await version(folder);
    assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: whole.stdout, stderr: '' });
    assert.ok(readFileSync(kept).equals(damaged));
  }
});

test('a command that may not write beside its code runs as well', {
  ...built,
  skip: built.skip || isRoot(),
}, async (t) => {
  const folder = install(t);
  chmodSync(folder, 0o555);
  t.after(() => chmodSync(folder, 0o755));
  const { code, stderr } = await version(folder);
  assert.deepEqual([code, stderr, readdirSync(folder).some(isCache)], [0, '', false]);
});

function isRoot(): string | false {
  return process.getuid?.() === 0 ? 'root may write anywhere' : false;
}
