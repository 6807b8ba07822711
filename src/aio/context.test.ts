import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Bug } from '../base/assert.ts';
import { AioContext } from './context.ts';
import { AioOp, Gate, WaitOp } from './op.ts';
import { chooseBackend } from './select.ts';
import { backends, eachBackend, inContext, turn } from './testing.ts';

class NoteOp extends AioOp {
  readonly #note: (result: number) => void;

  constructor(note: (result: number) => void) {
    super();
    this.#note = note;
  }

  complete(result: number): void {
    this.#note(result);
  }
}

inContext('E7 a poll returns whether progress was made', async (context) => {
  await context.yield();
  assert.equal(context.poll(false), false);
  context.oneshot(() => {});
  assert.equal(context.poll(false), true);
  const idle = context.bottomHalf(() => {}, 'idle');
  idle.scheduleIdle();
  assert.equal(context.poll(false), false, 'idle bottom halves are no progress');
  idle.delete();
});

inContext('E7 polls nest: the inner one runs what is left, the outer one goes on after it', (context) => {
  const order: string[] = [];
  context.oneshot(() => {
    order.push('a');
    context.oneshot(() => order.push('c'));
    assert.equal(context.poll(false), true);
    order.push('d');
  });
  context.oneshot(() => order.push('b'));
  context.poll(false);
  assert.deepEqual(order, ['a', 'b', 'c', 'd']);
});

inContext('E7 a blocking poll waits for the next deadline where the backend can wait', (context, backend) => {
  let fired = false;
  const timer = context.timer(() => {
    fired = true;
  }, 'deadline');
  timer.armIn(2_000_000);
  if (backend === 'pool') {
    assert.throws(() => context.poll(true), { code: 'ENOTSUP' });
    timer.cancel();
    return;
  }
  for (let i = 0; i < 100 && !fired; i++) context.poll(true);
  assert.equal(fired, true);
});

eachBackend('E7 a context that has stopped is not polled any more', async (backend) => {
  const context = new AioContext(await chooseBackend(backend));
  await context.stop();
  assert.throws(() => context.poll(false), Bug);
  assert.throws(() => context.assertRunning(), { code: 'ESHUTDOWN' });
  await context.stop();
});

inContext('E8 in one poll completions come first, then bottom halves, then timers', (context) => {
  const order: string[] = [];
  const timer = context.timer(() => order.push('timer'), 'now');
  timer.armIn(0);
  context.oneshot(() => order.push('bottom half'));
  context.completeLater(new NoteOp((result) => order.push(`completion ${result}`)), -5);
  assert.deepEqual(order, [], 'an operation never ends inside the call that starts it');
  context.poll(false);
  assert.deepEqual(order, ['completion -5', 'bottom half', 'timer']);
});

inContext('E8 a completion that causes another does not keep the rest of the turn waiting', (context) => {
  const order: string[] = [];
  const again = new NoteOp(() => {
    order.push('completion');
    if (order.length < 10) context.completeLater(again, 0);
  });
  context.completeLater(again, 0);
  context.oneshot(() => order.push('bottom half'));
  context.poll(false);
  assert.deepEqual(order, ['completion', 'bottom half']);
});

inContext('E9 a timer that an earlier callback of the same turn cancels is not called', (context) => {
  const order: string[] = [];
  const victim = context.timer(() => order.push('victim'), 'victim');
  const killer = context.timer(() => {
    order.push('killer');
    victim.cancel();
  }, 'killer');
  killer.armIn(0);
  victim.armIn(0);
  context.poll(false);
  context.poll(false);
  assert.deepEqual(order, ['killer']);
});

inContext('E10 a one-shot call runs once, in the next turn', async (context) => {
  const order: string[] = [];
  const gate = new Gate();
  context.oneshot(() => {
    order.push('call');
    gate.open();
  });
  order.push('after scheduling');
  await gate.promise;
  await turn();
  assert.deepEqual(order, ['after scheduling', 'call']);
});

test('C2 an operation has one waiter, and completes with a waiter only', async () => {
  const op = new WaitOp();
  assert.throws(() => op.complete(0), Bug);
  const result = op.wait();
  assert.throws(() => op.wait(), Bug);
  op.complete(7);
  assert.equal(await result, 7);
  assert.throws(() => op.complete(0), Bug);
});

inContext('C1 a coroutine goes on in the context it waits in, after the callback that woke it', async (context) => {
  const order: string[] = [];
  const gate = new Gate();
  const done = new Gate();
  context.run('waiter', async () => {
    await gate.promise;
    order.push('coroutine');
    done.open();
  });
  context.oneshot(() => {
    gate.open();
    order.push('callback');
  });
  await done.promise;
  assert.deepEqual(order, ['callback', 'coroutine']);
});

inContext('C3 a coroutine woken by another goes on before the next turn of the loop', async (context) => {
  const order: string[] = [];
  const gates = [new Gate(), new Gate(), new Gate()];
  const done = new Gate();
  for (let i = 0; i < 3; i++) {
    context.run(`link${i}`, async () => {
      await gates[i]!.promise;
      order.push(`link${i}`);
      gates[i + 1]?.open();
      if (i === 2) context.oneshot(() => done.open());
    });
  }
  context.oneshot(() => {
    gates[0]!.open();
    context.oneshot(() => order.push('next turn'));
  });
  await done.promise;
  assert.deepEqual(order, ['link0', 'link1', 'link2', 'next turn']);
});

eachBackend('C4 a context that stops waits for its coroutines and its bottom halves', async (backend) => {
  const context = new AioContext(await chooseBackend(backend));
  const order: string[] = [];
  const gate = new Gate();
  context.run('long', async () => {
    await gate.promise;
    await context.yield();
    order.push('coroutine');
    context.oneshot(() => order.push('bottom half'));
  });
  assert.deepEqual(context.coroutines, ['long']);
  const stopped = context.stop().then(() => order.push('stopped'));
  const turns = context.stats.turns;
  await turn();
  await turn();
  assert.deepEqual(order, []);
  assert.ok(context.stats.turns - turns < 1000, 'it waits, and does not go round and round');
  gate.open();
  await stopped;
  assert.deepEqual(order, ['coroutine', 'bottom half', 'stopped']);
});

eachBackend('E5 stopping a context with a bottom half that was not deleted fails with its name', async (backend) => {
  const context = new AioContext(await chooseBackend(backend));
  context.bottomHalf(() => {}, 'forgotten');
  await assert.rejects(context.stop(), { name: 'Bug', message: "BH 'forgotten' leaked" });
});

inContext('timers fire in the order of their deadlines, not before them, and once', async (context) => {
  const order: string[] = [];
  const done = new Gate();
  const start = context.now();
  const at = (ns: number, name: string): void => {
    const timer = context.timer(() => {
      order.push(name);
      assert.ok(context.now() - start >= ns, `${name} came early`);
      if (order.length === 3) done.open();
    }, name);
    timer.armIn(ns);
  };
  at(9_000_000, 'third');
  at(1_000_000, 'first');
  at(5_000_000, 'second');
  await done.promise;
  assert.deepEqual(order, ['first', 'second', 'third']);
});

test('at least one backend is tested', () => {
  assert.ok(backends().length > 0, `BLOCKPLANE_AIO=${process.env.BLOCKPLANE_AIO} leaves no backend to test`);
});
