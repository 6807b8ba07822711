/** What one look at an image has found. */
import type { Bytes, Offset } from '../../base/units.ts';
import type { CheckResult } from '../../block/driver.ts';

/** CheckResult: "at most 1000 of them". */
const MESSAGES_MAX = 1000;

export class Report {
  readonly messages: string[] = [];
  /** What could not be looked at. */
  unread = 0;
  /** Wrong entries, and refcounts that are too low. */
  errors = 0;
  /** COPIED flags that do not say what the refcount says. */
  copied = 0;
  /** Refcounts that are too high. */
  leaks = 0;
  /** Of the errors: entries of L2 tables that can be made right without losing anything. */
  mendable = 0;
  /** The refcount table or its blocks are not to be relied on, or a cluster in use has no refcount: they must be made
   *  anew. */
  refcountsBroken = false;
  /** The snapshot table must be written anew. */
  snapshotsBroken = false;
  allocated = 0;
  fragmented = 0;
  compressed = 0;
  /** Where the last used cluster of the file ends. */
  end: Offset = 0;

  get clean(): boolean {
    return this.unread + this.errors + this.copied + this.leaks === 0;
  }

  /** `text` is called where the message is kept. The problem counts `times`: the table it is in is referred to so
   *  often. */
  error(times: number, text: () => string): void {
    this.errors += times;
    this.#say(text);
  }

  wrongCopied(times: number, text: () => string): void {
    this.copied += times;
    this.#say(text);
  }

  leak(text: () => string): void {
    this.leaks++;
    this.#say(text);
  }

  unreadable(text: () => string): void {
    this.unread++;
    this.#say(text);
  }

  /** Adds to the messages of an earlier look. */
  result(diskSize: Bytes, clusterSize: Bytes, earlier: readonly string[]): CheckResult {
    return {
      checkErrors: this.unread,
      corruptions: this.errors + this.copied,
      leaks: this.leaks,
      corruptionsFixed: 0,
      leaksFixed: 0,
      totalClusters: Math.ceil(diskSize / clusterSize),
      allocatedClusters: this.allocated,
      fragmentedClusters: this.fragmented,
      compressedClusters: this.compressed,
      imageEndOffset: this.end,
      messages: [...earlier, ...this.messages].slice(0, MESSAGES_MAX),
    };
  }

  #say(text: () => string): void {
    if (this.messages.length < MESSAGES_MAX) this.messages.push(text());
  }
}
