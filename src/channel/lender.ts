/**
 * What the home of a disk lends to other threads: extents of a file, which they read and write by themselves. The
 * protocol is in docs/CHANNELS.md, "Lent extents". All methods: home thread.
 */
import { CoMutex } from '../aio/co-mutex.ts';
import { Gate } from '../aio/op.ts';
import type { Bytes, Offset } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { kickDrain } from '../block/drain.ts';
import type { MaybePromise } from '../block/driver.ts';
import { findLendable, type Lendable, type NodeLease } from '../block/lease.ts';
import type { BlockNode } from '../block/node.ts';
import { DiskWord, Lent, type SharedWords, Word } from './layout.ts';

export class Lender implements NodeLease {
  /** Somebody has been lent to for writing, since the beginning: what he wrote last may come to be known late. */
  writes = false;
  readonly #blk: BlockBackend;
  readonly #disk: SharedWords;
  /** The words of all channels that are open. */
  readonly #channels: () => Iterable<SharedWords>;
  readonly #nodes = new Set<BlockNode>();
  /** One renewal after the other: there are two counts of users, for the epoch and the one before. */
  readonly #mutex = new CoMutex('leases');
  #leaf: BlockNode | null = null;
  /** Somebody was told that nothing will ever be lent, and asks again only in another epoch. */
  #refused = false;
  /** Tells files apart: another number whenever one is lent of after none was. */
  generation = 0;
  #quiet: Gate | undefined;

  constructor(blk: BlockBackend, disk: SharedWords, channels: () => Iterable<SharedWords>) {
    this.#blk = blk;
    this.#disk = disk;
    this.#channels = channels;
    // What another home has lent is not lent any more.
    Atomics.add(disk, DiskWord.LEASE_EPOCH, 2);
  }

  /** Looks what can be lent at `at`; valid until the next await. A promise says to look again once it has resolved. All
   *  extents are of one file. */
  find(at: Offset, want: Bytes, out: Lendable): MaybePromise<void> {
    const blk = this.#blk;
    const { root } = blk;
    out.length = 0;
    out.never = false;
    if (root === null || blk.quiesce > 0) return undefined;
    const pending = findLendable(root, at, want, out);
    if (pending !== undefined) return this.#counted(pending);
    const { leaf } = out;
    if (out.never) this.#refused = true;
    if (leaf === null || (this.#leaf !== null && this.#leaf !== leaf)) {
      out.length = 0;
      return undefined;
    }
    if (blk.readOnly || blk.writethrough) out.mayWrite = false;
    this.#lend(leaf, out);
    return undefined;
  }

  /** The look at metadata is a request of the disk's. */
  async #counted(pending: Promise<void>): Promise<void> {
    this.#blk.inFlight++;
    try {
      await pending;
    } finally {
      this.#blk.inFlight--;
      if (this.#blk.quiesce > 0) kickDrain();
    }
  }

  #lend(leaf: BlockNode, { nodes, mayWrite }: Lendable): void {
    if (this.#leaf === null) this.generation++;
    this.#leaf = leaf;
    for (const node of nodes) {
      if (this.#nodes.has(node)) continue;
      this.#nodes.add(node);
      node.leases.push(this);
    }
    if (mayWrite) this.writes = true;
    Atomics.store(this.#disk, DiskWord.LENT, mayWrite ? Lent.READ | Lent.WRITE : Lent.READ);
  }

  get epoch(): number {
    return this.#disk[DiskWord.LEASE_EPOCH]!;
  }

  // NodeLease.

  renew(node: BlockNode): Promise<void> | undefined {
    // What becomes of the file's own bytes is seen by all.
    return this.#leaf === null || node === this.#leaf ? undefined : this.#nextEpoch();
  }

  withdraw(): Promise<void> | undefined {
    if (this.#leaf === null) return undefined;
    this.stop();
    return this.#nextEpoch();
  }

  async #nextEpoch(): Promise<void> {
    using _turn = await this.#mutex.lock();
    const before = Atomics.add(this.#disk, DiskWord.LEASE_EPOCH, 1);
    while (this.#users(before & 1)) {
      this.#quiet ??= new Gate();
      await this.#quiet.promise;
    }
  }

  /** Nothing is begun by others from here on. */
  stop(): void {
    Atomics.store(this.#disk, DiskWord.LENT, 0);
  }

  /** Others may ask again. What they know is not true any more, nor is what they were refused: the graph may have
   *  changed. */
  resume(): void {
    if (this.#leaf === null && !this.#refused) return;
    this.#refused = false;
    this.#leaf = null;
    this.#leaveNodes();
    Atomics.add(this.#disk, DiskWord.LEASE_EPOCH, 2);
  }

  /** True while others have something under way; they schedule the home once they have not. */
  get busy(): boolean {
    return this.#leaf !== null && (this.#users(0) || this.#users(1));
  }

  #users(parity: number): boolean {
    Atomics.store(this.#disk, DiskWord.LENDER_WAITS, 1);
    for (const words of this.#channels()) if (Atomics.load(words, Word.BORROWED + parity) > 0) return true;
    return false;
  }

  /** Somebody has ended something, or is gone. */
  look(): void {
    if (this.#leaf === null || Atomics.load(this.#disk, DiskWord.LENDER_WAITS) === 0) return;
    Atomics.store(this.#disk, DiskWord.LENDER_WAITS, 0);
    const quiet = this.#quiet;
    this.#quiet = undefined;
    quiet?.open();
    if (this.#blk.quiesce > 0) kickDrain();
  }

  /** The disk is to close, or to leave. Nobody has anything under way. */
  end(): void {
    this.stop();
    this.#leaveNodes();
  }

  /** What was written is known of from now on. */
  #leaveNodes(): void {
    for (const node of this.#nodes) {
      node.leases.splice(node.leases.indexOf(this), 1);
      if (this.writes) node.writeGen++;
    }
    this.#nodes.clear();
    this.writes = false;
  }
}
