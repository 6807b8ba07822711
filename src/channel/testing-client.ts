/** For tests: a plain worker thread that uses the handle it was given as its task says, and reports. */
import { parentPort, workerData } from 'node:worker_threads';
import { AioContext } from '../aio/context.ts';
import { type BackendChoice, chooseBackend } from '../aio/select.ts';
import { Prng } from '../base/prng.ts';
import { BlkHandle } from './handle.ts';
import type { BlkDescriptor } from './layout.ts';
import { BlkOp } from './op.ts';

export interface ClientTask {
  readonly descriptor: BlkDescriptor;
  readonly what: 'verify' | 'flood' | 'sync' | 'fill' | 'leave' | 'relay';
  /** Drives a context of its own. */
  readonly aio?: BackendChoice;
  readonly seed?: number;
  /** The part of the disk that is its own. */
  readonly from?: number;
  readonly length?: number;
  readonly times?: number;
  readonly depth?: number;
  readonly memory?: SharedArrayBuffer;
}

export interface ClientReport {
  readonly error?: { readonly code: string | undefined; readonly message: string };
  /** flood: completions by result. */
  readonly results?: ReadonlyMap<number, number>;
  /** flood: most and least often that one op was called back. */
  readonly calls?: number;
  readonly ms?: number;
  readonly homeWakes?: number;
  readonly homeWakesSaved?: number;
  readonly clientWakes?: number;
  readonly clientWakesSaved?: number;
}

const BLOCK = 512;

/** Random writes and reads of the thread's own range against a model. */
async function verify(handle: BlkHandle, { seed = 1, from = 0, length = 65536, times = 300 }: ClientTask) {
  const prng = new Prng(seed);
  const model = new Uint8Array(length);
  const memory = new SharedArrayBuffer(4 * BLOCK * 16);
  handle.register(memory);
  const first = new Uint8Array(memory).subarray(0, 8 * BLOCK);
  await handle.writeZeroes(from, length);
  for (let i = 0; i < times; i++) {
    const bytes = first.subarray(0, BLOCK * prng.between(1, 8));
    const at = BLOCK * prng.below((length - bytes.length) / BLOCK + 1);
    if (prng.chance(0.5)) {
      model.set(prng.fill(bytes), at);
      await handle.writev(from + at, [bytes.subarray(0, 100), bytes.subarray(100)]);
    } else {
      await handle.read(from + at, bytes.fill(1));
      if (!bytes.every((byte, n) => byte === model[at + n]))
        throw new Error(`other bytes at ${from + at}, seed ${seed}`);
    }
    if (prng.chance(0.05)) await handle.flush();
  }
}

class FloodOp extends BlkOp {
  readonly #done: (op: FloodOp, error: number) => void;
  calls = 0;

  constructor(done: (op: FloodOp, error: number) => void) {
    super();
    this.#done = done;
  }

  done(error: number): void {
    this.calls++;
    this.#done(this, error);
  }
}

/** `times` reads, `depth` at a time. */
function flood(handle: BlkHandle, { times = 1000, depth = 32 }: ClientTask): Promise<ClientReport> {
  return new Promise((resolve) => {
    const results = new Map<number, number>();
    const region = handle.register(new SharedArrayBuffer(depth * BLOCK));
    let left = times;
    let ended = 0;
    let calls = 0;
    const begin = performance.now();
    const again = (op: FloodOp, error: number): void => {
      results.set(error, (results.get(error) ?? 0) + 1);
      calls++;
      if (++ended === times) resolve({ results, calls, ms: performance.now() - begin, ...handle.stats });
      else submit(op);
    };
    const submit = (op: FloodOp): void => {
      if (left === 0) return;
      left--;
      op.at = (left % 2048) * BLOCK;
      handle.submit(op);
    };
    for (let i = 0; i < depth; i++) {
      const op = new FloodOp(again);
      op.iov.push(region, i * BLOCK, BLOCK);
      submit(op);
    }
  });
}

function sync(handle: BlkHandle, { seed = 1, from = 0, times = 200 }: ClientTask): void {
  const prng = new Prng(seed);
  const memory = new SharedArrayBuffer(2 * BLOCK);
  handle.register(memory);
  const [out, back] = [new Uint8Array(memory, 0, BLOCK), new Uint8Array(memory, BLOCK, BLOCK)];
  for (let i = 0; i < times; i++) {
    prng.fill(out);
    handle.writeSync(from, out);
    handle.readSync(from, back);
    if (!back.every((byte, n) => byte === out[n])) throw new Error(`other bytes, seed ${seed}`);
  }
  handle.flushSync();
}

/** Puts `times` reads into the given memory on their way and never looks again. */
function fill(handle: BlkHandle, { memory, times = 100 }: ClientTask): void {
  const region = handle.register(memory!);
  for (let i = 0; i < times; i++) {
    const op = new FloodOp(() => undefined);
    op.at = i * BLOCK;
    op.iov.push(region, i * BLOCK, BLOCK);
    handle.submit(op);
  }
}

async function run(task: ClientTask): Promise<ClientReport> {
  const context = task.aio ? new AioContext(await chooseBackend(task.aio), { name: 'client' }) : undefined;
  const handle = BlkHandle.attach(task.descriptor, context ? { context } : {});
  try {
    if (task.what === 'verify') await verify(handle, task);
    else if (task.what === 'flood') return await flood(handle, task);
    else if (task.what === 'sync') sync(handle, task);
    else if (task.what === 'relay') {
      const descriptor = handle.share();
      parentPort!.postMessage(descriptor, [descriptor.port]);
    } else {
      fill(handle, task);
      parentPort!.postMessage({});
      // Stays until it is ended from outside.
      if (task.what === 'fill') await new Promise((resolve) => setTimeout(resolve, 60_000));
      else process.exit(0);
    }
    return {};
  } catch (error) {
    return { error: { code: (error as { code?: string }).code, message: (error as Error).message } };
  } finally {
    if (!handle.closed) await handle.close().catch(() => undefined);
    await context?.stop();
  }
}

parentPort?.postMessage(await run(workerData as ClientTask));
