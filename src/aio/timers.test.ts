import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Timer, TimerHeap } from './timers.ts';

test('timers fire in the order of deadline and arming, whatever is armed, re-armed and cancelled', () => {
  const action = fc.oneof(
    fc.record({ kind: fc.constant('arm' as const), id: fc.nat(15), ns: fc.nat(50) }),
    fc.record({ kind: fc.constant('cancel' as const), id: fc.nat(15), ns: fc.constant(0) }),
    fc.record({ kind: fc.constant('pass' as const), id: fc.constant(0), ns: fc.nat(30) }),
  );
  fc.assert(
    fc.property(fc.array(action, { maxLength: 80 }), (actions) => {
      let now = 0;
      let orders = 0;
      const fired: number[] = [];
      const heap = new TimerHeap(
        () => now,
        () => {},
      );
      const timers = Array.from({ length: 16 }, (_, id) => new Timer(heap, () => fired.push(id), `t${id}`));
      const model = new Map<number, { deadline: number; order: number }>();
      for (const { kind, id, ns } of actions) {
        if (kind === 'arm') {
          timers[id]!.armIn(ns);
          model.set(id, { deadline: now + ns, order: orders++ });
        } else if (kind === 'cancel') {
          timers[id]!.cancel();
          model.delete(id);
        } else {
          now += ns;
          const due = [...model].filter(([, entry]) => entry.deadline <= now);
          due.sort(([, a], [, b]) => a.deadline - b.deadline || a.order - b.order);
          for (const [dueId] of due) model.delete(dueId);
          fired.length = 0;
          assert.equal(heap.run(), due.length > 0);
          assert.deepEqual(
            fired,
            due.map(([dueId]) => dueId),
          );
        }
        assert.equal(heap.length, model.size);
        const first = Math.min(...[...model.values()].map((entry) => entry.deadline));
        assert.equal(heap.first, first);
      }
    }),
  );
});

test('a timer that arms itself anew for now waits for the next turn, and does not hold up the others', () => {
  let now = 0;
  const fired: string[] = [];
  const heap = new TimerHeap(
    () => now,
    () => {},
  );
  const eager: Timer = new Timer(
    heap,
    () => {
      fired.push('eager');
      eager.armIn(0);
    },
    'eager',
  );
  const other = new Timer(heap, () => fired.push('other'), 'other');
  eager.armIn(0);
  now = 10;
  other.armIn(0);
  heap.run();
  assert.deepEqual(fired, ['eager', 'other']);
  heap.run();
  assert.deepEqual(fired, ['eager', 'other', 'eager']);
});
