/**
 * Adaptive polling (SEMANTICS P1-P4): before it sleeps, a context spins for as long as that has paid off lately.
 *
 * A wait that ended within the spinning keeps the length; one that took longer than `maxNs` shrinks it, because
 * spinning could not have caught it; one in between grows it. After {@link POLL_IDLE_NS} without a hit spinning stops.
 *
 * The maximum is twice QEMU's: a wait that ended in sleep has the wake-up in it, 20 to 40 us on a virtual machine whose
 * processors halt. With 32 us a client that asks one thing at a time and was let sleep once looked too slow to spin
 * for, for good: 19k requests a second instead of 40k, for the same processor time each.
 *
 * Where the other side shares our processor, it goes on only once we sleep: every spin then misses, and what comes
 * right after makes the length grow. So after {@link MISSES_TO_REST} misses in a row spinning rests, for longer each
 * time.
 */
import type { Nanoseconds } from '../base/units.ts';
import type { PollPolicy } from './backend.ts';

export const POLL_MAX_NS_DEFAULT = 65_536;
/** The first length that is tried. */
export const POLL_START_NS = 4_000;
export const POLL_IDLE_NS = 7_000_000_000;

export const MISSES_TO_REST = 4;
/** In waits; a sleep and a wake-up take some 10 µs, so a few milliseconds. */
export const REST_MAX = 256;

export interface PollOptions {
  /** Longest spin in ns; 0 turns polling off. Default 65536. */
  readonly pollMaxNs?: Nanoseconds;
  /** Factor to grow by; 0 (default) means 2. */
  readonly pollGrow?: number;
  /** Divisor to shrink by; 0 (default) means: to nothing. */
  readonly pollShrink?: number;
}

export class AdaptivePolling implements PollPolicy {
  maxNs: Nanoseconds;
  #grow: number;
  #shrink: number;
  pollNs: Nanoseconds = 0;
  #sinceHitNs = 0;
  #misses = 0;
  #rest = 0;

  constructor(options: PollOptions = {}) {
    this.maxNs = options.pollMaxNs ?? POLL_MAX_NS_DEFAULT;
    this.#grow = options.pollGrow || 2;
    this.#shrink = options.pollShrink ?? 0;
  }

  /** From now on; what is left out stays. */
  set({ pollMaxNs = this.maxNs, pollGrow = this.#grow, pollShrink = this.#shrink }: PollOptions): void {
    this.maxNs = pollMaxNs;
    this.#grow = pollGrow || 2;
    this.#shrink = pollShrink;
    this.pollNs = Math.min(this.pollNs, pollMaxNs);
  }

  get rests(): boolean {
    return this.#rest > 0;
  }

  spun(hit: boolean): void {
    this.#misses = hit ? 0 : this.#misses + 1;
    if (this.#misses >= MISSES_TO_REST) this.#rest = Math.min(2 ** (this.#misses - MISSES_TO_REST), REST_MAX);
  }

  adjust(blockNs: Nanoseconds): void {
    if (this.maxNs === 0) return;
    if (this.#rest > 0) this.#rest--;
    if (blockNs <= this.pollNs) {
      this.#sinceHitNs = 0;
      return;
    }
    this.#sinceHitNs += blockNs;
    if (this.#sinceHitNs > POLL_IDLE_NS) {
      this.pollNs = 0;
      this.#sinceHitNs = 0;
    } else if (blockNs > this.maxNs) this.pollNs = this.#shrink === 0 ? 0 : Math.floor(this.pollNs / this.#shrink);
    else
      this.pollNs =
        this.pollNs === 0 ? Math.min(POLL_START_NS, this.maxNs) : Math.min(this.pollNs * this.#grow, this.maxNs);
  }
}
