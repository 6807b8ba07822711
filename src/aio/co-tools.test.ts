import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Bug } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { coSleep, coTimeout } from './co-timeout.ts';
import { deferBegin, deferCall, deferEnd, deferSection } from './defer-call.ts';
import { Gate } from './op.ts';
import { TaskPool } from './task-pool.ts';
import { inContext, turn } from './testing.ts';

inContext('C9 a sleep lasts its time, or until it is woken', async (context) => {
  const start = context.now();
  assert.equal(await coSleep(context, 2_000_000).promise, true);
  assert.ok(context.now() - start >= 2_000_000);
  const long = coSleep(context, 3600e9);
  long.wake();
  long.wake();
  assert.equal(await long.promise, false);
  const over = coSleep(context, 0);
  await over.promise;
  over.wake();
});

inContext('C9 a timeout rejects with ETIMEDOUT and does not cancel what it waited for', async (context) => {
  const gate = new Gate();
  let ended = false;
  const work = gate.promise.then(() => {
    ended = true;
  });
  await assert.rejects(coTimeout(context, work, 1_000_000, 'read the header'), {
    code: 'ETIMEDOUT',
    message: 'Could not read the header: not done after 1 ms',
  });
  assert.equal(ended, false);
  gate.open();
  await work;
  assert.equal(ended, true);
});

inContext('C9 within its time, the work ends as it would without a limit, by value or by error', async (context) => {
  assert.equal(await coTimeout(context, Promise.resolve(5), 60e9), 5);
  const error = new BlockError(Errno.EIO, 'on purpose');
  await assert.rejects(coTimeout(context, Promise.reject(error), 60e9), error);
  assert.equal(context.nextDeadline() > context.now() + 1e9, true, 'no timer is left behind');
});

inContext('C9 an error that comes after the timeout is dropped, and is not an unhandled one', async (context) => {
  const gate = new Gate();
  await assert.rejects(coTimeout(context, gate.promise, 0), { code: 'ETIMEDOUT' });
  gate.fail(new Error('too late'));
  await turn();
});

test('L5 identical calls are made once, in the order of the first, at the end of the outermost section', () => {
  const log: string[] = [];
  const submit = (key: string): void => {
    log.push(`submit ${key}`);
  };
  const flush = (key: string): void => {
    log.push(`flush ${key}`);
  };
  deferBegin();
  deferCall(submit, 'a');
  {
    using _inner = deferSection();
    deferCall(flush, 'a');
    deferCall(submit, 'b');
    deferCall(submit, 'a');
  }
  assert.deepEqual(log, [], 'the inner end runs nothing');
  deferCall(flush, 'a');
  deferEnd();
  assert.deepEqual(log, ['submit a', 'flush a', 'submit b']);
});

test('L5 outside of a section a call is made at once, every time', () => {
  let calls = 0;
  const call = (): void => {
    calls++;
  };
  deferCall(call, 0);
  deferCall(call, 0);
  assert.equal(calls, 2);
  assert.throws(() => deferEnd(), Bug);
});

test('L5 what a deferred call defers itself is made before the section is over', () => {
  const log: string[] = [];
  const second = (): void => {
    log.push('second');
  };
  const first = (): void => {
    using _section = deferSection();
    deferCall(second, 1);
    deferCall(second, 1);
    log.push('first');
  };
  deferBegin();
  deferCall(first, 1);
  deferEnd();
  assert.deepEqual(log, ['first', 'second']);
});

test('a task pool runs at most max tasks at a time, and as many as that', async () => {
  const pool = new TaskPool(3);
  let running = 0;
  let most = 0;
  const ends: number[] = [];
  for (let i = 0; i < 10; i++) {
    await pool.start(async () => {
      most = Math.max(most, ++running);
      await turn();
      running--;
      ends.push(i);
    });
    assert.ok(pool.running <= 3);
  }
  assert.equal(await pool.drain(), 0);
  assert.equal(most, 3);
  assert.equal(ends.length, 10);
});

test('a task pool starts without a promise while it has a slot', async () => {
  const pool = new TaskPool(1);
  const gate = new Gate();
  assert.equal(
    pool.start(() => gate.promise),
    undefined,
  );
  const second = pool.start(() => Promise.resolve());
  assert.ok(second instanceof Promise);
  gate.open();
  await second;
  await pool.drain();
  await pool.waitOne();
});

test('a task pool keeps the first error, by errno or by throw, and lets the others end', async () => {
  const pool = new TaskPool(4);
  const ended: string[] = [];
  await pool.start(async () => {
    await turn();
    ended.push('slow');
  });
  await pool.start(() => Promise.reject(new BlockError(Errno.ENOSPC, 'full')));
  await pool.start(() => Promise.resolve(-Errno.EIO));
  await pool.start(() => Promise.resolve(4096));
  assert.equal(await pool.drain(), -Errno.ENOSPC);
  assert.equal(pool.status, -Errno.ENOSPC);
  assert.equal(pool.error?.message, 'full');
  assert.deepEqual(ended, ['slow']);
});

test('a task pool without a slot is a bug', () => {
  assert.throws(() => new TaskPool(0), Bug);
});
