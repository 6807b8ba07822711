/** How often each cluster of a file is referred to, beside what its refcount says. */
import type { Bytes, Offset } from '../../base/units.ts';
import type { Qcow2Header } from '../../proto/qcow2/header.ts';
import { refcountMax } from '../../proto/qcow2/refcount-block.ts';
import type { Report } from './check-report.ts';
import { ClusterCounts } from './cluster-counts.ts';
import { MetadataMap } from './overlap.ts';

/** Offsets in messages. */
export function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

export class Ledger {
  readonly report: Report;
  readonly clusterSize: Bytes;
  readonly fileLength: Bytes;
  /** The last one may be cut off. */
  readonly fileClusters: number;
  /** References by cluster; no more than a refcount can say. */
  readonly found = new ClusterCounts();
  /** Refcounts of the file's clusters. */
  readonly stored = new ClusterCounts();
  /** Clusters of metadata other than L2 tables and refcount blocks. */
  readonly metadata: MetadataMap;
  readonly #max: number;

  constructor(header: Qcow2Header, fileLength: Bytes, report: Report) {
    this.report = report;
    this.clusterSize = 2 ** header.clusterBits;
    this.fileLength = fileLength;
    this.fileClusters = Math.ceil(fileLength / this.clusterSize);
    this.metadata = new MetadataMap(this.clusterSize, true);
    this.#max = refcountMax(header.refcountOrder);
  }

  /** Notes that metadata other than an L2 table is in a range: nothing else may be written there. */
  referMetadata(at: Offset, length: Bytes, what: string): void {
    if (this.refer(at, length, 1, what)) this.metadata.add(at, length);
  }

  /** Notes `times` references to each cluster of a range. `what` is for messages: 'the L1 table'. False where the file
   *  does not have it: the end of its last cluster may be missing, and no more. */
  refer(at: Offset, length: Bytes, times: number, what: string): boolean {
    if (length === 0) return true;
    if (at + length - this.fileLength >= this.clusterSize) {
      this.report.error(times, () => `${what} at ${hex(at)}+${hex(length)} is beyond the end of the file`);
      return false;
    }
    const last = Math.floor((at + length - 1) / this.clusterSize);
    for (let cluster = Math.floor(at / this.clusterSize); cluster <= last; cluster++) this.referOne(cluster, times);
    return true;
  }

  /** Of a cluster of the file. */
  referOne(cluster: number, times: number): void {
    const count = this.found.add(cluster, times);
    if (count <= this.#max) return;
    this.found.set(cluster, this.#max);
    this.report.error(
      count - this.#max,
      () => `the cluster at ${hex(cluster * this.clusterSize)} is in use ${count} times: more than refcounts can say`,
    );
  }

  /** Of a table or cluster at `at`, of any alignment. `high` is the upper half of the entry that refers to it. */
  compareCopied(high: number, at: Offset, times: number, what: string): void {
    const count = this.stored.get(Math.floor(at / this.clusterSize));
    if (high >>> 31 === (count === 1 ? 1 : 0)) return;
    const flag = high >>> 31 === 1 ? 'is' : 'is not';
    this.report.wrongCopied(times, () => `${what} at ${hex(at)} ${flag} flagged COPIED, and its refcount is ${count}`);
  }

  /** Compares all counts with the refcounts, and notes where the last used cluster ends. `covers`: there is a place for
   *  a cluster's refcount. */
  compare(covers: (cluster: number) => boolean): void {
    const { report, found, stored, clusterSize } = this;
    const where = (cluster: number, has: number, wants: number) => {
      return `the cluster at ${hex(cluster * clusterSize)} has refcount ${has}, and ${wants} references`;
    };
    found.differences(stored, (cluster, wants, has) => {
      if (!covers(cluster)) report.refcountsBroken = true;
      if (has < wants) report.error(1, () => where(cluster, has, wants));
      else report.leak(() => where(cluster, has, wants));
    });
    report.end = (Math.max(found.last, stored.last) + 1) * clusterSize;
  }
}
