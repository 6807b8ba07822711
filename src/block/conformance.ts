/**
 * What every driver has to hold, as tests: run it on a driver of your own.
 *
 * ```ts
 * driverConformance({ test, name: 'mine', open: async (size) => ({ blk, close: () => blk.close() }), writable: true });
 * ```
 */

import { assert } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { Iov, type Memory } from '../base/memory.ts';
import { KiB, MiB } from '../base/units.ts';
import type { BlockBackend } from './backend.ts';
import { Perm, RequestFlags } from './driver.ts';
import { BlockStatus } from './status.ts';

export interface ConformanceTarget {
  readonly blk: BlockBackend;
  close(): Promise<void>;
}

export interface ConformanceOptions {
  /** node:test's `test`, or something like it. */
  readonly test: (name: string, body: () => Promise<void>) => unknown;
  readonly name: string;
  /** Opens a fresh image of that many bytes that reads as zeroes. */
  readonly open: (size: number) => Promise<ConformanceTarget>;
  readonly writable: boolean;
  /** Where written bytes cannot be read back (null-co). */
  readonly forgets?: boolean;
  readonly seed?: number;
}

const SIZE = MiB + 64 * KiB;

/** Registers the tests. */
export function driverConformance(options: ConformanceOptions): void {
  const suite = new Suite(options);
  suite.add('reads give what was written, at random offsets and lengths', (run) => run.randomTraffic());
  suite.add('the first and the last bytes can be read and written, and none beyond', (run) => run.boundaries());
  suite.add('requests of no length succeed', (run) => run.nothing());
  suite.add('memory in many runs is one request', (run) => run.shapes());
  suite.add('requests that overlap nothing can be in flight together', (run) => run.together());
  suite.add('block status covers every byte once, and what it calls zero reads as zeroes', (run) => run.status());
  suite.add('a drained section sees nothing in flight', (run) => run.drained());
  if (!options.writable) return;
  suite.add('zeroed ranges read as zeroes, the rest as before', (run) => run.zeroes());
  suite.add('a discard leaves everything outside its range alone', (run) => run.discards());
  suite.add('flush and FUA succeed', (run) => run.flushes());
  suite.add('a resize keeps what remains and adds zeroes', (run) => run.resizes());
}

class Suite {
  readonly #options: ConformanceOptions;

  constructor(options: ConformanceOptions) {
    this.#options = options;
  }

  add(title: string, body: (run: Run) => Promise<void>): void {
    this.#options.test(`${this.#options.name}: ${title}`, async () => {
      const target = await this.#options.open(SIZE);
      try {
        const run = new Run(target.blk, this.#options);
        await body(run);
        assert(target.blk.inFlight === 0, 'requests are left in flight');
        assert(target.blk.root === null || target.blk.root.inFlight === 0, 'the root node counts requests in flight');
      } finally {
        await target.close();
      }
    });
  }
}

function same(actual: Uint8Array, expected: Uint8Array, what: string): void {
  assert(actual.length === expected.length, `${what}: ${actual.length} bytes, not ${expected.length}`);
  for (let i = 0; i < actual.length; i++) {
    if (actual[i] !== expected[i]) assert(false, `${what}: byte ${i} is ${actual[i]}, not ${expected[i]}`);
  }
}

/** One image and a model of what must be in it. */
class Run {
  readonly #blk: BlockBackend;
  readonly #options: ConformanceOptions;
  readonly #writable: boolean;
  readonly #model = new Uint8Array(SIZE);
  #random: number;

  constructor(blk: BlockBackend, options: ConformanceOptions) {
    this.#blk = blk;
    this.#options = options;
    this.#writable = options.writable && options.forgets !== true;
    this.#random = options.seed ?? 1;
  }

  /** 0..below-1 (a linear congruential generator: the same for every run). */
  #below(below: number): number {
    this.#random = (Math.imul(this.#random, 1664525) + 1013904223) >>> 0;
    return Math.floor((this.#random / 2 ** 32) * below);
  }

  #memory(length: number): Memory {
    return this.#blk.context.backend.memory(new Uint8Array(new SharedArrayBuffer(Math.max(1, length))));
  }

  async #read(at: number, length: number): Promise<Uint8Array> {
    const memory = this.#memory(length);
    memory.bytes.fill(0xa5);
    await this.#blk.read(at, Iov.of(memory, 0, length));
    return memory.bytes.subarray(0, length);
  }

  async #write(at: number, length: number, flags = 0): Promise<void> {
    const memory = this.#memory(length);
    const first = this.#below(256);
    for (let i = 0; i < length; i++) memory.bytes[i] = (first + i * 7 + (i >> 8)) & 0xff;
    if (this.#writable && at + length <= SIZE) this.#model.set(memory.bytes.subarray(0, length), at);
    await this.#blk.write(at, Iov.of(memory, 0, length), flags);
  }

  async #check(at: number, length: number, what = 'read'): Promise<void> {
    same(await this.#read(at, length), this.#model.subarray(at, at + length), `${what} of ${length} at ${at}`);
  }

  async randomTraffic(): Promise<void> {
    for (let i = 0; i < 100; i++) {
      const length = 1 + this.#below(this.#below(4) === 0 ? 128 * KiB : 5000);
      const at = this.#below(SIZE - length);
      if (this.#options.writable && this.#below(2) === 0) await this.#write(at, length);
      else await this.#check(at, length);
    }
    await this.#check(0, SIZE);
  }

  async boundaries(): Promise<void> {
    for (const [at, length] of [
      [0, 1],
      [SIZE - 1, 1],
      [0, 511],
      [1, 512],
      [4095, 2],
      [SIZE - 4097, 4097],
      [0, SIZE],
    ] as const) {
      if (this.#options.writable) await this.#write(at, length);
      await this.#check(at, length);
    }
    await this.#refused(() => this.#read(SIZE, 1), Errno.EIO);
    await this.#refused(() => this.#read(SIZE - 1, 2), Errno.EIO);
    if (this.#options.writable) await this.#refused(() => this.#write(SIZE - 1, 2), Errno.EIO);
    else await this.#refused(() => this.#write(0, 1), Errno.EPERM);
    await this.#check(SIZE - 512, 511);
  }

  async #refused(attempt: () => Promise<unknown>, errno: number): Promise<void> {
    try {
      await attempt();
    } catch (error) {
      assert(error instanceof BlockError && error.errno === errno, `refused with ${String(error)}`);
      return;
    }
    assert(false, 'a request that must be refused succeeded');
  }

  async nothing(): Promise<void> {
    for (const at of [0, 1, 513, SIZE]) {
      await this.#read(at, 0);
      if (!this.#options.writable) continue;
      await this.#write(at, 0);
      await this.#blk.writeZeroes(at, 0);
      await this.#blk.discard(at, 0);
    }
  }

  async shapes(): Promise<void> {
    for (const runs of [[1], [512, 512], [1, 511], [3, 5, 7, 4096, 11], new Array<number>(1500).fill(3)]) {
      const length = runs.reduce((sum, run) => sum + run, 0);
      const at = this.#below(SIZE - length);
      const memory = this.#memory(length * 2);
      const iov = new Iov();
      // Every run is apart from its neighbours.
      let from = 0;
      for (const run of runs) {
        iov.push(memory, from, run);
        from += run * 2;
      }
      if (this.#writable) {
        for (let i = 0; i < memory.bytes.length; i++) memory.bytes[i] = this.#below(256);
        const bytes = new Uint8Array(length);
        iov.copyTo(bytes);
        this.#model.set(bytes, at);
        await this.#blk.write(at, iov);
        memory.bytes.fill(0);
      }
      await this.#blk.read(at, iov);
      const back = new Uint8Array(length);
      iov.copyTo(back);
      same(back, this.#model.subarray(at, at + length), `${runs.length} runs`);
    }
  }

  async together(): Promise<void> {
    const stride = 7000;
    const all: Promise<void>[] = [];
    for (let at = 0; at + stride <= SIZE; at += stride) {
      if (this.#options.writable && (at / stride) % 2 === 0) all.push(this.#write(at, stride));
      else all.push(this.#check(at, stride));
    }
    await Promise.all(all);
    await this.#check(0, SIZE);
  }

  async status(): Promise<void> {
    if (this.#options.writable) {
      await this.#write(200 * KiB, 70_000);
      await this.#write(SIZE - 10, 10);
      await this.#blk.writeZeroes(210 * KiB, 20 * KiB, RequestFlags.MAY_UNMAP);
      this.#model.fill(0, 210 * KiB, 230 * KiB);
    }
    const out = new BlockStatus();
    for (let at = 0; at < SIZE; at += out.length) {
      await this.#blk.blockStatus(at, SIZE - at, out);
      assert(out.length > 0 && out.length <= SIZE - at, `an extent of ${out.length} bytes at ${at}`);
      assert(out.data || out.zero || this.#options.forgets === true, `neither data nor zero at ${at}`);
      if (!out.zero) continue;
      const bytes = await this.#read(at, out.length);
      assert(
        bytes.every((byte) => byte === 0),
        `called zero, but is not: ${out.length} at ${at}`,
      );
    }
    await this.#blk.blockStatus(1, 1, out);
    assert(out.length === 1, 'the status of one byte is one byte long');
  }

  async drained(): Promise<void> {
    const requests = [0, 1, 2, 3].map((n) => this.#check(n * 4096, 4096));
    const section = await this.#blk.drain();
    assert(this.#blk.inFlight === 0, 'in flight inside a drained section');
    const late = this.#check(0, 512);
    assert(this.#blk.inFlight === 0 && this.#blk.queued === 1, 'a request started inside a drained section');
    section.end();
    await Promise.all([...requests, late]);
  }

  async zeroes(): Promise<void> {
    await this.#write(0, SIZE);
    for (const flags of [0, RequestFlags.MAY_UNMAP, RequestFlags.FUA]) {
      for (const [at, length] of [
        [0, 4096],
        [5000, 1],
        [8191, 8193],
        [64 * KiB, 192 * KiB],
        [SIZE - 777, 777],
      ] as const) {
        await this.#blk.writeZeroes(at, length, flags);
        this.#model.fill(0, at, at + length);
        await this.#check(Math.max(0, at - 100), Math.min(length + 200, SIZE - Math.max(0, at - 100)), 'zeroed');
      }
      await this.#check(0, SIZE, 'after zeroing');
      await this.#write(0, 400 * KiB);
    }
  }

  async discards(): Promise<void> {
    await this.#write(0, SIZE);
    await this.#blk.discard(100_001, 300_000);
    await this.#check(0, 100_001, 'before the discarded range');
    await this.#check(400_001, SIZE - 400_001, 'after the discarded range');
    await this.#read(100_001, 300_000);
    await this.#write(100_001, 300_000);
    await this.#check(0, SIZE, 'written again');
  }

  async flushes(): Promise<void> {
    await this.#blk.flush();
    await this.#write(4096, 4096, RequestFlags.FUA);
    await this.#write(1, 77, RequestFlags.FUA);
    await this.#blk.flush();
    await Promise.all([this.#write(0, 4096), this.#blk.flush(), this.#blk.flush()]);
    await this.#check(0, 8192);
  }

  async resizes(): Promise<void> {
    const root = this.#blk.root;
    if (!root?.impl.truncate || (this.#blk.perm & Perm.RESIZE) === 0) return;
    await this.#write(0, SIZE);
    try {
      await this.#blk.truncate(SIZE + 8192);
    } catch (error) {
      if (error instanceof BlockError && error.errno === Errno.ENOTSUP) return;
      throw error;
    }
    assert(this.#blk.length === SIZE + 8192, `length is ${this.#blk.length} after growing`);
    await this.#check(0, SIZE);
    same(await this.#read(SIZE, 8192), new Uint8Array(8192), 'what was added');
    await this.#blk.truncate(SIZE - 65536);
    await this.#check(0, SIZE - 65536);
    await this.#blk.truncate(SIZE);
    if (this.#writable) same(await this.#read(SIZE - 65536, 65536), new Uint8Array(65536), 'what was cut off');
  }
}
