/** What `qemu-img convert` leaves when it does not come to its end, and what it copies without reading. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { blockplane, MAIN, needs, pattern, run, scratch } from './harness.ts';

const MIB = 2 ** 20;
const BOUND = { timeout: 60_000 };

for (const format of ['raw', 'qcow2']) {
  test(`a convert to ${format} that is interrupted leaves no file, and ends by the signal`, BOUND, async (t) => {
    const folder = scratch(t);
    const [source, target] = [join(folder, 'source'), join(folder, 'target')];
    writeFileSync(source, pattern(4 * MIB));
    const words = ['qemu-img', 'convert', '-p', '-r', '1M', '-f', 'raw', '-O', format, source, target];
    const child = spawn(process.execPath, [MAIN, ...words], { stdio: ['ignore', 'pipe', 'inherit'] });
    let text = '';
    // Some of it is there, and the rest has to wait.
    for await (const chunk of child.stdout) {
      text += String(chunk);
      if (/\([1-9]/.test(text)) break;
    }
    assert.ok(existsSync(target));
    child.kill('SIGINT');
    const [, signal] = await once(child, 'exit');
    assert.equal(signal, 'SIGINT');
    assert.ok(!existsSync(target));
  });

  test(
    `a convert to ${format} with no room says what was being written, and leaves nothing`,
    needs('bash'),
    async (t) => {
      const folder = scratch(t);
      const [source, fresh, there] = ['source', 'fresh', 'there'].map((name) => join(folder, name)) as [
        string,
        string,
        string,
      ];
      writeFileSync(source, pattern(8 * MIB));
      writeFileSync(there, 'what was there');
      // Blocks of 1 KiB.
      const limited = `trap '' XFSZ; ulimit -f 4096; exec "$0" "$@"`;
      for (const target of [fresh, there]) {
        const words = [MAIN, 'qemu-img', 'convert', '-f', 'raw', '-O', format, source, target];
        const { code, stderr } = await run('bash', ['-c', limited, process.execPath, ...words]);
        assert.deepEqual([code, /^qemu-img: .*(error while writing|File too large)/.test(stderr)], [1, true], stderr);
      }
      assert.ok(!existsSync(fresh));
      assert.equal(statSync(there).size, 0);
    },
  );
}

for (const verb of ['qemu-img convert -p -r 1M -f raw -O qcow2', 'copy --speed 1M --progress json']) {
  test(`a half image is of no format when the process is killed: ${verb}`, needs('qemu-img'), async (t) => {
    const folder = scratch(t);
    const [source, target] = [join(folder, 'source'), join(folder, 'target.qcow2')];
    writeFileSync(source, pattern(4 * MIB));
    const stdio = ['ignore', 'pipe', 'pipe'] as const;
    const child = spawn(process.execPath, [MAIN, ...verb.split(' '), source, target], { stdio: [...stdio] });
    const part = (text: unknown): boolean => /\([1-9]|"current":[1-9]/.test(String(text));
    await new Promise<void>((resolve) => {
      for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => part(text) && resolve());
    });
    child.kill('SIGKILL');
    await once(child, 'exit');
    const { code, stderr } = await run('qemu-img', ['info', '-f', 'qcow2', target]);
    assert.deepEqual([code, /not in qcow2 format/.test(stderr)], [1, true], stderr);
    assert.equal((await run(process.execPath, [MAIN, 'check', target])).code, 1);
  });
}

test('a convert that is refused leaves the file that is there as it was', BOUND, async (t) => {
  const path = join(scratch(t), 'disk');
  writeFileSync(path, pattern(MIB));
  for (const words of [
    ['-O', 'qcow2', path],
    ['-O', 'qcow2', '-o', 'cluster_size=3', path],
    ['-c', path],
  ]) {
    const { code } = await blockplane('qemu-img', 'convert', ...words, path);
    assert.equal(code, 1);
    assert.deepEqual(new Uint8Array(readFileSync(path)), pattern(MIB));
  }
});

test('what the system copies from file to file is the same, its end included', BOUND, async (t) => {
  const folder = scratch(t);
  const [source, target] = [join(folder, 'source'), join(folder, 'target')];
  const bytes = pattern(3 * MIB + 512);
  bytes.fill(0, MIB, 2 * MIB);
  writeFileSync(source, bytes);
  const { code, stderr } = await blockplane('qemu-img', 'convert', '-C', '-f', 'raw', '-O', 'raw', source, target);
  assert.deepEqual([code, stderr], [0, '']);
  assert.deepEqual(new Uint8Array(readFileSync(target)), bytes);
});
