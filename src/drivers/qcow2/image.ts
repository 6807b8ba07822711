/**
 * An open image: its children, header and tables, and the parts that work on them. Everything here belongs to the home
 * context of the node.
 */

import { CoMutex } from '../../aio/co-mutex.ts';
import type { AioContext } from '../../aio/context.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { alignUp, type Bytes, type Nanoseconds, type Offset, SECTOR } from '../../base/units.ts';
import type { Child, OpenContext } from '../../block/driver.ts';
import type { SectorCipher } from '../../codec/sector-cipher.ts';
import { Autoclear, EntryHigh, Incompatible } from '../../proto/qcow2/constants.ts';
import { encodeIncompatible, type Qcow2Header } from '../../proto/qcow2/header.ts';
import type { SnapshotEntry } from '../../proto/qcow2/snapshot-table.ts';
import { Allocations } from './allocations.ts';
import type { Bitmaps } from './bitmaps.ts';
import type { CompressedClusters } from './compressed.ts';
import { writeHeader } from './header-write.ts';
import { MetadataIo } from './metadata-io.ts';
import type { MetadataMap } from './overlap.ts';
import type { Refcounts } from './refcounts.ts';
import type { Sync } from './sync.ts';
import type { TableCache } from './table-cache.ts';

/** What the options of the node say, checked. */
export interface Qcow2Settings {
  lazyRefcounts: boolean;
  /** Discard freed clusters in the file: those of guest discards, of snapshots, of anything else. */
  readonly passDiscard: { readonly request: boolean; readonly snapshot: boolean; readonly other: boolean };
  /** A discard keeps the cluster, so that the file does not fragment. */
  readonly discardNoUnref: boolean;
  /** Between checkpoints of the bitmaps; 0 for none. */
  readonly bitmapCheckpoint: Nanoseconds;
}

/** Sizes that follow from the header. `entry` is one of an L2 table. */
export class Geometry {
  readonly clusterSize: Bytes;
  readonly extended: boolean;
  readonly entryBytes: 8 | 16;
  readonly tableEntries: number;
  /** Bytes of the guest's disk that one L2 table maps. */
  readonly tableSpan: Bytes;
  readonly sliceSize: Bytes;
  readonly sliceEntries: number;
  /** What a copy-on-write is made whole to: a cluster, or a subcluster. */
  readonly subclusterSize: Bytes;

  constructor(header: Qcow2Header, sliceSize: Bytes) {
    this.clusterSize = 2 ** header.clusterBits;
    this.extended = (header.incompatible & Incompatible.EXTENDED_L2) !== 0;
    this.entryBytes = this.extended ? 16 : 8;
    this.tableEntries = this.clusterSize / this.entryBytes;
    this.tableSpan = this.tableEntries * this.clusterSize;
    this.sliceSize = Math.min(sliceSize, this.clusterSize);
    this.sliceEntries = this.sliceSize / this.entryBytes;
    this.subclusterSize = this.extended ? this.clusterSize / 32 : this.clusterSize;
  }
}

export class Image {
  readonly context: OpenContext;
  readonly aio: AioContext;
  readonly file: Child;
  readonly dataFile: Child | null;
  /** Null once it was dropped, too. */
  backing: Child | null;
  readonly io: MetadataIo;
  readonly header: Qcow2Header;
  readonly geometry: Geometry;
  readonly settings: Qcow2Settings;
  /** Of the disk that is shown. */
  size: Bytes;
  /** Where the active L2 tables are; 0 for none, -1 for an entry that cannot be one. */
  tables: Float64Array;
  /** 1 where the table's entry has the COPIED flag: it may be changed in place. */
  owned: Uint8Array;
  snapshots: SnapshotEntry[] = [];
  /** Bytes of the snapshot table in the file. */
  snapshotTableBytes: Bytes = 0;
  cipher: SectorCipher | null = null;
  /** Held while the L1 table, or which tables it names, changes. */
  readonly tableMutex = new CoMutex('qcow2 tables');
  readonly allocations = new Allocations();
  /** Reads of clusters that `map` calls opaque, and writes of such in place, each until it has ended: see settle() of
   *  refcounts.ts. */
  readonly opaqueWork = new Set<Promise<unknown>>();
  l2!: TableCache;
  refcounts!: Refcounts;
  sync!: Sync;
  metadata!: MetadataMap;
  compressed!: CompressedClusters;
  /** Null where a snapshot is shown. */
  bitmaps: Bitmaps | null = null;
  /** A write of the header has failed, or was not made stable: it is written again before anything relies on it. */
  headerUnsure = false;
  /** Refcounts and COPIED flags may differ, since something failed on the way: the dirty bit stays until a repair. */
  unsettled = false;
  /** Why the image must not be written any more. */
  damage: BlockError | null = null;
  #marked = false;
  #told = false;
  /** Held while the header is written: of two writes at once nobody knows which one is there in the end. */
  readonly #headerMutex = new CoMutex('qcow2 header');

  constructor(
    context: OpenContext,
    children: { readonly file: Child; readonly dataFile: Child | null; readonly backing: Child | null },
    header: Qcow2Header,
    geometry: Geometry,
    settings: Qcow2Settings,
  ) {
    this.context = context;
    this.aio = context.aio;
    this.file = children.file;
    this.dataFile = children.dataFile;
    this.backing = children.backing;
    this.io = new MetadataIo(context.aio, children.file);
    this.header = header;
    this.geometry = geometry;
    this.settings = settings;
    this.size = header.size;
    this.tables = new Float64Array(header.l1Size);
    this.owned = new Uint8Array(header.l1Size);
  }

  get readOnly(): boolean {
    return this.context.readOnly;
  }

  /** Where guest data is. */
  get data(): Child {
    return this.dataFile ?? this.file;
  }

  /** The data file is a raw image by itself. */
  get dataIsRaw(): boolean {
    return (this.header.autoclear & BigInt(Autoclear.DATA_FILE_RAW)) !== 0n;
  }

  has(incompatible: number): boolean {
    return (this.header.incompatible & incompatible) !== 0;
  }

  /** Changes the header, on stable storage. Where that fails it is as it was, and will be written again. */
  async changeHeader(edit: () => void): Promise<void> {
    using _held = await this.#headerMutex.lock();
    const { header } = this;
    const before = { backingFileAt: undefined, ...header, extensions: [...header.extensions] };
    try {
      edit();
      this.headerUnsure = true;
      await writeHeader(this.io, header);
      await this.file.flush();
      this.headerUnsure = false;
    } catch (error) {
      Object.assign(header, before);
      throw error;
    }
  }

  /** Writes the header again where nobody knows what is there. Not flushed. */
  async rewriteHeader(): Promise<void> {
    using _held = await this.#headerMutex.lock();
    if (!this.headerUnsure) return;
    await writeHeader(this.io, this.header);
    this.headerUnsure = false;
  }

  /** Sets or clears an incompatible bit on stable storage. Version 2 has none: nothing happens. */
  async mark(bit: number, on: boolean): Promise<void> {
    if (this.header.version < 3 || (bit === Incompatible.DIRTY && !on && this.unsettled)) return;
    using _held = await this.#headerMutex.lock();
    if (this.has(bit) === on) return;
    this.header.incompatible = on ? this.header.incompatible | bit : this.header.incompatible & ~bit;
    try {
      // No more than that: the rest of a damaged header stays as it is.
      const { at, bytes } = encodeIncompatible(this.header);
      await this.io.write(at, bytes);
      await this.file.flush();
    } catch (error) {
      this.header.incompatible = on ? this.header.incompatible & ~bit : this.header.incompatible | bit;
      this.headerUnsure = true;
      throw error;
    }
  }

  /** Takes over an L1 table as it is on the disk. */
  setL1(view: DataView, entries: number): void {
    const { tables, owned, invalid } = decodeL1(view, entries, this.geometry.clusterSize);
    this.tables = tables;
    this.owned = owned;
    if (invalid !== undefined) this.suspect(`L1 entry ${invalid.index} is invalid: ${invalid.value}`, 0);
  }

  /** The bytes of an L1 table on the disk. */
  encodeL1(tables: Float64Array, owned: Uint8Array): Uint8Array {
    const bytes = new Uint8Array(alignUp(tables.length * 8, SECTOR));
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < tables.length; i++) encodeTableEntry(view, i * 8, tables[i]!, owned[i]!);
    return bytes;
  }

  /** Found damaged while in use: it is marked so, and only reads go on. Returns the error for whoever ran into it. */
  corrupted(what: string, at: Offset): BlockError {
    const error = this.#damaged(what, at);
    if (!this.readOnly) this.damage ??= error;
    this.#tell(error);
    if (!this.readOnly) this.#markCorrupt();
    return error;
  }

  /** Found damaged while it is opened: it can be read, and the first who wants to write marks it and gets the error. */
  suspect(what: string, at: Offset): void {
    if (!this.readOnly) this.damage ??= this.#damaged(what, at);
  }

  /** To be called by whoever is about to write. */
  assertUndamaged(): void {
    if (this.damage === null) return;
    this.#tell(this.damage);
    this.#markCorrupt();
    throw this.damage;
  }

  /** All that was found has been mended. */
  repaired(): void {
    this.damage = null;
    this.unsettled = false;
    this.#marked = false;
    this.#told = false;
  }

  #damaged(what: string, at: Offset): BlockError {
    const { nodeName } = this.context;
    const advice = this.readOnly ? 'run a check with repair' : 'it takes no more writes, run a check with repair';
    return new BlockError(Errno.EIO, `Image of node '${nodeName}' is corrupt: ${what}; ${advice}`, {
      where: { node: nodeName, at },
    });
  }

  #tell({ message }: BlockError): void {
    if (this.#told) return;
    this.#told = true;
    this.context.damaged(message, !this.readOnly);
  }

  #markCorrupt(): void {
    if (this.#marked) return;
    this.#marked = true;
    // The mark is for who opens the image next; here the error says it all.
    this.mark(Incompatible.CORRUPT, true).catch((failure: unknown) => {
      if (!(failure instanceof BlockError)) throw failure;
    });
  }
}

/** An entry of a table that cannot be one. */
export interface InvalidEntry {
  readonly index: number;
  readonly value: string;
}

interface L1 {
  readonly tables: Float64Array;
  /** 1 where COPIED is set. */
  readonly owned: Uint8Array;
  /** The first entry that cannot be one; the offset of any such is -1. */
  readonly invalid: InvalidEntry | undefined;
}

/** An L1 table on the disk as offsets. */
export function decodeL1(view: DataView, entries: number, clusterSize: Bytes): L1 {
  const tables = new Float64Array(entries);
  const owned = new Uint8Array(entries);
  let invalid: InvalidEntry | undefined;
  for (let i = 0; i < entries; i++) {
    const high = view.getUint32(i * 8);
    const low = view.getUint32(i * 8 + 4);
    // Nothing is written where nothing is: what was not touched takes no memory.
    if (high === 0 && low === 0) continue;
    tables[i] = decodeTableEntry(high & ~EntryHigh.COPIED, low, clusterSize);
    owned[i] = high >>> 31;
    if (tables[i] === -1) invalid ??= { index: i, value: hexEntry(high, low) };
  }
  return { tables, owned, invalid };
}

/** The offset in an entry of a table without its flags; -1 where it cannot be one. */
export function decodeTableEntry(high: number, low: number, clusterSize: Bytes): Offset {
  const at = (high & EntryHigh.OFFSET) * 2 ** 32 + low;
  const reserved = high & (~EntryHigh.OFFSET | EntryHigh.BEYOND);
  return reserved !== 0 || at % clusterSize !== 0 ? -1 : at;
}

export function hexEntry(high: number, low: number): string {
  return `0x${high.toString(16).padStart(8, '0')}${low.toString(16).padStart(8, '0')}`;
}

/** An L1 entry, and an entry of the refcount table when `copied` is 0. */
export function encodeTableEntry(view: DataView, at: number, offset: Offset, copied: number): void {
  const high = Math.floor(offset / 2 ** 32);
  view.setUint32(at, copied !== 0 ? (high | EntryHigh.COPIED) >>> 0 : high);
  view.setUint32(at + 4, offset % 2 ** 32);
}
