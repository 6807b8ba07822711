/** The refcount table and its blocks, as a check sees them: nothing in them is taken for granted. */
import type { Offset } from '../../base/units.ts';
import type { Qcow2Header } from '../../proto/qcow2/header.ts';
import { getRefcount } from '../../proto/qcow2/refcount-block.ts';
import { hex, type Ledger } from './check-ledger.ts';
import { eachCluster } from './cluster-reader.ts';
import type { MetadataIo } from './metadata-io.ts';

/** Bits 0 to 8 of an entry of the refcount table. */
const RESERVED = 0x1ff;

export class StoredRefcounts {
  /** How many clusters a refcount block is for. */
  readonly perBlock: number;
  readonly #io: MetadataIo;
  readonly #header: Qcow2Header;
  readonly #ledger: Ledger;
  /** By their number, offsets of the refcount blocks that can be read; 0 for the others. */
  #blocks = new Float64Array(0);
  /** Blocks whose entry is as it should be. */
  #sound: number[] = [];

  constructor(io: MetadataIo, header: Qcow2Header, ledger: Ledger) {
    this.#io = io;
    this.#header = header;
    this.#ledger = ledger;
    this.perBlock = (ledger.clusterSize * 8) / 2 ** header.refcountOrder;
  }

  /** Reads the table, and the refcounts of the file's clusters into `ledger.stored`. */
  async load(): Promise<void> {
    const { refcountTableOffset, refcountTableClusters } = this.#header;
    const { clusterSize, fileClusters, stored } = this.#ledger;
    const bytes = await this.#io.read(refcountTableOffset, refcountTableClusters * clusterSize);
    const view = new DataView(bytes.buffer);
    this.#blocks = new Float64Array(view.byteLength / 8);
    for (let block = 0; block < this.#blocks.length; block++) {
      this.#entry(block, view.getUint32(block * 8), view.getUint32(block * 8 + 4));
    }
    const order = this.#header.refcountOrder;
    await this.eachBlock((block, blockView, position) => {
      const first = block * this.perBlock;
      const count = Math.min(this.perBlock, fileClusters - first);
      // Entries may be smaller than a byte: blocks lie on whole bytes all the same.
      const base = (position * 8) / 2 ** order;
      for (let i = 0; i < count; i++) {
        const refcount = getRefcount(blockView, base + i, order);
        if (refcount !== 0) stored.add(first + i, refcount);
      }
      return false;
    });
  }

  /** Counts the table and the blocks, once everything else is counted: nobody else may use their clusters. */
  refer(): void {
    const { refcountTableOffset, refcountTableClusters } = this.#header;
    const ledger = this.#ledger;
    ledger.referMetadata(refcountTableOffset, refcountTableClusters * ledger.clusterSize, 'the refcount table');
    for (const block of this.#sound) {
      const at = this.#blocks[block]!;
      ledger.refer(at, ledger.clusterSize, 1, 'the refcount block');
      const count = ledger.found.get(at / ledger.clusterSize);
      if (count === 1) continue;
      ledger.report.refcountsBroken = true;
      ledger.report.error(1, () => `refcount block ${block} at ${hex(at)} is in use ${count} times`);
    }
  }

  /** True where there is a place for a cluster's refcount. */
  covers(cluster: number): boolean {
    const block = Math.floor(cluster / this.perBlock);
    return block < this.#blocks.length && this.#blocks[block] !== 0;
  }

  /**
   * Visits the blocks that are for clusters of the file, each place of the file once, in its order. Where `visit`
   * answers true the block has changed, and is written.
   */
  async eachBlock(visit: (block: number, view: DataView, position: number) => boolean): Promise<void> {
    const { clusterSize, fileClusters, report } = this.#ledger;
    const blocks = this.#blocks;
    const numbers: number[] = [];
    const most = Math.min(blocks.length, Math.ceil(fileClusters / this.perBlock));
    for (let block = 0; block < most; block++) if (blocks[block] !== 0) numbers.push(block);
    numbers.sort((a, b) => blocks[a]! - blocks[b]! || a - b);
    const once = numbers.filter((block, i) => i === 0 || blocks[numbers[i - 1]!] !== blocks[block]);
    const offsets = Float64Array.from(once, (block) => blocks[block]!);
    await eachCluster(
      this.#io,
      offsets,
      clusterSize,
      ({ index, memory, position }) => {
        if (!visit(once[index]!, memory.view, position)) return undefined;
        return this.#io.write(offsets[index]!, memory.bytes.subarray(position, position + clusterSize));
      },
      (index, error) => report.unreadable(() => `refcount block ${once[index]} could not be read: ${error.message}`),
    );
  }

  #entry(block: number, high: number, low: number): void {
    if (high === 0 && low === 0) return;
    const { report, clusterSize, fileLength } = this.#ledger;
    const at: Offset = high * 2 ** 32 + (low - (low & RESERVED));
    const wrong = (why: string): void => {
      report.refcountsBroken = true;
      report.error(1, () => `entry ${block} of the refcount table, ${hex(at)}, ${why}`);
    };
    if ((low & RESERVED) !== 0) wrong('has reserved bits');
    else if (at % clusterSize !== 0) wrong('is not a multiple of the cluster size');
    else if (at >= fileLength) wrong('is beyond the end of the file');
    else this.#sound.push(block);
    if (at % clusterSize === 0 && at < fileLength) this.#blocks[block] = at;
  }
}
