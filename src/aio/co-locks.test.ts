import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Bug } from '../base/assert.ts';
import { CoMutex, Held } from './co-mutex.ts';
import { CoQueue } from './co-queue.ts';
import { CoRwLock, RwHeld } from './co-rwlock.ts';
import { turn } from './testing.ts';

async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await Promise.resolve();
}

test('C6 a free mutex is taken at once, without a promise', () => {
  const mutex = new CoMutex();
  const held = mutex.lock();
  assert.ok(held instanceof Held);
  assert.equal(mutex.locked, true);
  assert.equal(mutex.tryLock(), undefined);
  held[Symbol.dispose]();
  assert.equal(mutex.locked, false);
  mutex.tryLock()![Symbol.dispose]();
});

test('C6 unlocking hands the mutex to the one waiter that has waited longest; nobody barges in', async () => {
  const mutex = new CoMutex();
  const first = mutex.lock() as Held;
  const order: number[] = [];
  const waiters = [1, 2, 3].map(async (id) => {
    using _held = await mutex.lock();
    order.push(id);
    await turns(3);
  });
  assert.equal(mutex.waiters, 3);
  first[Symbol.dispose]();
  assert.equal(mutex.locked, true, 'never free while somebody waits');
  assert.equal(mutex.tryLock(), undefined);
  const late = (async () => {
    using _held = await mutex.lock();
    order.push(4);
  })();
  await Promise.all([...waiters, late]);
  assert.deepEqual(order, [1, 2, 3, 4]);
});

test('C6 a lock is released exactly once, and proves itself to those who ask', () => {
  const mutex = new CoMutex('a');
  const other = new CoMutex('b');
  const held = mutex.lock() as Held;
  held.assertHolds(mutex);
  assert.throws(() => held.assertHolds(other), Bug);
  held[Symbol.dispose]();
  assert.throws(() => held.assertHolds(mutex), Bug);
  assert.throws(() => held[Symbol.dispose](), Bug);
  const next = mutex.lock() as Held;
  assert.throws(() => held[Symbol.dispose](), Bug, "an old lock does not release the new holder's");
  next[Symbol.dispose]();
});

test('C6 is not recursive: a holder that asks again gets no second lock', async () => {
  const mutex = new CoMutex();
  const held = mutex.lock() as Held;
  let entered = false;
  const again = Promise.resolve(mutex.lock()).then((second) => {
    entered = true;
    second[Symbol.dispose]();
  });
  await turn();
  assert.equal(entered, false);
  held[Symbol.dispose]();
  await again;
});

test('C4 a coroutine that ends, by return or by error, holds no mutex any more', async () => {
  const mutex = new CoMutex();
  const failing = async (): Promise<void> => {
    using _held = await mutex.lock();
    await turns(2);
    throw new Error('on purpose');
  };
  await assert.rejects(failing(), { message: 'on purpose' });
  assert.equal(mutex.locked, false);
});

test('C6 mutual exclusion and order hold for every interleaving of coroutines that come and go', async () => {
  const steps = fc.array(fc.record({ arrive: fc.nat(8), hold: fc.nat(6) }), { maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(steps, async (coroutines) => {
      const mutex = new CoMutex();
      let inside = 0;
      const asked: number[] = [];
      const entered: number[] = [];
      await Promise.all(
        coroutines.map(async ({ arrive, hold }, id) => {
          await turns(arrive);
          asked.push(id);
          using held = await mutex.lock();
          entered.push(id);
          assert.equal(++inside, 1);
          await turns(hold);
          held.assertHolds(mutex);
          inside--;
        }),
      );
      assert.deepEqual(entered, asked);
      assert.equal(mutex.locked, false);
    }),
    { numRuns: 200 },
  );
});

test('C7 a waiter is in the queue before its lock is free, and holds the lock again when it goes on', async () => {
  const mutex = new CoMutex();
  const queue = new CoQueue();
  let ready = false;
  const waiter = (async () => {
    using held = await mutex.lock();
    while (!ready) await queue.wait(held);
    held.assertHolds(mutex);
  })();
  await turns(3);
  assert.equal(queue.length, 1);
  assert.equal(mutex.locked, false);
  const mine = mutex.lock() as Held;
  ready = true;
  assert.equal(queue.wakeOne(), true);
  await turn();
  assert.equal(mutex.waiters, 1, 'woken, it waits for the lock');
  mine[Symbol.dispose]();
  await waiter;
  assert.equal(mutex.locked, false);
  assert.equal(queue.wakeOne(), false);
});

test('C7 wakes in order; a waiter may put itself at the front; wakeAll wakes those that wait now', async () => {
  const queue = new CoQueue();
  const order: string[] = [];
  const wait = async (name: string, front: boolean): Promise<void> => {
    await queue.wait(undefined, { front });
    order.push(name);
    if (name === 'b') void wait('again', false);
  };
  void wait('a', false);
  void wait('b', false);
  void wait('front', true);
  assert.equal(queue.wakeOne(), true);
  assert.deepEqual(order, [], 'the woken one goes on after the waker has yielded');
  await turn();
  assert.deepEqual(order, ['front']);
  assert.equal(queue.wakeAll(), 2);
  await turn();
  assert.deepEqual(order, ['front', 'a', 'b']);
  assert.equal(queue.length, 1);
  queue.wakeAll();
});

test('C7 to wait with a lock that is not held is a bug', async () => {
  const mutex = new CoMutex();
  const held = mutex.lock() as Held;
  held[Symbol.dispose]();
  await assert.rejects(new CoQueue().wait(held), Bug);
});

test('C8 readers share, a writer is alone, and free locks are taken without a promise', () => {
  const lock = new CoRwLock();
  const a = lock.readLock() as RwHeld;
  const b = lock.readLock();
  assert.ok(a instanceof RwHeld && b instanceof RwHeld);
  assert.equal(lock.readers, 2);
  a[Symbol.dispose]();
  b[Symbol.dispose]();
  const writer = lock.writeLock() as RwHeld;
  assert.equal(lock.writing, true);
  assert.ok(lock.readLock() instanceof Promise);
  writer[Symbol.dispose]();
  assert.equal(lock.readers, 1);
});

test('C8 a reader waits behind a writer that waits; readers in a row come in together', async () => {
  const lock = new CoRwLock();
  const order: string[] = [];
  const first = lock.readLock() as RwHeld;
  const enter = async (name: string, write: boolean): Promise<void> => {
    using _held = await (write ? lock.writeLock() : lock.readLock());
    order.push(`${name}+`);
    await turns(4);
    order.push(`${name}-`);
  };
  const all = [enter('w1', true), enter('r1', false), enter('r2', false), enter('w2', true), enter('r3', false)];
  await turns(5);
  assert.deepEqual(order, [], 'no reader passes the waiting writer');
  first[Symbol.dispose]();
  await Promise.all(all);
  assert.deepEqual(order, ['w1+', 'w1-', 'r1+', 'r2+', 'r1-', 'r2-', 'w2+', 'w2-', 'r3+', 'r3-']);
});

test('C8 downgrade never waits, and lets in the readers that are next', async () => {
  const lock = new CoRwLock();
  const writer = lock.writeLock() as RwHeld;
  const reader = lock.readLock();
  const second = lock.writeLock();
  lock.downgrade(writer);
  assert.equal(lock.readers, 2);
  assert.equal(lock.writing, false);
  writer[Symbol.dispose]();
  assert.equal(lock.writing, false);
  (await reader)[Symbol.dispose]();
  assert.equal(lock.writing, true);
  (await second)[Symbol.dispose]();
});

test('C8 upgrade is immediate for a lone reader, and lets writers that wait go first otherwise', async () => {
  const lock = new CoRwLock();
  const lone = lock.readLock() as RwHeld;
  assert.equal(lock.upgrade(lone), lone);
  assert.equal(lock.writing, true);
  lock.downgrade(lone);
  const order: string[] = [];
  const other = (async () => {
    using _held = await lock.writeLock();
    order.push('other writer');
  })();
  const upgraded = lock.upgrade(lone);
  assert.ok(upgraded instanceof Promise);
  assert.throws(() => lone[Symbol.dispose](), Bug, 'nothing is held while the upgrade waits');
  await upgraded;
  order.push('upgraded');
  lone[Symbol.dispose]();
  await other;
  assert.deepEqual(order, ['other writer', 'upgraded']);
});

test('C8 two readers that both upgrade do not wait for each other', async () => {
  const lock = new CoRwLock();
  const a = lock.readLock() as RwHeld;
  const b = lock.readLock() as RwHeld;
  const first = lock.upgrade(a);
  const second = lock.upgrade(b);
  (await first)[Symbol.dispose]();
  (await second)[Symbol.dispose]();
  assert.equal(lock.readers, 0);
  assert.equal(lock.writing, false);
});

test('C8 misuse is a bug: double release, downgrade of a reader, upgrade of a writer', () => {
  const lock = new CoRwLock();
  const reader = lock.readLock() as RwHeld;
  assert.throws(() => lock.downgrade(reader), Bug);
  reader[Symbol.dispose]();
  assert.throws(() => reader[Symbol.dispose](), Bug);
  const writer = lock.writeLock() as RwHeld;
  assert.throws(() => lock.upgrade(writer), Bug);
  assert.throws(() => new CoRwLock().downgrade(writer), Bug);
});

test('C8 readers never meet a writer and everybody gets in, for every interleaving', async () => {
  const kinds = fc.constantFrom('read' as const, 'write' as const, 'upgrade' as const, 'downgrade' as const);
  const steps = fc.array(fc.record({ kind: kinds, arrive: fc.nat(8), hold: fc.nat(5) }), { maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(steps, async (coroutines) => {
      const lock = new CoRwLock();
      let readers = 0;
      let writers = 0;
      const check = (): void => assert.ok(writers <= 1 && (writers === 0 || readers === 0));
      const read = async (hold: number): Promise<void> => {
        readers++;
        check();
        await turns(hold);
        readers--;
      };
      const write = async (hold: number): Promise<void> => {
        writers++;
        check();
        await turns(hold);
        writers--;
      };
      await Promise.all(
        coroutines.map(async ({ kind, arrive, hold }) => {
          await turns(arrive);
          const writeFirst = kind === 'write' || kind === 'downgrade';
          using held = await (writeFirst ? lock.writeLock() : lock.readLock());
          await (writeFirst ? write(hold) : read(hold));
          if (kind === 'upgrade') {
            await lock.upgrade(held);
            await write(hold);
          } else if (kind === 'downgrade') {
            lock.downgrade(held);
            await read(hold);
          }
        }),
      );
      assert.equal(lock.readers + lock.waiters, 0);
      assert.equal(lock.writing, false);
    }),
    { numRuns: 300 },
  );
});
