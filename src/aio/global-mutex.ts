/**
 * The global mutex: the recursive lock of the control plane, across threads. Synchronous I/O and synchronous drains
 * take it; the data path never does, and an IOThread cannot ({@link GlobalMutex.refuseHere}).
 *
 * Everything is in shared words. Who wants the lock draws a ticket, which is its place in a ring of words, and sleeps
 * on that word alone; whoever unlocks hands over to the next place. So waiters are served in order, and one wakes at a
 * time. A place goes through these states, by compare-and-exchange only:
 *
 *     EMPTY -> GRANTED        by the one before, before or after anybody has drawn it
 *     GRANTED -> TAKEN        by its waiter, which owns the lock from here on
 *     EMPTY -> ABANDONED      by its waiter, which has waited too long (or has died): it is passed over
 *     TAKEN, ABANDONED -> EMPTY   when it is unlocked or passed over
 */
import { getEnvironmentData, setEnvironmentData, threadId } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';

/** Waiters at once; also bounds those that gave up while one owner held it. Far more than a process has threads. */
const PLACES = 1024;
/** Draw no ticket when so many are out: it must never meet a place that is in use. */
const TICKETS_MAX = PLACES / 2;
const RECURSION_MAX = 1000;
const LIMIT_MS_DEFAULT = 10_000;

const Word = {
  NEXT: 0,
  /** Thread id + 1 of the owner, its ticket, and how often it holds the lock. */
  OWNER: 1,
  TICKET: 2,
  DEPTH: 3,
  ACQUISITIONS: 4,
  WAITS: 5,
  PLACES: 16,
  /** By place: thread id + 1 of who drew it. */
  WAITERS: 16 + PLACES,
} as const;
const WORDS = Word.WAITERS + PLACES;

const EMPTY = 0;
const GRANTED = 1;
const TAKEN = 2;
const ABANDONED = 3;

/** What worker threads inherit; see {@link globalMutex}. */
const ENVIRONMENT_KEY = 'blockplane:global-mutex';

/** Proof that this thread holds the lock; gives it back once, by `using` or {@link release}. */
export class GlobalHeld implements Disposable {
  #mutex: GlobalMutex | undefined;

  constructor(mutex: GlobalMutex) {
    this.#mutex = mutex;
  }

  release(): void {
    const mutex = this.#mutex;
    this.#mutex = undefined;
    mutex?.unlock();
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

export interface GlobalMutexStats {
  /** Times it was taken, recursion not counted, and how many of them had to wait. */
  readonly acquisitions: number;
  readonly waits: number;
  /** Thread that holds it, undefined for nobody. */
  readonly owner: number | undefined;
  readonly depth: number;
}

let refusal: string | undefined;

/** All methods: any thread, on objects made from the same words. */
export class GlobalMutex {
  /** Survives structured clone; a mutex made of it is the same. */
  readonly words: Int32Array<SharedArrayBuffer>;

  constructor(words?: Int32Array<SharedArrayBuffer>) {
    this.words = words ?? new Int32Array(new SharedArrayBuffer(WORDS * 4));
    if (!words) this.words[Word.PLACES] = GRANTED;
  }

  /** From now on, taking the lock in this thread is refused: it must never wait for others. `who` is for messages. */
  static refuseHere(who: string): void {
    refusal = who;
  }

  /**
   * Takes the lock, waiting for it if need be: this blocks the thread. EDEADLK after `limitMs`, and in an IOThread;
   * EAGAIN when this thread holds it {@link RECURSION_MAX} times already.
   */
  lock(limitMs: number = LIMIT_MS_DEFAULT): GlobalHeld {
    const words = this.words;
    if (this.held) {
      if (words[Word.DEPTH]! >= RECURSION_MAX) {
        throw new BlockError(Errno.EAGAIN, `Could not take the global mutex more than ${RECURSION_MAX} times at once`);
      }
      words[Word.DEPTH]!++;
      return new GlobalHeld(this);
    }
    if (refusal !== undefined) {
      throw new BlockError(
        Errno.EDEADLK,
        `Could not take the global mutex: ${refusal} must not wait for other threads`,
      );
    }
    const out = (Atomics.load(words, Word.NEXT) - Atomics.load(words, Word.TICKET)) | 0;
    if (out >= TICKETS_MAX) throw this.#deadlock('too many wait for it');
    const ticket = Atomics.add(words, Word.NEXT, 1);
    const place = ticket & (PLACES - 1);
    Atomics.store(words, Word.WAITERS + place, threadId + 1);
    if (Atomics.compareExchange(words, Word.PLACES + place, GRANTED, TAKEN) !== GRANTED) this.#wait(place, limitMs);
    Atomics.store(words, Word.TICKET, ticket);
    words[Word.DEPTH] = 1;
    Atomics.store(words, Word.OWNER, threadId + 1);
    Atomics.add(words, Word.ACQUISITIONS, 1);
    return new GlobalHeld(this);
  }

  /** True when the calling thread holds it. */
  get held(): boolean {
    return Atomics.load(this.words, Word.OWNER) === threadId + 1;
  }

  assertHeld(): void {
    assert(this.held, 'the global mutex is not held by this thread');
  }

  get stats(): GlobalMutexStats {
    const { words } = this;
    const owner = Atomics.load(words, Word.OWNER);
    return {
      acquisitions: Atomics.load(words, Word.ACQUISITIONS) >>> 0,
      waits: Atomics.load(words, Word.WAITS) >>> 0,
      owner: owner === 0 ? undefined : owner - 1,
      depth: owner === 0 ? 0 : Atomics.load(words, Word.DEPTH),
    };
  }

  /** @internal Use GlobalHeld. */
  unlock(): void {
    this.assertHeld();
    const { words } = this;
    if (--words[Word.DEPTH]! > 0) return;
    const place = words[Word.TICKET]! & (PLACES - 1);
    Atomics.store(words, Word.OWNER, 0);
    this.#leave(place);
  }

  /** A thread has died: what it held goes to the next, and its turn never comes. */
  threadDied(id: number): void {
    const { words } = this;
    for (let place = 0; place < PLACES; place++) {
      if (Atomics.load(words, Word.WAITERS + place) !== id + 1) continue;
      if (Atomics.compareExchange(words, Word.PLACES + place, EMPTY, ABANDONED) === EMPTY) {
        Atomics.store(words, Word.WAITERS + place, 0);
        continue;
      }
      if (Atomics.load(words, Word.PLACES + place) === ABANDONED) continue;
      Atomics.compareExchange(words, Word.OWNER, id + 1, 0);
      this.#leave(place);
    }
  }

  #wait(place: number, limitMs: number): void {
    const { words } = this;
    Atomics.add(words, Word.WAITS, 1);
    const end = performance.now() + limitMs;
    while (Atomics.compareExchange(words, Word.PLACES + place, GRANTED, TAKEN) !== GRANTED) {
      const left = end - performance.now();
      if (left > 0) Atomics.wait(words, Word.PLACES + place, EMPTY, left);
      // The hand-over may have come at this moment: then the loop finds it.
      else if (Atomics.compareExchange(words, Word.PLACES + place, EMPTY, ABANDONED) === EMPTY) {
        Atomics.store(words, Word.WAITERS + place, 0);
        throw this.#deadlock(`waited ${limitMs} ms`);
      }
    }
  }

  /** The owner of `place` goes; the next that has not given up is served. */
  #leave(place: number): void {
    const { words } = this;
    Atomics.store(words, Word.WAITERS + place, 0);
    Atomics.store(words, Word.PLACES + place, EMPTY);
    for (let next = place + 1; ; next++) {
      const at = Word.PLACES + (next & (PLACES - 1));
      if (Atomics.compareExchange(words, at, EMPTY, GRANTED) === EMPTY) {
        Atomics.notify(words, at, 1);
        return;
      }
      Atomics.store(words, at, EMPTY);
    }
  }

  #deadlock(why: string): BlockError {
    const { owner } = this.stats;
    const who = owner === undefined ? 'nobody' : `thread ${owner}`;
    return new BlockError(Errno.EDEADLK, `Could not take the global mutex: ${why}, while ${who} holds it`);
  }
}

let current: GlobalMutex | undefined;

/** The mutex of this process. Workers started after the first call in their parent inherit it. */
export function globalMutex(): GlobalMutex {
  if (current) return current;
  const inherited: unknown = getEnvironmentData(ENVIRONMENT_KEY);
  current = new GlobalMutex(inherited instanceof Int32Array ? (inherited as Int32Array<SharedArrayBuffer>) : undefined);
  setEnvironmentData(ENVIRONMENT_KEY, current.words);
  return current;
}
