/** How fast a job may go: bytes in slices of time. Who has used up a slice waits for the next. */
import type { Bytes, Nanoseconds } from '../base/units.ts';

const SLICE_NS = 100_000_000;

export class RateLimit {
  #perSlice = 0;
  #sliceEnd: Nanoseconds = 0;
  #used: Bytes = 0;

  /** Bytes a second; 0 for no limit. */
  set speed(bytes: Bytes) {
    this.#perSlice = bytes === 0 ? 0 : Math.max(1, bytes * (SLICE_NS / 1e9));
    this.#sliceEnd = 0;
  }

  /** Counts `length` bytes that begin at `now`; answers how long to wait before more. A piece larger than a slice takes
   *  the time of as many slices as it fills. */
  take(length: Bytes, now: Nanoseconds): Nanoseconds {
    if (this.#perSlice === 0) return 0;
    if (now >= this.#sliceEnd) {
      this.#sliceEnd = now + SLICE_NS;
      this.#used = 0;
    }
    this.#used += length;
    if (this.#used < this.#perSlice) return 0;
    return this.#sliceEnd - now + (Math.floor(this.#used / this.#perSlice) - 1) * SLICE_NS;
  }
}
