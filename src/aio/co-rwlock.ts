/**
 * CoRwLock: many readers or one writer, for coroutines of one context, first come first served (SEMANTICS C8): a reader
 * waits behind a writer that waits, so that writers do not starve.
 */
import { assert } from '../base/assert.ts';
import { Fifo } from '../base/fifo.ts';
import { Gate, type MaybePromise } from './op.ts';

interface Ticket {
  readonly held: RwHeld;
  readonly write: boolean;
  readonly gate: Gate<RwHeld>;
}

const WRITER = -1;

export class CoRwLock {
  readonly name: string;
  /** The number of readers, or WRITER. */
  #owners = 0;
  readonly #tickets = new Fifo<Ticket>(4);

  constructor(name = 'rwlock') {
    this.name = name;
  }

  get readers(): number {
    return Math.max(this.#owners, 0);
  }

  get writing(): boolean {
    return this.#owners === WRITER;
  }

  /** Coroutines that wait for it. */
  get waiters(): number {
    return this.#tickets.length;
  }

  /** Shared with other readers; at once unless somebody writes or waits. */
  readLock(): MaybePromise<RwHeld> {
    return this.#take(new RwHeld(this), false);
  }

  /** Alone; at once when nobody holds it. */
  writeLock(): MaybePromise<RwHeld> {
    return this.#take(new RwHeld(this), true);
  }

  /** A writer becomes a reader; never waits. Readers that are next in line come in with it. */
  downgrade(held: RwHeld): void {
    assert(held.lock === this && held.mode === 'write', `rwlock '${this.name}': only a writer can be downgraded`);
    held.mode = 'read';
    this.#owners = 1;
    this.#admit();
  }

  /** A reader becomes a writer. It may have to wait, and others may write meanwhile: what was read has to be read
   *  again. */
  upgrade(held: RwHeld): MaybePromise<RwHeld> {
    assert(held.lock === this && held.mode === 'read', `rwlock '${this.name}': only a reader can be upgraded`);
    if (this.#owners === 1 && this.#tickets.length === 0) {
      this.#owners = WRITER;
      held.mode = 'write';
      return held;
    }
    const gate = this.#enqueue(held, true);
    this.#owners--;
    this.#admit();
    return gate.promise;
  }

  /** @internal Only RwHeld calls it. */
  release(held: RwHeld): void {
    assert(
      held.mode === 'read' || held.mode === 'write',
      `rwlock '${this.name}' is ${held.mode}, and cannot be released`,
    );
    this.#owners = held.mode === 'write' ? 0 : this.#owners - 1;
    held.mode = 'released';
    this.#admit();
  }

  #take(held: RwHeld, write: boolean): MaybePromise<RwHeld> {
    if (this.#tickets.length > 0 || this.#owners === WRITER || (write && this.#owners > 0)) {
      return this.#enqueue(held, write).promise;
    }
    this.#grant(held, write);
    return held;
  }

  #enqueue(held: RwHeld, write: boolean): Gate<RwHeld> {
    const gate = new Gate<RwHeld>();
    held.mode = 'waiting';
    this.#tickets.push({ held, write, gate });
    return gate;
  }

  #grant(held: RwHeld, write: boolean): void {
    held.mode = write ? 'write' : 'read';
    this.#owners = write ? WRITER : this.#owners + 1;
  }

  /** Lets in the first in line, and after a reader the readers right behind it. */
  #admit(): void {
    for (let next = this.#tickets.peek(); next; next = this.#tickets.peek()) {
      if (this.#owners === WRITER || (next.write && this.#owners > 0)) return;
      this.#tickets.shift();
      this.#grant(next.held, next.write);
      next.gate.open(next.held);
    }
  }
}

/** The proof that a CoRwLock is held; leaving its `using` block releases it. */
export class RwHeld implements Disposable {
  readonly lock: CoRwLock;
  /** @internal Set by the lock. */
  mode: 'read' | 'write' | 'waiting' | 'released' = 'waiting';

  /** @internal Use CoRwLock.readLock() or writeLock(). */
  constructor(lock: CoRwLock) {
    this.lock = lock;
  }

  [Symbol.dispose](): void {
    this.lock.release(this);
  }
}
