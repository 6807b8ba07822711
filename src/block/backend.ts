/**
 * BlockBackend: the user's side of a graph (SEMANTICS B1-B7). An export, a job or a program holds one. All of it
 * belongs to the home context of its root node.
 */
import type { AioContext } from '../aio/context.ts';
import { Gate } from '../aio/op.ts';
import { assert } from '../base/assert.ts';
import { BlockError, Errno, errnoText, ioError } from '../base/errors.ts';
import { Fifo } from '../base/fifo.ts';
import type { Iov } from '../base/memory.ts';
import { type Bytes, isOffset, type Offset } from '../base/units.ts';
import { copyUp } from './copy-up.ts';
import { busy, Drained, drain, kickDrain, quiesce } from './drain.ts';
import { type Limits, type MaybePromise, PERM_ALL, Perm, RequestFlags } from './driver.ts';
import { start } from './fast.ts';
import { flushNode } from './flush.ts';
import { attach, detach, type NodeOptions, openNode, releaseNode } from './graph.ts';
import { truncateNode } from './io.ts';
import { IoCounters, ticksSince } from './io-counters.ts';
import type { BlockNode, NodeParent } from './node.ts';
import { graphSection, PermChange } from './permissions.ts';
import { nodeByName } from './registry.ts';
import { BlockRequest, Phase, RequestKind } from './request.ts';
import { BlockStatus, nodeStatus } from './status.ts';

export interface BlockBackendOptions {
  /** For messages. */
  readonly name?: string;
  /** What it needs; default: consistent read, and write and resize unless `readOnly`. Perm bits. */
  readonly perm?: number;
  /** What others may do meanwhile; default: read, and what changes nothing. */
  readonly shared?: number;
  readonly readOnly?: boolean;
  /** See NodeParent. */
  readonly allies?: ReadonlySet<NodeParent>;
  /** It may stay on a node that is inactive; all requests end with EPERM then. Default false. */
  readonly allowInactive?: boolean | undefined;
  /** Who has it, for messages ("export 'x'"). */
  readonly owner?: string | undefined;
  /** Every write is on stable storage when it completes. Default false (write-back). */
  readonly writethrough?: boolean;
  /** Writes beyond the end make the root grow instead of failing. */
  readonly allowWriteBeyondEnd?: boolean;
  /** Counters that go on, of the same disk in another context. */
  readonly stats?: IoCounters;
}

/** What a user of a BlockBackend does when it is drained, and when its size changes. */
export interface BackendUser {
  /** Stop taking in new requests; synchronous. Not counted: what was called last holds. */
  onDrainBegin?(): void;
  /** Go on. Comes to every user, also to one that was added inside the drained section. */
  onDrainEnd?(): void;
  /** True while requests that it took in have not reached the BlockBackend or come back. Call {@link kickDrain} when
   *  that has changed. */
  drainBusy?(): boolean;
  onResize?(length: Bytes): void;
  /** Undefined when it can go on with the disk in another context, else what keeps it ("NBD export 'x' shows dirty
   *  bitmaps"). One without this cannot (SEMANTICS B8). */
  cannotMove?(): string | undefined;
  /** What keeps the disk from being set back, or from being kept as it is, by a snapshot; undefined for nothing. */
  cannotRevert?(): string | undefined;
}

/** One request of the promise API. */
class PromiseRequest extends BlockRequest {
  readonly gate = new Gate<number>();

  done(error: number): void {
    this.gate.open(error);
  }
}

const VERBS = ['read', 'write', 'flush', 'discard', 'zero', 'prefetch'] as const;

export class BlockBackend implements NodeParent {
  readonly name: string;
  readonly owner: string | undefined;
  readonly context: AioContext;
  perm: number;
  shared: number;
  allies: ReadonlySet<NodeParent> | undefined;
  /** Who uses it: exports, jobs. One that comes in while it is drained looks at `quiesce` itself. */
  readonly users = new Set<BackendUser>();
  writethrough: boolean;
  readonly allowWriteBeyondEnd: boolean;
  readonly allowInactive: boolean;
  /** Requests are not held back while drained: for who makes requests inside its own drained section. */
  disableQueuing = false;
  inFlight = 0;
  quiesce = 0;
  stats: IoCounters;
  #root: BlockNode | null = null;
  /** The root while requests may reach it: not while it is inactive, which changes in drained sections only. */
  #ready: BlockNode | null = null;
  #leaving: Promise<void> | null = null;
  #flushLast = false;
  #wanted: { perm: number; shared: number };
  readonly #readOnly: boolean;
  readonly #queue = new Fifo<BlockRequest>();

  constructor(context: AioContext, options: BlockBackendOptions = {}) {
    this.context = context;
    this.name = options.name ?? '';
    this.owner = options.owner;
    this.#readOnly = options.readOnly ?? false;
    this.allies = options.allies;
    this.writethrough = options.writethrough ?? false;
    this.allowWriteBeyondEnd = options.allowWriteBeyondEnd ?? false;
    this.allowInactive = options.allowInactive ?? false;
    const writes = this.#readOnly ? 0 : Perm.WRITE | Perm.RESIZE;
    this.#wanted = {
      perm: options.perm ?? Perm.CONSISTENT_READ | writes,
      shared: options.shared ?? Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED,
    };
    this.stats = options.stats ?? new IoCounters();
    this.perm = 0;
    this.shared = PERM_ALL;
  }

  /** Opens a tree of nodes (or takes the node of that name) and puts it in. */
  static async open(
    context: AioContext,
    target: NodeOptions | string,
    options: BlockBackendOptions = {},
  ): Promise<BlockBackend> {
    const node = typeof target === 'string' ? nodeByName(target) : await openNode(context, target);
    if (typeof target === 'string') node.refs++;
    try {
      const readOnly = options.readOnly ?? node.readOnly;
      const blk = new BlockBackend(context, { ...options, readOnly });
      await blk.insert(node);
      return blk;
    } finally {
      await releaseNode(node);
    }
  }

  get describe(): string {
    if (this.owner !== undefined) return this.owner;
    return this.name === '' ? 'an unnamed block backend' : `block backend '${this.name}'`;
  }

  get root(): BlockNode | null {
    return this.#root;
  }

  /** The root, for the graph: what is put in its place, too. */
  get node(): BlockNode | null {
    return this.#root;
  }

  set node(node: BlockNode) {
    this.#setRoot(node);
  }

  #setRoot(root: BlockNode | null): void {
    this.#root = root;
    this.#ready = root?.inactive ? null : root;
  }

  get onceActive(): { readonly perm: number; readonly shared: number } | undefined {
    return this.allowInactive ? this.#wanted : undefined;
  }

  get #medium(): BlockNode {
    if (this.#root) return this.#root;
    throw new BlockError(Errno.ENOMEDIUM, `Could not use ${this.describe}: ${errnoText(Errno.ENOMEDIUM)}`);
  }

  /** Bytes; 0 without a medium. */
  get length(): Bytes {
    return this.#root?.length ?? 0;
  }

  get limits(): Limits {
    return this.#medium.limits;
  }

  get readOnly(): boolean {
    return this.#readOnly || (this.#root?.readOnly ?? false);
  }

  get mayGrow(): boolean {
    return this.allowWriteBeyondEnd && (this.perm & Perm.RESIZE) !== 0;
  }

  /** Requests that wait for the end of a drained section. */
  get queued(): number {
    return this.#queue.length;
  }

  /** Puts a node in. EPERM names who stands against it. */
  async insert(node: BlockNode): Promise<void> {
    assert(!this.#root, `${this.describe} has a medium already`);
    if (node.aio !== this.context) {
      throw new BlockError(Errno.EINVAL, `Could not use node '${node.name}': it lives in context '${node.aio.name}'`);
    }
    await attach(this, node, this.#wanted);
    this.#setRoot(node);
  }

  /** Takes the node out once its requests have ended. */
  remove(): Promise<void> {
    return this.#leave(false);
  }

  /** Asks for other permissions; on failure nothing has changed. Who gives up writing has its writes flushed first. */
  async setPermissions(perm: number, shared: number): Promise<void> {
    const root = this.#root;
    if (root) {
      // Nothing that is in flight may meet a permission that is gone.
      const lets = this.perm & ~perm & (Perm.WRITE | Perm.RESIZE);
      using _drained = lets === 0 ? undefined : await drain(root);
      if (lets !== 0 && this.#root === root && !root.readOnly) await flushNode(root);
      using _section = await graphSection();
      if (this.#root === root) await new PermChange().set(this, root, perm, shared).apply();
    }
    this.#wanted = { perm, shared };
  }

  /** Ends: waits for requests, flushes, lets go of the node. Rejects with what the last flush failed with. May be
   *  called inside a drained section; what waits there ends with ENOMEDIUM. */
  close(): Promise<void> {
    return this.#leave(true);
  }

  /** Who comes while it goes on waits for the same end. */
  async #leave(flush: boolean): Promise<void> {
    const root = this.#root;
    if (!root) return;
    if (flush) this.#flushLast = true;
    this.#leaving ??= this.#takeOut(root);
    await this.#leaving;
  }

  async #takeOut(root: BlockNode): Promise<void> {
    try {
      using _drained = await drain(root);
      try {
        // Not through the queue: the drained section may be the caller's own.
        if (this.#flushLast && !this.readOnly && !root.inactive) await flushNode(root);
      } finally {
        this.#setRoot(null);
        await detach(this, root);
      }
    } finally {
      this.#leaving = null;
      this.#flushLast = false;
    }
  }

  // The hot path.

  /** Takes a request; it ends with `request.done()`, never inside this call. Home context only. `goesOn`: a part of
   *  something that drained sections wait for ({@link BackendUser.drainBusy}), so it does not wait for their end. */
  submit(request: BlockRequest, goesOn = false): void {
    assert(request.phase === Phase.IDLE, 'a request was submitted while it is in flight');
    request.blk = this;
    request.failure = null;
    request.begunTicks = this.context.turnTicks();
    this.stats.requests++;
    if (this.quiesce !== 0 && !this.disableQueuing && !goesOn) {
      request.phase = Phase.QUEUED;
      this.#queue.push(request);
      return;
    }
    this.#start(request);
  }

  /** Takes a request back that waits for the end of a drained section: it is the caller's again, and `done` is not
   *  called. False when it has begun. */
  takeBack(request: BlockRequest): boolean {
    if (request.phase !== Phase.QUEUED || request.blk !== this || !this.#queue.remove(request)) return false;
    request.phase = Phase.IDLE;
    request.blk = null;
    return true;
  }

  /** {@link takeBack} of all that waits, in its order. */
  takeQueue(): BlockRequest[] {
    const waiting: BlockRequest[] = [];
    for (let request = this.#queue.shift(); request; request = this.#queue.shift()) {
      request.phase = Phase.IDLE;
      request.blk = null;
      waiting.push(request);
    }
    return waiting;
  }

  /** The root is looked at here, after any waiting (B4). */
  #start(request: BlockRequest): void {
    this.inFlight++;
    const root = this.#ready;
    const error = this.#refusal(request, root);
    if (error !== 0) {
      request.phase = Phase.ENDING;
      this.context.completeLater(request, error);
      return;
    }
    const writes = request.kind === RequestKind.WRITE || request.kind === RequestKind.ZERO;
    request.effective = writes && this.writethrough ? request.flags | RequestFlags.FUA : request.flags;
    start(request, root!);
  }

  /** 0, or what stands against the request (B5). */
  #refusal(request: BlockRequest, root: BlockNode | null): number {
    if (root === null) return this.#root === null ? -Errno.ENOMEDIUM : -Errno.EPERM;
    const { kind, at, length } = request;
    if (kind === RequestKind.FLUSH) return 0;
    if (kind !== RequestKind.READ && kind !== RequestKind.CACHE) {
      if (this.readOnly || (this.perm & Perm.WRITE) === 0) return -Errno.EPERM;
    }
    if (!isOffset(at) || !isOffset(length) || !isOffset(at + length)) return -Errno.EIO;
    if (at + length > root.length && !this.mayGrow) return -Errno.EIO;
    return 0;
  }

  /** @internal A request has come back. */
  requestEnded(request: BlockRequest, error: number): void {
    this.stats.ended(request.kind, request.length, error, ticksSince(request.begunTicks, this.context.turnTicks()));
    this.#left();
  }

  #left(): void {
    this.inFlight--;
    if (this.quiesce !== 0) kickDrain();
  }

  // NodeParent.

  drainBegin(): void {
    if (this.quiesce++ > 0) return;
    for (const user of this.users) user.onDrainBegin?.();
  }

  drainEnd(): void {
    if (--this.quiesce > 0) return;
    this.#setRoot(this.#root);
    while (this.#queue.length > 0 && this.quiesce === 0) this.#start(this.#queue.shift()!);
    for (const user of this.users) {
      // One of them may have begun the next drained section.
      if (this.quiesce > 0) return;
      user.onDrainEnd?.();
    }
  }

  drainBusy(): boolean {
    if (this.inFlight > 0) return true;
    for (const user of this.users) if (user.drainBusy?.()) return true;
    return false;
  }

  resized(): void {
    for (const user of this.users) user.onResize?.(this.length);
  }

  /** `using drained = await blk.drain()`: nothing is in flight until the block ends; what comes waits. Must not be
   *  called from a request. */
  async drain(): Promise<Drained> {
    const root = this.#root;
    return root ? drain(root) : new Drained([]);
  }

  /** {@link drain} at once, of a root that nothing is in flight on: it was drained elsewhere, and the section goes on
   *  here. */
  drainQuiet(): Drained {
    const root = this.#medium;
    assert(!busy(root), `${this.describe} is to be drained at once and is busy`);
    quiesce(root);
    return new Drained([root]);
  }

  // The promise API.

  read(at: Offset, iov: Iov, flags = 0): Promise<void> {
    return this.#run(RequestKind.READ, at, iov.length, flags, iov);
  }

  write(at: Offset, iov: Iov, flags = 0): Promise<void> {
    return this.#run(RequestKind.WRITE, at, iov.length, flags, iov);
  }

  writeZeroes(at: Offset, length: Bytes, flags = 0): Promise<void> {
    return this.#run(RequestKind.ZERO, at, length, flags);
  }

  discard(at: Offset, length: Bytes): Promise<void> {
    return this.#run(RequestKind.DISCARD, at, length, 0);
  }

  flush(): Promise<void> {
    return this.#run(RequestKind.FLUSH, 0, 0, 0);
  }

  async #run(kind: number, at: Offset, length: Bytes, flags: number, iov?: Iov): Promise<void> {
    const request = new PromiseRequest();
    request.kind = kind;
    request.at = at;
    request.length = length;
    request.flags = flags;
    if (iov) request.iov.sliceOf(iov, 0, length);
    this.submit(request);
    const error = await request.gate.promise;
    if (error === 0) return;
    if (request.failure instanceof BlockError) throw request.failure;
    const what = kind === RequestKind.FLUSH ? 'flush' : `${VERBS[kind]} ${length} bytes at ${at}`;
    const where = { op: VERBS[kind]!, at, length, ...(this.#root ? { node: this.#root.name } : {}) };
    throw ioError(error, `Could not ${what}`, where);
  }

  /** Changes the size of the image. */
  async truncate(length: Bytes, prealloc: 'off' | 'falloc' | 'full' = 'off'): Promise<void> {
    if (!isOffset(length)) throw ioError(Errno.EFBIG, `Could not resize to ${length} bytes`);
    const root = this.#medium;
    if (this.readOnly || (this.perm & Perm.RESIZE) === 0) {
      throw ioError(Errno.EPERM, `Could not resize to ${length} bytes`, { node: root.name });
    }
    // Drained, so that no request that has passed the bounds check meets another size.
    using _drained = await this.drain();
    await truncateNode(this.#medium, length, prealloc);
  }

  /** The extent at `at`, at most `length` bytes of it, in `out`. Synchronous when the answer is at hand. */
  blockStatus(at: Offset, length: Bytes, out: BlockStatus): MaybePromise<void> {
    const root = this.#medium;
    if (!isOffset(at) || !isOffset(length) || length === 0 || at + length > root.length) {
      throw statusError(Errno.EINVAL, root, at, length);
    }
    if (this.quiesce !== 0 && !this.disableQueuing) return this.#statusLater(at, length, out);
    if (this.#ready === null) throw statusError(Errno.EPERM, root, at, length);
    this.inFlight++;
    let pending: MaybePromise<void>;
    try {
      pending = nodeStatus(root, at, length, out);
    } catch (error) {
      this.#left();
      throw error;
    }
    if (pending !== undefined) return pending.finally(() => this.#left());
    this.#left();
    return undefined;
  }

  /** Copies what only layers below hold of a range into the active layer (SEMANTICS R11). For jobs: not counted among
   *  what the disk has done. */
  async copyUp(at: Offset, length: Bytes): Promise<void> {
    while (this.quiesce !== 0 && !this.disableQueuing) await this.#run(RequestKind.CACHE, at, 0, 0);
    const root = this.#medium;
    this.inFlight++;
    try {
      await copyUp(root, at, length);
    } finally {
      this.#left();
    }
  }

  /** Takes its place in the queue as an empty request, then asks again. */
  async #statusLater(at: Offset, length: Bytes, out: BlockStatus): Promise<void> {
    await this.#run(RequestKind.CACHE, at, 0, 0);
    await this.blockStatus(at, length, out);
  }

  /** Like blockStatus, with neighbours of the same kind taken together; still at most `length` bytes. */
  async wholeExtent(at: Offset, length: Bytes, out: BlockStatus): Promise<void> {
    await this.blockStatus(at, length, out);
    const next = new BlockStatus();
    while (out.length < length) {
      await this.blockStatus(at + out.length, length - out.length, next);
      if (!next.sameKind(out)) return;
      out.length += next.length;
    }
  }
}

function statusError(errno: number, { name }: BlockNode, at: Offset, length: Bytes): BlockError {
  return ioError(errno, `Could not get the status of ${length} bytes at ${at}`, { node: name });
}
