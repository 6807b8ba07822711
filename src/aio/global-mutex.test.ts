import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { threadId, Worker } from 'node:worker_threads';
import { Bug } from '../base/assert.ts';
import { GlobalMutex, globalMutex } from './global-mutex.ts';
import type { LockerReport, LockerTask } from './testing-locker.ts';

const extension = import.meta.url.slice(import.meta.url.lastIndexOf('.'));
const locker = new URL(`./testing-locker${extension}`, import.meta.url);

function newLog(length = 1): Int32Array<SharedArrayBuffer> {
  return new Int32Array(new SharedArrayBuffer(4 * length));
}

/** A worker that does `task`, and its end. */
function start(task: LockerTask): { worker: Worker; report: Promise<LockerReport | undefined> } {
  const worker = new Worker(locker, { workerData: task });
  const report = new Promise<LockerReport | undefined>((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
    worker.once('exit', () => resolve(undefined));
  });
  return { worker, report };
}

/** Lets the event loop go round until `ready`, for 10 s at most. */
async function until(ready: () => boolean): Promise<void> {
  const end = performance.now() + 10_000;
  while (!ready()) {
    assert.ok(performance.now() < end, 'nothing in 10 s');
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

test('three threads change one word under the lock: no change is lost, and each acquisition is counted', async () => {
  const mutex = new GlobalMutex();
  const log = newLog();
  const tasks = [1, 2, 3].map((id) => start({ mutex: mutex.words, log, id, times: 20_000 }));
  for (const { report } of tasks) assert.deepEqual(await report, {});
  assert.equal(log[0], 60_000);
  const { acquisitions, owner, depth } = mutex.stats;
  assert.deepEqual({ acquisitions, owner, depth }, { acquisitions: 60_000, owner: undefined, depth: 0 });
});

test('who waits is served in the order it came', async () => {
  const mutex = new GlobalMutex();
  const log = newLog(4);
  const held = mutex.lock();
  const tasks = [];
  for (const id of [3, 1, 2]) {
    const before = mutex.stats.waits;
    tasks.push(start({ mutex: mutex.words, log, id, times: 1 }));
    await until(() => mutex.stats.waits > before);
  }
  held.release();
  for (const { report } of tasks) assert.deepEqual(await report, {});
  assert.deepEqual([...log], [3, 3, 1, 2]);
});

test('it is recursive up to its limit, free when each level was left, and others are told the owner', async () => {
  const mutex = new GlobalMutex();
  const levels = Array.from({ length: 1000 }, () => mutex.lock());
  assert.throws(() => mutex.lock(), { code: 'EAGAIN', message: /more than 1000 times/ });
  for (const held of levels.slice(1)) held.release();
  levels[1]!.release();
  assert.equal(mutex.stats.depth, 1, 'what was given back is given back once');
  mutex.assertHeld();
  const log = newLog();
  const report = await start({ mutex: mutex.words, log, id: 1, times: 1, limitMs: 50 }).report;
  assert.deepEqual(report?.error, {
    code: 'EDEADLK',
    message: `Could not take the global mutex: waited 50 ms, while thread ${threadId} holds it`,
  });
  levels[0]!.release();
  assert.throws(() => mutex.assertHeld(), Bug);
  assert.throws(() => mutex.unlock(), Bug);
});

test('a waiter that gave up is passed over', async () => {
  const mutex = new GlobalMutex();
  const log = newLog(3);
  const held = mutex.lock();
  const impatient = start({ mutex: mutex.words, log, id: 1, times: 1, limitMs: 50 });
  assert.equal((await impatient.report)?.error?.code, 'EDEADLK');
  const patient = start({ mutex: mutex.words, log, id: 2, times: 2 });
  await until(() => mutex.stats.waits === 2);
  held.release();
  assert.deepEqual(await patient.report, {});
  assert.deepEqual([...log], [2, 2, 2]);
  // Around the ring of places once and more: what was abandoned is as new.
  for (let i = 0; i < 3000; i++) mutex.lock().release();
});

test('a thread that dies with the lock, and one that dies waiting for it, do not keep it from others', async () => {
  const mutex = new GlobalMutex();
  const log = newLog();
  const held = mutex.lock();
  const waiter = start({ mutex: mutex.words, log, id: 1, times: 1 });
  await until(() => mutex.stats.waits === 1);
  const [waiterId] = [waiter.worker.threadId];
  await waiter.worker.terminate();
  mutex.threadDied(waiterId);
  held.release();
  const owner = start({ mutex: mutex.words, log, id: 2, times: 1, die: true });
  const ownerId = owner.worker.threadId;
  await once(owner.worker, 'exit');
  assert.throws(() => mutex.lock(20), { code: 'EDEADLK', message: new RegExp(`thread ${ownerId} holds it`) });
  mutex.threadDied(ownerId);
  mutex.lock(1000).release();
});

test('workers inherit the mutex of the process', async () => {
  const mutex = globalMutex();
  assert.equal(globalMutex(), mutex);
  const before = mutex.stats.acquisitions;
  assert.deepEqual(await start({ log: newLog(), id: 1, times: 5 }).report, {});
  assert.equal(mutex.stats.acquisitions, before + 5);
});
