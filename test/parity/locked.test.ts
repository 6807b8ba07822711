import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { type TestContext, test } from 'node:test';
import { needs, peer, peerPath, scratch } from '../harness.ts';
import { inFolder, runHere, runTheirs, wordsOf } from './harness.ts';

/** Another program writes to the image until the test ends. */
async function inUse(t: TestContext, folder: string, format: string, name: string): Promise<void> {
  await peer('qemu-img', 'create', '-q', '-f', format, `${folder}/${name}`, '1M');
  const holder = spawn(peerPath('qemu-io')!, ['-f', format, name], { cwd: folder, stdio: ['pipe', 'pipe', 'inherit'] });
  t.after(async () => {
    const ended = once(holder, 'exit');
    holder.stdin.end();
    await ended;
  });
  holder.stdin.write('write 0 4k\n');
  await once(holder.stdout, 'data');
}

const LINES = [
  'info IMAGE',
  'info -U IMAGE',
  'check IMAGE',
  'check -U IMAGE',
  'check -r all IMAGE',
  'map IMAGE',
  'map -U --output=json IMAGE',
  'measure -O qcow2 IMAGE',
  'snapshot -l IMAGE',
  'snapshot -U -l IMAGE',
  'snapshot -c x IMAGE',
  'amend -o compat=1.1 IMAGE',
  'bitmap --add IMAGE b',
  'create -f qcow2 IMAGE 1M',
  'create -q -f qcow2 -b IMAGE -F qcow2 overlay.qcow2',
];

for (const [format, name, lines] of [
  ['qcow2', 'busy.qcow2', [...LINES, 'resize IMAGE 2M']],
  ['raw', 'busy.raw', ['info IMAGE', 'info -f raw IMAGE', 'map IMAGE', 'check IMAGE']],
] as const) {
  test(`an image that another program writes to: ${format}`, needs('qemu-img', 'qemu-io'), async (t) => {
    const folder = scratch(t);
    await inUse(t, folder, format, name);
    for (const line of lines) {
      const words = wordsOf(line.replace('IMAGE', name));
      const expected = runTheirs(words, folder);
      assert.deepEqual(await inFolder(folder, () => runHere(words)), expected, line);
    }
  });
}
