/**
 * Which clusters of the file are in use, and how often. Allocation is synchronous from cached refcount blocks; what is
 * missing for it is brought in by `prepare`. What is freed keeps its refcount until the unlinking is on the disk
 * (docs/QCOW2.md, "Order on the disk").
 */
import { CoMutex } from '../../aio/co-mutex.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { alignDown, type Bytes, type Offset } from '../../base/units.ts';
import { REFCOUNT_TABLE_BYTES_MAX } from '../../proto/qcow2/constants.ts';
import { getRefcount, refcountMax, setRefcount } from '../../proto/qcow2/refcount-block.ts';
import { encodeTableEntry, type Image } from './image.ts';
import { MISS, TableCache } from './table-cache.ts';

/** Why clusters are freed: decides about discarding them in the file. */
export type FreeReason = 'request' | 'snapshot' | 'other';

/** Clusters whose last link may just have gone. Numbers of clusters, not bytes. */
export interface Freed {
  readonly first: number;
  count: number;
  readonly reason: FreeReason;
}

const REUSABLE_MAX = 4096;
/** Freed ranges that wait for a sync, before one is started for them. */
const FREED_MAX = 4096;

export class Refcounts {
  readonly cache: TableCache;
  /** Offsets of refcount blocks; 0 for none. */
  table: Float64Array;
  /** Clusters of the last {@link take}, and whether they have never been used. */
  taken = 0;
  takenFresh = false;
  readonly #image: Image;
  readonly #order: number;
  readonly #max: number;
  readonly #clusterSize: Bytes;
  /** Entries of a refcount block, and of a slice of one. */
  readonly #perBlock: number;
  readonly #perSlice: number;
  /** Held while the refcount table, or which blocks it names, changes. */
  readonly #mutex = new CoMutex('qcow2 refcounts');
  #changedBlocks = new Set<number>();
  #freed: Freed[] = [];
  /** Free clusters that are known, below `#next`. */
  #reusable: { first: number; count: number }[] = [];
  /** Where to look for free clusters; what is missing to look there. */
  #next = 0;
  #missing = 0;
  /** Clusters from here on have never been used: they read as zeroes. */
  #fresh: number;
  /** Where the next compressed cluster goes; 0 for a cluster of its own. */
  #packAt: Offset = 0;

  constructor(image: Image, table: Float64Array, slots: number) {
    const { header, geometry, aio, file } = image;
    this.#image = image;
    this.table = table;
    this.#order = header.refcountOrder;
    this.#max = refcountMax(header.refcountOrder);
    this.#clusterSize = geometry.clusterSize;
    this.#perBlock = (geometry.clusterSize * 8) / 2 ** header.refcountOrder;
    this.#perSlice = (geometry.sliceSize * 8) / 2 ** header.refcountOrder;
    this.#fresh = Math.ceil(file.length / geometry.clusterSize);
    this.cache = new TableCache({
      ...{ aio, file, slots, sliceSize: geometry.sliceSize },
      sync: () => image.sync.run(),
      verify: (at, slot) => this.#verify(at, slot),
      points: { load: 'refblock_load', write: 'refblock_update_part' },
    });
  }

  /** Where the highest cluster that was ever used ends. */
  get end(): Offset {
    return this.#fresh * this.#clusterSize;
  }

  get dirty(): boolean {
    return this.cache.dirty > 0 || this.#changedBlocks.size > 0 || this.#freed.length > 0;
  }

  /**
   * Takes 1..`want` neighbouring free clusters, with a refcount of 1: their offset in the file, and how many in
   * {@link taken}. -1 when something has to be brought in first: await {@link prepare} and try again.
   */
  take(want: number): Offset {
    const first = this.#reusable.length > 0 ? this.#takeReusable(want) : this.#takeNext(want);
    if (first < 0) return -1;
    const at = first * this.#clusterSize;
    if (this.#image.metadata.hasAny(at, this.taken * this.#clusterSize)) {
      throw this.#image.corrupted(`the refcount of the metadata at ${at} is 0`, at);
    }
    this.takenFresh = first >= this.#fresh;
    this.#fresh = Math.max(this.#fresh, first + this.taken);
    return at;
  }

  /** Brings in what the last take was missing. */
  prepare(): Promise<void> {
    return this.#bring(this.#missing);
  }

  /** One cluster. */
  async takeOne(): Promise<{ readonly at: Offset; readonly fresh: boolean }> {
    for (;;) {
      const at = this.take(1);
      const fresh = this.takenFresh;
      if (at >= 0) await this.#image.file.point('cluster_alloc');
      if (at >= 0) return { at, fresh };
      await this.prepare();
    }
  }

  /** As many neighbouring clusters, at the end of the file. For control functions. */
  async allocate(clusters: number): Promise<Offset> {
    await this.#image.file.point('cluster_alloc');
    await this.#coverEnd(clusters);
    let first = this.#fresh;
    for (let i = 0; i < clusters; ) {
      const slot = this.#find(first + i);
      if (slot === MISS) await this.#bring(first + i);
      else if (this.#get(slot, first + i) !== 0) {
        // Counted, although it is behind the end of the file.
        this.free(first * this.#clusterSize, i, 'other');
        first += i + 1;
        i = 0;
      } else this.#set(slot, first + i++, 1);
      this.#fresh = Math.max(this.#fresh, first + i);
    }
    return first * this.#clusterSize;
  }

  /** Room for a compressed cluster of `length` bytes, next to the one before where there is room; -1 as take(). */
  takeBytes(length: Bytes): Offset {
    const before = Math.floor(this.#packAt / this.#clusterSize);
    let at = this.#packAt;
    const left = at === 0 ? 0 : (before + 1) * this.#clusterSize - at;
    if (left > 0) {
      const slot = this.#find(before);
      if (slot === MISS) return this.#lacking(before);
      const count = this.#get(slot, before);
      if (count > 0 && count < this.#max) {
        if (length > left) {
          const next = this.take(1);
          if (next < 0) return -1;
          if (next !== (before + 1) * this.#clusterSize) at = next;
        }
        if (at === this.#packAt) this.#set(slot, before, count + 1);
        return this.#packed(at, length);
      }
    }
    at = this.take(1);
    return at < 0 ? -1 : this.#packed(at, length);
  }

  /** Gives up one reference to each of some clusters, from when the next sync has reached the disk. `at` is of a
   *  cluster. */
  free(at: Offset, clusters: number, reason: FreeReason): void {
    if (clusters === 0) return;
    const first = at / this.#clusterSize;
    const last = this.#freed.at(-1);
    if (last && last.first + last.count === first && last.reason === reason) last.count += clusters;
    else this.#freed.push({ first, count: clusters, reason });
    if (this.#freed.length === FREED_MAX) this.#image.sync.early();
  }

  /** Adds one reference to each cluster. ERANGE where the refcount has no room for it: the others keep theirs. */
  async addReferences(at: Offset, clusters: number): Promise<void> {
    const first = at / this.#clusterSize;
    for (let i = 0; i < clusters; i++) {
      let slot = this.#find(first + i);
      for (; slot === MISS; slot = this.#find(first + i)) await this.#load(first + i);
      const count = this.#get(slot, first + i);
      if (count === 0) throw this.#image.corrupted(`the cluster at ${at} is in use, and its refcount is 0`, at);
      if (count >= this.#max) {
        this.free(at, i, 'other');
        throw new BlockError(
          Errno.ERANGE,
          `Could not share the cluster at ${at}: its refcount is ${count}, the most that ${2 ** this.#order} bits hold`,
        );
      }
      this.#set(slot, first + i, count + 1);
    }
  }

  /** How often a cluster is in use, once what was freed is settled. */
  async count(at: Offset): Promise<number> {
    const cluster = Math.floor(at / this.#clusterSize);
    let slot = this.#find(cluster);
    for (; slot === MISS; slot = this.#find(cluster)) await this.#load(cluster);
    return this.#get(slot, cluster);
  }

  /** As {@link count}; 0 where no refcount block counts the cluster. */
  async countOrZero(at: Offset): Promise<number> {
    return this.#keyOf(at / this.#clusterSize) === 0 ? 0 : await this.count(at);
  }

  /** Clusters up to number `end` do not read as zeroes from now on. */
  use(end: number): void {
    this.#fresh = Math.max(this.#fresh, end);
  }

  /** Cuts free clusters at the end off the file. For control functions. */
  async trim(): Promise<void> {
    const { file } = this.#image;
    let end = this.#fresh;
    while (end > 0) {
      if (this.#keyOf(end - 1) === 0) end = alignDown(end - 1, this.#perBlock);
      else if ((await this.count((end - 1) * this.#clusterSize)) === 0) end--;
      else break;
    }
    if (end * this.#clusterSize < file.length) await file.truncate(end * this.#clusterSize);
    this.#reusable = this.#reusable.filter((range) => range.first + range.count <= end);
    this.#next = Math.min(this.#next, end);
    this.#fresh = end;
  }

  /** What has been freed up to now: to be given to {@link settle} once it is unlinked on the disk, or back. */
  takeFreed(): Freed[] {
    const freed = this.#freed;
    this.#freed = [];
    return freed;
  }

  giveBackFreed(freed: readonly Freed[]): void {
    this.#freed = [...freed, ...this.#freed];
  }

  takeChangedBlocks(): Set<number> {
    const changed = this.#changedBlocks;
    this.#changedBlocks = new Set();
    return changed;
  }

  giveBackChangedBlocks(blocks: Iterable<number>): void {
    for (const block of blocks) this.#changedBlocks.add(block);
  }

  /** Writes entries of the refcount table. */
  async writeTable(blocks: Iterable<number>): Promise<void> {
    for (const block of blocks) {
      const first = block - (block % 64);
      const bytes = new Uint8Array(512);
      const view = new DataView(bytes.buffer);
      for (let i = 0; i < 64 && first + i < this.table.length; i++) {
        encodeTableEntry(view, i * 8, this.#changedBlocks.has(first + i) ? 0 : this.table[first + i]!, 0);
      }
      await this.#image.file.point('refblock_alloc_hookup');
      await this.#image.io.write(this.#image.header.refcountTableOffset + first * 8, bytes);
    }
  }

  /** Lowers the refcounts of what is unlinked on the disk. Clusters that nobody uses any more can be had again. */
  async settle(freed: readonly Freed[]): Promise<void> {
    const { context, opaqueWork } = this.#image;
    await context.grace();
    await Promise.allSettled([...opaqueWork]);
    for (const range of freed) {
      await this.#image.file.point('cluster_free');
      let unused = 0;
      for (let cluster = range.first; cluster < range.first + range.count; cluster++) {
        let slot = this.#find(cluster);
        for (; slot === MISS; slot = this.#find(cluster)) await this.#load(cluster);
        const count = this.#get(slot, cluster);
        const at = cluster * this.#clusterSize;
        if (count === 0) throw this.#image.corrupted(`the cluster at ${at} was freed, and its refcount is 0`, at);
        if (count === 1 && this.#image.metadata.has(at)) {
          throw this.#image.corrupted(`the cluster at ${at} was freed, and metadata is there`, at);
        }
        if (count === 1) {
          unused++;
          // Until it is offered it stays in use, and nothing more may be packed into it.
          if (Math.floor(this.#packAt / this.#clusterSize) === cluster) this.#packAt = 0;
          continue;
        }
        this.#set(slot, cluster, count - 1);
        await this.#release(cluster - unused, unused, range.reason);
        unused = 0;
      }
      await this.#release(range.first + range.count - unused, unused, range.reason);
    }
  }

  /** Clusters with one reference left, which is gone: they can be had again, but not before they are discarded. */
  async #release(first: number, count: number, reason: FreeReason): Promise<void> {
    if (count === 0) return;
    const at = first * this.#clusterSize;
    const length = count * this.#clusterSize;
    this.#image.compressed.forget(at, length);
    if (this.#image.settings.passDiscard[reason]) {
      // Advice: where the file cannot, nothing is lost.
      await this.#image.file.discard(at, length).catch((error: unknown) => {
        if (!(error instanceof BlockError)) throw error;
      });
    }
    for (let cluster = first; cluster < first + count; ) {
      let slot = this.#find(cluster);
      for (; slot === MISS; slot = this.#find(cluster)) await this.#load(cluster);
      const end = Math.min(first + count, cluster - (cluster % this.#perSlice) + this.#perSlice);
      // Without an await in between: whoever looks for free clusters must not find these by their refcount, too.
      for (let i = cluster; i < end; i++) this.#set(slot, i, 0);
      if (this.#reusable.length < REUSABLE_MAX) this.#reusable.push({ first: cluster, count: end - cluster });
      else this.#next = Math.min(this.#next, cluster);
      cluster = end;
    }
  }

  #takeReusable(want: number): number {
    const range = this.#reusable.at(-1)!;
    const { first } = range;
    const slot = this.#find(first);
    if (slot === MISS) return this.#lacking(first);
    // As far as its slice goes.
    const inSlice = first % this.#perSlice;
    const count = Math.min(want, range.count, this.#perSlice - inSlice);
    for (let i = 0; i < count; i++) this.#set(slot, first + i, 1);
    this.taken = count;
    this.#reusable.pop();
    if (count < range.count) this.#reusable.push({ first: first + count, count: range.count - count });
    return first;
  }

  #takeNext(want: number): number {
    for (;;) {
      const cluster = this.#next;
      const slot = this.#find(cluster);
      if (slot === MISS) return this.#lacking(cluster);
      const end = cluster - (cluster % this.#perSlice) + this.#perSlice;
      let first = cluster;
      while (first < end && this.#get(slot, first) !== 0) first++;
      let last = first;
      while (last < end && last - first < want && this.#get(slot, last) === 0) this.#set(slot, last++, 1);
      this.#next = last;
      if (last === first) continue;
      this.taken = last - first;
      return first;
    }
  }

  #packed(at: Offset, length: Bytes): Offset {
    const end = at + length;
    this.#packAt = end % this.#clusterSize === 0 ? 0 : end;
    return at;
  }

  #lacking(cluster: number): -1 {
    this.#missing = cluster;
    return -1;
  }

  /** The slot with a cluster's refcount, or MISS. */
  #find(cluster: number): number {
    const key = this.#keyOf(cluster);
    return key === 0 ? MISS : this.cache.find(key);
  }

  /** Where the slice with a cluster's refcount is; 0 when there is no refcount block for it. */
  #keyOf(cluster: number): Offset {
    const block = Math.floor(cluster / this.#perBlock);
    const at = block < this.table.length ? this.table[block]! : 0;
    if (at === 0) return 0;
    const slice = Math.floor((cluster - block * this.#perBlock) / this.#perSlice);
    return at + slice * this.cache.sliceSize;
  }

  /** Brings in the refcount of a cluster that is in use. Look again afterwards: it may be gone already. */
  async #load(cluster: number): Promise<void> {
    const key = this.#keyOf(cluster);
    if (key !== 0) return this.cache.load(key);
    const at = cluster * this.#clusterSize;
    throw this.#image.corrupted(`there is no refcount block for the cluster at ${at}`, at);
  }

  #get(slot: number, cluster: number): number {
    return getRefcount(this.cache.view, slot * this.#perSlice + (cluster % this.#perSlice), this.#order);
  }

  #set(slot: number, cluster: number, count: number): void {
    this.cache.modify(slot);
    setRefcount(this.cache.view, slot * this.#perSlice + (cluster % this.#perSlice), this.#order, count);
  }

  #bring(cluster: number): Promise<void> {
    const key = this.#keyOf(cluster);
    return key === 0 ? this.#cover(Math.floor(cluster / this.#perBlock), cluster) : this.cache.load(key);
  }

  /** Makes sure that there are refcount blocks for as many clusters at the end of the file. They lie in front of these,
   *  which so can be one piece, however many it takes. */
  async #coverEnd(clusters: number): Promise<void> {
    for (;;) {
      const end = this.#fresh + clusters;
      let block = Math.floor(this.#fresh / this.#perBlock);
      while (block * this.#perBlock < end && block < this.table.length && this.table[block] !== 0) block++;
      if (block * this.#perBlock >= end) return;
      await this.#cover(block, this.#fresh);
    }
  }

  /** Makes sure that there is a refcount block; one that is missing goes to `cluster`. */
  async #cover(block: number, cluster: number): Promise<void> {
    using _held = await this.#mutex.lock();
    await this.#image.file.point('refblock_alloc');
    if (block >= this.table.length) await this.#growTable(block);
    else if (this.table[block] === 0) await this.#addBlock(block, cluster);
  }

  /** A new refcount block, in a cluster that it counts itself, or that one counts which is there. Nothing is done where
   *  the cluster is in use. */
  async #addBlock(block: number, cluster: number): Promise<void> {
    const at = cluster * this.#clusterSize;
    await this.#image.file.point('refblock_alloc_write');
    if (this.#image.metadata.has(at)) {
      throw this.#image.corrupted(`there is no refcount block for the metadata at ${at}`, at);
    }
    if (cluster < this.#fresh) await this.#image.file.writeZeroes(at, this.#clusterSize);
    this.#fresh = Math.max(this.#fresh, cluster + 1);
    const inBlock = cluster - block * this.#perBlock;
    const itself = inBlock >= 0 && inBlock < this.#perBlock;
    const key = itself ? at + Math.floor(inBlock / this.#perSlice) * this.cache.sliceSize : this.#keyOf(cluster);
    while (this.cache.find(key) === MISS) await this.cache.load(key);
    if (this.#get(this.cache.find(key), cluster) !== 0) return;
    this.table[block] = at;
    this.#changedBlocks.add(block);
    this.#image.metadata.add(at);
    this.#set(this.cache.find(key), cluster, 1);
  }

  /** A larger table, with the blocks that count it and themselves, behind everything that is counted now. */
  async #growTable(block: number): Promise<void> {
    const image = this.#image;
    const { header } = image;
    const size = this.#clusterSize;
    // The new table is written whole: what the old one says must be final.
    await image.sync.run();
    await image.file.point('reftable_grow');
    const wanted = Math.max(block + 2, Math.ceil(this.table.length * 1.5));
    const clusters = Math.ceil((wanted * 8) / size);
    if (clusters * size > REFCOUNT_TABLE_BYTES_MAX) {
      throw new BlockError(Errno.EFBIG, 'Could not grow the image: its refcount table would be larger than 8 MiB');
    }
    let blocks = 1;
    while (blocks * this.#perBlock < clusters + blocks) blocks++;
    const first = block * this.#perBlock;
    const table = new Float64Array((clusters * size) / 8);
    table.set(this.table);
    const bytes = new Uint8Array((blocks + clusters) * size);
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < blocks + clusters; i++) setRefcount(view, i, this.#order, 1);
    for (let i = 0; i < blocks; i++) table[block + i] = (first + i) * size;
    for (let i = 0; i < table.length; i++) encodeTableEntry(view, blocks * size + i * 8, table[i]!, 0);
    // Before it is written: a sync makes the file no longer than this, and clusters from here on count as zeroes.
    this.use(first + blocks + clusters);
    await image.file.point('refblock_alloc_write_blocks');
    await image.file.point('refblock_alloc_write_table');
    await image.io.write(first * size, bytes);
    await image.file.flush();
    await image.file.point('refblock_alloc_switch_table');
    const old = { at: header.refcountTableOffset, clusters: header.refcountTableClusters };
    await image.changeHeader(() => {
      header.refcountTableOffset = (first + blocks) * size;
      header.refcountTableClusters = clusters;
    });
    this.table = table;
    for (let i = 0; i < blocks; i++) image.metadata.add((first + i) * size);
    image.metadata.add(header.refcountTableOffset, clusters * size);
    image.metadata.delete(old.at, old.clusters * size);
    this.free(old.at, old.clusters, 'other');
  }

  /** Metadata with a refcount of 0 would be given to somebody else. */
  #verify(key: Offset, slot: number): void {
    const { metadata } = this.#image;
    const block = this.table.indexOf(key - (key % this.#clusterSize));
    if (!metadata.enabled || block < 0) return;
    const first = block * this.#perBlock + ((key % this.#clusterSize) / this.cache.sliceSize) * this.#perSlice;
    for (let cluster = first; cluster < first + this.#perSlice; cluster++) {
      const at = cluster * this.#clusterSize;
      if (this.#get(slot, cluster) !== 0 || !metadata.has(at)) continue;
      throw this.#image.corrupted(`the refcount of the metadata at ${at} is 0`, at);
    }
  }
}
