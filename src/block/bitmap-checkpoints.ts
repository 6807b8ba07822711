/**
 * Persistent bitmaps that outlive a crash. What the image holds of a covered bitmap is, at every moment, at least what
 * is dirty: it is not marked in use, and whoever opens the image next may rely on it, whichever program that is.
 *
 * - A checkpoint stores the bitmaps as they are, on a drained node.
 * - From then on a write to what is clean in the image waits until the image says that it is dirty. That is said of a
 *   region at a time, so the writes that come after it do not wait. With the next checkpoint it is exact again.
 * - So a crash costs the next backup at most what was written since the last checkpoint, in whole regions.
 * - Where the image cannot be told, the bitmaps are marked in use, as without checkpoints, until the next one.
 *
 * Home thread.
 */
import { spawn } from '../aio/op.ts';
import type { Timer } from '../aio/timers.ts';
import { PagedBits } from '../base/paged-bits.ts';
import { alignDown, type Bytes, MiB, type Nanoseconds, type Offset } from '../base/units.ts';
import type { DirtyBitmap } from './dirty-bitmap.ts';
import type { BitmapPart, BitmapStore, BitmapToStore } from './driver.ts';

/** Bits that become dirty in the image together: 64 MiB of a disk with granules of 64 KiB. */
const REGION_BITS = 1024;
/** A covered bitmap has all of its bits in the file, written again with each checkpoint. */
const COVERED_BYTES_MAX: Bytes = 16 * MiB;
/** To the checkpoint after a change that is none of writes. */
const SOON: Nanoseconds = 1e9;

interface Covered {
  readonly bitmap: DirtyBitmap;
  /** What the image holds. */
  readonly stored: PagedBits;
  /** Of the bitmap, when it was stored. */
  readonly generation: number;
}

export class BitmapCheckpoints {
  readonly #store: () => BitmapStore | undefined;
  readonly #period: Nanoseconds;
  readonly #timer: Timer;
  #covered: Covered[] = [];
  #wanted: { readonly at: Offset; readonly length: Bytes }[] = [];
  #extending: Promise<void> | undefined;
  #running: Promise<void> | undefined;
  /** The image says more than what is dirty. */
  #extended = false;

  /** `run` makes a checkpoint: {@link take} on a drained node. */
  constructor(
    timer: (callback: () => void) => Timer,
    store: () => BitmapStore | undefined,
    period: Nanoseconds,
    run: () => Promise<void>,
  ) {
    this.#store = store;
    this.#period = period;
    this.#timer = timer(() => {
      // What could not be stored is as it was; the next one may come through.
      this.#running = run()
        .catch(() => undefined)
        .finally(() => {
          this.#running = undefined;
          if (this.#period > 0) this.#timer.armIn(this.#period);
        });
      spawn(this.#running);
    });
  }

  /** True while writes have to ask {@link isOpen}. */
  get active(): boolean {
    return this.#covered.length > 0;
  }

  /** True when the image says of the whole range that it is dirty, in all bitmaps that are covered. Hot. */
  isOpen(at: Offset, length: Bytes): boolean {
    for (let i = 0; i < this.#covered.length; i++) {
      const { bitmap, stored } = this.#covered[i]!;
      const end = Math.min(Math.ceil((at + length) / bitmap.granularity), stored.length);
      const first = Math.floor(at / bitmap.granularity);
      if (first < end && stored.next(first, end, false) < end) return false;
    }
    return true;
  }

  /** Waits until {@link isOpen}. Rejects where the image can be told nothing at all. */
  async pass(at: Offset, length: Bytes): Promise<void> {
    while (!this.isOpen(at, length)) {
      this.#wanted.push({ at, length });
      this.#extending ??= this.#extend();
      await this.#extending;
    }
  }

  /** From here on they come by themselves. */
  begin(): void {
    this.#timer.armIn(this.#period);
  }

  /** The next checkpoint comes in a moment. */
  soon(): void {
    this.#timer.armIn(Math.min(SOON, this.#period));
  }

  /** A bitmap is about to change, or goes, and is marked in use for that: by the caller. Drained. */
  drop(bitmap?: DirtyBitmap): void {
    this.#covered = bitmap === undefined ? [] : this.#covered.filter((one) => one.bitmap !== bitmap);
    this.soon();
  }

  /** No more checkpoints; what is under way ends first. Afterwards nothing is covered. */
  async stop(): Promise<void> {
    this.#timer.cancel();
    await this.#running;
    this.#timer.cancel();
    this.#covered = [];
  }

  /** Makes `bitmaps`, all that are to be kept, what the image holds. Drained. */
  async take(bitmaps: readonly DirtyBitmap[]): Promise<void> {
    if (!this.#isDue(bitmaps)) return;
    const covered: Covered[] = [];
    const toStore: BitmapToStore[] = [];
    for (const bitmap of bitmaps) {
      const { name, granularity, enabled, bits } = bitmap;
      if (!canCover(bitmap)) {
        toStore.push({ name, granularity, enabled, bits });
        continue;
      }
      const stored = new PagedBits(bits.length);
      stored.or(bits);
      if (bitmap.successor) stored.or(bitmap.successor.bits);
      covered.push({ bitmap, stored, generation: generationOf(bitmap) });
      toStore.push({ name, granularity, enabled, bits: stored, covered: true });
    }
    await this.#store()?.store(toStore, true);
    this.#covered = covered;
    this.#extended = false;
  }

  #isDue(bitmaps: readonly DirtyBitmap[]): boolean {
    if (this.#extended) return true;
    return bitmaps.filter(canCover).some((bitmap) => {
      const known = this.#covered.find((one) => one.bitmap === bitmap);
      return known === undefined || known.generation !== generationOf(bitmap);
    });
  }

  async #extend(): Promise<void> {
    const wanted = this.#wanted;
    this.#wanted = [];
    try {
      const parts: BitmapPart[] = [];
      const done: (() => void)[] = [];
      for (const { bitmap, stored } of this.#covered) {
        for (const { first, last } of regions(bitmap, stored, wanted)) {
          const bytes = new Uint8Array(Math.ceil((last + 1 - first) / 8)).fill(0xff);
          if ((last + 1) % 8 !== 0) bytes[bytes.length - 1] = 0xff >>> (8 - ((last + 1) % 8));
          parts.push({ name: bitmap.name, at: first / 8, bytes });
          done.push(() => stored.set(first, last));
        }
      }
      await this.#store()!.extend(parts);
      for (const apply of done) apply();
      this.#extended = true;
    } catch {
      await this.#giveUp();
    } finally {
      this.#extending = undefined;
    }
  }

  /** As without checkpoints. Where that fails, too, the writes that wait fail. */
  async #giveUp(): Promise<void> {
    await this.#store()!.use(this.#covered.map(({ bitmap }) => bitmap.name));
    this.#covered = [];
    this.soon();
  }
}

function canCover({ recording, bits }: DirtyBitmap): boolean {
  return recording && bits.length / 8 <= COVERED_BYTES_MAX;
}

/** Of what is dirty, the part apart included. */
function generationOf({ bits, successor }: DirtyBitmap): number {
  return bits.generation + (successor?.bits.generation ?? 0);
}

/** Whole regions, in their order, each once. */
function regions(
  { granularity }: DirtyBitmap,
  stored: PagedBits,
  ranges: readonly { readonly at: Offset; readonly length: Bytes }[],
): { readonly first: number; readonly last: number }[] {
  const found = new Set<number>();
  for (const { at, length } of ranges) {
    const end = Math.min(Math.ceil((at + length) / granularity), stored.length);
    for (let bit = alignDown(Math.floor(at / granularity), REGION_BITS); bit < end; bit += REGION_BITS) found.add(bit);
  }
  return [...found]
    .sort((a, b) => a - b)
    .map((first) => ({ first, last: Math.min(first + REGION_BITS, stored.length) - 1 }))
    .filter(({ first, last }) => stored.next(first, last + 1, false) <= last);
}
