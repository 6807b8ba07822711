/**
 * The coroutine path: the same rules as the fast path, with waiting. Every function is one request on one node:
 * tracked, ordered against serialising ones, padded to the node's alignment, split to its limits, and moved by the
 * driver or to where `map` says. Errors are BlockErrors.
 */
import { BlockError, Errno, ioError } from '../base/errors.ts';
import type { Iov } from '../base/memory.ts';
import { alignUp, type Bytes, isOffset, type Offset } from '../base/units.ts';
import { BounceUse, bouncePool } from './bounce.ts';
import type { BlockChild } from './child.ts';
import { Mapping, RequestFlags, type Reservation } from './driver.ts';
import { zeroAligned, zeroNode } from './emulate.ts';
import { flushesForFua } from './fast.ts';
import { flushNode } from './flush.ts';
import { Joiner } from './joiner.ts';
import { renewLeases, withdrawLeases } from './lease.ts';
import type { BlockNode } from './node.ts';
import { readPadded, writePadded } from './pad.ts';
import { RequestKind } from './request.ts';
import { begin, end, serialise, TRACKED_TRUNCATE, Tracked, unhold, waitConflicts } from './tracked.ts';
import { appendIov, readLeaf, writeLeaf } from './transfer.ts';

/** Waits, where it has to, until a request that has begun may go on. `alone`: it is ordered against all that overlap.
 *  The node may have another length after it. */
export async function admit(node: BlockNode, tracked: Tracked, flags: number, alone = false): Promise<void> {
  if (alone || (flags & RequestFlags.SERIALISING) !== 0) {
    serialise(tracked, node.alignment);
    const borrowed = withdrawLeases(node);
    if (borrowed !== undefined) await borrowed;
  }
  if (node.serialising !== 0) await waitConflicts(tracked, (flags & RequestFlags.NO_WAIT) !== 0);
  const { checkpoints } = node.bitmaps;
  if (checkpoints !== null && tracked.kind !== RequestKind.READ) await checkpoints.pass(tracked.at, tracked.length);
}

/** Reads `iov.length` bytes; what is beyond the node's end reads as zeroes (R4). */
export async function readNode(node: BlockNode, at: Offset, iov: Iov, flags: number): Promise<void> {
  if (iov.length === 0) return;
  const tracked = new Tracked();
  begin(node, tracked, RequestKind.READ, at, iov.length);
  try {
    await admit(node, tracked, flags);
    if (at % node.alignment === 0 && iov.length % node.alignment === 0) await readAligned(node, tracked, at, iov);
    else await readPadded(node, tracked, at, iov);
  } finally {
    end(tracked);
  }
}

/** The part of a read inside the node, in pieces it can take; zeroes after. */
export async function readAligned(node: BlockNode, tracked: Tracked, at: Offset, iov: Iov): Promise<void> {
  const size = node.length;
  if (at >= size) {
    iov.fill(0);
    return;
  }
  const inside = Math.min(iov.length, alignUp(size, node.alignment) - at);
  const max = node.limits.maxTransfer || inside;
  for (let done = 0; done < inside; done += max) {
    const length = Math.min(max, inside - done);
    const part = length === iov.length ? iov : iov.slice(done, length);
    if (node.impl.map) await readMapped(node, tracked, at + done, part);
    else await readLeaf(node, at + done, part);
  }
  if (at + iov.length > size) iov.fill(0, size - at);
}

/** The one loop that reads every format. */
async function readMapped(node: BlockNode, tracked: Tracked, at: Offset, iov: Iov): Promise<void> {
  const mapping = new Mapping();
  mapping.holder = tracked;
  const parts = new Joiner();
  try {
    for (let done = 0; done < iov.length && !parts.failed; ) {
      const want = iov.length - done;
      const pending = node.impl.map!(at + done, want, 'read', mapping);
      if (pending !== undefined) await pending;
      const length = Math.min(mapping.length, want);
      const part = length === iov.length ? iov : iov.slice(done, length);
      if (mapping.kind === 'data') {
        await parts.add(readExtent(tracked, mapping.child as BlockChild, mapping.at, part));
      } else if (mapping.kind === 'opaque') {
        await parts.add(readLeaf(node, at + done, part));
      } else if (mapping.kind === 'absent' && node.cow) {
        const stop = node.primary?.point('read_backing_aio');
        if (stop !== undefined) await stop;
        await parts.add(readNode(node.cow.node, at + done, part, 0));
      } else {
        part.fill(0);
      }
      done += length;
    }
  } catch (error) {
    // The caller's memory is in use until the parts have ended.
    await parts.settle();
    throw error;
  }
  await parts.join();
}

/** The extent is held already, by its mapping. */
async function readExtent(tracked: Tracked, child: BlockChild, at: Offset, iov: Iov): Promise<void> {
  try {
    if (child.parent.driver.role === 'format') {
      const stop = child.point('read_aio');
      if (stop !== undefined) await stop;
    }
    await readNode(child.node, at, iov, 0);
  } finally {
    unhold(tracked);
  }
}

/** Writes all of `iov`. `grow`: the writer holds the permission to resize. */
export async function writeNode(node: BlockNode, at: Offset, iov: Iov, flags: number, grow: boolean): Promise<void> {
  assertWritable(node);
  const { length } = iov;
  if (length === 0) return;
  assertInside(node, at, length, grow);
  if (node.detectZeroes !== 'off' && iov.isZero()) {
    const unmap = node.detectZeroes === 'unmap' ? RequestFlags.MAY_UNMAP : 0;
    await zeroNode(node, at, length, flags | unmap, grow);
    return;
  }
  const tracked = new Tracked();
  begin(node, tracked, RequestKind.WRITE, at, length);
  let unstable = false;
  try {
    const aligned = at % node.alignment === 0 && length % node.alignment === 0;
    await admit(node, tracked, flags, !aligned);
    assertInside(node, at, length, grow);
    unstable = await (aligned ? writeAligned : writePadded)(node, tracked, at, iov, flags);
    if (grow) node.grown(tracked.overlapEnd);
  } finally {
    node.written(at, length);
    end(tracked);
  }
  if (unstable) await flushNode(node);
}

/** Writes an aligned range in pieces. True when FUA was asked for and a flush has to see to it. */
export async function writeAligned(
  node: BlockNode,
  tracked: Tracked,
  at: Offset,
  iov: Iov,
  flags: number,
): Promise<boolean> {
  const fua = (flags & RequestFlags.FUA) !== 0 && !node.noFlush;
  const max = node.limits.maxTransfer || iov.length;
  const compressed = (flags & RequestFlags.COMPRESSED) !== 0;
  let unstable = false;
  if (node.impl.debugEvent !== undefined && !compressed) await node.impl.debugEvent('pwritev');
  for (let done = 0; done < iov.length; done += max) {
    const length = Math.min(max, iov.length - done);
    const part = length === iov.length ? iov : iov.slice(done, length);
    if (compressed) {
      await writeCompressed(node, at + done, part);
      unstable = true;
    } else if (node.impl.map) {
      if (await writeMapped(node, tracked, at + done, part, fua ? RequestFlags.FUA : 0)) unstable = true;
    } else {
      const native = fua && node.impl.nativeFua === true;
      if (fua && !native) unstable = true;
      await writeLeaf(node, at + done, part, native ? RequestFlags.FUA : 0);
    }
  }
  if (node.impl.debugEvent !== undefined) await node.impl.debugEvent('pwritev_done');
  return unstable && fua;
}

async function writeCompressed(node: BlockNode, at: Offset, iov: Iov): Promise<void> {
  if (!node.impl.writeCompressed) {
    throw new BlockError(
      Errno.ENOTSUP,
      `Could not write compressed to node '${node.name}': '${node.driver.name}' cannot`,
    );
  }
  try {
    await node.impl.writeCompressed(at, iov);
  } finally {
    await renewLeases(node);
  }
}

/** In place where `map` allows it, through a reservation elsewhere. True when FUA is left to a flush: several parts, or
 *  metadata that may not be stable. */
async function writeMapped(node: BlockNode, tracked: Tracked, at: Offset, iov: Iov, flags: number): Promise<boolean> {
  const mapping = new Mapping();
  mapping.holder = tracked;
  const parts = new Joiner();
  let unstable = flushesForFua(node.impl);
  try {
    for (let done = 0; done < iov.length && !parts.failed; ) {
      const want = iov.length - done;
      const pending = node.impl.map!(at + done, want, 'write', mapping);
      if (pending !== undefined) await pending;
      let length = Math.min(mapping.length, want);
      if (mapping.kind === 'data') {
        const child = mapping.child as BlockChild;
        if (length < iov.length) unstable = true;
        const part = iov.slice(done, length);
        await parts.add(writeExtent(tracked, child, mapping.at, part, unstable ? 0 : flags));
      } else if (node.impl.reserve && mapping.kind !== 'opaque') {
        const reservation = await node.impl.reserve(at + done, want, flags);
        length = Math.min(reservation.length, want);
        unstable = true;
        await parts.add(writeReserved(node, tracked, at + done, iov.slice(done, length), reservation));
      } else {
        unstable = true;
        await parts.add(writeLeaf(node, at + done, iov.slice(done, length), 0));
      }
      done += length;
    }
  } catch (error) {
    await parts.settle();
    throw error;
  }
  await parts.join();
  return unstable;
}

/** The extent is held already, by its mapping. */
async function writeExtent(tracked: Tracked, child: BlockChild, at: Offset, iov: Iov, flags: number): Promise<void> {
  try {
    if (child.parent.driver.role === 'format') {
      const stop = child.point('write_aio');
      if (stop !== undefined) await stop;
    }
    await writeNode(child.node, at, iov, flags, child.mayGrow);
  } finally {
    unhold(tracked);
  }
}

/** Data with its copy-on-write margins first, then the metadata. */
async function writeReserved(
  node: BlockNode,
  tracked: Tracked,
  at: Offset,
  iov: Iov,
  reservation: Reservation,
): Promise<void> {
  await using room = reservation;
  const { head, tail } = room;
  const child = room.child as BlockChild;
  if (head + tail === 0) {
    const stop = child.point('write_aio');
    if (stop !== undefined) await stop;
    await writeNode(child.node, room.at, iov, 0, child.mayGrow);
    await room.commit();
    return;
  }
  const bounce = await bouncePool(node.aio, node.height, BounceUse.MARGINS).acquire(head + tail);
  try {
    const reading = child.point('cow_read');
    if (reading !== undefined) await reading;
    const whole = bounce.iov.slice(0, head);
    if (head > 0) await readAligned(node, tracked, at - head, whole.slice(0, head));
    appendIov(whole, iov, 0, iov.length);
    const after = bounce.iov.slice(head, tail);
    if (tail > 0) await readAligned(node, tracked, at + iov.length, after);
    appendIov(whole, after, 0, tail);
    for (const event of ['write_aio', 'cow_write'] as const) {
      const stop = child.point(event);
      if (stop !== undefined) await stop;
    }
    await writeNode(child.node, room.at - head, whole, 0, child.mayGrow);
  } finally {
    bounce.release();
  }
  await room.commit();
}

/** Changes the node's length. What is added reads as zeroes. Who wants it longer does not cut off what others have
 *  added meanwhile. */
export async function truncateNode(
  node: BlockNode,
  length: Bytes,
  prealloc: 'off' | 'falloc' | 'full' = 'off',
): Promise<void> {
  assertWritable(node);
  if (!node.impl.truncate) {
    throw new BlockError(Errno.ENOTSUP, `Could not resize node '${node.name}': driver '${node.driver.name}' cannot`);
  }
  const from = Math.min(length, node.length);
  const grows = length > from;
  const tracked = new Tracked();
  begin(node, tracked, TRACKED_TRUNCATE, from, Number.MAX_SAFE_INTEGER - from);
  try {
    tracked.serialising = true;
    node.serialising++;
    await waitConflicts(tracked);
    const old = node.length;
    // Writes made it longer meanwhile: who asked for more than there was must not take that away.
    if (grows && old > length) return;
    let settled = length <= old;
    const settle = async (): Promise<void> => {
      settled = true;
      await zeroAdded(node, tracked, old, length);
    };
    await node.impl.truncate(length, prealloc, settle);
    if (!settled) await settle();
  } finally {
    node.changed(from, Math.max(length, node.length) - from);
    end(tracked);
  }
  node.resized();
}

/** What was behind the old end in its last block may come to light again, and so may a longer backing file. */
async function zeroAdded(node: BlockNode, tracked: Tracked, from: Offset, to: Offset): Promise<void> {
  if (!node.impl.zero || !node.impl.reserve) return;
  const edge = Math.min(to, alignUp(from, node.limits.zeroAlignment || 1));
  const below = node.cow ? Math.min(to, node.cow.length) : 0;
  const end = Math.max(edge, below);
  if (end > from) await zeroAligned(node, tracked, from, end - from, 0);
}

export function assertWritable(node: BlockNode): void {
  if (!node.readOnly) return;
  throw new BlockError(Errno.EPERM, `Could not write to node '${node.name}': it is read-only`, {
    where: { node: node.name },
  });
}

/** Beyond its end a node takes writes only where they may make it grow: EIO; no further than offsets go: EFBIG. */
export function assertInside(node: BlockNode, at: Offset, length: Bytes, grow: boolean): void {
  if (at + length <= node.length) return;
  if (!isOffset(at + length)) {
    throw ioError(Errno.EFBIG, `Could not write ${length} bytes at ${at} of node '${node.name}'`, { node: node.name });
  }
  if (grow && node.impl.grew) return;
  throw new BlockError(
    Errno.EIO,
    `Could not write ${length} bytes at ${at} of node '${node.name}': it ends at ${node.length}`,
    { where: { node: node.name, at, length } },
  );
}
