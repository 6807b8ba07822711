/**
 * A node whose bytes are in another thread's disk: each request goes through a handle to the disk's home, in the memory
 * that it came with. It is what a user that stays in its thread (an NBD connection) goes on with when the disk moves;
 * see docs/CHANNELS.md, "Guests". Alignment, emulation and order are the home's business: nothing is padded here, since
 * others write to the same disk.
 */
import type { AioContext } from '../aio/context.ts';
import { type AioOp, spawn, WaitOp } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Iov, Memory } from '../base/memory.ts';
import type { Bytes, Offset } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import { BOUNCE_SLOT, BounceUse, bouncePool } from '../block/bounce.ts';
import { type Driver, type DriverNode, type Limits, RequestFlags, type Supported } from '../block/driver.ts';
import { openNodeOf, releaseNode } from '../block/graph.ts';
import type { BlockStatus } from '../block/status.ts';
import type { Borrower } from './borrower.ts';
import { BlkHandle } from './handle.ts';
import { type BlkDescriptor, RUNS_MAX } from './layout.ts';
import { BlkKind, BlkOp } from './op.ts';
import type { SharedRegion } from './region.ts';

/** Buffers that home knows of: beyond that those are given back that nothing uses. Of 1024 that it takes. */
const REGIONS_KEPT = 256;

/** A read or write of the block layer on its way; reused. */
class RemoteOp extends BlkOp {
  readonly #node: RemoteNode;
  user: AioOp | null = null;

  constructor(node: RemoteNode) {
    super();
    this.#node = node;
  }

  done(error: number): void {
    this.#node.ended(this, error);
  }
}

/** False for memory that lies in this thread's address space alone, as a guest's that is mapped here. */
function canShare(iov: Iov): boolean {
  for (let i = 0; i < iov.count; i++) {
    if (!(iov.memories[i]!.bytes.buffer instanceof SharedArrayBuffer)) return false;
  }
  return true;
}

class RemoteNode implements DriverNode {
  readonly limits: Partial<Limits>;
  readonly nativeFua = true;
  readonly writtenElsewhere = true;
  readonly #context: AioContext;
  readonly #handle: BlkHandle;
  readonly #borrower: Borrower | undefined;
  readonly #spare: RemoteOp[] = [];
  readonly #regions = new Map<ArrayBufferLike, SharedRegion>();

  constructor(context: AioContext, handle: BlkHandle, optimal: Bytes, resized: () => void) {
    this.#context = context;
    this.#handle = handle;
    this.#borrower = handle.borrow(context);
    this.limits = { maxIov: RUNS_MAX, optimal };
    handle.onResize = resized;
  }

  get length(): Bytes {
    return this.#handle.length;
  }

  get readOnly(): boolean {
    return this.#handle.readOnly;
  }

  submitRead(op: AioOp, iov: Iov, at: Offset): void {
    if (this.#borrows(op, iov, at, false)) return;
    if (canShare(iov)) this.#submit(op, BlkKind.READ, iov, at, 0);
    else spawn(this.#aside(op, BlkKind.READ, iov, at, 0));
  }

  submitWrite(op: AioOp, iov: Iov, at: Offset, flags: number): void {
    if ((flags & RequestFlags.FUA) === 0 && this.#borrows(op, iov, at, true)) return;
    const fua = flags & RequestFlags.FUA;
    if (canShare(iov)) this.#submit(op, BlkKind.WRITE, iov, at, fua);
    else spawn(this.#aside(op, BlkKind.WRITE, iov, at, fua));
  }

  /** Through memory that home can be told of. Comes up short where there is not enough: the block layer goes on. */
  async #aside(user: AioOp, kind: number, iov: Iov, at: Offset, flags: number): Promise<void> {
    const length = Math.min(iov.length, RUNS_MAX * BOUNCE_SLOT);
    const bounce = await bouncePool(this.#context, 0, BounceUse.TRANSFER).acquire(length);
    const runs = Array.from({ length: bounce.iov.count }, (_, i) => bounce.iov.run(i));
    let done = 0;
    if (kind === BlkKind.WRITE) for (const run of runs) done += iov.copyTo(run, done);
    const op = new WaitOp();
    const ended = op.wait();
    this.#submit(op, kind, bounce.iov, at, flags);
    const result = await ended;
    if (kind === BlkKind.READ && result >= 0) for (const run of runs) done += iov.copyFrom(run, done);
    bounce.release();
    this.#context.completeLater(user, result);
  }

  #borrows(op: AioOp, iov: Iov, at: Offset, write: boolean): boolean {
    return this.#borrower !== undefined && this.#handle.end === undefined && this.#borrower.start(op, iov, at, write);
  }

  #submit(user: AioOp, kind: number, iov: Iov, at: Offset, flags: number): void {
    const op = this.#spare.pop() ?? new RemoteOp(this);
    op.user = user;
    op.kind = kind;
    op.at = at;
    op.flags = flags;
    op.iov.reset();
    try {
      for (let i = 0; i < iov.count; i++) {
        const memory = iov.memories[i]!;
        op.iov.push(this.#region(memory), memory.bytes.byteOffset + iov.offsets[i]!, iov.lengths[i]!);
      }
      this.#handle.submit(op);
    } catch (error) {
      // Home is gone.
      if (!(error instanceof BlockError)) throw error;
      op.user = null;
      this.#spare.push(op);
      this.#context.completeLater(user, -error.errno);
    }
  }

  /** @internal */
  ended(op: RemoteOp, error: number): void {
    if (op.kind === BlkKind.WRITE) this.#borrower?.wrote(op.at, op.length);
    const user = op.user!;
    op.user = null;
    this.#spare.push(op);
    user.complete(error === 0 ? op.length : error);
  }

  #region(memory: Memory): SharedRegion {
    const { buffer } = memory.bytes;
    const known = this.#regions.get(buffer);
    if (known) return known;
    if (this.#regions.size >= REGIONS_KEPT) this.#forgetIdle();
    const region = this.#handle.register(buffer as SharedArrayBuffer);
    this.#regions.set(buffer, region);
    return region;
  }

  #forgetIdle(): void {
    for (const [buffer, region] of this.#regions) {
      if (region.users > 0) continue;
      this.#handle.unregister(region);
      this.#regions.delete(buffer);
    }
  }

  /** Zeroes that are written for want of a better way are written from here, unless the user wants none such. */
  async zero(at: Offset, length: Bytes, flags: number): Promise<Supported> {
    try {
      await this.#handle.writeZeroes(at, length, { flags: flags | RequestFlags.NO_FALLBACK });
      return 'done';
    } catch (error) {
      if (error instanceof BlockError && error.errno === Errno.ENOTSUP) return 'unsupported';
      throw error;
    }
  }

  async discard(at: Offset, length: Bytes): Promise<Supported> {
    await this.#handle.discard(at, length);
    return 'done';
  }

  flush(): Promise<void> {
    return this.#handle.flush();
  }

  blockStatus(at: Offset, want: Bytes, out: BlockStatus): Promise<void> {
    return this.#handle.blockStatus(at, want, out);
  }

  async close(): Promise<void> {
    this.#regions.clear();
    await this.#borrower?.close();
    await this.#handle.close();
  }
}

export interface GuestOptions {
  /** For messages. */
  readonly name: string;
  /** Preferred request size of the disk, bytes. */
  readonly optimal: Bytes;
}

/**
 * A BlockBackend of this context over a disk whose home is, or is going to be, in another thread. It takes any number
 * of users; end it with {@link closeGuest}. The descriptor is used up, also on failure.
 */
export async function openGuest(
  context: AioContext,
  descriptor: BlkDescriptor,
  { name, optimal }: GuestOptions,
): Promise<BlockBackend> {
  const handle = BlkHandle.attach(descriptor, { context });
  const driver: Driver = {
    name: 'remote',
    role: 'protocol',
    hidden: true,
    options: {},
    open: (opened) => new RemoteNode(context, handle, optimal, () => opened.resized()),
  };
  try {
    const node = await openNodeOf(context, driver, { 'read-only': handle.readOnly, discard: 'unmap' });
    try {
      const blk = new BlockBackend(context, { name, readOnly: handle.readOnly });
      await blk.insert(node);
      return blk;
    } finally {
      await releaseNode(node);
    }
  } catch (error) {
    if (!handle.closed) await handle.close();
    throw error;
  }
}

/** Waits for its requests and closes its handle. What they wrote is the home's to keep: one that is gone by then is no
 *  failure of the guest's. */
export async function closeGuest(guest: BlockBackend): Promise<void> {
  try {
    using _drained = await guest.drain();
    // The home would have to answer, and may be waiting for this thread to end.
    if (guest.root) guest.root.noFlush = true;
    await guest.close();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
}
