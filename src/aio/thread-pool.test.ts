import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateRaw } from 'node:zlib';
import { BlockError, Errno } from '../base/errors.ts';
import { AioContext } from './context.ts';
import { PoolBackend } from './pool/backend.ts';
import { SeenOp } from './seam-harness.ts';
import { PoolTask, ThreadPool } from './thread-pool.ts';

/** Work that ends when the test says so. */
class HeldTask extends PoolTask {
  started = false;
  start(): void {
    this.started = true;
  }
}

async function withContext(body: (context: AioContext) => Promise<void>): Promise<void> {
  const context = new AioContext(new PoolBackend());
  await body(context);
  await context.stop();
}

test('T1 a context has a pool of its own, with limits that are checked; 64 at once unless told otherwise', () =>
  withContext(async (context) => {
    const pool = new ThreadPool(context);
    assert.deepEqual([pool.min, pool.max], [0, 64]);
    for (const limits of [{ max: 0 }, { min: -1 }, { min: 5, max: 4 }, { max: 1.5 }]) {
      assert.throws(
        () => pool.setLimits(limits),
        (error) => error instanceof BlockError && error.code === 'EINVAL',
      );
    }
    pool.setLimits({ min: 1, max: 3 });
    assert.deepEqual([pool.min, pool.max], [1, 3]);
    const other = new PoolBackend();
    const second = new AioContext(other);
    assert.notEqual(other.threads, (context.backend as PoolBackend).threads);
    await second.stop();
  }));

test('T1 at most max pieces of work are under way, the others wait their turn', () =>
  withContext(async (context) => {
    const pool = new ThreadPool(context, { max: 2 });
    const tasks = Array.from({ length: 5 }, () => new HeldTask());
    const ops = tasks.map((task) => {
      const op = new SeenOp();
      pool.submit(task, op);
      return op;
    });
    const started = (): boolean[] => tasks.map((task) => task.started);
    assert.deepEqual(started(), [true, true, false, false, false]);
    assert.deepEqual([pool.running, pool.queued], [2, 3]);
    tasks[1]!.finish(7);
    assert.deepEqual(started(), [true, true, true, false, false]);
    pool.setLimits({ max: 3 });
    assert.deepEqual(started(), [true, true, true, true, false]);
    for (const task of [tasks[0]!, tasks[2]!, tasks[3]!, tasks[4]!]) task.finish(0);
    assert.equal(await ops[1]!.result(), 7);
    for (const op of ops) await op.result();
    assert.deepEqual([pool.running, pool.queued], [0, 0]);
  }));

test('T2 completions run in the home context, never inside submit; a completion may run a turn itself', () =>
  withContext(async (context) => {
    const pool = new ThreadPool(context);
    let nested: boolean | undefined;
    const second = new SeenOp();
    const first = new (class extends SeenOp {
      override complete(result: number): void {
        // The second one's end is in the queue already: a nested turn must find it.
        nested = context.poll(false);
        super.complete(result);
      }
    })();
    const tasks = [new HeldTask(), new HeldTask()];
    pool.submit(tasks[0]!, first);
    pool.submit(tasks[1]!, second);
    for (const task of tasks) task.finish(1);
    assert.deepEqual([first.results, second.results], [[], []]);
    await first.result();
    assert.equal(nested, true);
    assert.deepEqual(second.results, [1]);
  }));

test('T2 work that ends inside its start still completes later, and thousands of it do not pile up on the stack', () =>
  withContext(async (context) => {
    const pool = new ThreadPool(context, { max: 1 });
    const results = await Promise.all(Array.from({ length: 20_000 }, (_, i) => pool.run(() => i)));
    assert.equal(results[19_999], 19_999);
  }));

test('T3 cancel succeeds only while work is queued; work under way is never aborted', () =>
  withContext(async (context) => {
    const pool = new ThreadPool(context, { max: 1 });
    const [running, queued, last] = [new HeldTask(), new HeldTask(), new HeldTask()];
    const ops = [running, queued, last].map((task) => {
      const op = new SeenOp();
      pool.submit(task, op);
      return op;
    });
    assert.equal(pool.cancel(running), false);
    assert.equal(pool.cancel(queued), true);
    assert.equal(pool.cancel(queued), false, 'only once');
    assert.deepEqual(ops[1]!.results, [], 'not inside the call');
    assert.equal(await ops[1]!.result(), -Errno.ECANCELED);
    assert.equal(queued.started, false);
    assert.deepEqual(ops[0]!.results, []);
    running.finish(5);
    assert.equal(await ops[0]!.result(), 5);
    assert.equal(last.started, true);
    last.finish(6);
    assert.equal(await ops[2]!.result(), 6);
    assert.equal(pool.cancel(last), false);
  }));

test('T3 file operations that wait for a place are cancelled, those under way are not', () =>
  withContext(async (context) => {
    const backend = context.backend as PoolBackend;
    backend.threads.setLimits({ max: 1 });
    const file = await backend.openFile('/dev/null', { writable: true });
    const ops = Array.from({ length: 4 }, () => new SeenOp());
    for (const op of ops) file.datasync(op);
    for (const op of ops) backend.cancel(op);
    const results = [];
    for (const op of ops) results.push(await op.result());
    // fdatasync of a device that has no such thing is EINVAL: it ran.
    assert.notEqual(results[0], -Errno.ECANCELED);
    assert.deepEqual(results.slice(1), [-Errno.ECANCELED, -Errno.ECANCELED, -Errno.ECANCELED]);
    for (const op of ops) assert.equal(op.results.length, 1);
    await file.close();
  }));

test("run gives what the work gives: results of node's threads, errnos of what fails", () =>
  withContext(async (context) => {
    const pool = new ThreadPool(context);
    const squeeze = (): Promise<number> =>
      new Promise((resolve, reject) => {
        deflateRaw(Buffer.alloc(10_000), (error, out) => (error ? reject(error) : resolve(out.length)));
      });
    assert.ok((await pool.run(squeeze)) < 100);
    assert.equal(await pool.run(() => Promise.reject(new BlockError(Errno.ENOSPC, 'full'))), -Errno.ENOSPC);
    assert.equal(
      await pool.run(() => {
        throw new Error('unknown');
      }),
      -Errno.EIO,
    );
  }));

test('a task that is submitted twice, or ends twice, is a bug that is seen', () =>
  withContext(async (context) => {
    const pool = new ThreadPool(context);
    const task = new HeldTask();
    const op = new SeenOp();
    pool.submit(task, op);
    assert.throws(() => pool.submit(task, new SeenOp()), { name: 'Bug' });
    task.finish(0);
    assert.throws(() => task.finish(0), { name: 'Bug' });
    await op.result();
  }));
