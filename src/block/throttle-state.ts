/**
 * What a throttle group has used of its limits, as leaky buckets in shared memory: the same for all threads. What goes
 * through fills a bucket, time empties it at the rate `avg`; one that is over full makes the next wait.
 *
 * Shared words, all changed under the lock only: the lock, a count of changes of the limits, then as numbers the time
 * of the last look, `iopsSize`, and for each rate avg, max, length, level and level of the burst. At the end, changed
 * by everybody: the count of nodes in the group; and what tells this memory from any other, as each message makes
 * another object of it. Whoever holds the lock holds it for some arithmetic, and waits for nothing; a thread that is
 * ended in the midst of that leaves it taken, so after `STEAL_SPINS` it is taken over.
 */
import type { Bytes, Nanoseconds } from '../base/units.ts';
import { RATES, type ThrottleLimits, type ThrottleRate } from './throttle-limits.ts';

const LOCK = 0;
const CHANGES = 1;
/** In numbers of 8 bytes. */
const LAST = 1;
const IOPS_SIZE = 2;
const FIRST = 3;
const AVG = 0;
const MAX = 1;
const LENGTH = 2;
const LEVEL = 3;
const BURST = 4;
const FIELDS = 5;
const NUMBERS = FIRST + RATES.length * FIELDS;
/** In words of 4 bytes. */
const USERS = NUMBERS * 2;
const IDENTITY = USERS + 1;
const BYTES = (IDENTITY + 1) * 4;
/** Some milliseconds: a hundred thousand times as long as it is ever held. */
const STEAL_SPINS = 1_000_000;
/** Contexts count time from when their thread began, and the group's is the same for all. */
const ORIGIN_NS: Nanoseconds = ((): Nanoseconds => {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1e9 + nanoseconds - performance.now() * 1e6;
})();
/** Of a rate without a maximum, what may come at once: the tenth of a second's. */
const BURST_PART = 10;

export class ThrottleState {
  readonly memory: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #numbers: Float64Array;

  /** Without `memory` a new one, without limits. */
  constructor(memory?: SharedArrayBuffer) {
    this.memory = memory ?? new SharedArrayBuffer(BYTES);
    this.#words = new Int32Array(this.memory);
    this.#numbers = new Float64Array(this.memory, 0, NUMBERS);
    if (!memory) this.#words[IDENTITY] = Math.floor(Math.random() * 2 ** 32);
  }

  /** It is the same memory, whatever object shows it. */
  isIn(memory: SharedArrayBuffer): boolean {
    return memory.byteLength === BYTES && new Int32Array(memory)[IDENTITY] === this.#words[IDENTITY];
  }

  /** Nodes in the group, in all threads. */
  get users(): number {
    return Atomics.load(this.#words, USERS);
  }

  addUsers(count: number): void {
    Atomics.add(this.#words, USERS, count);
  }

  /** Counts the changes of the limits. */
  get changes(): number {
    return Atomics.load(this.#words, CHANGES);
  }

  get limits(): ThrottleLimits {
    const numbers = this.#numbers;
    const rates: Record<string, ThrottleRate> = {};
    this.#lock();
    for (const [i, name] of RATES.entries()) {
      const at = FIRST + i * FIELDS;
      const [avg, max, maxLength] = [numbers[at + AVG]!, numbers[at + MAX]!, Math.max(1, numbers[at + LENGTH]!)];
      rates[name] = { avg, max, maxLength };
    }
    const iopsSize = numbers[IOPS_SIZE]!;
    this.#unlock();
    return { ...rates, iopsSize };
  }

  /** What was used so far is forgotten. */
  set limits(limits: ThrottleLimits) {
    const numbers = this.#numbers;
    this.#lock();
    for (const [i, name] of RATES.entries()) {
      const { avg, max = 0, maxLength = 1 } = limits[name] ?? { avg: 0 };
      numbers.set([avg, max, maxLength, 0, 0], FIRST + i * FIELDS);
    }
    numbers[IOPS_SIZE] = limits.iopsSize ?? 0;
    this.#unlock();
    Atomics.add(this.#words, CHANGES, 1);
  }

  /** True where requests of that direction may have to wait. */
  limited(write: boolean): boolean {
    for (let i = 0; i < RATES.length; i++) {
      if (applies(i, write) && this.#numbers[FIRST + i * FIELDS + AVG]! > 0) return true;
    }
    return false;
  }

  /** `now`: of a context of this thread. Lets a request through, and counts it: 0. Or else how long to wait before it
   *  is asked again. */
  take(write: boolean, length: Bytes, now: Nanoseconds): Nanoseconds {
    this.#lock();
    this.#leak(ORIGIN_NS + now);
    let wait = 0;
    for (let i = 0; i < RATES.length; i++) if (applies(i, write)) wait = Math.max(wait, this.#waitFor(i));
    if (wait === 0) for (let i = 0; i < RATES.length; i++) if (applies(i, write)) this.#fill(i, length);
    this.#unlock();
    return wait === 0 ? 0 : Math.ceil(wait * 1e9);
  }

  #leak(now: Nanoseconds): void {
    const numbers = this.#numbers;
    const seconds = Math.max(0, now - numbers[LAST]!) / 1e9;
    numbers[LAST] = Math.max(now, numbers[LAST]!);
    for (let i = 0; i < RATES.length; i++) {
      const at = FIRST + i * FIELDS;
      numbers[at + LEVEL] = Math.max(0, numbers[at + LEVEL]! - numbers[at + AVG]! * seconds);
      numbers[at + BURST] = Math.max(0, numbers[at + BURST]! - numbers[at + MAX]! * seconds);
    }
  }

  /** Seconds. */
  #waitFor(i: number): number {
    const numbers = this.#numbers;
    const at = FIRST + i * FIELDS;
    const [avg, max, length] = [numbers[at + AVG]!, numbers[at + MAX]!, numbers[at + LENGTH]!];
    if (avg === 0) return 0;
    const over = numbers[at + LEVEL]! - (max > 0 ? max * length : avg / BURST_PART);
    if (over > 0) return over / avg;
    // A long burst goes at its own rate, not all at once.
    const burst = length > 1 ? numbers[at + BURST]! - max / BURST_PART : 0;
    return burst > 0 ? burst / max : 0;
  }

  #fill(i: number, length: Bytes): void {
    const numbers = this.#numbers;
    const at = FIRST + i * FIELDS;
    if (numbers[at + AVG] === 0) return;
    const size = numbers[IOPS_SIZE]!;
    const units = i < 3 ? length : size > 0 ? Math.max(1, length / size) : 1;
    numbers[at + LEVEL] = numbers[at + LEVEL]! + units;
    if (numbers[at + LENGTH]! > 1) numbers[at + BURST] = numbers[at + BURST]! + units;
  }

  #lock(): void {
    for (let spins = 0; Atomics.compareExchange(this.#words, LOCK, 0, 1) !== 0; spins++) {
      if (spins > STEAL_SPINS) return;
    }
  }

  #unlock(): void {
    Atomics.store(this.#words, LOCK, 0);
  }
}

/** Total, read, write; of bytes, then of requests. */
function applies(i: number, write: boolean): boolean {
  return i % 3 === 0 || i % 3 === (write ? 2 : 1);
}
