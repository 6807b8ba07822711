/**
 * The order in which metadata goes to the disk; docs/QCOW2.md, "Order on the disk", has the reasons. Nothing else
 * writes L1 entries, L2 slices, refcount blocks or refcount table entries of an image that takes requests.
 */
import { CoMutex } from '../../aio/co-mutex.ts';
import { spawn } from '../../aio/op.ts';
import { BlockError } from '../../base/errors.ts';
import type { Offset } from '../../base/units.ts';
import { Incompatible } from '../../proto/qcow2/constants.ts';
import { encodeTableEntry, type Image } from './image.ts';
import type { Freed } from './refcounts.ts';

/** L1 entries that may wait for a sync. */
const L1_CHANGES_MAX = 4096;
/** L1 entries in a sector. */
const PER_SECTOR = 64;

/** What an L1 entry says on the disk, while it says something else in memory. */
interface OnDisk {
  readonly at: Offset;
  readonly copied: number;
}

/** What one sync takes to the disk. */
interface Batch {
  readonly l2: readonly number[];
  readonly l1: ReadonlyMap<number, OnDisk>;
  readonly blocks: ReadonlySet<number>;
  readonly freed: readonly Freed[];
  /** From here on the L2 cache looks after its captured slots itself. */
  l2Written: boolean;
}

export class Sync {
  readonly #image: Image;
  /** One at a time. */
  readonly #mutex = new CoMutex('qcow2 sync');
  #l1 = new Map<number, OnDisk>();
  /** Syncs and settlings that nobody waits for. */
  #background = new Set<Promise<void>>();
  #early = false;
  stats = { syncs: 0 };

  constructor(image: Image) {
    this.#image = image;
  }

  /** True while something is not on the disk: what a sync has taken is not there before the sync has ended. */
  get dirty(): boolean {
    return this.#mutex.locked || this.#waiting;
  }

  /** True when there is something for a sync to take. */
  get #waiting(): boolean {
    const { l2, refcounts, headerUnsure } = this.#image;
    return l2.dirty > 0 || this.#l1.size > 0 || refcounts.dirty || headerUnsure;
  }

  /** True while something goes on that no request waits for. */
  get busy(): boolean {
    return this.#background.size > 0;
  }

  /** To be called before an entry of the L1 table changes in memory. */
  l1Changes(index: number): void {
    const { tables, owned } = this.#image;
    if (!this.#l1.has(index)) this.#l1.set(index, { at: tables[index]!, copied: owned[index]! });
    if (this.#l1.size === L1_CHANGES_MAX) this.early();
  }

  /** Takes all that is dirty to the disk, in order. The last of it is stable after a flush of the file. */
  async run(): Promise<void> {
    let freed: readonly Freed[] = [];
    {
      using _held = await this.#mutex.lock();
      if (!this.#waiting) return;
      this.#image.assertUndamaged();
      this.stats.syncs++;
      freed = await this.#ordered();
    }
    if (freed.length > 0) this.#goOn(this.#image.refcounts.settle(freed));
  }

  /** Begins a sync that nobody waits for, because much is waiting. */
  early(): void {
    if (this.#early) return;
    this.#early = true;
    this.#goOn(
      this.run().finally(() => {
        this.#early = false;
      }),
    );
  }

  /** Until nothing is left to do, and all is stable. For control functions, on a drained node. */
  async complete(): Promise<void> {
    do {
      await this.run();
      while (this.busy) await Promise.allSettled([...this.#background]);
    } while (this.#waiting && (this.#image.refcounts.cache.dirty === 0 || !this.#defersRefcounts));
    await this.#flush();
  }

  /** Refcounts too, where they were left behind: the dirty bit can be taken back afterwards. */
  async completeRefcounts(): Promise<void> {
    await this.complete();
    const { cache } = this.#image.refcounts;
    while (cache.dirty > 0) await cache.write(cache.capture());
    await this.#flush();
  }

  get #defersRefcounts(): boolean {
    return this.#image.settings.lazyRefcounts;
  }

  async #ordered(): Promise<readonly Freed[]> {
    const { l2, refcounts } = this.#image;
    const batch: Batch = {
      ...{ l2: l2.capture(), l1: this.#l1, blocks: refcounts.takeChangedBlocks(), freed: refcounts.takeFreed() },
      l2Written: false,
    };
    this.#l1 = new Map();
    try {
      await this.#write(batch);
    } catch (error) {
      if (!batch.l2Written) l2.uncapture(batch.l2);
      refcounts.giveBackFreed(batch.freed);
      refcounts.giveBackChangedBlocks(batch.blocks);
      for (const [index, was] of batch.l1) this.#l1.set(index, was);
      throw error;
    }
    return batch.freed;
  }

  async #write(batch: Batch): Promise<void> {
    const { file, l2, refcounts, io } = this.#image;
    const links = batch.l2.length + batch.l1.size + batch.freed.length > 0;
    if (this.#image.headerUnsure) await this.#image.rewriteHeader();
    if (this.#defersRefcounts && links) await this.#image.mark(Incompatible.DIRTY, true);
    // Left to the end where they are lazy, unless there is no room to wait.
    if (!this.#defersRefcounts || refcounts.cache.dirty * 2 >= refcounts.cache.slots || batch.blocks.size > 0) {
      await refcounts.cache.write(refcounts.cache.capture());
    }
    if (refcounts.end > file.length) await file.truncate(refcounts.end);
    if (links || batch.blocks.size > 0) await this.#flush();
    if (batch.blocks.size > 0) {
      await refcounts.writeTable(batch.blocks);
      await file.flush();
    }
    batch.l2Written = true;
    await l2.write(batch.l2);
    for (const sector of new Set([...batch.l1.keys()].map((index) => Math.floor(index / PER_SECTOR)))) {
      await file.point('l1_update');
      await io.write(this.#image.header.l1Offset + sector * PER_SECTOR * 8, this.#l1Sector(sector));
    }
    if (batch.freed.length > 0) await file.flush();
  }

  /** As it was when the sync began. */
  #l1Sector(sector: number): Uint8Array {
    const { tables, owned } = this.#image;
    const bytes = new Uint8Array(PER_SECTOR * 8);
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < PER_SECTOR; i++) {
      const index = sector * PER_SECTOR + i;
      if (index >= tables.length) break;
      const newer = this.#l1.get(index);
      encodeTableEntry(view, i * 8, newer?.at ?? tables[index]!, newer?.copied ?? owned[index]!);
    }
    return bytes;
  }

  async #flush(): Promise<void> {
    await this.#image.file.flush();
    await this.#image.dataFile?.flush();
  }

  /** What fails here fails again in the next flush, or is remembered as damage. */
  #goOn(work: Promise<void>): void {
    const watched = work
      .catch((error: unknown) => {
        if (!(error instanceof BlockError)) throw error;
      })
      .finally(() => {
        this.#background.delete(watched);
        this.#image.context.quiet();
      });
    this.#background.add(watched);
    spawn(watched);
  }
}
