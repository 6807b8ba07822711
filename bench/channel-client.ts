/** A client thread of the channel benchmark: reads at a given depth, in the way its task says, and reports. */
import { parentPort, workerData } from 'node:worker_threads';
import { AioContext } from '../src/aio/context.ts';
import { chooseBackend } from '../src/aio/select.ts';
import { BlkHandle } from '../src/channel/handle.ts';
import type { BlkDescriptor } from '../src/channel/layout.ts';
import { BlkOp } from '../src/channel/op.ts';

/** How completions come: through an AioContext's loop, through node's, by looking again and again, or at once. */
export type Manner = 'loop' | 'node' | 'spin' | 'sync';

export interface ClientTask {
  readonly descriptor: BlkDescriptor;
  readonly manner: Manner;
  readonly depth: number;
  readonly requests: number;
  /** Word 0: clients that are ready; word 1: 1 when they may begin; word 2: clients that have ended. */
  readonly words: Int32Array<SharedArrayBuffer>;
}

export interface ClientReport {
  readonly seconds: number;
  /** Latencies in µs. */
  readonly p50: number;
  readonly p99: number;
  /** Requests that ended well, and otherwise. */
  readonly good: number;
  readonly bad: number;
  readonly homeWakes: number;
  readonly homeWakesSaved: number;
  readonly clientWakes: number;
  readonly clientWakesSaved: number;
}

const BLOCK = 4096;
/** Every so many requests of a deep queue are timed. */
const SAMPLE = 16;

class Reader extends BlkOp {
  readonly #run: Run;
  begun = 0;

  constructor(run: Run) {
    super();
    this.#run = run;
  }

  done(error: number): void {
    this.#run.ended(this, error);
  }
}

class Run {
  readonly handle: BlkHandle;
  readonly #task: ClientTask;
  readonly #times: Float64Array;
  readonly #every: number;
  #samples = 0;
  #left: number;
  good = 0;
  bad = 0;
  #begun = 0;
  onEnd: () => void = () => undefined;

  constructor(handle: BlkHandle, task: ClientTask) {
    this.handle = handle;
    this.#task = task;
    this.#left = task.requests;
    this.#every = task.depth === 1 ? 1 : SAMPLE;
    this.#times = new Float64Array(Math.ceil(task.requests / this.#every) + 1);
  }

  start(): void {
    const { depth } = this.#task;
    const region = this.handle.register(new SharedArrayBuffer(depth * BLOCK));
    this.#begun = performance.now();
    for (let i = 0; i < depth; i++) {
      const op = new Reader(this);
      op.iov.push(region, i * BLOCK, BLOCK);
      this.#submit(op);
    }
  }

  #submit(op: Reader): void {
    if (this.#left === 0) return;
    op.begun = this.#left-- % this.#every === 0 ? performance.now() : 0;
    op.at = (this.#left & 0xffff) * BLOCK;
    this.handle.submit(op);
  }

  ended(op: Reader, error: number): void {
    if (op.begun !== 0) this.#times[this.#samples++] = performance.now() - op.begun;
    if (error === 0) this.good++;
    else this.bad++;
    if (this.good + this.bad === this.#task.requests) this.onEnd();
    else this.#submit(op);
  }

  note(ms: number): void {
    this.#times[this.#samples++] = ms;
    this.good++;
  }

  report(): ClientReport {
    const seconds = (performance.now() - this.#begun) / 1000;
    const sorted = this.#times.subarray(0, this.#samples).sort();
    const at = (share: number): number => (sorted[Math.floor(sorted.length * share)] ?? Number.NaN) * 1000;
    return { seconds, p50: at(0.5), p99: at(0.99), good: this.good, bad: this.bad, ...this.handle.stats };
  }

  sync(): void {
    const { bytes } = this.handle.register(new SharedArrayBuffer(BLOCK));
    this.#begun = performance.now();
    for (let i = 0; i < this.#task.requests; i++) {
      const begin = performance.now();
      this.handle.readSync((i & 0xffff) * BLOCK, bytes);
      this.note(performance.now() - begin);
    }
  }
}

async function main(task: ClientTask): Promise<ClientReport> {
  const { manner, words } = task;
  const context =
    manner === 'loop' ? new AioContext(await chooseBackend(), { name: 'client', pollMaxNs: 0 }) : undefined;
  const handle = BlkHandle.attach(task.descriptor, context ? { context } : {});
  await handle.flush();
  Atomics.add(words, 0, 1);
  Atomics.wait(words, 1, 0);
  const run = new Run(handle, task);
  if (manner === 'sync') run.sync();
  else if (manner === 'spin') {
    let ended = false;
    run.onEnd = () => {
      ended = true;
    };
    run.start();
    while (!ended) handle.reap();
  } else {
    await new Promise<void>((resolve) => {
      run.onEnd = resolve;
      run.start();
    });
  }
  const report = run.report();
  Atomics.add(words, 2, 1);
  Atomics.notify(words, 2);
  await handle.close();
  await context?.stop();
  return report;
}

parentPort!.postMessage(await main(workerData as ClientTask));
