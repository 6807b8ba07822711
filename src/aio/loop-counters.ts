/** The counters of a context's loop, in shared words: any thread reads them without disturbing it. */
import type { LoopStats } from './backend.ts';
import { type RemoteContextHandle, SharedWord } from './context-shared.ts';

const Index = { turns: 0, submits: 1, operations: 2, completions: 3, pollHits: 4, pollMisses: 5, sleeps: 6 } as const;

/** Written by home only. A reader in another thread sees each counter as it was at some moment of late. */
export class LoopCounters implements LoopStats {
  /** Survives structured clone. */
  readonly words: Float64Array<SharedArrayBuffer>;

  constructor(words?: Float64Array<SharedArrayBuffer>) {
    this.words = words ?? new Float64Array(new SharedArrayBuffer(8 * Object.keys(Index).length));
  }

  get turns(): number {
    return this.words[Index.turns]!;
  }
  set turns(value: number) {
    this.words[Index.turns] = value;
  }

  get submits(): number {
    return this.words[Index.submits]!;
  }
  set submits(value: number) {
    this.words[Index.submits] = value;
  }

  get operations(): number {
    return this.words[Index.operations]!;
  }
  set operations(value: number) {
    this.words[Index.operations] = value;
  }

  get completions(): number {
    return this.words[Index.completions]!;
  }
  set completions(value: number) {
    this.words[Index.completions] = value;
  }

  get pollHits(): number {
    return this.words[Index.pollHits]!;
  }
  set pollHits(value: number) {
    this.words[Index.pollHits] = value;
  }

  get pollMisses(): number {
    return this.words[Index.pollMisses]!;
  }
  set pollMisses(value: number) {
    this.words[Index.pollMisses] = value;
  }

  get sleeps(): number {
    return this.words[Index.sleeps]!;
  }
  set sleeps(value: number) {
    this.words[Index.sleeps] = value;
  }

  snapshot(): LoopStats {
    const { turns, submits, operations, completions, pollHits, pollMisses, sleeps } = this;
    return { turns, submits, operations, completions, pollHits, pollMisses, sleeps };
  }
}

/** What a context has done so far, and how often other threads woke it, or saved the wake-up because it was awake. */
export interface ContextStats extends LoopStats {
  readonly wakesSent: number;
  readonly wakesSaved: number;
}

/** Any thread. */
export function contextStats({ shared, counters }: RemoteContextHandle): ContextStats {
  return {
    ...new LoopCounters(counters).snapshot(),
    wakesSent: Atomics.load(shared, SharedWord.WAKES_SENT) >>> 0,
    wakesSaved: Atomics.load(shared, SharedWord.WAKES_SAVED) >>> 0,
  };
}
