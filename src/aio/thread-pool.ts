/**
 * The thread pool of one AioContext (SEMANTICS T1-T3): work that node runs in its worker threads (files, zlib, crypto),
 * at most `max` at a time, first come, first served; the end of each is an operation's end in the home context.
 *
 * The threads themselves are libuv's, and there is one set of them for the whole process: at most UV_THREADPOOL_SIZE
 * (4 unless the environment says otherwise, before node starts) pieces of work really run at once, over all contexts.
 * `max` bounds what one context hands to them, so that a busy one cannot fill libuv's queue for the others. libuv
 * starts its threads at first use and keeps them, so `min` is kept by nature; it is checked, because users set both.
 */
import { assert } from '../base/assert.ts';
import { BlockError, Errno, errnoOf } from '../base/errors.ts';
import { Fifo } from '../base/fifo.ts';
import { type AioOp, WaitOp } from './op.ts';

export const THREAD_POOL_MAX_DEFAULT = 64;

export interface ThreadPoolOptions {
  /** Most pieces of work under way at once. Default 64. */
  readonly max?: number;
  /** 0..max. */
  readonly min?: number;
}

/** Where results go: an AioContext, or the backend that drives it. */
export interface CompletionSink {
  completeLater(op: AioOp, result: number): void;
}

/** One piece of work. Reusable once its operation has ended. */
export abstract class PoolTask {
  /** @internal */ state: 'idle' | 'queued' | 'running' = 'idle';
  /** @internal */ op: AioOp | undefined;
  /** @internal */ pool: ThreadPool | undefined;

  /** Gives the work to node. Must lead to one call of {@link finish} in this thread, now or later; must not throw. */
  abstract start(): void;

  /** The work has ended with `result`: a count or 0, or a negative errno. */
  finish(result: number): void {
    this.pool!.finished(this, result);
  }
}

class FunctionTask extends PoolTask {
  readonly #work: () => number | Promise<number>;

  constructor(work: () => number | Promise<number>) {
    super();
    this.#work = work;
  }

  start(): void {
    try {
      const result = this.#work();
      if (typeof result === 'number') this.finish(result);
      else result.then(this.#end, this.#fail);
    } catch (error) {
      this.#fail(error);
    }
  }

  readonly #end = (result: number): void => this.finish(result);
  readonly #fail = (error: unknown): void => this.finish(-errnoOf(error));
}

/** Belongs to its context's thread: it cannot be reached from another one (T2). */
export class ThreadPool {
  readonly #sink: CompletionSink;
  readonly #queue = new Fifo<PoolTask>(64);
  #max = THREAD_POOL_MAX_DEFAULT;
  #min = 0;
  #running = 0;
  #pumping = false;

  constructor(sink: CompletionSink, options: ThreadPoolOptions = {}) {
    this.#sink = sink;
    this.setLimits(options);
  }

  /** EINVAL unless 0 <= min <= max and max >= 1. Work under way beyond a lower `max` goes on. */
  setLimits(options: ThreadPoolOptions): void {
    const max = options.max ?? THREAD_POOL_MAX_DEFAULT;
    const min = options.min ?? 0;
    const fine = Number.isInteger(min) && Number.isInteger(max) && min >= 0 && max >= 1 && min <= max;
    if (!fine) {
      throw new BlockError(Errno.EINVAL, `Could not set the thread pool's limits: min ${min}, max ${max}`);
    }
    this.#max = max;
    this.#min = min;
    this.#pump();
  }

  get max(): number {
    return this.#max;
  }

  get min(): number {
    return this.#min;
  }

  /** Pieces of work under way. */
  get running(): number {
    return this.#running;
  }

  /** Pieces of work that wait for a place. */
  get queued(): number {
    return this.#queue.length;
  }

  /** Queues `task`; `op` completes in the home context with its result, never inside this call. */
  submit(task: PoolTask, op: AioOp): void {
    assert(task.state === 'idle', 'a task was submitted twice');
    task.state = 'queued';
    task.op = op;
    task.pool = this;
    this.#queue.push(task);
    this.#pump();
  }

  /**
   * Runs `work` and resolves with its result, a negative errno when it fails. A function that computes does so in the
   * home thread; only what it asks of node (zlib, crypto, files) runs in the threads.
   */
  run(work: () => number | Promise<number>): Promise<number> {
    const op = new WaitOp();
    const result = op.wait();
    this.submit(new FunctionTask(work), op);
    return result;
  }

  /** Takes `task` back while it is queued: it completes with -ECANCELED. Work under way is never aborted: false. */
  cancel(task: PoolTask): boolean {
    if (task.state !== 'queued' || !this.#queue.remove(task)) return false;
    this.#end(task, -Errno.ECANCELED);
    return true;
  }

  /** @internal */
  finished(task: PoolTask, result: number): void {
    assert(task.state === 'running', 'a task ended twice');
    this.#running--;
    this.#end(task, result);
    this.#pump();
  }

  #end(task: PoolTask, result: number): void {
    const op = task.op!;
    task.state = 'idle';
    task.op = undefined;
    this.#sink.completeLater(op, result);
  }

  // Work that ends inside start() comes back here through finished(): the loop goes on, the stack does not grow.
  #pump(): void {
    if (this.#pumping) return;
    this.#pumping = true;
    while (this.#running < this.#max) {
      const task = this.#queue.shift();
      if (!task) break;
      this.#running++;
      task.state = 'running';
      task.start();
    }
    this.#pumping = false;
  }
}
