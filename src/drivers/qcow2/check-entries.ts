/** Looking at the entries of L2 tables. Specification: "Cluster mapping", "Extended L2 Entries". */
import type { Offset } from '../../base/units.ts';
import { decodeCompressed } from '../../proto/qcow2/compressed-entry.ts';
import { EntryHigh, EntryLow, Incompatible } from '../../proto/qcow2/constants.ts';
import type { Qcow2Header } from '../../proto/qcow2/header.ts';
import { hex, type Ledger } from './check-ledger.ts';
import { hostOf } from './entries.ts';

/** Bits of an entry that must be 0 where it is not compressed; bit 0 is the zero flag, or not looked at. */
const HIGH_RESERVED = 0x3f00_0000;
const LOW_RESERVED = 0x1fe;
/** Bits of the upper half that make an entry more than plain data, but for COPIED. */
const HIGH_SPECIAL = 0x7f00_0000;

/** How L2 entries of an image are to be read. */
export class EntryForm {
  readonly clusterBits: number;
  readonly clusterSize: number;
  readonly extended: boolean;
  readonly entryBytes: 8 | 16;
  readonly #zeroFlag: boolean;
  /** The data is in a file of its own: the clusters of this one are not referred to. */
  readonly flat: boolean;

  constructor(header: Qcow2Header) {
    this.clusterBits = header.clusterBits;
    this.clusterSize = 2 ** header.clusterBits;
    this.extended = (header.incompatible & Incompatible.EXTENDED_L2) !== 0;
    this.entryBytes = this.extended ? 16 : 8;
    this.#zeroFlag = header.version >= 3 && !this.extended;
    this.flat = (header.incompatible & Incompatible.DATA_FILE) !== 0;
  }

  /** True where an entry has a place in a file; not of a compressed one. Place 0 of a data file is told by COPIED, but
   *  for one that reads as zeroes: it counts as having none, as it does for `qemu-img check`. */
  hasPlace(high: number, low: number): boolean {
    if (hostOf(high, low) !== 0) return true;
    return this.flat && high >= EntryHigh.COPIED && !(this.#zeroFlag && (low & EntryLow.ZERO) !== 0);
  }

  /** True when an entry that has a misaligned place could do without: it reads as zeroes, or as what is below. */
  isMendable(view: DataView, position: number): boolean {
    const high = view.getUint32(position);
    const low = view.getUint32(position + 4);
    if ((high & EntryHigh.COMPRESSED) !== 0 || hostOf(high, low) % this.clusterSize === 0) return false;
    if (this.extended) return view.getUint32(position + 12) === 0;
    return this.#zeroFlag && (low & EntryLow.ZERO) !== 0;
  }

  /** Takes its place away from such an entry. */
  mend(view: DataView, position: number): void {
    view.setUint32(position, 0);
    view.setUint32(position + 4, this.extended ? 0 : EntryLow.ZERO);
  }
}

/** How often a table is referred to: by the active L1 table, and by all of them. */
export interface TableUse {
  readonly active: number;
  readonly all: number;
}

export class EntryScan {
  readonly #ledger: Ledger;
  readonly #form: EntryForm;
  /** What each entry of the table counts for. */
  #use: TableUse = { active: 0, all: 0 };
  /** The number of the cluster behind the last one in the table: the next one should be there. 0 for none yet. */
  #next = 0;

  constructor(ledger: Ledger, form: EntryForm) {
    this.#ledger = ledger;
    this.#form = form;
  }

  /** Everything that is wrong with the entries of the table at `position`, and what they refer to. */
  table(view: DataView, position: number, use: TableUse): void {
    const { clusterBits, clusterSize, entryBytes, extended, flat } = this.#form;
    const ledger = this.#ledger;
    const { fileClusters, report, stored } = ledger;
    const inCluster = clusterSize - 1;
    const perHigh = 2 ** (32 - clusterBits);
    const end = position + clusterSize;
    this.#use = use;
    this.#next = 0;
    for (let at = position; at < end; at += entryBytes) {
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      const cluster = (high & EntryHigh.OFFSET) * perHigh + (low >>> clusterBits);
      const special = (high & HIGH_SPECIAL) !== 0 || (low & inCluster) !== 0;
      if (extended || flat || special || cluster >= fileClusters) this.#unusual(view, at);
      else if (cluster !== 0) {
        ledger.referOne(cluster, use.all);
        if (use.active === 0) continue;
        report.allocated += use.active;
        if (this.#next !== 0 && this.#next !== cluster) report.fragmented += use.active;
        this.#next = cluster + 1;
        if (high >>> 31 !== (stored.get(cluster) === 1 ? 1 : 0)) {
          ledger.compareCopied(high, cluster * clusterSize, use.active, 'the cluster');
        }
      }
    }
  }

  #unusual(view: DataView, position: number): void {
    const { extended } = this.#form;
    const { report } = this.#ledger;
    const high = view.getUint32(position);
    const low = view.getUint32(position + 4);
    if ((high & EntryHigh.COMPRESSED) !== 0) {
      this.#compressed(view, position, high, low);
      return;
    }
    if ((high & HIGH_RESERVED) !== 0 || (low & LOW_RESERVED) !== 0) {
      report.error(this.#use.all, () => `an L2 entry has reserved bits: ${entryText(high, low)}`);
    }
    const host = hostOf(high, low);
    const allocated = extended ? view.getUint32(position + 12) : 0;
    if (this.#form.hasPlace(high, low)) {
      if (extended && (view.getUint32(position + 8) & allocated) !== 0) {
        report.error(this.#use.all, () => `subclusters of the cluster at ${hex(host)} are both allocated and zero`);
      }
      this.#place(view, position, host);
    } else if (allocated !== 0) {
      report.error(this.#use.all, () => `an L2 entry has allocated subclusters without a cluster: ${hex(allocated)}`);
    }
  }

  /** An entry with a place in the file, or in the data file. */
  #place(view: DataView, position: number, host: Offset): void {
    const { clusterSize, flat } = this.#form;
    const { active, all } = this.#use;
    const { report } = this.#ledger;
    if (host % clusterSize !== 0) {
      const mendable = this.#form.isMendable(view, position);
      if (mendable) report.mendable += all;
      const what = mendable ? 'an empty cluster' : 'a cluster';
      report.error(all, () => `the place of ${what} is not a multiple of the cluster size: ${hex(host)}`);
    }
    if (!flat) this.#ledger.refer(host, clusterSize, all, 'the cluster');
    if (active === 0) return;
    const cluster = host / clusterSize;
    report.allocated += active;
    if (this.#next !== 0 && this.#next !== cluster) report.fragmented += active;
    this.#next = cluster + 1;
    if (!flat) this.#ledger.compareCopied(view.getUint32(position), host, active, 'the cluster');
  }

  #compressed(view: DataView, position: number, high: number, low: number): void {
    const { clusterBits, extended, flat } = this.#form;
    const { active, all } = this.#use;
    const { report } = this.#ledger;
    const { offset, length } = decodeCompressed(high, low, clusterBits);
    if (high >= EntryHigh.COPIED) {
      report.error(all, () => `the compressed cluster at ${hex(offset)} is flagged COPIED`);
    }
    if (flat) {
      report.error(all, () => `a compressed cluster in an image with external data: ${entryText(high, low)}`);
      return;
    }
    if (extended && (view.getUint32(position + 8) | view.getUint32(position + 12)) !== 0) {
      report.error(all, () => `the compressed cluster at ${hex(offset)} has subclusters`);
      return;
    }
    this.#ledger.refer(offset, length, all, 'the compressed cluster');
    report.allocated += active;
    report.compressed += active;
    // Where one ends is not where the next may begin: each is read by itself.
    report.fragmented += active;
  }
}

function entryText(high: number, low: number): string {
  return `0x${high.toString(16).padStart(8, '0')}${low.toString(16).padStart(8, '0')}`;
}
