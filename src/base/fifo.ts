/** A FIFO on a ring that doubles when full and never shrinks: no allocation in the steady state. */
export class Fifo<T> {
  #slots: (T | undefined)[];
  #head = 0;
  #length = 0;

  constructor(capacity = 16) {
    this.#slots = new Array(capacity).fill(undefined);
  }

  get length(): number {
    return this.#length;
  }

  push(value: T): void {
    if (this.#length === this.#slots.length) this.#grow();
    this.#slots[(this.#head + this.#length) % this.#slots.length] = value;
    this.#length++;
  }

  /** Puts `value` in front of all others. */
  unshift(value: T): void {
    if (this.#length === this.#slots.length) this.#grow();
    this.#head = (this.#head + this.#slots.length - 1) % this.#slots.length;
    this.#slots[this.#head] = value;
    this.#length++;
  }

  shift(): T | undefined {
    if (this.#length === 0) return undefined;
    const value = this.#slots[this.#head];
    this.#slots[this.#head] = undefined;
    this.#head = (this.#head + 1) % this.#slots.length;
    this.#length--;
    return value;
  }

  peek(): T | undefined {
    return this.#slots[this.#head];
  }

  /** Removes the first entry that is `value`; O(n). */
  remove(value: T): boolean {
    const kept: T[] = [];
    let found = false;
    for (let entry = this.shift(); entry !== undefined; entry = this.shift()) {
      if (!found && entry === value) found = true;
      else kept.push(entry);
    }
    for (const entry of kept) this.push(entry);
    return found;
  }

  #grow(): void {
    const next: (T | undefined)[] = new Array(this.#slots.length * 2).fill(undefined);
    for (let i = 0; i < this.#length; i++) next[i] = this.#slots[(this.#head + i) % this.#slots.length];
    this.#slots = next;
    this.#head = 0;
  }
}
