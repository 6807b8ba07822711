/**
 * Persistent bitmaps (specification: "Bitmaps"). Control functions, on a drained node.
 *
 * What must hold after a crash at any point: a bitmap in the file is either right or marked in use. So the mark is on
 * stable storage before the bitmap begins to differ from what is stored; a bitmap is stored in new clusters, under a
 * new directory, which the header names (bitmap-header.ts); what was there before is freed after that.
 */
import { BlockError, Errno } from '../../base/errors.ts';
import type { PagedBits } from '../../base/paged-bits.ts';
import { type Bytes, MiB, type Nanoseconds, type Offset } from '../../base/units.ts';
import type { BitmapPart, BitmapStore, BitmapToStore, StoredBitmap } from '../../block/driver.ts';
import {
  BITMAP_ALL_CLEAR,
  BITMAP_ALL_SET,
  BITMAP_TYPE_DIRTY,
  type BitmapEntry,
  BitmapFlags,
  encodeBitmapDirectory,
  setBitmapTableEntry,
} from '../../proto/qcow2/bitmap-directory.ts';
import { BITMAP_BYTES_MAX } from '../../proto/qcow2/constants.ts';
import { type BitmapsExtension, bitmapsExtension } from '../../proto/qcow2/header-extensions.ts';
import { clearStale, nameDirectory } from './bitmap-header.ts';
import { type BitmapInFile, tableEntries } from './bitmap-read.ts';
import type { Image } from './image.ts';

/** Bytes of bits that are written at once. */
const BATCH = MiB;

/** Clusters of the file. */
interface Run {
  readonly at: Offset;
  readonly clusters: number;
}

/** What an image holds of bitmaps, and where its directory is. */
interface Holding {
  readonly all: readonly BitmapInFile[];
  readonly place: BitmapsExtension | undefined;
}

export class Bitmaps implements BitmapStore {
  readonly damage: string | undefined;
  readonly #image: Image;
  #all: readonly BitmapInFile[];
  /** What `load` has filled, or `store` has stored, and its generation then. */
  readonly #known = new Map<string, { readonly bits: PagedBits; readonly generation: number }>();
  /** Names of those that are to be marked in use in the file. */
  readonly #inUse = new Set<string>();
  /** Clusters that a store has taken and not linked yet. */
  #taken: Run[] = [];

  /** `all`: what the image holds, in the order of its directory. `damage`: see BitmapStore. */
  constructor(image: Image, all: readonly BitmapInFile[], damage?: string) {
    this.#image = image;
    this.damage = damage;
    this.#all = all;
  }

  get checkpointEvery(): Nanoseconds {
    return this.#image.settings.bitmapCheckpoint;
  }

  get stored(): readonly StoredBitmap[] {
    return this.#all.map(({ entry, unusable }) => ({
      name: entry.name,
      granularity: 2 ** entry.granularityBits,
      enabled: (entry.flags & BitmapFlags.AUTO) !== 0,
      inconsistent: unusable,
    }));
  }

  /** Calls `visit` with everything that guest data must never be written over. */
  each(visit: (what: string, at: Offset, length: Bytes, which?: string) => void): void {
    const place = bitmapsExtension(this.#image.header);
    if (place) visit('the bitmap directory', place.directoryOffset, place.directorySize);
    for (const bitmap of this.#all) {
      const { name } = bitmap.entry;
      for (const { at, clusters } of this.#runs(bitmap)) visit('part of bitmap', at, this.#bytes(clusters), name);
    }
  }

  assertStorable(name: string, granularity: Bytes): void {
    const { header } = this.#image;
    if (header.version < 3) throw refusal(name, 'version 2 of the format does not have bitmaps', Errno.ENOTSUP);
    if (header.size === 0) throw refusal(name, 'the disk is empty', Errno.ENOTSUP);
    const entries = tableEntries(header.size, granularity, this.#bytes(1));
    if (this.#bytes(entries) > BITMAP_BYTES_MAX) {
      throw refusal(name, `with a granularity of ${granularity} bytes it would take more than 512 MiB`, Errno.EFBIG);
    }
  }

  async load(name: string, bits: PagedBits): Promise<void> {
    const { io, geometry } = this.#image;
    const { table } = this.#all.find(({ entry }) => entry.name === name)!;
    const perCluster = geometry.clusterSize * 8;
    for (let i = 0; i < table.length; i++) {
      const at = table[i]!;
      if (at === BITMAP_ALL_CLEAR) continue;
      const last = Math.min((i + 1) * perCluster, bits.length) - 1;
      if (at === BITMAP_ALL_SET) bits.set(i * perCluster, last);
      else bits.writeBytes(i * geometry.clusterSize, await io.read(at, geometry.clusterSize));
    }
    this.#known.set(name, { bits, generation: bits.generation });
  }

  async use(names: readonly string[]): Promise<void> {
    for (const name of names) this.#inUse.add(name);
    await this.#mark();
  }

  /** An image that is open for writing may be written from here on: it has been opened, or has been repaired. */
  async writable(): Promise<void> {
    if (this.#image.readOnly || this.#image.damage !== null) return;
    await clearStale(this.#image);
    await this.#mark();
  }

  async #mark(): Promise<void> {
    const image = this.#image;
    // Nobody writes a damaged image, and it may be repaired: then this comes again.
    if (image.damage !== null) return;
    const mark = this.#all.filter(
      ({ entry, unusable }) => !unusable && this.#inUse.has(entry.name) && (entry.flags & BitmapFlags.IN_USE) === 0,
    );
    if (mark.length === 0) return;
    for (const { entry } of mark) entry.flags |= BitmapFlags.IN_USE;
    try {
      // In place: torn or not, each bitmap is marked or is not, and none of them has changed yet.
      await image.io.write(bitmapsExtension(image.header)!.directoryOffset, this.#directory(this.#all));
      await image.file.flush();
    } catch (error) {
      for (const { entry } of mark) entry.flags &= ~BitmapFlags.IN_USE;
      throw error;
    }
  }

  async store(bitmaps: readonly BitmapToStore[], inUse: boolean): Promise<void> {
    const image = this.#image;
    if (bitmaps.every((bitmap) => this.#isStored(bitmap))) return;
    image.assertUndamaged();
    await this.#relink(async () => {
      const next = this.#all.filter(({ unusable }) => unusable);
      for (const bitmap of bitmaps) next.push(await this.#stored(bitmap, inUse));
      return next;
    });
    for (const { name, bits } of bitmaps) this.#known.set(name, { bits, generation: bits.generation });
    for (const { name, covered } of bitmaps) if (covered || !inUse) this.#inUse.delete(name);
  }

  async extend(parts: readonly BitmapPart[]): Promise<void> {
    const image = this.#image;
    const { clusterSize } = image.geometry;
    image.assertUndamaged();
    for (const { name, at, bytes } of parts) {
      const { table } = this.#all.find(({ entry }) => entry.name === name)!;
      this.#known.delete(name);
      for (let done = 0; done < bytes.length; ) {
        const within = (at + done) % clusterSize;
        const length = Math.min(bytes.length - done, clusterSize - within);
        const cluster = table[Math.floor((at + done) / clusterSize)]!;
        // In place: torn or not, bits are only set.
        if (cluster !== BITMAP_ALL_SET) await image.io.write(cluster + within, bytes.subarray(done, done + length));
        done += length;
      }
    }
    await image.file.flush();
  }

  async remove(name: string): Promise<void> {
    const next = this.#all.filter(({ entry }) => entry.name !== name);
    if (next.length === this.#all.length) return;
    this.#image.assertUndamaged();
    await this.#relink(async () => next);
    this.#known.delete(name);
    this.#inUse.delete(name);
  }

  /** True when the file says all there is to say about a bitmap. */
  #isStored({ name, enabled, bits }: BitmapToStore): boolean {
    const flags = this.#all.find(({ entry }) => entry.name === name)?.entry.flags;
    if (flags === undefined || (flags & BitmapFlags.IN_USE) !== 0) return false;
    return enabled === ((flags & BitmapFlags.AUTO) !== 0) && this.#hasBits(name, bits);
  }

  #hasBits(name: string, bits: PagedBits): boolean {
    const known = this.#known.get(name);
    return known?.bits === bits && known.generation === bits.generation;
  }

  /** A bitmap in the file: where it is, if its bits have not changed, or in new clusters. */
  async #stored(bitmap: BitmapToStore, inUse: boolean): Promise<BitmapInFile> {
    const { name, granularity, enabled, bits } = bitmap;
    this.assertStorable(name, granularity);
    const old = this.#all.find(({ entry }) => entry.name === name);
    const marked = inUse && !bitmap.covered;
    const flags = (marked ? BitmapFlags.IN_USE : 0) | (enabled ? BitmapFlags.AUTO : 0);
    const compatible = (old?.entry.flags ?? 0) & BitmapFlags.EXTRA_DATA_COMPATIBLE;
    const place =
      old && this.#hasBits(name, bits)
        ? { table: old.table, tableOffset: old.entry.tableOffset }
        : await this.#writeBits(bits, bitmap.covered ?? false);
    const entry: BitmapEntry = {
      ...{ tableOffset: place.tableOffset, tableSize: place.table.length, flags: flags | compatible },
      ...{ type: BITMAP_TYPE_DIRTY, granularityBits: Math.log2(granularity), name },
      extraData: old?.entry.extraData ?? new Uint8Array(0),
    };
    return { entry, table: place.table, unusable: false };
  }

  /** `whole`: clear ones as well, which may be set in place. */
  async #writeBits(
    bits: PagedBits,
    whole: boolean,
  ): Promise<{ readonly table: Float64Array; readonly tableOffset: Offset }> {
    const { io, geometry } = this.#image;
    const perCluster = geometry.clusterSize * 8;
    const table = new Float64Array(Math.ceil(bits.length / perCluster));
    const mixed: number[] = [];
    for (let i = 0; i < table.length; i++) {
      const first = i * perCluster;
      const end = Math.min(first + perCluster, bits.length);
      if (!whole && bits.next(first, end, true) === end) continue;
      if (bits.next(first, end, false) === end) table[i] = BITMAP_ALL_SET;
      else mixed.push(i);
    }
    for (let done = 0; done < mixed.length; ) {
      const { at, clusters } = await this.#take(
        Math.min(mixed.length - done, Math.max(1, BATCH / geometry.clusterSize)),
      );
      const bytes = new Uint8Array(this.#bytes(clusters));
      for (let i = 0; i < clusters; i++) {
        const index = mixed[done + i]!;
        const part = bytes.subarray(this.#bytes(i), this.#bytes(i + 1));
        bits.readBytes(index * geometry.clusterSize, part);
        table[index] = at + this.#bytes(i);
      }
      await io.write(at, bytes);
      done += clusters;
    }
    const bytes = new Uint8Array(table.length * 8);
    const view = new DataView(bytes.buffer);
    table.forEach((at, i) => {
      setBitmapTableEntry(view, i, at);
    });
    return { table, tableOffset: await this.#write(bytes) };
  }

  /** Writes whole clusters of its own for `bytes`. */
  async #write(bytes: Uint8Array): Promise<Offset> {
    const clusters = Math.ceil(bytes.length / this.#bytes(1));
    const whole = new Uint8Array(this.#bytes(clusters));
    whole.set(bytes);
    const at = clusters === 1 ? (await this.#take(1)).at : await this.#image.refcounts.allocate(clusters);
    if (clusters > 1) this.#taken.push({ at, clusters });
    await this.#image.io.write(at, whole);
    return at;
  }

  /** 1..`want` clusters, free ones inside the file first. */
  async #take(want: number): Promise<Run> {
    const { refcounts } = this.#image;
    for (;;) {
      const at = refcounts.take(want);
      if (at >= 0) {
        const taken = { at, clusters: refcounts.taken };
        this.#taken.push(taken);
        return taken;
      }
      await refcounts.prepare();
    }
  }

  /** Makes what `prepare` answers what the image holds; it may take clusters. All or nothing. */
  async #relink(prepare: () => Promise<readonly BitmapInFile[]>): Promise<void> {
    const image = this.#image;
    const old = { all: this.#all, place: bitmapsExtension(image.header) };
    this.#taken = [];
    let next: readonly BitmapInFile[];
    try {
      next = await prepare();
      await this.#link(next);
    } catch (error) {
      for (const { at, clusters } of this.#taken) image.refcounts.free(at, clusters, 'other');
      throw error;
    }
    this.#all = next;
    this.#exchange(old, { all: next, place: bitmapsExtension(image.header) });
    await image.sync.completeRefcounts();
  }

  /** Frees what the image does not hold any more; guards what it holds now. */
  #exchange(old: Holding, now: Holding): void {
    const { metadata, refcounts } = this.#image;
    const runs = ({ all, place }: Holding): Map<Offset, Run> => {
      const found = all.flatMap((bitmap) => this.#runs(bitmap));
      const clusters = Math.ceil((place?.directorySize ?? 0) / this.#bytes(1));
      if (place) found.push({ at: place.directoryOffset, clusters });
      return new Map(found.map((run) => [run.at, run]));
    };
    const [before, after] = [runs(old), runs(now)];
    for (const { at, clusters } of before.values()) {
      if (after.has(at)) continue;
      metadata.delete(at, this.#bytes(clusters));
      refcounts.free(at, clusters, 'other');
    }
    for (const { at, clusters } of after.values()) if (!before.has(at)) metadata.add(at, this.#bytes(clusters));
  }

  /** Writes the directory, and makes the header name it once all that it leads to is stable. */
  async #link(all: readonly BitmapInFile[]): Promise<void> {
    let place: BitmapsExtension | undefined;
    if (all.length > 0) {
      const directory = this.#directory(all);
      place = {
        count: all.length,
        directorySize: directory.length,
        directoryOffset: await this.#write(directory),
      };
    }
    await this.#image.sync.completeRefcounts();
    // From here on the file may name them, whatever comes of it.
    this.#taken = [];
    await nameDirectory(this.#image, place);
  }

  #directory(all: readonly BitmapInFile[]): Uint8Array {
    const entries = all.map(({ entry }) => entry);
    return encodeBitmapDirectory(entries, this.#bytes(1));
  }

  /** The clusters of a bitmap: its table's, and those of bits. */
  #runs({ entry, table }: BitmapInFile): Run[] {
    if (table.length === 0) return [];
    const runs = [{ at: entry.tableOffset, clusters: Math.ceil((table.length * 8) / this.#bytes(1)) }];
    for (const at of table) if (at > BITMAP_ALL_SET) runs.push({ at, clusters: 1 });
    return runs;
  }

  #bytes(clusters: number): Bytes {
    return clusters * this.#image.geometry.clusterSize;
  }
}

function refusal(name: string, why: string, errno: number): BlockError {
  return new BlockError(errno, `Could not store bitmap '${name}': ${why}`);
}
