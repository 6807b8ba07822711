/** How far the verbs of qemu-img have come, as they tell it. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Progress } from '../src/cli/qemu-img/progress.ts';
import { blockplane, MAIN, type Output, pattern, scratch } from './harness.ts';

const MIB = 2 ** 20;
const BOUND = { timeout: 60_000 };

const qemuImg = async (...words: string[]): Promise<Output> => {
  const output = await blockplane('qemu-img', ...words);
  assert.deepEqual([output.code, output.stderr], [0, ''], words.join(' '));
  return output;
};

interface Files {
  readonly raw: string;
  readonly overlay: string;
  readonly target: string;
}

/** A raw image, and one above it that holds a part. */
async function files(t: TestContext): Promise<Files> {
  const folder = scratch(t);
  const [raw, overlay, target] = ['raw', 'overlay', 'target'].map((name) => join(folder, name)) as string[];
  writeFileSync(raw!, pattern(4 * MIB));
  await qemuImg('create', '-q', '-f', 'qcow2', '-b', raw!, '-F', 'raw', overlay!);
  assert.equal((await blockplane('qemu-io', '-c', 'write 1M 1M', overlay!)).code, 0);
  return { raw: raw!, overlay: overlay!, target: target! };
}

const LINES: Readonly<Record<string, (files: Files) => string[]>> = {
  convert: ({ raw, target }) => ['-f', 'raw', '-O', 'qcow2', raw, target],
  compare: ({ raw }) => ['-f', 'raw', '-F', 'raw', raw, raw],
  commit: ({ overlay }) => ['-f', 'qcow2', overlay],
  rebase: ({ overlay, raw }) => ['-f', 'qcow2', '-b', raw, '-F', 'raw', overlay],
  amend: ({ overlay }) => ['-f', 'qcow2', '-o', 'lazy_refcounts=on', overlay],
};

for (const [verb, line] of Object.entries(LINES)) {
  test(`${verb} --progress=json tells of its way from nothing to all, a JSON line each`, BOUND, async (t) => {
    const words = line(await files(t));
    const { stdout } = await qemuImg(verb, '--progress=json', ...words);
    const steps = stdout
      .split('\n')
      .filter((text) => text.startsWith('{'))
      .map((text) => JSON.parse(text) as { current: number; total: number });
    assert.equal(steps[0]!.current, 0);
    assert.ok(steps.at(-1)!.total > 0);
    assert.equal(steps.at(-1)!.current, steps.at(-1)!.total);
    for (const [i, { current }] of steps.entries()) assert.ok(i === 0 || current >= steps[i - 1]!.current);
  });
}

test('a quiet verb tells nothing, and a form that is none is refused', BOUND, async (t) => {
  const { raw } = await files(t);
  const compare = ['compare', '-f', 'raw', '-F', 'raw', raw, raw];
  assert.equal((await qemuImg(...compare, '-q', '-p', '--progress=json')).stdout, '');
  const { code, stderr } = await blockplane('qemu-img', ...compare, '--progress=often');
  assert.equal(code, 2);
  assert.equal(stderr, 'qemu-img: --progress must be used with none, line or json as argument.\n');
});

test('SIGUSR1 asks a verb that runs, whether it shows its progress or not', BOUND, async (t) => {
  const { raw, target } = await files(t);
  for (const options of [[], ['-p']]) {
    const words = ['qemu-img', 'convert', ...options, '-r', '1M', '-f', 'raw', '-O', 'raw', raw, target];
    const child = spawn(process.execPath, [MAIN, ...words], { stdio: ['ignore', 'ignore', 'pipe'] });
    t.after(() => child.kill('SIGKILL'));
    // It listens by the time that its target is there.
    while (!existsSync(target)) await new Promise((resolve) => setTimeout(resolve, 10));
    child.kill('SIGUSR1');
    const [text] = (await once(child.stderr, 'data')) as [Uint8Array];
    assert.match(String(text), /^ {4}\(\d+\.\d\d\/100%\)\n$/);
    child.kill('SIGTERM');
    await once(child, 'exit');
    assert.ok(!existsSync(target));
  }
});

test('who is asked tells of the last step', () => {
  const told: string[] = [];
  const terminal = { out: (text: string) => told.push(`out ${text}`), err: (text: string) => told.push(`err ${text}`) };
  {
    using progress = new Progress(terminal);
    progress.at(1, 4);
    process.emit('SIGUSR1');
  }
  assert.deepEqual(told, ['err     (25.00/100%)\n']);
  assert.equal(process.listenerCount('SIGUSR1'), 0);
});
