/**
 * A simulated world: a disk, a network and a clock for any number of AioContexts in one thread. Everything that happens
 * is an event in one queue, ordered by virtual time, with latencies from one seeded source: the same seed gives the
 * same run, to the byte. What a test finds, its seed finds again.
 *
 *     const sim = new Sim(seed, { script: [{ op: 'write', nth: 3, errno: Errno.EIO }] });
 *     const context = new AioContext(sim.backend('main'));
 *     let done = false;
 *     void work(context).then(() => { done = true; });
 *     await sim.run(() => done);
 *     const after = sim.crash();      // the same disk after a power failure, in a new world
 */
import { assert } from '../../base/assert.ts';
import { Prng } from '../../base/prng.ts';
import type { Bytes, Nanoseconds } from '../../base/units.ts';
import { SimBackend } from './backend.ts';
import { SimDisk } from './disk.ts';
import { EventQueue, type SimEvent } from './events.ts';
import { type FaultOp, FaultSource, type ScriptedFault, type SimFaults } from './faults.ts';
import { SimNetwork } from './network.ts';

export type { FaultChances, FaultOp, ScriptedFault, SimFaults } from './faults.ts';

/** Events after which a run counts as one that will never end. */
const MAX_EVENTS = 20_000_000;
/** The clock begins here, so that no deadline is 0. */
const EPOCH_NS = 1_000_000_000;

/** Shortest and longest usual latency in ns. */
const LATENCY: Record<FaultOp, readonly [number, number]> = {
  read: [20_000, 120_000],
  write: [15_000, 90_000],
  datasync: [100_000, 900_000],
  allocate: [5_000, 50_000],
  truncate: [5_000, 50_000],
  recv: [200, 20_000],
  send: [200, 40_000],
  connect: [10_000, 60_000],
};

export class Sim {
  readonly seed: number;
  readonly prng: Prng;
  readonly disk: SimDisk;
  readonly network: SimNetwork;
  readonly faults: FaultSource;
  /** When set, it picks what happens next out of so many things, whatever their times: for trying all orders. */
  choose: ((count: number) => number) | undefined;
  /** As long as it says so, time stands still: a worker thread outside of this world has something to do for it. */
  outside: (() => boolean) | undefined;
  readonly #events = new EventQueue();
  readonly #backends: SimBackend[] = [];
  #now: Nanoseconds = EPOCH_NS;
  #running = false;
  #drivesItself = false;
  #pumping = false;

  constructor(seed = 1, faults: SimFaults = {}, disk = new SimDisk()) {
    this.seed = seed;
    this.prng = new Prng(seed);
    this.faults = new FaultSource(this.prng.fork(), faults);
    this.disk = disk;
    if (faults.capacity !== undefined) disk.capacity = faults.capacity;
    this.network = new SimNetwork(this);
  }

  /** Virtual time. */
  get now(): Nanoseconds {
    return this.#now;
  }

  /** A backend in this world, for one AioContext. */
  backend(name = 'main'): SimBackend {
    const backend = new SimBackend(this, name);
    this.#backends.push(backend);
    return backend;
  }

  /** One more fault, counted from now. */
  inject(fault: ScriptedFault): void {
    this.faults.add(fault);
  }

  /** The file's bytes as programs see them; undefined when there is none. */
  readDisk(path: string): Uint8Array | undefined {
    return this.disk.get(path);
  }

  /** Puts a file on the disk, durable at once. */
  writeDisk(path: string, bytes: Uint8Array): void {
    this.disk.put(path, bytes);
  }

  /** Schedules `run` in `ns` from now; `turn`: it is one of a loop. */
  after(ns: Nanoseconds, run: () => void, turn = false): SimEvent {
    const event = this.#events.push(this.#now + Math.max(0, ns), run, turn);
    if (this.#drivesItself) this.#pump();
    return event;
  }

  /** How long an operation takes this time: mostly within its usual range, sometimes ten times that. */
  latency(op: FaultOp): Nanoseconds {
    const [low, high] = LATENCY[op];
    const ns = this.prng.between(low, high);
    return this.prng.chance(0.03) ? ns * 10 : ns;
  }

  /**
   * Lets things happen, one event at a time with all microtasks after it, until `until` says so, or without `until` as
   * long as there is anything. Rejects when nothing is left and `until` is still false: the message names the seed and
   * what waits.
   */
  async run(until?: () => boolean): Promise<void> {
    assert(!this.#running && !this.#drivesItself, 'the simulation runs already');
    this.#running = true;
    try {
      for (let events = 0; ; events++) {
        do await microtasks();
        while (this.outside?.());
        if (until?.()) return;
        if (events >= MAX_EVENTS) throw new Error(`Sim seed ${this.seed}: no end after ${events} events`);
        if (!this.#step()) {
          if (!until) return;
          throw new Error(
            `Sim seed ${this.seed}: nothing is left to happen, but the end was not reached; ${this.#waiting()}`,
          );
        }
      }
    } finally {
      this.#running = false;
    }
  }

  /** Runs `work` to its end in this world, and gives its result. */
  async complete<T>(work: Promise<T>): Promise<T> {
    let settled = false;
    const settle = (): void => {
      settled = true;
    };
    work.then(settle, settle);
    await this.run(() => settled);
    return work;
  }

  /** From now on things happen by themselves, as fast as they can: for tests that know nothing of the simulation. What
   *  one context schedules in another by RemoteContext is then seen with the next event only. */
  driveItself(): void {
    this.#drivesItself = true;
    this.#pump();
  }

  /**
   * A new world with the disk as a power failure now would leave it: of what no datasync has covered, each write is
   * there, is missing, or is torn by sectors. This world goes on unharmed, so that many crashes can be tried.
   */
  crash(faults: SimFaults = {}): Sim {
    const prng = this.prng.fork();
    return new Sim(prng.below(2 ** 32), faults, this.disk.crash(prng));
  }

  /** Bytes in use on the disk. */
  get used(): Bytes {
    return this.disk.used;
  }

  #step(): boolean {
    // Work from another context of this world: there is no thread to wake, so it is looked for.
    for (const backend of this.#backends) backend.takeRemote();
    const event = this.choose ? this.#events.pick(this.choose) : this.#events.shift();
    if (!event) return false;
    this.#now = Math.max(this.#now, event.time);
    event.run();
    return true;
  }

  #waiting(): string {
    const waiting = this.#backends.flatMap((backend) => backend.describe());
    return waiting.length === 0 ? 'no operation is in flight' : `in flight: ${waiting.join(', ')}`;
  }

  #pump(): void {
    if (this.#pumping) return;
    this.#pumping = true;
    setImmediate(() => {
      this.#pumping = false;
      if (this.#step()) this.#pump();
    });
  }
}

/** Lets every microtask run that is ready, and those that they make ready. */
function microtasks(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
