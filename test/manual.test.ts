/** Help, manual and completions: of every command, and in a form that their readers take. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { IMAGE_VERBS, PROGRAMS } from '../src/cli/programs.ts';
import { VERBS } from '../src/cli/qemu-img/program.ts';
import { describedOptions, VERB_WORDS } from '../src/cli/qemu-img/verb-help.ts';
import { blockplane, needs, run, scratch } from './harness.ts';

test('every verb of image tools has words, and each of its options', async () => {
  assert.deepEqual(Object.keys(VERB_WORDS).sort(), Object.keys(VERBS).sort());
  for (const [name, load] of Object.entries(VERBS)) {
    for (const { usage, does, def } of describedOptions(name, await load())) {
      assert.notEqual(does, '', `${name} ${usage}`);
      assert.equal(/ [A-Z]/.test(usage), def.argument === 'required', `${name} ${usage}: an argument, or none`);
    }
  }
});

test('verbs and programs answer --help with what they take, as commands of our own and as the original', async () => {
  const { stdout: all } = await blockplane('--help');
  for (const name of [...IMAGE_VERBS, ...Object.keys(PROGRAMS)]) {
    assert.match(all, new RegExp(`^  ${name} `, 'm'));
    const { code, stdout } = await blockplane(name, '--help');
    assert.deepEqual([name, code], [name, 0]);
    assert.match(stdout, /usage/i);
  }
  assert.match((await blockplane('convert', '--help')).stdout, /^usage: blockplane convert \[OPTIONS\] SOURCE/);
  assert.match(
    (await blockplane('qemu-img', 'convert', '--help')).stdout,
    /^usage: qemu-img convert \[OPTIONS\] SOURCE/,
  );
});

test("verbs of our own do what qemu-img's do, under our name", async (t) => {
  const path = join(scratch(t), 'disk.img');
  writeFileSync(path, new Uint8Array(65_536).fill(7));
  const converted = await blockplane('convert', '-O', 'qcow2', path, `${path}.qcow2`);
  assert.deepEqual([converted.code, converted.stderr], [0, '']);
  assert.equal((await blockplane('compare', path, `${path}.qcow2`)).stdout, 'Images are identical.\n');
  assert.match((await blockplane('io', '-c', 'read -P 7 0 512', `${path}.qcow2`)).stdout, /^read 512\/512 bytes/);
  const { code, stderr } = await blockplane('map', `${path}.none`);
  assert.deepEqual([code, stderr.split(' ')[0]], [1, 'blockplane:']);
  const misused = await blockplane('convert', '-Z');
  assert.match(misused.stderr, /^blockplane: .*\nTry 'blockplane convert --help'/);
});

test('bash completes commands, options and files', needs('bash'), async () => {
  const { code, stdout: script } = await blockplane('completion', 'bash');
  assert.equal(code, 0);
  const ask = async (...words: readonly string[]): Promise<string> => {
    const line = `COMP_WORDS=(blockplane ${words.join(' ')}); COMP_CWORD=${words.length}`;
    return (await run('bash', ['-c', `${script}\n${line}; _blockplane; echo "\${COMPREPLY[@]}"`])).stdout.trim();
  };
  assert.equal(await ask('conv'), 'convert');
  assert.equal(await ask('serve', '--over'), '--overlay');
  assert.equal(await ask('convert', '--skip'), '--skip-broken-bitmaps');
  for (const shell of ['zsh', 'fish']) assert.equal((await blockplane('completion', shell)).code, 0);
  assert.equal((await blockplane('completion', 'tcsh')).code, 2);
});

test('the manual is one that groff takes without a warning', needs('groff'), async () => {
  const { code, stdout } = await blockplane('manual');
  assert.equal(code, 0);
  for (const name of ['serve', ...IMAGE_VERBS, ...Object.keys(PROGRAMS)]) {
    assert.match(stdout, new RegExp(`^\\.SS blockplane ${name.replaceAll('-', '\\\\-')} `, 'm'));
  }
  const { stderr } = await run('groff', ['-man', '-ww', '-Tutf8', '-z'], stdout);
  assert.equal(stderr, '');
});
