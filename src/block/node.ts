/**
 * A node of the block graph. It lives in one AioContext, with its children; only that context's thread touches it.
 * Fields are public because the request path is spread over several files; outside `block/` it is opaque.
 */
import type { AioContext } from '../aio/context.ts';
import type { Gate } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, isPowerOfTwo, MiB, type Offset } from '../base/units.ts';
import type { BlockChild } from './child.ts';
import { NodeBitmaps } from './dirty-bitmap.ts';
import type { CommonOptions, Driver, DriverNode, Limits, MaybePromise } from './driver.ts';
import { type NodeLease, renewLeases, withdrawLeases } from './lease.ts';
import { grace, type Tracked } from './tracked.ts';

/** Whoever uses a node: an edge from a node above, or a BlockBackend. */
export interface NodeParent {
  /** For messages: "node 'disk0' as 'file'". */
  readonly describe: string;
  node: BlockNode | null;
  /** What it needs, and what it lets others do, as Perm bits. */
  perm: number;
  shared: number;
  /** Other users whose needs do not stand against its own: it changes nothing that they see. */
  readonly allies?: ReadonlySet<NodeParent> | undefined;
  /** Of one that stays while the node is inactive, and needs nothing then: what it needs once that is active. */
  readonly onceActive?: { readonly perm: number; readonly shared: number } | undefined;
  drainBegin(): void;
  drainEnd(): void;
  /** True while it, or anything above it, has requests in flight. */
  drainBusy(): boolean;
  /** The node's length has changed. */
  resized(): void;
}

/** Discards that a driver was asked for: those that it has done, of so many bytes, and those that it could not do. */
export interface DiscardCounts {
  readonly done: number;
  readonly failed: number;
  readonly bytes: Bytes;
}

/** Told of every range that a write, a zero write or a discard may have changed, once it has ended. */
export type DirtyHook = (at: Offset, length: Bytes) => void;

/** Limits of a node that says nothing: Linux IOV_MAX, no size limit. */
const DEFAULT_LIMITS: Limits = {
  alignment: 1,
  memoryAlignment: 1,
  optimal: 0,
  maxTransfer: 0,
  maxZero: 0,
  maxDiscard: 0,
  zeroAlignment: 0,
  discardAlignment: 0,
  maxIov: 1024,
};

/** The node and all below it. */
export function graphBelow(root: BlockNode): Set<BlockNode> {
  const all = new Set([root]);
  for (const node of all) for (const child of node.children) all.add(child.node);
  return all;
}

export class BlockNode {
  readonly name: string;
  readonly driver: Driver;
  readonly aio: AioContext;
  /** Changes where a child has gone for good. */
  common: CommonOptions;
  /** The driver's half; set when open has resolved. */
  impl!: DriverNode;
  readonly children: BlockChild[] = [];
  readonly parents: NodeParent[] = [];
  /** How many hold the node without being a parent (the opener, the monitor). */
  refs = 1;
  /** 0 for a leaf, else one more than the highest child. */
  height = 0;
  closed = false;
  /** Somebody else may have the image: nothing is read, written or locked (inactive.ts). */
  inactive = false;
  /** A filter that a job has put there for its own time: what is asked about the disk is about what it shows. */
  implicit = false;
  /** Name of the node that it was opened with, by options inside the options of that; null where it was opened by
   *  itself. */
  openedWith: string | null = null;
  /** It has the `cache` of the node that it was opened with: none was given for itself. */
  inheritsCache = false;
  /** True from the end of the driver's open to the beginning of its close: only then it may be called. */
  live = false;

  /** What the node tells its users; a format advertises its child's alignment. */
  limits: Limits = DEFAULT_LIMITS;
  /** What it enforces on itself by padding: the driver's own alignment. A format without one leaves it to the child. */
  alignment = 1;
  readOnly: boolean;
  noFlush = false;
  discardUnmap = false;
  detectZeroes: 'off' | 'on' | 'unmap' = 'off';

  firstTracked: Tracked | null = null;
  lastTracked: Tracked | null = null;
  /** How many of the tracked requests are serialising. */
  serialising = 0;
  inFlight = 0;
  quiesce = 0;

  /** Where the write ended that went furthest. */
  highestWrite: Offset = 0;
  discards: DiscardCounts = { done: 0, failed: 0, bytes: 0 };
  /** Counts writes; what of them is on stable storage. */
  writeGen = 0;
  flushedGen = 0;
  /** Set while a flush is going on; opens at its end. */
  flushing: Gate | null = null;

  readonly dirtyHooks: DirtyHook[] = [];
  /** Of those who have lent extents of it to other threads. */
  readonly leases: NodeLease[] = [];
  readonly bitmaps = new NodeBitmaps(this);
  #threshold = Number.POSITIVE_INFINITY;
  #thresholdHook: ((end: Offset) => void) | null = null;

  constructor(name: string, driver: Driver, aio: AioContext, common: CommonOptions) {
    this.name = name;
    this.driver = driver;
    this.aio = aio;
    this.common = common;
    this.readOnly = common['read-only'] ?? false;
    this.takeManner();
  }

  /** Takes requests as its options say by now. Drained, once it is open. */
  takeManner(): void {
    const { common } = this;
    this.noFlush = common.cache?.['no-flush'] ?? false;
    this.discardUnmap = common.discard === 'unmap';
    this.detectZeroes = common['detect-zeroes'] ?? 'off';
  }

  get length(): Bytes {
    return this.impl.length;
  }

  /** Takes over what the driver has opened. */
  opened(impl: DriverNode): void {
    this.impl = impl;
    if (impl.readOnly) this.readOnly = true;
    this.refreshLimits();
    this.live = true;
    // Opened over a child that is drained.
    if (this.quiesce > 0) impl.drainBegin?.();
  }

  /** Limits are the driver's own; a format takes what it does not say from the child its data is in. */
  refreshLimits(): void {
    const below = this.children.find(({ role }) => role !== 'cow' && role !== 'metadata' && role !== 'target')?.limits;
    const own = this.impl.limits ?? {};
    const inherited = below ? { alignment: below.alignment, optimal: below.optimal } : {};
    const limits = { ...DEFAULT_LIMITS, ...inherited, ...own };
    if (!isPowerOfTwo(limits.alignment) || limits.alignment > MiB) {
      throw new BlockError(
        Errno.EINVAL,
        `Could not open node '${this.name}': bad request alignment ${limits.alignment}`,
      );
    }
    this.limits = limits;
    this.alignment = own.alignment ?? 1;
    this.height = this.children.reduce((height, child) => Math.max(height, child.node.height + 1), 0);
  }

  /** See OpenContext.grace. */
  grace(): MaybePromise<void> {
    const here = grace(this);
    const elsewhere = renewLeases(this);
    if (here === undefined || elsewhere === undefined) return here ?? elsewhere;
    return Promise.all([here, elsewhere]).then(() => undefined);
  }

  /** After every write and zero write, whether or not it failed: it may have changed the range (R9). */
  written(at: Offset, length: Bytes): void {
    if (at + length > this.highestWrite) this.highestWrite = at + length;
    this.changed(at, length);
  }

  countDiscard(length: Bytes, done: boolean): void {
    const { discards } = this;
    this.discards = done
      ? { ...discards, done: discards.done + 1, bytes: discards.bytes + length }
      : { ...discards, failed: discards.failed + 1 };
  }

  /** The same by a discard, or by a change of the size. */
  changed(at: Offset, length: Bytes): void {
    this.writeGen++;
    for (let i = 0; i < this.dirtyHooks.length; i++) this.dirtyHooks[i]!(at, length);
    if (at + length > this.#threshold) this.#crossThreshold(at + length);
  }

  /** A write has ended beyond the length. */
  grown(end: Offset): void {
    if (end <= this.length) return;
    this.impl.grew?.(end);
    this.resized();
  }

  /** Tells everybody above that the length has changed. */
  resized(): void {
    this.bitmaps.follow();
    for (const parent of [...this.parents]) parent.resized();
  }

  /** `hook` runs once, after the first write that ends beyond `bytes`. 0 takes the threshold away. */
  setWriteThreshold(bytes: Bytes, hook: (end: Offset) => void): void {
    this.#threshold = bytes === 0 ? Number.POSITIVE_INFINITY : bytes;
    this.#thresholdHook = bytes === 0 ? null : hook;
    // Others write unseen until they have been told.
    void withdrawLeases(this);
  }

  /** 0 for none. */
  get writeThreshold(): Bytes {
    return this.#thresholdHook === null ? 0 : this.#threshold;
  }

  /** True while somebody is told of writes, its bitmaps apart. */
  get watched(): boolean {
    return this.#thresholdHook !== null || this.hooked;
  }

  /** True while somebody is told of every write, its bitmaps apart. */
  get hooked(): boolean {
    return this.dirtyHooks.length > (this.bitmaps.recording ? 1 : 0);
  }

  #crossThreshold(end: Offset): void {
    const hook = this.#thresholdHook;
    this.#threshold = Number.POSITIVE_INFINITY;
    this.#thresholdHook = null;
    hook?.(end);
  }

  /** True when there may be writes that it has not seen. */
  get writtenElsewhere(): boolean {
    if (this.impl.writtenElsewhere) return true;
    for (let i = 0; i < this.leases.length; i++) if (this.leases[i]!.writes) return true;
    return false;
  }

  /** True when nothing below holds writes that a flush would make stable. */
  get clean(): boolean {
    if (this.flushedGen !== this.writeGen || this.flushing !== null || this.writtenElsewhere) return false;
    for (let i = 0; i < this.children.length; i++) {
      const child = this.children[i]!;
      if (child.role !== 'target' && !child.node.clean) return false;
    }
    return true;
  }

  /** Of a filter: what it shows. */
  get filtered(): BlockChild | undefined {
    for (let i = 0; i < this.children.length; i++) if (this.children[i]!.role === 'filtered') return this.children[i];
    return undefined;
  }

  /** Where its bytes are: the file of a format, what a filter shows. */
  get primary(): BlockChild | undefined {
    for (let i = 0; i < this.children.length; i++) {
      const child = this.children[i]!;
      if (child.role === 'primary' || child.role === 'filtered') return child;
    }
    return undefined;
  }

  /** The child to read where this layer has nothing, if any. */
  get cow(): BlockChild | undefined {
    for (let i = 0; i < this.children.length; i++) if (this.children[i]!.role === 'cow') return this.children[i];
    return undefined;
  }
}
