import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { MessageChannel } from 'node:worker_threads';
import { Gate } from '../../aio/op.ts';
import type { ExportBitmaps } from './bitmaps.ts';
import { answering, RemoteBitmaps } from './remote-bitmaps.ts';

/** Says what it was asked; the bitmap of number 9 waits for `late`. */
function fake(late: Gate): ExportBitmaps & { released: boolean } {
  return {
    released: false,
    names: ['a', 'b'],
    async edges(index, at, end, max) {
      if (index === 9) await late.promise;
      return [index, at, end, max];
    },
    release() {
      this.released = true;
    },
  };
}

test('a bitmap of another thread says what it says there, whatever the order', async () => {
  const late = new Gate();
  const { port1, port2 } = new MessageChannel();
  const here = answering(fake(late), [port1]);
  const there = new RemoteBitmaps(port2, here.names);
  // Nothing else keeps the test's thread.
  port2.ref();
  assert.deepEqual(there.names, ['a', 'b']);
  const first = there.edges(9, 0, 2 ** 52, 100);
  assert.deepEqual(await there.edges(1, 512, 4096, 7), [1, 512, 4096, 7]);
  late.open();
  assert.deepEqual(await first, [9, 0, 2 ** 52, 100]);
  there.release();
  here.release();
});

test('a bitmap that is shown no more fails what is asked, and what is asked later', async () => {
  for (const end of ['here', 'there']) {
    const { port1, port2 } = new MessageChannel();
    const bitmaps = fake(new Gate());
    const here = answering(bitmaps, [port1]);
    const there = new RemoteBitmaps(port2, here.names);
    port2.ref();
    const closed = once(port2, 'close');
    const asked = assert.rejects(there.edges(9, 0, 1, 1), { code: 'EIO' });
    if (end === 'here') here.release();
    else there.release();
    await closed;
    await asked;
    await assert.rejects(there.edges(0, 0, 1, 1), { code: 'EIO' });
    assert.equal(bitmaps.released, end === 'here', 'only the one that has it lets it go');
  }
});
