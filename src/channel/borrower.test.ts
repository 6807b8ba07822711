/** A borrower never fails: what it cannot do itself is asked of home, and nothing that home waits for stays counted. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { Borrower } from './borrower.ts';
import { DiskWord, Lent, newChannelWords, newDiskWords, Word } from './layout.ts';

/** A borrower in a thread whose next open of a file ends in `opened`. */
function borrowing(opened: () => Promise<never>) {
  const words = newChannelWords();
  const disk = newDiskWords();
  Atomics.store(disk, DiskWord.LEASE_EPOCH, 2);
  Atomics.store(disk, DiskWord.LENT, Lent.READ | Lent.WRITE);
  const runs: Promise<unknown>[] = [];
  let woken = 0;
  const context = {
    backend: { openFile: opened },
    run: (_what: string, body: () => Promise<unknown>) => runs.push(body()),
  } as unknown as AioContext;
  const borrower = new Borrower(context, {
    words,
    disk,
    length: 65_536,
    submit: () => assert.fail('nothing is asked'),
    wakeHome: () => woken++,
    readPort: () => undefined,
  });
  const counted = () => Atomics.load(words, Word.BORROWED) + Atomics.load(words, Word.BORROWED + 1);
  return { borrower, disk, runs, counted, woken: () => woken };
}

test('a thread without a descriptor to spare goes on without the file, and home need not wait for it', async () => {
  const { borrower, disk, runs, counted, woken } = borrowing(async () => {
    throw new BlockError(Errno.EMFILE, "Could not open 'lent': too many open files");
  });
  Atomics.store(disk, DiskWord.LENDER_WAITS, 1);
  borrower.fileIs(9, 2);
  assert.equal(counted(), 1);
  await Promise.all(runs);
  assert.equal(runs.length, 1);
  assert.equal(counted(), 0);
  assert.equal(woken(), 1);
});

test('a file of an epoch that is over is not opened', () => {
  const { borrower, runs, counted } = borrowing(() => assert.fail('opened'));
  borrower.fileIs(9, 1);
  assert.equal(runs.length, 0);
  assert.equal(counted(), 0);
});

test('a mistake of ours is not taken for a lack of descriptors', async () => {
  const { borrower, runs, counted } = borrowing(async () => {
    throw new TypeError('mistake');
  });
  borrower.fileIs(9, 2);
  await assert.rejects(runs[0]!, /mistake/);
  assert.equal(counted(), 0);
});
