import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { MAIN, needs, peer, peerPath, scratch } from '../harness.ts';
import { IO_LINES } from './lines-io.ts';
import { paritySuite } from './suite.ts';

paritySuite(IO_LINES, false, 'qemu-io');

test('qemu-io: a script on the standard input, and what ends the process', needs('qemu-img', 'qemu-io'), async (t) => {
  const cwd = scratch(t);
  await peer('qemu-img', 'create', '-q', '-f', 'raw', `${cwd}/a.raw`, '1M');
  const end = (program: string, words: readonly string[], input: string): object => {
    const { status, signal, stdout, stderr } = spawnSync(program, words, { cwd, input, encoding: 'utf8' });
    return { status, signal, stdout, stderr };
  };
  const lines = ['-f', 'raw', 'a.raw'];
  for (const [words, input] of [
    [lines, 'length\nfoo\n\nalloc 0'],
    [lines, 'length\nq\nlength\n'],
    [lines, ''],
    [['-c', 'sigraise 15', ...lines], ''],
    [['-c', 'abort', ...lines], ''],
  ] as const) {
    const expected = end(peerPath('qemu-io')!, words, input);
    assert.deepEqual(end(process.execPath, [MAIN, 'qemu-io', ...words], input), expected, `${words}: ${input}`);
  }
});
