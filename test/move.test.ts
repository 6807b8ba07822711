/** Disks that move between IOThreads while they are used. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { IOThread, open } from '../src/index.ts';
import { pattern, scratch, sparse } from './harness.ts';

const MiB = 1024 * 1024;

async function threads(t: TestContext): Promise<[IOThread, IOThread]> {
  const both: [IOThread, IOThread] = [await IOThread.start(), await IOThread.start()];
  t.after(() => Promise.all(both.map((thread) => thread.stop())));
  return both;
}

test('a disk goes on in another thread with what was written', async (t) => {
  const [a, b] = await threads(t);
  const disk = await open(sparse(`${scratch(t)}/d.img`, MiB), { iothread: a });
  t.after(() => disk.close());
  const bytes = pattern(8192);
  await disk.write(bytes, 0, 8192, 4096);
  for (const to of [b, a, b, a]) {
    await disk.setAioContext(to);
    assert.equal(disk.iothread, to);
    const { buffer } = await disk.read(new Uint8Array(8192), 0, 8192, 4096);
    assert.deepEqual(buffer, bytes);
    bytes.set(pattern(512, 7));
    await disk.write(bytes, 0, 512, 4096);
  }
  await disk.flush();
});
