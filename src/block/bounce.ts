/**
 * Memory of the block layer's own, for what cannot go straight between the caller and the disk: padding of unaligned
 * requests, unaligned memory, zeroes. Bounded: who finds none waits, first come, first served.
 *
 * There is one pool for every height of the graph and use. A request may hold memory of one rank while it asks for some
 * of a lower rank, never the other way round, so that waiting cannot go round in a circle.
 */
import type { AioContext } from '../aio/context.ts';
import { Gate } from '../aio/op.ts';
import { assert } from '../base/assert.ts';
import { Fifo } from '../base/fifo.ts';
import { Iov, type Memory } from '../base/memory.ts';
import { alignUp, KiB, MiB } from '../base/units.ts';
import type { MaybePromise } from './driver.ts';

export const BOUNCE_SLOT = 64 * KiB;
/** Per rank, made when the first request needs it. */
export const BOUNCE_POOL = 4 * MiB;
/** The most that one request may ask for. */
export const BOUNCE_MAX = 2 * MiB + 2 * BOUNCE_SLOT;
/** Addresses of slots are multiples of this. */
const BOUNCE_ALIGNMENT = 4 * KiB;
const ZERO_BYTES = MiB;

/** Some slots, as an iov of the length that was asked for. Give it back with `release`. */
export class Bounce {
  readonly iov = new Iov();
  readonly #pool: BouncePool;
  readonly slots: number[];

  constructor(pool: BouncePool, slots: number[]) {
    this.#pool = pool;
    this.slots = slots;
  }

  release(): void {
    this.#pool.release(this);
  }
}

export class BouncePool {
  readonly #memory: Memory;
  readonly #first: number;
  readonly #free: number[] = [];
  readonly #waiting = new Fifo<{ readonly slots: number; readonly gate: Gate<number[]> }>();

  constructor(context: AioContext) {
    const bytes = new Uint8Array(new SharedArrayBuffer(BOUNCE_POOL + BOUNCE_ALIGNMENT));
    this.#memory = context.backend.memory(bytes);
    const address = this.#memory.address;
    this.#first = alignUp(address, BOUNCE_ALIGNMENT) - address;
    for (let slot = BOUNCE_POOL / BOUNCE_SLOT - 1; slot >= 0; slot--) this.#free.push(slot);
  }

  get freeBytes(): number {
    return this.#free.length * BOUNCE_SLOT;
  }

  /** `length` bytes; waits while there are not as many, and behind those who wait already. */
  async acquire(length: number): Promise<Bounce> {
    assert(length > 0 && length <= BOUNCE_MAX, `a bounce buffer of ${length} bytes`);
    const wanted = Math.ceil(length / BOUNCE_SLOT);
    const bounce = new Bounce(this, await this.#take(wanted));
    let left = length;
    for (const slot of bounce.slots) {
      const take = Math.min(left, BOUNCE_SLOT);
      bounce.iov.push(this.#memory, this.#first + slot * BOUNCE_SLOT, take);
      left -= take;
    }
    return bounce;
  }

  release(bounce: Bounce): void {
    this.#free.push(...bounce.slots.splice(0));
    for (let first = this.#waiting.peek(); first && this.#free.length >= first.slots; first = this.#waiting.peek()) {
      this.#waiting.shift();
      first.gate.open(this.#free.splice(this.#free.length - first.slots, first.slots));
    }
  }

  #take(slots: number): MaybePromise<number[]> {
    if (this.#waiting.length === 0 && this.#free.length >= slots) {
      return this.#free.splice(this.#free.length - slots, slots);
    }
    const gate = new Gate<number[]>();
    this.#waiting.push({ slots, gate });
    return gate.promise;
  }
}

/** What the block layer keeps for one context. */
interface ContextMemory {
  readonly pools: BouncePool[];
  zero: Memory | undefined;
}

const contexts = new WeakMap<AioContext, ContextMemory>();

function memoryOf(context: AioContext): ContextMemory {
  let memory = contexts.get(context);
  if (!memory) {
    memory = { pools: [], zero: undefined };
    contexts.set(context, memory);
  }
  return memory;
}

/** What memory is for, in the order in which a request on one node may ask for it while it holds the next. */
export const BounceUse = { TRANSFER: 0, MARGINS: 1, PADDING: 2, COPY: 3 } as const;

/** The pool for one use on nodes of that height. */
export function bouncePool(context: AioContext, height: number, use: number): BouncePool {
  const { pools } = memoryOf(context);
  const rank = height * 4 + use;
  let pool = pools[rank];
  if (!pool) {
    pool = new BouncePool(context);
    pools[rank] = pool;
  }
  return pool;
}

/** `length` zero bytes to write from: runs of one shared buffer, at most `maxRuns` of them (so it may be shorter). */
export function zeroIov(context: AioContext, length: number, maxRuns: number): Iov {
  const memory = memoryOf(context);
  if (!memory.zero) {
    const bytes = new Uint8Array(new SharedArrayBuffer(ZERO_BYTES + BOUNCE_ALIGNMENT));
    memory.zero = context.backend.memory(bytes);
  }
  const first = alignUp(memory.zero.address, BOUNCE_ALIGNMENT) - memory.zero.address;
  const iov = new Iov();
  for (let left = length; left > 0 && iov.count < maxRuns; left -= iov.lengths[iov.count - 1]!) {
    iov.push(memory.zero, first, Math.min(left, ZERO_BYTES));
  }
  return iov;
}
