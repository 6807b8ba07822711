/**
 * The seam's conformance suite: what every backend must do, as node:test tests. Call it once a backend:
 * `seamConformance('pool', () => new PoolBackend())`. A sim backend must come from a world that drives itself.
 */
import assert from 'node:assert/strict';
import { Errno } from '../base/errors.ts';
import { Iov } from '../base/memory.ts';
import type { AioBackend } from './backend.ts';
import { fileConformance } from './seam-files.ts';
import { closeAll, type DefineTest, SeenOp, seamTests } from './seam-harness.ts';
import { socketConformance } from './seam-sockets.ts';

export function seamConformance(name: string, makeBackend: () => AioBackend): void {
  const test = seamTests(name, makeBackend);
  loopConformance(test);
  stopConformance(test);
  fileConformance(test);
  socketConformance(test);
}

function loopConformance(test: DefineTest): void {
  test('an idle context wakes up for a bottom half', async ({ context }) => {
    for (let i = 0; i < 3; i++) {
      await new Promise((resolve) => setTimeout(resolve, 5));
      await new Promise<void>((resolve) => context.oneshot(resolve));
    }
  });

  test('a timer runs at its time, not before, and earlier ones first', async ({ context }) => {
    const order: string[] = [];
    const started = context.now();
    await new Promise<void>((resolve) => {
      const late = context.timer(() => {
        order.push('late');
        resolve();
      }, 'late');
      const early = context.timer(() => order.push('early'), 'early');
      late.armIn(20_000_000);
      early.armIn(5_000_000);
    });
    assert.deepEqual(order, ['early', 'late']);
    assert.ok(context.now() - started >= 20_000_000);
  });

  test('a synchronous turn runs what is pending', async ({ context }) => {
    let ran = 0;
    context.oneshot(() => ran++);
    assert.equal(context.poll(false), true);
    assert.equal(ran, 1);
    assert.equal(context.poll(false), false);
  });

  test('a turn may be nested in a completion', async ({ context, backend }) => {
    const op = new SeenOp();
    const inner = new SeenOp();
    context.completeLater(op, 1);
    context.oneshot(() => {
      context.completeLater(inner, 2);
      backend.poll(false);
    });
    assert.equal(await inner.result(), 2);
    assert.deepEqual(op.results, [1]);
  });

  test('what libuv and promises have to do goes on beside it', async ({ context }) => {
    let timers = 0;
    const interval = setInterval(() => timers++, 1);
    while (timers < 3) {
      await context.yield();
      await new Promise((resolve) => setImmediate(resolve));
    }
    clearInterval(interval);
  });
}

function stopConformance(test: DefineTest): void {
  test('readiness of a descriptor is told, or refused with -ENOTSUP', async (seam) => {
    const op = new SeenOp();
    seam.backend.pollFd(op, 1, 4);
    assert.deepEqual(op.results, []);
    const result = await op.result();
    assert.ok(result === -Errno.ENOTSUP || (result & 4) !== 0, `result ${result}`);
  });

  test('stop ends what is still waiting, exactly once, and the context can be left', async (seam) => {
    const listener = await seam.backend.listen({ kind: 'unix', path: seam.path('l') });
    const { client, server } = await seam.pair();
    const file = await seam.create('f');
    const [accept, recv, write] = [new SeenOp(), new SeenOp(), new SeenOp()];
    listener.accept(accept);
    client.recv(recv, seam.memory(10), 0, 10, true);
    file.write(write, Iov.of(seam.memory(4096, 1)), 0, false);
    await seam.context.stop();
    assert.deepEqual(accept.results, [-Errno.ECANCELED]);
    assert.equal(recv.results.length, 1);
    assert.ok(recv.results[0]! <= 0);
    assert.equal(write.results.length, 1);
    await closeAll(client, server, listener, file).catch(() => undefined);
  });
}
