/** The operations that a backend has in flight, by slot: one given away twice, or ended twice, does not go unseen. */
import { assert, Bug } from '../base/assert.ts';
import type { LoopHost } from './backend.ts';
import type { AioOp } from './op.ts';

/** What an operation in flight belongs to. */
export interface OpOwner {
  /** Ends `op` early, if it only waits. */
  cancel(op: AioOp): void;
  /** For reports: "recv on unix". */
  describe(op: AioOp): string;
}

export class OpTable {
  readonly #ops: (AioOp | undefined)[] = [];
  readonly #owners: (OpOwner | undefined)[] = [];
  readonly #free: number[] = [];
  #size = 0;

  /** Operations in flight. */
  get size(): number {
    return this.#size;
  }

  add(op: AioOp, owner: OpOwner): void {
    assert(op.slot === -1, 'an operation was given away a second time before it ended');
    const slot = this.#free.pop() ?? this.#ops.length;
    op.slot = slot;
    this.#ops[slot] = op;
    this.#owners[slot] = owner;
    this.#size++;
  }

  remove(op: AioOp): void {
    assert(op.slot >= 0 && this.#ops[op.slot] === op, 'an operation ended that was not in flight');
    this.#free.push(op.slot);
    this.#ops[op.slot] = undefined;
    this.#owners[op.slot] = undefined;
    op.slot = -1;
    this.#size--;
  }

  /** Whom `op` belongs to; undefined when it is not in flight here. */
  ownerOf(op: AioOp): OpOwner | undefined {
    return op.slot >= 0 && this.#ops[op.slot] === op ? this.#owners[op.slot] : undefined;
  }

  /** All operations in flight. */
  list(): AioOp[] {
    return this.#ops.filter((op) => op !== undefined);
  }

  describe(): string[] {
    return this.list().map((op) => this.#owners[op.slot]!.describe(op));
  }
}

/** Turns after which a context that is being stopped will never come to rest. */
const MAX_LAST_TURNS = 10_000;

/** Dispatches until nothing is ready: for a backend that stops. */
export function dispatchRest(host: LoopHost): void {
  for (let turns = 0; host.dispatch(); turns++) {
    if (turns === MAX_LAST_TURNS)
      throw new Bug('something starts operations again and again although the context stops');
  }
}
