/**
 * How far a look at an image's extents reaches. Of a disk that was written to at random there are too many to tell
 * apart, and each look at a file is a system call that waits for whoever writes to it: what begins with a short extent
 * is taken for data, and the next look that finds one passes over more. A long one is taken for what it is.
 */
import { type Bytes, KiB, MiB } from '../base/units.ts';

/** Extents that are shorter are not told apart. */
export const FRAGMENT_BYTES: Bytes = 256 * KiB;
const PASS_MAX: Bytes = 4 * MiB;

export class Glances {
  #pass = FRAGMENT_BYTES;

  /** How many bytes are done with, where `want` were asked for and the first `length` are one extent. One that goes on
   *  to the end of what was asked for is taken for what it is. */
  over(length: Bytes, want: Bytes): Bytes {
    if (length >= want) return length;
    if (length >= FRAGMENT_BYTES) {
      this.#pass = FRAGMENT_BYTES;
      return length;
    }
    const pass = this.#pass;
    this.#pass = Math.min(2 * pass, PASS_MAX);
    return pass;
  }
}
