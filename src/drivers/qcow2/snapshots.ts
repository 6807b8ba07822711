/**
 * Internal snapshots: a copy of the L1 table each, and everything below shared. Control functions, on a drained node.
 * Refcounts go up before anything refers to what they count, tables are switched by one write of the header, and
 * refcounts go down last. Meanwhile COPIED flags and refcounts may differ, so the dirty bit is set.
 */
import { BlockError, Errno } from '../../base/errors.ts';
import type { Offset } from '../../base/units.ts';
import type { SnapshotControl, SnapshotInfo } from '../../block/driver.ts';
import { Incompatible, L1_BYTES_MAX, SNAPSHOTS_MAX } from '../../proto/qcow2/constants.ts';
import { refcountMax } from '../../proto/qcow2/refcount-block.ts';
import { checkSnapshotL1, encodeSnapshotTable, type SnapshotEntry } from '../../proto/qcow2/snapshot-table.ts';
import { decodeL1, type Image } from './image.ts';
import { clearCopied, eachTree, fixCopied } from './references.ts';

const NS = 1_000_000_000n;

export class Snapshots implements SnapshotControl {
  readonly #image: Image;

  constructor(image: Image) {
    this.#image = image;
  }

  list(): readonly SnapshotInfo[] {
    return this.#image.snapshots.map((entry) => snapshotInfo(entry, this.#image.header.size));
  }

  async create(name: string): Promise<SnapshotInfo> {
    const image = this.#image;
    this.#assertPossible('create a snapshot');
    if (image.snapshots.length >= SNAPSHOTS_MAX) {
      throw new BlockError(Errno.EFBIG, `Could not create a snapshot: there are ${SNAPSHOTS_MAX} already`);
    }
    const entry = newEntry(image, name);
    await this.#dirty(async () => {
      await this.#share(image.tables);
      await clearCopied(image);
      await image.sync.complete();
      entry.l1Offset = await this.#storeL1(image.tables);
      entry.l1Size = image.tables.length;
      await this.#storeTable([...image.snapshots, entry]);
      image.metadata.add(entry.l1Offset, entry.l1Size * 8);
    });
    return snapshotInfo(entry, image.header.size);
  }

  async apply(which: string): Promise<void> {
    const image = this.#image;
    this.#assertPossible('apply a snapshot');
    if ((image.bitmaps?.stored.length ?? 0) > 0) {
      throw new BlockError(
        Errno.EBUSY,
        `Could not apply snapshot '${which}': the image has bitmaps; remove them first`,
      );
    }
    const entry = this.#find(which);
    const wanted = await this.#tablesOf(entry);
    const size = entry.diskSize ?? image.header.size;
    if (wanted.length * image.geometry.tableSpan < size) {
      throw new BlockError(Errno.EIO, `Could not apply snapshot '${which}': its L1 table is too small for its disk`);
    }
    await this.#dirty(async () => {
      await this.#share(wanted);
      const { header } = image;
      const at = await this.#storeL1(wanted);
      const old = { at: header.l1Offset, entries: header.l1Size, tables: image.tables };
      await this.#switch(() => {
        header.l1Offset = at;
        header.l1Size = wanted.length;
        header.size = size;
      });
      image.l2.clear();
      image.tables = wanted;
      image.owned = new Uint8Array(wanted.length);
      image.size = size;
      image.metadata.add(at, wanted.length * 8);
      for (const table of old.tables) if (table !== 0) image.metadata.delete(table);
      for (const table of wanted) if (table !== 0) image.metadata.add(table);
      await this.#release(old.tables, old.at, old.entries);
      await fixCopied(image);
    });
  }

  async delete(which: string): Promise<SnapshotInfo> {
    const image = this.#image;
    this.#assertPossible('delete a snapshot');
    const entry = this.#find(which);
    const tables = await this.#tablesOf(entry);
    await this.#dirty(async () => {
      await this.#storeTable(image.snapshots.filter((other) => other !== entry));
      await this.#release(tables, entry.l1Offset, entry.l1Size);
      await fixCopied(image);
    });
    return snapshotInfo(entry, image.header.size);
  }

  #assertPossible(what: string): void {
    const image = this.#image;
    const refuse = (errno: number, why: string): BlockError => new BlockError(errno, `Could not ${what}: ${why}`);
    image.assertUndamaged();
    if (image.readOnly) throw refuse(Errno.EPERM, 'the image is open read-only');
    if (image.dataFile !== null) throw refuse(Errno.ENOTSUP, 'the data is in an external file');
    if (refcountMax(image.header.refcountOrder) === 1) {
      throw refuse(Errno.ENOTSUP, 'refcounts of 1 bit cannot share clusters; amend refcount_bits first');
    }
  }

  #find(which: string): SnapshotEntry {
    const { snapshots } = this.#image;
    const found = snapshots.find(({ id }) => id === which) ?? snapshots.find(({ name }) => name === which);
    if (found) return found;
    throw new BlockError(Errno.ENOENT, `Could not find snapshot '${which}'`);
  }

  async #tablesOf(entry: SnapshotEntry): Promise<Float64Array> {
    const { geometry, io } = this.#image;
    checkSnapshotL1(entry, geometry.clusterSize);
    const bytes = await io.read(entry.l1Offset, entry.l1Size * 8);
    const { tables, invalid } = decodeL1(new DataView(bytes.buffer), entry.l1Size, geometry.clusterSize);
    const refuse = (why: string): BlockError =>
      new BlockError(Errno.EIO, `Could not use snapshot '${entry.id}': its L1 table ${why}`);
    if (invalid !== undefined) throw refuse(`has an invalid entry ${invalid.index}: ${invalid.value}`);
    // Each table is read and counted once for every entry: of a few bytes there must not be work for years.
    const sorted = tables.filter((at) => at !== 0).sort();
    const twice = sorted.find((at, i) => i > 0 && at === sorted[i - 1]);
    if (twice !== undefined) throw refuse(`names the L2 table at ${twice} twice`);
    return tables;
  }

  /** Everything is synced before and after; a crash in between leaves an image that is repaired when it is opened. */
  async #dirty(work: () => Promise<void>): Promise<void> {
    const image = this.#image;
    await image.sync.completeRefcounts();
    await image.mark(Incompatible.DIRTY, true);
    try {
      await work();
    } catch (error) {
      image.unsettled = true;
      throw error;
    }
    await image.sync.completeRefcounts();
    await image.mark(Incompatible.DIRTY, false);
  }

  /** One more reference to all that a tree refers to, on stable storage. ERANGE before anything has changed. */
  async #share(tables: Float64Array): Promise<void> {
    const image = this.#image;
    const { refcounts, geometry } = image;
    const most = refcountMax(image.header.refcountOrder);
    await eachTree(image, tables, async (runs) => {
      for (const { at, clusters } of runs) {
        for (let i = 0; i < clusters; i++) {
          // Compressed clusters that share a cluster each count in it: a refcount may double.
          const count = await refcounts.count(at + i * geometry.clusterSize);
          if (count * 2 <= most || most > 2 ** 31) continue;
          throw new BlockError(
            Errno.ERANGE,
            `Could not share the cluster at ${at}: its refcount is ${count}, and ${most} is the most there can be`,
          );
        }
      }
    });
    await eachTree(image, tables, async (runs) => {
      for (const { at, clusters } of runs) await refcounts.addReferences(at, clusters);
    });
    await image.sync.completeRefcounts();
  }

  /** Gives up one reference to all that a tree refers to, and the L1 table's own clusters. */
  async #release(tables: Float64Array, l1Offset: Offset, l1Size: number): Promise<void> {
    const image = this.#image;
    const { clusterSize } = image.geometry;
    await eachTree(image, tables, async (runs) => {
      for (const { at, clusters } of runs) image.refcounts.free(at, clusters, 'snapshot');
      await image.sync.run();
    });
    if (l1Size > 0) {
      const clusters = Math.ceil((l1Size * 8) / clusterSize);
      image.metadata.delete(l1Offset, clusters * clusterSize);
      image.refcounts.free(l1Offset, clusters, 'snapshot');
    }
    await image.sync.completeRefcounts();
  }

  /** Writes an L1 table without COPIED flags to clusters of its own. */
  async #storeL1(tables: Float64Array): Promise<Offset> {
    const image = this.#image;
    if (tables.length === 0) return 0;
    if (tables.length * 8 > L1_BYTES_MAX) throw new BlockError(Errno.EFBIG, 'Could not copy the L1 table: too large');
    const { clusterSize } = image.geometry;
    const clusters = Math.ceil((tables.length * 8) / clusterSize);
    const at = await image.refcounts.allocate(clusters);
    const bytes = new Uint8Array(clusters * clusterSize);
    bytes.set(image.encodeL1(tables, new Uint8Array(tables.length)));
    await image.io.write(at, bytes);
    return at;
  }

  /** Writes the snapshot table to new clusters, makes the header name it, and frees the old one. */
  async #storeTable(entries: readonly SnapshotEntry[]): Promise<void> {
    const image = this.#image;
    const { header, geometry } = image;
    const encoded = encodeSnapshotTable(entries, header.size);
    const clusters = Math.ceil(encoded.length / geometry.clusterSize);
    let at = 0;
    if (entries.length > 0) {
      at = await image.refcounts.allocate(clusters);
      const bytes = new Uint8Array(clusters * geometry.clusterSize);
      bytes.set(encoded);
      await image.io.write(at, bytes);
    }
    const old = { at: header.snapshotsOffset, count: header.snapshotCount };
    const oldClusters = Math.ceil(image.snapshotTableBytes / geometry.clusterSize);
    await this.#switch(() => {
      header.snapshotsOffset = at;
      header.snapshotCount = entries.length;
    });
    image.snapshots = [...entries];
    image.snapshotTableBytes = entries.length > 0 ? encoded.length : 0;
    if (at !== 0) image.metadata.add(at, clusters * geometry.clusterSize);
    if (old.count === 0) return;
    image.metadata.delete(old.at, oldClusters * geometry.clusterSize);
    image.refcounts.free(old.at, oldClusters, 'snapshot');
  }

  /** What the header is about to name is on the disk first; then the header. */
  async #switch(edit: () => void): Promise<void> {
    await this.#image.sync.completeRefcounts();
    await this.#image.changeHeader(edit);
  }
}

function newEntry(image: Image, name: string): SnapshotEntry {
  const ids = image.snapshots.map(({ id }) => Number.parseInt(id, 10)).filter((id) => Number.isSafeInteger(id));
  const now = Date.now();
  return {
    ...{ l1Offset: 0, l1Size: 0, id: String(Math.max(0, ...ids) + 1), name },
    ...{ dateSeconds: Math.floor(now / 1000), dateNanoseconds: (now % 1000) * 1_000_000 },
    ...{ vmClockNanoseconds: 0n, vmStateSize: 0, diskSize: image.header.size, icount: undefined },
    unknown: new Uint8Array(0),
  };
}

/** An entry as it is shown. `size` of the disk is the snapshot's where the entry does not say. */
export function snapshotInfo(entry: SnapshotEntry, size: number): SnapshotInfo {
  return {
    ...{ id: entry.id, name: entry.name, vmStateSize: entry.vmStateSize, diskSize: entry.diskSize ?? size },
    ...{ dateSeconds: entry.dateSeconds, dateNanoseconds: entry.dateNanoseconds },
    vmClockSeconds: Number(entry.vmClockNanoseconds / NS),
    vmClockNanoseconds: Number(entry.vmClockNanoseconds % NS),
    ...(entry.icount === undefined ? {} : { icount: Number(entry.icount) }),
  };
}
