/** The table of internal snapshots (specification: "Snapshots"). */
import { BlockError, Errno } from '../../base/errors.ts';
import { alignUp, type Bytes, isAligned, type Offset } from '../../base/units.ts';
import { getU64, setU64 } from '../nbd/words.ts';
import { L1_BYTES_MAX, SNAPSHOT_EXTRA_MAX, SNAPSHOT_TABLE_BYTES_MAX, SNAPSHOTS_MAX } from './constants.ts';
import type { Qcow2Header } from './header.ts';
import { decodeName, encodeName } from './text.ts';

export interface SnapshotEntry {
  l1Offset: Offset;
  /** Entries. */
  l1Size: number;
  id: string;
  name: string;
  dateSeconds: number;
  dateNanoseconds: number;
  /** Of the guest's clock. A bigint: 2^53 ns are 104 days, and guests run longer. */
  vmClockNanoseconds: bigint;
  vmStateSize: Bytes;
  /** Of the guest's disk at that time; undefined in old images, which did not say. */
  diskSize: Bytes | undefined;
  /** Instructions executed; undefined where they were not counted. A bigint, like the clock. */
  icount: bigint | undefined;
  /** Extra data beyond what we know: preserved. */
  unknown: Uint8Array;
}

/** Where fields of an entry are. */
const At = {
  L1_OFFSET: 0,
  L1_SIZE: 8,
  ID_SIZE: 12,
  NAME_SIZE: 14,
  DATE_SECONDS: 16,
  DATE_NANOSECONDS: 20,
  VM_CLOCK: 24,
  VM_STATE_SIZE: 32,
  EXTRA_SIZE: 36,
  EXTRA: 40,
  LARGE_VM_STATE_SIZE: 40,
  DISK_SIZE: 48,
  ICOUNT: 56,
  UNKNOWN: 64,
} as const;

/** Extra data as we write it. */
const EXTRA_KNOWN = At.UNKNOWN - At.EXTRA;
/** What version 3 asks for: up to the disk's size. */
const V3_EXTRA_MIN = 16;
const NAME_BYTES_MAX = 65_535;
const NO_ICOUNT = 0xffff_ffff_ffff_ffffn;

/** Told of what is wrong with the table, as the end of a sentence. */
export type SnapshotFault = (what: string) => void;

/**
 * Takes the table apart piece by piece, since its length is not known before its last entry:
 * `while (parser.needed > 0) parser.take(...)` with bytes of the file from `parser.at` on.
 *
 * With `fault` it is for a repair: what can be made right is told, and not refused. Entries beyond a limit are left
 * out, extra data beyond its limit is cut off.
 */
export class SnapshotTableParser {
  readonly entries: SnapshotEntry[] = [];
  /** Where in the file the next bytes are taken from. */
  at: Offset;
  /** How many there must be at the least to go on; 0 when the table is complete. */
  needed: Bytes;
  readonly #start: Offset;
  readonly #fileLength: Bytes;
  /** Bytes of extra data that an entry must have. */
  readonly #extraMin: Bytes;
  readonly #fault: SnapshotFault | undefined;
  #count: number;

  constructor(header: Qcow2Header, fileLength: Bytes, fault?: SnapshotFault) {
    this.#start = header.snapshotsOffset;
    this.#count = header.snapshotCount;
    this.#fileLength = fileLength;
    this.#extraMin = header.version === 2 ? 0 : V3_EXTRA_MIN;
    this.#fault = fault;
    if (this.#count > SNAPSHOTS_MAX) {
      // Without `fault`, parseHeader has refused it.
      this.#fault?.(`nb_snapshots is ${this.#count}; ${SNAPSHOTS_MAX} is the limit`);
      this.#count = SNAPSHOTS_MAX;
    }
    this.at = this.#start;
    this.needed = 0;
    this.#need(At.EXTRA);
  }

  /** From the beginning of the table to the end of the last entry so far. */
  get length(): Bytes {
    return this.at - this.#start;
  }

  /** Takes the whole entries in `bytes`. EINVAL for what cannot be an entry, or when the table is too long. */
  take(bytes: Uint8Array): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const from = this.at;
    while (this.needed > 0) {
      const left = bytes.length - (this.at - from);
      if (left < this.needed) return;
      const at = this.at - from;
      const length = this.#entryLength(view, at);
      this.#need(length);
      if (left < this.needed || this.needed === 0) return;
      this.entries.push(this.#entry(bytes, view, at));
      this.at += alignUp(length, 8);
      this.#need(At.EXTRA);
    }
  }

  #need(length: Bytes): void {
    this.needed = this.entries.length < this.#count ? length : 0;
    if (this.needed === 0) return;
    if (this.at + length > this.#fileLength) this.#end('is beyond the end of the file');
    else if (this.length + length > SNAPSHOT_TABLE_BYTES_MAX) {
      this.#end(`is beyond the largest table, of ${SNAPSHOT_TABLE_BYTES_MAX} bytes`);
    }
  }

  /** There are no more entries, though there should be. */
  #end(why: string): void {
    if (!this.#fault) this.#refuse(why);
    this.#fault(`${this.#which} ${why}: it and those after it are lost`);
    this.#count = this.entries.length;
    this.needed = 0;
  }

  #entryLength(view: DataView, at: number): Bytes {
    const extra = view.getUint32(at + At.EXTRA_SIZE);
    if (extra > SNAPSHOT_EXTRA_MAX && !this.#fault) {
      this.#refuse(`has extra_data_size ${extra}; ${SNAPSHOT_EXTRA_MAX} is the limit`);
    }
    return At.EXTRA + extra + view.getUint16(at + At.ID_SIZE) + view.getUint16(at + At.NAME_SIZE);
  }

  #entry(bytes: Uint8Array, view: DataView, at: number): SnapshotEntry {
    const extra = view.getUint32(at + At.EXTRA_SIZE);
    const has = (field: number) => extra >= field + 8 - At.EXTRA;
    const idAt = at + At.EXTRA + extra;
    const extraEnd = at + At.EXTRA + SNAPSHOT_EXTRA_MAX;
    const nameAt = idAt + view.getUint16(at + At.ID_SIZE);
    if (extra > SNAPSHOT_EXTRA_MAX || extra < this.#extraMin) {
      const range = `${this.#extraMin} to ${SNAPSHOT_EXTRA_MAX}`;
      this.#fault?.(`${this.#which} has extra_data_size ${extra}; it must be ${range}`);
    }
    const icount = has(At.ICOUNT) ? view.getBigUint64(at + At.ICOUNT) : NO_ICOUNT;
    return {
      l1Offset: this.#u64(view, at + At.L1_OFFSET, 'l1_table_offset'),
      l1Size: view.getUint32(at + At.L1_SIZE),
      id: decodeName(bytes.subarray(idAt, nameAt)),
      name: decodeName(bytes.subarray(nameAt, nameAt + view.getUint16(at + At.NAME_SIZE))),
      dateSeconds: view.getUint32(at + At.DATE_SECONDS),
      dateNanoseconds: view.getUint32(at + At.DATE_NANOSECONDS),
      vmClockNanoseconds: view.getBigUint64(at + At.VM_CLOCK),
      vmStateSize: has(At.LARGE_VM_STATE_SIZE)
        ? this.#u64(view, at + At.LARGE_VM_STATE_SIZE, 'vm_state_size')
        : view.getUint32(at + At.VM_STATE_SIZE),
      diskSize: has(At.DISK_SIZE) ? this.#u64(view, at + At.DISK_SIZE, 'disk_size') : undefined,
      icount: icount === NO_ICOUNT ? undefined : icount,
      unknown: new Uint8Array(bytes.subarray(at + At.UNKNOWN, Math.max(at + At.UNKNOWN, Math.min(idAt, extraEnd)))),
    };
  }

  #u64(view: DataView, at: number, field: string): number {
    const value = getU64(view, at);
    return value < 0 ? this.#refuse(`has ${field} of 2^53 or more`) : value;
  }

  get #which(): string {
    return `entry ${this.entries.length} of the snapshot table`;
  }

  #refuse(why: string): never {
    throw new BlockError(Errno.EINVAL, `Could not read the snapshots: ${this.#which} ${why}`);
  }
}

/** Why the L1 table of a snapshot cannot be one; undefined where it can. The image itself may be fine. */
export function snapshotL1Fault(entry: SnapshotEntry, clusterSize: Bytes): string | undefined {
  const { l1Offset: at, l1Size } = entry;
  if (l1Size * 8 > L1_BYTES_MAX) return `l1_size ${l1Size} is too large; ${L1_BYTES_MAX / 8} is the limit`;
  if (l1Size === 0) return undefined;
  if (at === 0) return 'l1_table_offset is 0, where the header is';
  if (!isAligned(at, clusterSize)) return `l1_table_offset ${at} is not a multiple of the cluster size`;
  return Number.isSafeInteger(at + l1Size * 8) ? undefined : `l1_table_offset ${at} is too large`;
}

/** For whoever uses a snapshot, before its L1 table is read. EINVAL. */
export function checkSnapshotL1(entry: SnapshotEntry, clusterSize: Bytes): void {
  const why = snapshotL1Fault(entry, clusterSize);
  if (why !== undefined) throw new BlockError(Errno.EINVAL, `Could not use snapshot '${entry.id}': ${why}`);
}

interface Encoded {
  readonly entry: SnapshotEntry;
  readonly id: Uint8Array;
  readonly name: Uint8Array;
  readonly length: Bytes;
}

function prepare(entry: SnapshotEntry): Encoded {
  const id = encodeName(entry.id);
  const name = encodeName(entry.name);
  const fail = (what: string, length: number, limit: number): never => {
    throw new BlockError(Errno.EINVAL, `Could not write the snapshots: ${what} has ${length} bytes, of ${limit}`);
  };
  if (id.length > NAME_BYTES_MAX) fail('an id', id.length, NAME_BYTES_MAX);
  if (name.length > NAME_BYTES_MAX) fail('a name', name.length, NAME_BYTES_MAX);
  const extra = EXTRA_KNOWN + entry.unknown.length;
  if (extra > SNAPSHOT_EXTRA_MAX) fail('extra data', extra, SNAPSHOT_EXTRA_MAX);
  return { entry, id, name, length: alignUp(At.EXTRA + extra + id.length + name.length, 8) };
}

/** The bytes of a table, in entries that are right for both versions. `diskSize` is written where an entry has none: a
 *  reader would assume the disk's size too. EINVAL beyond a limit. */
export function encodeSnapshotTable(entries: readonly SnapshotEntry[], diskSize: Bytes): Uint8Array {
  const prepared = entries.map(prepare);
  const total = prepared.reduce((sum, { length }) => sum + length, 0);
  if (entries.length > SNAPSHOTS_MAX || total > SNAPSHOT_TABLE_BYTES_MAX) {
    const size = `${entries.length} snapshots in ${total} bytes`;
    const limits = `${SNAPSHOTS_MAX} in ${SNAPSHOT_TABLE_BYTES_MAX}`;
    throw new BlockError(Errno.EINVAL, `Could not write the snapshots: ${size}; ${limits} are the limit`);
  }
  const bytes = new Uint8Array(total);
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const { entry, id, name, length } of prepared) {
    const extra = EXTRA_KNOWN + entry.unknown.length;
    setU64(view, at + At.L1_OFFSET, entry.l1Offset);
    view.setUint32(at + At.L1_SIZE, entry.l1Size);
    view.setUint16(at + At.ID_SIZE, id.length);
    view.setUint16(at + At.NAME_SIZE, name.length);
    view.setUint32(at + At.DATE_SECONDS, entry.dateSeconds);
    view.setUint32(at + At.DATE_NANOSECONDS, entry.dateNanoseconds);
    view.setBigUint64(at + At.VM_CLOCK, entry.vmClockNanoseconds);
    // The old field, for readers that do not look at extra data.
    view.setUint32(at + At.VM_STATE_SIZE, entry.vmStateSize > 0xffff_ffff ? 0 : entry.vmStateSize);
    view.setUint32(at + At.EXTRA_SIZE, extra);
    setU64(view, at + At.LARGE_VM_STATE_SIZE, entry.vmStateSize);
    setU64(view, at + At.DISK_SIZE, entry.diskSize ?? diskSize);
    view.setBigUint64(at + At.ICOUNT, entry.icount ?? NO_ICOUNT);
    bytes.set(entry.unknown, at + At.UNKNOWN);
    bytes.set(id, at + At.EXTRA + extra);
    bytes.set(name, at + At.EXTRA + extra + id.length);
    at += length;
  }
  return bytes;
}
