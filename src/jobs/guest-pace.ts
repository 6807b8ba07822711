/**
 * How long a job rests while guests use its disk. What they do is counted apart for the time in which the job works and
 * for that in which it rests: the difference is what its work costs them, and it rests so much that they lose
 * {@link LOSS} of what they would do without it. Work that costs them nothing is done nearly without a rest.
 *
 * What a rest does not spare them (a write that waits for its copy, one that goes to both sides) is not seen here.
 */
import type { Nanoseconds } from '../base/units.ts';

const LOSS = 0.1;
/** Rest by work, until there is something to go by, and at most: then a job has the 33rd part of the time. */
const FACTOR_FIRST = 8;
const FACTOR_MAX = 32;
/** There is always some rest to compare with. */
const FACTOR_MIN = 0.25;
/** What was longer ago counts half, and so on. */
const MEMORY_NS: Nanoseconds = 500e6;
/** Of either kind; from less nothing is concluded. */
const SURE_NS: Nanoseconds = 20e6;
/** Longer than this nothing of ours goes on: somebody has paused the job. */
const STRANGE_NS: Nanoseconds = 1e9;

/** Guests' requests in a time. */
class Tally {
  ns: Nanoseconds = 0;
  requests = 0;

  add(ns: Nanoseconds, requests: number): void {
    if (ns > STRANGE_NS) return;
    this.ns += ns;
    this.requests += requests;
    if (this.ns < MEMORY_NS) return;
    this.ns /= 2;
    this.requests /= 2;
  }

  get perNs(): number {
    return this.ns === 0 ? 0 : this.requests / this.ns;
  }
}

export class GuestPace {
  readonly #work = new Tally();
  readonly #rest = new Tally();

  /** The job has worked for so long, and guests have begun so many requests meanwhile. */
  worked(ns: Nanoseconds, requests: number): void {
    this.#work.add(ns, requests);
  }

  rested(ns: Nanoseconds, requests: number): void {
    this.#rest.add(ns, requests);
  }

  /** How many times as long as it has worked the job is to rest. */
  get factor(): number {
    if (this.#work.ns < SURE_NS || this.#rest.ns < SURE_NS || this.#rest.requests === 0) return FACTOR_FIRST;
    const lost = Math.max(0, 1 - this.#work.perNs / this.#rest.perNs);
    return Math.min(Math.max(lost / LOSS - 1, FACTOR_MIN), FACTOR_MAX);
  }
}
