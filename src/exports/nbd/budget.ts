/**
 * The payload memory of all connections of a server: one region of a fixed size, handed out in power-of-two blocks.
 * When it is used up, connections wait in the order they came; memory never grows. Home thread only, nothing here
 * suspends.
 */
import type { AioContext } from '../../aio/context.ts';
import type { Timer } from '../../aio/timers.ts';
import { assert } from '../../base/assert.ts';
import { Buddy } from '../../base/buddy.ts';
import { Fifo } from '../../base/fifo.ts';
import { FreeList } from '../../base/free-list.ts';
import type { Memory } from '../../base/memory.ts';
import { type Bytes, KiB, MiB, type Offset } from '../../base/units.ts';

/** The smallest block; also the alignment of all, so that direct I/O can use them. */
export const BLOCK_MIN = 4 * KiB;
/** Blocks of one size that are kept at hand instead of being merged. */
const KEEP_BYTES = 1 * MiB;

/** Memory that was in use is given back to the system after it has rested for this long. */
const REST_NS = 1_000_000_000;
/** How often those who hold memory are asked whether they move, while others wait. */
const STARVE_NS = 30_000_000_000;
/** Receive memories that are kept for the next clients. */
const SPARES = 16;

/**
 * A connection's own block, outside the common stock: whatever the other clients hold (and never read), each connection
 * has memory for one request of this length and so is served, if slowly.
 */
export const LIFELINE: Bytes = 64 * KiB;

/** Somebody who waits for memory. */
export interface BudgetWaiter {
  /** Memory may be there now: try again, in this call, and wait again if it is not. */
  budgetFreed(): void;
}

export class ByteBudget {
  readonly memory: Memory;
  /** The same bytes as words, for looking for zeroes without making a view. */
  readonly words: Uint32Array;
  readonly #buddy: Buddy;
  /** Free blocks by order, not merged: the common sizes come from here. */
  readonly #kept: FreeList<number>[] = [];
  /** The size of a block of each order. */
  readonly #blockBytes: number[] = [];
  readonly #waiters = new Fifo<BudgetWaiter>();
  readonly #lifelines: number[] = [];
  readonly #backend: AioContext['backend'];
  readonly #rest: Timer;
  readonly #starving: Timer;
  /** Told now and then while somebody waits. */
  onStarved: () => void = () => {};
  readonly #spares: Memory[] = [];
  #waking = false;
  /** The waiter that is being woken has got a block. */
  #served = false;
  #inUse = 0;
  /** Blocks handed out since the rest timer looked last. */
  #recent = 0;

  /** `bytes` is rounded down to a power of two, at least 64 KiB; `lifelines` blocks of {@link LIFELINE} come on top. */
  constructor(context: AioContext, bytes: Bytes, lifelines = 0) {
    const size = 2 ** Math.floor(Math.log2(Math.max(bytes, 64 * KiB)));
    const all = size + lifelines * LIFELINE;
    // Shared buffers begin at a multiple of 16 only: blocks are to be page-aligned in memory.
    const raw = new Uint8Array(new SharedArrayBuffer(all + BLOCK_MIN));
    const address = context.backend.memory(raw).address;
    const skip = (BLOCK_MIN - (address % BLOCK_MIN)) % BLOCK_MIN;
    this.memory = context.backend.memory(raw.subarray(skip, skip + all));
    this.words = new Uint32Array(raw.buffer, skip, all / 4);
    this.#buddy = new Buddy(size, BLOCK_MIN);
    for (let block = BLOCK_MIN; block <= size; block *= 2) {
      this.#kept.push(new FreeList());
      this.#blockBytes.push(block);
    }
    for (let at = size; at < all; at += LIFELINE) this.#lifelines.push(at);
    this.#backend = context.backend;
    this.#rest = context.timer(() => this.#rested(), 'nbd memory');
    this.#starving = context.timer(() => this.#starved(), 'nbd memory is short');
  }

  /** Receive memory for one connection: {@link giveReceiveMemory} it back. Bounded by the number of connections. */
  takeReceiveMemory(bytes: Bytes): Memory {
    const spare = this.#spares.pop();
    if (spare?.bytes.length === bytes) return spare;
    return this.#backend.memory(new Uint8Array(new SharedArrayBuffer(bytes)));
  }

  giveReceiveMemory(memory: Memory): void {
    if (this.#spares.length < SPARES) this.#spares.push(memory);
  }

  /** The server has stopped. */
  close(): void {
    this.#rest.cancel();
    this.#starving.cancel();
    this.#spares.length = 0;
  }

  /** The offset of a lifeline, for as long as the caller likes; -1 when there is none left. */
  takeLifeline(): Offset {
    return this.#lifelines.pop() ?? -1;
  }

  giveLifeline(at: Offset): void {
    if (at >= 0) this.#lifelines.push(at);
  }

  get size(): Bytes {
    return this.#buddy.bytes;
  }

  /** Bytes that connections hold, in whole blocks. */
  get inUse(): Bytes {
    return this.#inUse;
  }

  /**
   * The offset in {@link memory} of a block of at least `length` bytes; -1 when there is none, or others wait already.
   */
  allocate(length: Bytes): Offset {
    if (this.#waiters.length > 0 && (!this.#waking || this.#served)) return -1;
    const order = orderOf(length);
    const kept = this.#kept[order];
    assert(kept, 'a block is larger than the budget');
    let at = kept.length > 0 ? kept.take()! : this.#buddy.allocate(length);
    if (at < 0) {
      this.#mergeKept();
      at = this.#buddy.allocate(length);
    }
    if (at < 0) return -1;
    this.#served = true;
    this.#inUse += this.#blockBytes[order]!;
    this.#recent++;
    if (!this.#rest.armed) this.#rest.armIn(REST_NS);
    return at;
  }

  /** Gives back a block of `length` bytes (as asked for). Wakes the first who waits. */
  free(at: Offset, length: Bytes): void {
    const order = orderOf(length);
    const block = this.#blockBytes[order]!;
    this.#inUse -= block;
    const kept = this.#kept[order]!;
    if ((kept.length + 1) * block <= KEEP_BYTES && this.#waiters.length === 0) kept.give(at);
    else this.#buddy.free(at);
    if (this.#waiters.length > 0) this.#wake();
  }

  /** Queues `waiter`, to be told once when memory has come free. */
  wait(waiter: BudgetWaiter): void {
    if (this.#waking && !this.#served) this.#waiters.unshift(waiter);
    else this.#waiters.push(waiter);
    if (!this.#starving.armed) this.#starving.armIn(STARVE_NS);
  }

  forget(waiter: BudgetWaiter): void {
    this.#waiters.remove(waiter);
    if (this.#waiters.length > 0) this.#wake();
  }

  // In turn: the one at the head takes one block and goes to the back; when there is none for it, it stays at the head
  // and nobody passes it.
  #wake(): void {
    if (this.#waking) return;
    this.#waking = true;
    for (let waiter = this.#waiters.shift(); waiter; waiter = this.#waiters.shift()) {
      this.#served = false;
      waiter.budgetFreed();
      if (!this.#served && this.#waiters.peek() === waiter) break;
    }
    this.#waking = false;
  }

  #starved(): void {
    if (this.#waiters.length === 0) return;
    this.#starving.armIn(STARVE_NS);
    this.onStarved();
  }

  #rested(): void {
    if (this.#inUse > 0 || this.#recent > 0) {
      this.#recent = 0;
      this.#rest.armIn(REST_NS);
      return;
    }
    this.#mergeKept();
    // Not the lifelines, which are not counted.
    this.#backend.release(this.memory, 0, this.#buddy.bytes);
  }

  #mergeKept(): void {
    for (const kept of this.#kept) {
      for (let at = kept.take(); at !== undefined; at = kept.take()) this.#buddy.free(at);
    }
  }
}

function orderOf(length: Bytes): number {
  let order = 0;
  for (let size = BLOCK_MIN; size < length; size *= 2) order++;
  return order;
}
