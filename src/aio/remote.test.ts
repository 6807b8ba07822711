import assert from 'node:assert/strict';
import { Worker } from 'node:worker_threads';
import type { RemoteBottomHalfHandle } from './bottom-half.ts';
import { SharedWord } from './context-shared.ts';
import { IOThread } from './iothread.ts';
import { Gate } from './op.ts';
import { RemoteContext } from './remote.ts';
import type { BackendChoice } from './select.ts';
import { eachBackend, inContext } from './testing.ts';
import type { SenderReport, SenderTask } from './testing-sender.ts';
import type { Mirror } from './testing-setup.ts';

function extension(): string {
  return import.meta.url.slice(import.meta.url.lastIndexOf('.'));
}

const setup = new URL(`./testing-setup${extension()}`, import.meta.url);
const sender = new URL(`./testing-sender${extension()}`, import.meta.url);

function startThread(backend: BackendChoice, name = 'io0'): Promise<IOThread> {
  return IOThread.start({ name, aio: backend, setup });
}

function runSender(task: SenderTask): Promise<SenderReport> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(sender, { workerData: task });
    worker.once('message', resolve);
    worker.once('error', reject);
  });
}

function newMirror(senders: number): Mirror {
  return {
    sent: new Int32Array(new SharedArrayBuffer(4 * senders)),
    seen: new Int32Array(new SharedArrayBuffer(4 * senders)),
  };
}

eachBackend(
  'E6 two threads schedule 200,000 times each at a context that sleeps and wakes: none is lost',
  async (b) => {
    const thread = await startThread(b);
    const mirror = newMirror(2);
    const bh = await thread.call<RemoteBottomHalfHandle>('mirror', mirror);
    const task = { ...mirror, remote: thread.remote, bh, times: 200_000 };
    const reports = await Promise.all([0, 1].map((index) => runSender({ ...task, index })));
    const sent = Atomics.load(thread.remote.shared, SharedWord.WAKES_SENT);
    const saved = Atomics.load(thread.remote.shared, SharedWord.WAKES_SAVED);
    await thread.stop();
    for (const report of reports) {
      assert.equal(report.lost, undefined);
      assert.ok(report.waits > 1000);
    }
    assert.equal(sent + saved, 400_000, 'every schedule either woke or saved the wake-up');
    assert.ok(sent > 0, 'the context slept at times');
    assert.ok(saved > sent, 'most wake-ups are saved');
  },
);

eachBackend('E6 a context that is awake is not woken', async (backend) => {
  const thread = await startThread(backend);
  const mirror = newMirror(1);
  const bh = await thread.call<RemoteBottomHalfHandle>('mirror', mirror);
  const { shared } = thread.remote;
  Atomics.store(shared, SharedWord.SLEEPING, 0);
  const before = Atomics.load(shared, SharedWord.WAKES_SENT);
  const context = new RemoteContext({ ...thread.remote, wake: { kind: 'none' } });
  // Words of their own: this side must not look at a thread that goes to sleep meanwhile.
  const words = new Int32Array(new SharedArrayBuffer(shared.byteLength));
  words.set(shared);
  words[SharedWord.SLEEPING] = 0;
  const awake = new RemoteContext({ ...thread.remote, name: 'awake', shared: words, wake: { kind: 'none' } });
  awake.schedule(bh);
  awake.schedule(bh);
  assert.equal(words[SharedWord.WAKES_SENT], before);
  words[SharedWord.SLEEPING] = 1;
  awake.schedule(bh);
  awake.schedule(bh);
  assert.equal(words[SharedWord.WAKES_SENT], before + 1, 'the first one wakes, for both');
  assert.equal(context.stopped, false);
  await thread.stop();
  assert.equal(context.stopped, true);
  assert.equal(context.schedule(bh), false, 'a context that has stopped says so');
});

eachBackend('C1 a coroutine that another thread wakes goes on in its own thread', async (backend) => {
  await using sleeper = await startThread(backend, 'sleeper');
  await using waker = await startThread(backend, 'waker');
  const waiting = new Gate<RemoteBottomHalfHandle>();
  sleeper.on('event', (name, payload) => {
    if (name === 'waiting') waiting.open(payload as RemoteBottomHalfHandle);
  });
  const wokenIn = sleeper.call<number>('waitForOther');
  const bh = await waiting.promise;
  assert.equal(await waker.call('scheduleOther', { remote: sleeper.remote, bh }), true);
  assert.equal(await wokenIn, await sleeper.call('threadId'));
  assert.notEqual(await wokenIn, await waker.call('threadId'));
});

inContext('E6 a context of the main thread is woken by an IOThread while it waits', async (context, backend) => {
  await using thread = await startThread(backend);
  let runs = 0;
  const gate = new Gate();
  const bh = context.bottomHalf(() => {
    if (++runs === 3) gate.open();
  }, 'main');
  const task = { remote: context.remote(), bh: bh.remote() };
  while (runs < 3) {
    const before = runs;
    assert.equal(await thread.call('scheduleOther', task), true);
    while (runs === before) await context.yield();
  }
  await gate.promise;
  bh.delete();
  assert.equal(await thread.call('scheduleOther', task), false, 'it is deleted');
});
