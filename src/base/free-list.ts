/**
 * A stack of things to use again. Not an array with push and pop: those give memory back and take it anew as the length
 * goes up and down, which is an allocation every few calls.
 */
export class FreeList<T> {
  readonly #items: (T | undefined)[] = [];
  #count = 0;

  get length(): number {
    return this.#count;
  }

  /** The one that was given last. */
  take(): T | undefined {
    if (this.#count === 0) return undefined;
    const item = this.#items[--this.#count];
    this.#items[this.#count] = undefined;
    return item;
  }

  give(item: T): void {
    this.#items[this.#count++] = item;
  }
}
