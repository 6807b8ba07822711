/**
 * What one connection has of the byte budget: at most a share of it, so that no client takes all, and a small block of
 * its own (the lifeline) for when the budget is used up, so that none is shut out. Home thread only.
 */
import type { Bytes, Offset } from '../../base/units.ts';
import { type BudgetWaiter, type ByteBudget, LIFELINE } from './budget.ts';

export class BudgetShare implements BudgetWaiter {
  readonly #budget: ByteBudget;
  readonly #limit: Bytes;
  readonly #onFreed: () => void;
  readonly #lifelineAt: Offset;
  #lifelineBusy = false;
  #held = 0;
  /** How much the connection waits for; 0 when it does not. */
  #waitingFor = 0;
  /** It waits for memory of its own, not for that of others. */
  #overLimit = false;

  /** `onFreed`: after an `allocate` that answered -1, memory may be there: try again, in this call. */
  constructor(budget: ByteBudget, limit: Bytes, onFreed: () => void) {
    this.#budget = budget;
    this.#limit = limit;
    this.#onFreed = onFreed;
    this.#lifelineAt = budget.takeLifeline();
  }

  get waiting(): boolean {
    return this.#waitingFor > 0;
  }

  /** True while the connection keeps memory that others may want. */
  get holds(): boolean {
    return this.#held > 0;
  }

  /** The offset of a block of at least `length` bytes; -1 when there is none: then {@link waiting} until `onFreed`. */
  allocate(length: Bytes): Offset {
    this.#overLimit = this.#held > 0 && this.#held + length > this.#limit;
    const at = this.#overLimit ? -1 : this.#budget.allocate(length);
    if (at >= 0) {
      this.#held += length;
      return at;
    }
    if (length <= LIFELINE && !this.#lifelineBusy && this.#lifelineAt >= 0) {
      this.#lifelineBusy = true;
      return this.#lifelineAt;
    }
    this.#waitingFor = length;
    if (!this.#overLimit) this.#budget.wait(this);
    return -1;
  }

  /** Gives back a block of `length` bytes (as asked for). */
  free(at: Offset, length: Bytes): void {
    if (at === this.#lifelineAt) {
      this.#lifelineBusy = false;
      if (this.#waitingFor === 0 || this.#waitingFor > LIFELINE) return;
      this.#budget.forget(this);
      this.budgetFreed();
      return;
    }
    this.#held -= length;
    this.#budget.free(at, length);
    if (this.#waitingFor > 0 && this.#overLimit) this.budgetFreed();
  }

  budgetFreed(): void {
    this.#waitingFor = 0;
    this.#onFreed();
  }

  /** Does not wait any more. */
  forget(): void {
    if (this.#waitingFor === 0) return;
    this.#waitingFor = 0;
    this.#budget.forget(this);
  }

  /** The connection has ended and holds nothing. */
  close(): void {
    this.forget();
    this.#budget.giveLifeline(this.#lifelineAt);
  }
}
