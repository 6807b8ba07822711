/**
 * Clusters of the guest's disk that somebody is about to link, in flight: between reserve and commit. Whoever wants to
 * change the mapping of one of them waits.
 */
import { Gate } from '../../aio/op.ts';

export class Allocation {
  readonly first: number;
  readonly last: number;
  readonly gate = new Gate();

  /** Clusters of the guest's disk, both included. */
  constructor(first: number, last: number) {
    this.first = first;
    this.last = last;
  }
}

export class Allocations {
  readonly #list: Allocation[] = [];

  get count(): number {
    return this.#list.length;
  }

  add(first: number, last: number): Allocation {
    const allocation = new Allocation(first, last);
    this.#list.push(allocation);
    return allocation;
  }

  /** Of those that overlap the one that begins first, or undefined. As many are in flight as there are requests: a list
   *  is enough. */
  overlapping(first: number, last: number): Allocation | undefined {
    let found: Allocation | undefined;
    for (let i = 0; i < this.#list.length; i++) {
      const other = this.#list[i]!;
      if (other.first > last || first > other.last) continue;
      if (found === undefined || other.first < found.first) found = other;
    }
    return found;
  }

  end(allocation: Allocation): void {
    const i = this.#list.indexOf(allocation);
    const last = this.#list.pop()!;
    if (last !== allocation) this.#list[i] = last;
    allocation.gate.open();
  }
}
