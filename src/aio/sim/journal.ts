/**
 * What a simulated disk was asked to do, and when: every change and every datasync with the moments at which it began
 * and ended. From it follows what a crash at any moment may have left, see testing-crash-states.ts of a driver.
 */
import type { DiskChange } from './disk.ts';

export interface JournalEntry {
  readonly path: string;
  /** What was asked for; null for a datasync. */
  readonly change: DiskChange | null;
  /** A write that is durable when it ends. */
  readonly durable: boolean;
  readonly began: number;
  /** Infinity while it is in flight. */
  ended: number;
  /** It ended with an error, or short: part of it may have been done. */
  failed: boolean;
}

/** Moments are numbers that only grow: 1 for what happened first. */
export class DiskJournal {
  readonly entries: JournalEntry[] = [];
  #moment = 0;

  /** The moment of what happened last. */
  get moment(): number {
    return this.#moment;
  }

  /** A moment of its own, for what happens above the disk. */
  mark(): number {
    return ++this.#moment;
  }

  begin(path: string, change: DiskChange | null, durable: boolean): JournalEntry {
    const entry = { path, change, durable, began: this.mark(), ended: Infinity, failed: false };
    this.entries.push(entry);
    return entry;
  }

  /** `result`: of the operation. */
  end(entry: JournalEntry, result: number): void {
    entry.ended = this.mark();
    entry.failed = result < 0 || (entry.change?.kind === 'write' && result < entry.change.bytes.length);
  }
}
