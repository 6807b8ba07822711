import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Bug } from '../base/assert.ts';
import type { BottomHalf } from './bottom-half.ts';
import { BottomHalfList } from './bottom-half.ts';
import { newSharedWords, REMOTE_BH_SLOTS } from './context-shared.ts';
import { LoopCounters } from './loop-counters.ts';
import { Gate } from './op.ts';
import { RemoteContext } from './remote.ts';
import { inContext } from './testing.ts';

function list(): BottomHalfList {
  return new BottomHalfList(newSharedWords(), () => {});
}

test('E1 a bottom half that is pending is not scheduled a second time: its callback runs once', () => {
  const halves = list();
  let runs = 0;
  const bh = halves.create(() => runs++, 'once', false);
  for (let i = 0; i < 5; i++) bh.schedule();
  assert.equal(halves.waiting, 1);
  assert.equal(halves.run(), true);
  assert.equal(runs, 1);
  assert.equal(halves.run(), false);
  bh.schedule();
  halves.run();
  assert.equal(runs, 2);
});

test('E1 a cancelled bottom half does not run, and runs once when scheduled again', () => {
  const halves = list();
  let runs = 0;
  const bh = halves.create(() => runs++, 'cancelled', false);
  bh.schedule();
  bh.cancel();
  assert.equal(halves.run(), false);
  for (let i = 0; i < 1000; i++) {
    bh.schedule();
    bh.cancel();
  }
  assert.equal(halves.waiting, 1, 'schedule and cancel in turn must not fill the list');
  bh.schedule();
  halves.run();
  assert.equal(runs, 1);
});

test('E2 bottom halves scheduled during a poll run in the next one', () => {
  const halves = list();
  const order: string[] = [];
  const second = halves.create(() => order.push('second'), 'second', false);
  const first = halves.create(
    () => {
      order.push('first');
      second.schedule();
      if (order.length < 4) first.schedule();
    },
    'first',
    false,
  );
  first.schedule();
  halves.run();
  assert.deepEqual(order, ['first']);
  assert.equal(halves.hurried, true);
  halves.run();
  assert.deepEqual([...order].sort(), ['first', 'first', 'second']);
});

test('E2 a nested poll runs what the outer one has not come to, and the outer one does not run it again', () => {
  const halves = list();
  const order: string[] = [];
  const outer = halves.create(
    () => {
      order.push('outer begins');
      late.schedule();
      halves.run();
      order.push('outer ends');
    },
    'outer',
    false,
  );
  const rest = halves.create(() => order.push('rest'), 'rest', false);
  const late = halves.create(() => order.push('late'), 'late', false);
  outer.schedule();
  rest.schedule();
  halves.run();
  assert.deepEqual(order, ['outer begins', 'rest', 'late', 'outer ends']);
});

inContext('E3 coroutines that yield go on in the order in which they yielded', async (context) => {
  const order: number[] = [];
  const gate = new Gate();
  for (let i = 0; i < 20; i++) {
    context.run(`c${i}`, async () => {
      await context.yield();
      order.push(i);
      if (order.length === 20) gate.open();
    });
  }
  await gate.promise;
  assert.deepEqual(
    order,
    Array.from({ length: 20 }, (_, i) => i),
  );
});

test('E4 an idle bottom half is no progress; one that gets scheduled in earnest is', () => {
  const halves = list();
  let runs = 0;
  const bh = halves.create(() => runs++, 'idle', false);
  bh.scheduleIdle();
  assert.equal(halves.hurried, false);
  assert.equal(halves.run(), false);
  assert.equal(runs, 1);
  bh.scheduleIdle();
  bh.schedule();
  assert.equal(halves.hurried, true);
  assert.equal(halves.run(), true);
  assert.equal(runs, 2);
  bh.schedule();
  bh.scheduleIdle();
  assert.equal(halves.hurried, true, 'in earnest stays in earnest');
});

inContext('E4 an idle bottom half runs although nothing else happens, within about 10 ms', async (context) => {
  const gate = new Gate();
  let runs = 0;
  const bh = context.bottomHalf(() => {
    if (++runs === 5) gate.open();
    else bh.scheduleIdle();
  }, 'idle');
  const start = context.now();
  bh.scheduleIdle();
  await gate.promise;
  bh.delete();
  assert.ok(context.now() - start < 5e9, 'five idle rounds took seconds');
});

test('E4 a deleted bottom half is never called, be it deleted before its turn or from its own callback', () => {
  const halves = list();
  const order: string[] = [];
  const victim = halves.create(() => order.push('victim'), 'victim', false);
  const killer = halves.create(
    () => {
      order.push('killer');
      victim.delete();
      killer.delete();
    },
    'killer',
    false,
  );
  killer.schedule();
  victim.schedule();
  halves.run();
  halves.run();
  assert.deepEqual(order, ['killer']);
  assert.throws(() => victim.schedule(), Bug);
  halves.assertEmpty();
});

test('E4 a one-shot bottom half frees itself after its call', () => {
  const halves = list();
  let runs = 0;
  halves.create(() => runs++, 'oneshot', true).schedule();
  halves.run();
  halves.run();
  assert.equal(runs, 1);
  halves.assertEmpty();
});

test('E5 a bottom half that was not deleted when its context ends is a bug with its name', () => {
  const halves = list();
  halves.create(() => {}, 'forgotten', false);
  assert.throws(() => halves.assertEmpty(), { name: 'Bug', message: "BH 'forgotten' leaked" });
});

/** The home side and a remote side on the same thread: the shared words are the same as between two. */
function bothSides(): { halves: BottomHalfList; remote: RemoteContext } {
  const shared = newSharedWords();
  const halves = new BottomHalfList(shared, () => {});
  return {
    halves,
    remote: new RemoteContext({ name: 'test', shared, counters: new LoopCounters().words, wake: { kind: 'none' } }),
  };
}

test('E1 schedule, cancel and delete work through the shared words, whoever scheduled', () => {
  const { halves, remote } = bothSides();
  let runs = 0;
  const bh = halves.create(() => runs++, 'remote', false);
  const handle = bh.remote();
  assert.equal(remote.schedule(handle), true);
  assert.equal(remote.schedule(handle), true);
  halves.run();
  assert.equal(runs, 1);
  remote.schedule(handle);
  remote.cancel(handle);
  halves.run();
  assert.equal(runs, 1, 'cancelled what it had scheduled itself');
  bh.schedule();
  remote.cancel(handle);
  halves.run();
  assert.equal(runs, 1, 'cancelled what home had scheduled');
  remote.cancel(handle);
  remote.schedule(handle);
  halves.run();
  assert.equal(runs, 2, 'the later call counts');
  remote.schedule(handle);
  remote.delete(handle);
  halves.run();
  assert.equal(runs, 2, 'deleted');
  assert.equal(bh.deleted, true);
  assert.equal(remote.schedule(handle), false, 'home knows it no more');
  halves.assertEmpty();
});

test('E4 a handle that outlives its bottom half does not reach the next owner of the slot', () => {
  const { halves, remote } = bothSides();
  let runs = 0;
  const old = halves.create(() => {}, 'old', false);
  const oldHandle = old.remote();
  remote.schedule(oldHandle);
  old.delete();
  const next = halves.create(() => runs++, 'next', false);
  const nextHandle = next.remote();
  assert.equal(nextHandle.slot, oldHandle.slot);
  assert.equal(remote.schedule(oldHandle), false);
  remote.delete(oldHandle);
  halves.run();
  assert.equal(runs, 0);
  assert.equal(remote.schedule(nextHandle), true);
  halves.run();
  assert.equal(runs, 1);
});

test('E1 the slots for other threads are bounded, and every one of them works', () => {
  const { halves, remote } = bothSides();
  const runs = new Array<number>(REMOTE_BH_SLOTS).fill(0);
  const all: BottomHalf[] = [];
  for (let i = 0; i < REMOTE_BH_SLOTS; i++) {
    all.push(
      halves.create(
        () => {
          runs[i]!++;
        },
        `bh${i}`,
        false,
      ),
    );
  }
  for (const bh of all) remote.schedule(bh.remote());
  const extra = halves.create(() => {}, 'extra', false);
  assert.throws(() => extra.remote(), { code: 'ENOSPC' });
  halves.run();
  assert.ok(runs.every((n) => n === 1));
  all[500]!.delete();
  assert.equal(extra.remote().slot, 500);
});
