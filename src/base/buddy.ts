/**
 * A buddy allocator: hands out power-of-two blocks of a range and merges what comes back. It knows offsets only, holds
 * no memory of its own but one byte for every two smallest blocks, and allocates nothing after it was made.
 *
 * `#best[i]` is 1 + the order of the largest free block below tree node `i` (root 1, children 2i and 2i+1), 0 for none.
 * A block that is handed out has 0 at its node and untouched values below it: so the first 0 on the way up from a leaf
 * is the block that the leaf belongs to.
 */
import { assert, Bug } from './assert.ts';
import { type Bytes, isPowerOfTwo, type Offset } from './units.ts';

const MAX_BYTES = 2 ** 30;

export class Buddy {
  readonly bytes: Bytes;
  readonly unit: Bytes;
  readonly #best: Uint8Array;
  readonly #orders: number;
  #used = 0;

  /** Manages `bytes` in blocks of at least `unit`; both powers of two. */
  constructor(bytes: Bytes, unit: Bytes) {
    assert(isPowerOfTwo(bytes) && isPowerOfTwo(unit) && unit <= bytes, 'buddy: sizes must be powers of two');
    // Offsets in memory, not on a disk: they stay small integers, which cost no allocation when they are passed on.
    assert(bytes <= MAX_BYTES, 'buddy: at most 1 GiB');
    this.bytes = bytes;
    this.unit = unit;
    this.#orders = Math.log2(bytes / unit);
    this.#best = new Uint8Array(2 << this.#orders);
    for (let depth = 0; depth <= this.#orders; depth++) {
      this.#best.fill(this.#orders - depth + 1, 1 << depth, 2 << depth);
    }
  }

  /** Bytes handed out, rounded up to whole blocks. */
  get used(): Bytes {
    return this.#used;
  }

  /** The offset of a block of at least `bytes`, aligned to its own size; -1 when there is none. */
  allocate(bytes: Bytes): Offset {
    const order = this.#orderOf(bytes);
    const best = this.#best;
    if (order > this.#orders || best[1]! <= order) return -1;
    let node = 1;
    for (let at = this.#orders; at > order; at--) {
      const left = best[2 * node]!;
      const right = best[2 * node + 1]!;
      const goLeft = left > order && (right <= order || left <= right);
      node = goLeft ? 2 * node : 2 * node + 1;
    }
    best[node] = 0;
    this.#used += this.unit << order;
    const offset = (node - (1 << (this.#orders - order))) * (this.unit << order);
    this.#repair(node, order);
    return offset;
  }

  /** Gives back a block by the offset that {@link allocate} answered. Anything else is a bug. */
  free(offset: Offset): void {
    const best = this.#best;
    let node = (1 << this.#orders) + offset / this.unit;
    let order = 0;
    while (node > 0 && best[node] !== 0) {
      node = node >> 1;
      order++;
    }
    const start = (node - (1 << (this.#orders - order))) * (this.unit << order);
    if (node === 0 || start !== offset) throw new Bug(`buddy: no block at ${offset} to free`);
    best[node] = order + 1;
    this.#used -= this.unit << order;
    this.#repair(node, order);
  }

  #orderOf(bytes: Bytes): number {
    let order = 0;
    for (let size = this.unit; size < bytes; size *= 2) order++;
    return order;
  }

  /** Brings the nodes above `node`, which has `order`, up to date; two free halves become one whole. */
  #repair(node: number, order: number): void {
    const best = this.#best;
    let full = order + 1;
    for (let up = node >> 1; up > 0; up >>= 1) {
      const left = best[2 * up]!;
      const right = best[2 * up + 1]!;
      best[up] = left === full && right === full ? full + 1 : Math.max(left, right);
      full++;
    }
  }
}
