/**
 * One look at a whole image: what each part of it refers to, and whether that is what the refcounts say.
 *
 * A table that is referred to more than once (by snapshots, or by a hostile L1 table) is read once, and what is in it
 * counts so many times: time follows from the metadata that is there. Memory: see cluster-counts.ts.
 */
import { BlockError, Errno } from '../../base/errors.ts';
import { type Bytes, GiB, type Offset } from '../../base/units.ts';
import {
  BITMAP_ALL_CLEAR,
  BITMAP_ALL_SET,
  type BitmapEntry,
  getBitmapTableEntry,
  parseBitmapDirectory,
} from '../../proto/qcow2/bitmap-directory.ts';
import { L1_BYTES_MAX } from '../../proto/qcow2/constants.ts';
import type { Qcow2Header } from '../../proto/qcow2/header.ts';
import { bitmapsExtension, encryptionExtension } from '../../proto/qcow2/header-extensions.ts';
import type { SnapshotEntry } from '../../proto/qcow2/snapshot-table.ts';
import type { CheckTarget } from './check.ts';
import { EntryForm, EntryScan } from './check-entries.ts';
import { hex, Ledger } from './check-ledger.ts';
import { StoredRefcounts } from './check-refcounts.ts';
import { Report } from './check-report.ts';
import { ClusterCounts } from './cluster-counts.ts';
import { eachCluster } from './cluster-reader.ts';
import { hostOf } from './entries.ts';
import { MetadataIo, readSnapshotTable } from './metadata-io.ts';

/** Of the L1 tables of all snapshots: 65,536 of a disk of 4 TiB in clusters of 64 KiB. */
const SNAPSHOT_L1_BYTES_MAX: Bytes = 4 * GiB;
/** Bits of an L1 entry that must be 0. */
const L1_HIGH_RESERVED = 0x7f00_0000;
const L1_LOW_RESERVED = 0x1ff;

export interface ScanParts {
  /** False: what must be written anew is not counted, and so its clusters are free; nothing is compared. */
  readonly refcounts: boolean;
  readonly snapshotTable: boolean;
}

const ALL: ScanParts = { refcounts: true, snapshotTable: true };

export class Scan {
  readonly report = new Report();
  readonly ledger: Ledger;
  readonly io: MetadataIo;
  readonly form: EntryForm;
  readonly refcounts: StoredRefcounts;
  /** As many as could be read; what is wrong with their entries is mended. */
  snapshots: readonly SnapshotEntry[] = [];
  /** How often each L2 table is referred to: by the active L1 table, and by all of them. By cluster. */
  readonly activeTables = new ClusterCounts();
  readonly tables = new ClusterCounts();
  readonly #header: Qcow2Header;
  readonly #parts: ScanParts;

  constructor({ aio, file, header }: CheckTarget, parts: ScanParts = ALL) {
    this.io = new MetadataIo(aio, file);
    this.form = new EntryForm(header);
    this.ledger = new Ledger(header, file.length, this.report);
    this.refcounts = new StoredRefcounts(this.io, header, this.ledger);
    this.#header = header;
    this.#parts = parts;
  }

  async run(): Promise<this> {
    const { clusterSize } = this.ledger;
    if (this.#parts.refcounts) await this.#looking('the refcount table', () => this.refcounts.load());
    this.ledger.referMetadata(0, clusterSize, 'the header');
    const keys = encryptionExtension(this.#header);
    if (keys) this.ledger.referMetadata(keys.offset, keys.length, 'the encryption header');
    await this.#looking('the active L1 table', () => this.#activeL1());
    await this.#looking('the snapshot table', () => this.#snapshots());
    await this.#looking('the bitmaps', () => this.#bitmaps());
    await this.#entries();
    if (!this.#parts.refcounts) return this;
    this.refcounts.refer();
    this.ledger.compare((cluster) => this.refcounts.covers(cluster));
    return this;
  }

  /** What cannot be looked at is noted, and the rest goes on. */
  async #looking(what: string, look: () => Promise<void>): Promise<void> {
    try {
      await look();
    } catch (error) {
      if (!(error instanceof BlockError) || error.errno === Errno.EFBIG) throw error;
      this.report.unreadable(() => `${what} could not be read: ${error.message}`);
    }
  }

  async #activeL1(): Promise<void> {
    const { l1Offset, l1Size } = this.#header;
    this.ledger.referMetadata(l1Offset, l1Size * 8, 'the active L1 table');
    await this.#l1(l1Offset, l1Size, 1, true);
  }

  /** Notes the tables in an L1 table that is referred to `times`, and what is wrong with it. */
  async #l1(offset: Offset, entries: number, times: number, active: boolean): Promise<void> {
    const { report, ledger } = this;
    const { clusterSize } = ledger;
    const bytes = await this.io.read(offset, entries * 8);
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < entries; i++) {
      const high = view.getUint32(i * 8);
      const low = view.getUint32(i * 8 + 4);
      const at = hostOf(high, low);
      if ((high & L1_HIGH_RESERVED) !== 0 || (low & L1_LOW_RESERVED) !== 0) {
        report.error(times, () => `entry ${i} of the L1 table at ${hex(offset)} has reserved bits`);
      }
      if (at === 0) continue;
      ledger.refer(at, clusterSize, times, 'the L2 table');
      if (active) ledger.compareCopied(high, at, 1, 'the L2 table');
      if (at % clusterSize !== 0) {
        report.error(times, () => `the place of an L2 table is not a multiple of the cluster size: ${hex(at)}`);
      } else if (at < ledger.fileLength) {
        this.tables.add(at / clusterSize, times);
        if (active) this.activeTables.add(at / clusterSize, 1);
      }
    }
  }

  async #snapshots(): Promise<void> {
    const { ledger, report } = this;
    const header = this.#header;
    if (header.snapshotCount === 0) return;
    const table = await readSnapshotTable(this.io, header, (what) => {
      report.snapshotsBroken = true;
      report.error(1, () => what);
    });
    this.snapshots = table.entries;
    if (this.#parts.snapshotTable) ledger.referMetadata(header.snapshotsOffset, table.length, 'the snapshot table');
    const tables = new Map<string, { readonly entry: SnapshotEntry; times: number }>();
    for (const entry of table.entries) {
      if (!this.#isL1Sound(entry)) continue;
      ledger.referMetadata(entry.l1Offset, entry.l1Size * 8, `the L1 table of snapshot '${entry.id}'`);
      const key = `${entry.l1Offset}+${entry.l1Size}`;
      const known = tables.get(key);
      if (known) known.times++;
      else tables.set(key, { entry, times: 1 });
    }
    const total = [...tables.values()].reduce((sum, { entry }) => sum + entry.l1Size * 8, 0);
    if (total > SNAPSHOT_L1_BYTES_MAX) {
      throw new BlockError(Errno.EFBIG, `Could not check the image: its snapshots have ${total} bytes of L1 tables`);
    }
    for (const { entry, times } of tables.values()) await this.#l1(entry.l1Offset, entry.l1Size, times, false);
  }

  #isL1Sound({ id, l1Offset, l1Size }: SnapshotEntry): boolean {
    const size = l1Size * 8;
    if (size <= L1_BYTES_MAX && l1Offset % this.ledger.clusterSize === 0) return true;
    const place = `${hex(l1Offset)}+${hex(size)}`;
    this.report.error(1, () => `snapshot '${id}' has no valid L1 table: it should be at ${place}`);
    return false;
  }

  async #bitmaps(): Promise<void> {
    const place = bitmapsExtension(this.#header);
    if (!place) return;
    const { ledger } = this;
    ledger.referMetadata(place.directoryOffset, place.directorySize, 'the bitmap directory');
    const bytes = await this.io.read(place.directoryOffset, place.directorySize);
    for (const bitmap of parseBitmapDirectory(bytes, place.count, ledger.clusterSize)) await this.#bitmap(bitmap);
  }

  async #bitmap({ name, tableOffset, tableSize }: BitmapEntry): Promise<void> {
    const { ledger, report } = this;
    ledger.referMetadata(tableOffset, tableSize * 8, `the table of bitmap '${name}'`);
    const what = `a cluster of bitmap '${name}'`;
    const bytes = await this.io.read(tableOffset, tableSize * 8);
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < tableSize; i++) {
      try {
        const at = getBitmapTableEntry(view, i, ledger.clusterSize);
        if (at !== BITMAP_ALL_CLEAR && at !== BITMAP_ALL_SET) ledger.referMetadata(at, ledger.clusterSize, what);
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
        report.error(1, () => error.message);
      }
    }
  }

  /** What all L2 tables refer to. */
  async #entries(): Promise<void> {
    const { clusterSize } = this.ledger;
    const entries = new EntryScan(this.ledger, this.form);
    const offsets = offsetsOf(this.tables, clusterSize);
    await eachCluster(
      this.io,
      offsets,
      clusterSize,
      ({ index, memory, position }) => {
        const table = offsets[index]! / clusterSize;
        entries.table(memory.view, position, { active: this.activeTables.get(table), all: this.tables.get(table) });
      },
      (index, error) => {
        this.report.unreadable(() => `the L2 table at ${hex(offsets[index]!)} could not be read: ${error.message}`);
      },
    );
  }
}

/** Where the clusters are that are counted. */
export function offsetsOf(counts: ClusterCounts, clusterSize: Bytes): Float64Array {
  const offsets: number[] = [];
  counts.forEach((cluster) => {
    offsets.push(cluster * clusterSize);
  });
  return Float64Array.from(offsets);
}
