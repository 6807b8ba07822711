/** Command lines are read as getopt_long reads them: beside the C library's own reader, getopt(1). */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { describe, it } from 'node:test';
import { type OptionDef, OptionError, readCommandLine } from './getopt.ts';

const DEFS: readonly OptionDef[] = [
  { short: 'q', long: 'quiet' },
  { short: 'f', long: 'format', argument: 'required' },
  { short: 'v', argument: 'optional' },
  { long: 'force' },
  { long: 'forest', argument: 'optional' },
];

/** What getopt(1) makes of the words: one word each, quoted, then '--' and the operands. */
function ours(words: readonly string[], operandsLast = false): string {
  try {
    const { options, operands } = readCommandLine(words, DEFS, { operandsLast });
    const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
    const given = options.flatMap(({ def, value }) => {
      const name = def.long !== undefined && !def.short ? `--${def.long}` : `-${def.short}`;
      return def.argument ? [name, quoted(value ?? '')] : [name];
    });
    return `${[...given, '--', ...operands.map(quoted)].join(' ')}`;
  } catch (error) {
    assert.ok(error instanceof OptionError);
    return `x: ${error.message}`;
  }
}

function libc(words: readonly string[], operandsLast = false): string {
  const args = [
    '-n',
    'x',
    '-o',
    `${operandsLast ? '+' : ''}qf:v::`,
    '-l',
    'quiet,format:,force,forest::',
    '--',
    ...words,
  ];
  const { stdout, stderr } = spawnSync('getopt', args, { encoding: 'utf8' });
  // A long option and its letter are one option to us.
  if (stderr !== '') return stderr.split('\n')[0]!;
  return stdout.trim().replaceAll('--quiet', '-q').replaceAll('--format ', '-f ');
}

const LINES = [
  [],
  ['a', 'b'],
  ['-q', 'a', '-f', 'raw', 'b'],
  ['-qfraw', 'a'],
  ['-qf', 'raw'],
  ['-f', '-q'],
  ['--format', 'raw', '--quiet'],
  ['--format=raw=x', '-'],
  ['--form', 'raw'],
  ['--q'],
  ['--forc'],
  ['--fo'],
  ['--forest', 'x'],
  ['--forest=x', '--forest='],
  ['-v', '-vx', '-qvq'],
  ['--', '-q'],
  ['a', '--', 'b', '--', '-q'],
  ['--nothing'],
  ['--nothing=1'],
  ['-z'],
  ['-qz'],
  ['-f'],
  ['--format'],
  ['--quiet=1'],
  ['--force=1', 'a'],
];

describe('getopt', { skip: spawnSync('getopt', ['-T']).status !== 4 && 'getopt(1) of util-linux is not here' }, () => {
  for (const words of LINES) {
    it(`reads [${words.join(' ')}] as the C library does`, () => assert.equal(ours(words), libc(words)));
    it(`reads [${words.join(' ')}] so with operands last`, () => assert.equal(ours(words, true), libc(words, true)));
  }
});
