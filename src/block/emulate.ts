/**
 * Zero writes and discards: what the driver does, and what stands in for it (SEMANTICS R5, R6, R7).
 */
import { BlockError, Errno } from '../base/errors.ts';
import { alignDown, alignUp, type Bytes, MiB, type Offset } from '../base/units.ts';
import { zeroIov } from './bounce.ts';
import type { BlockChild } from './child.ts';
import { Mapping, RequestFlags } from './driver.ts';
import { flushNode } from './flush.ts';
import { admit, assertInside, assertWritable, writeAligned } from './io.ts';
import { renewLeases } from './lease.ts';
import type { BlockNode } from './node.ts';
import { writePadded } from './pad.ts';
import { RequestKind } from './request.ts';
import { begin, end, Tracked, unhold } from './tracked.ts';

/** The longest single write of zeroes that stands in for a zero request. */
const ZERO_PIECE = 16 * MiB;

/** Makes the range read as zeroes. */
export async function zeroNode(
  node: BlockNode,
  at: Offset,
  length: Bytes,
  flags: number,
  grow: boolean,
): Promise<void> {
  assertWritable(node);
  if (length === 0) return;
  assertInside(node, at, length, grow);
  const unit = node.alignment;
  const how = node.discardUnmap ? flags : flags & ~RequestFlags.MAY_UNMAP;
  const tracked = new Tracked();
  begin(node, tracked, RequestKind.ZERO, at, length);
  try {
    const aligned = at % unit === 0 && length % unit === 0;
    await admit(node, tracked, flags, !aligned);
    assertInside(node, at, length, grow);
    if (aligned) {
      await zeroAligned(node, tracked, at, length, how);
    } else {
      await zeroUnaligned(node, tracked, at, length, how);
    }
    if (grow) node.grown(tracked.overlapEnd);
  } finally {
    await renewLeases(node);
    node.written(at, length);
    end(tracked);
  }
  if ((flags & RequestFlags.FUA) !== 0 && !node.noFlush) await flushNode(node);
}

/** The edges are written over, the blocks in between go to the driver. */
async function zeroUnaligned(
  node: BlockNode,
  tracked: Tracked,
  at: Offset,
  length: Bytes,
  flags: number,
): Promise<void> {
  const unit = node.alignment;
  const stop = at + length;
  const from = alignUp(at, unit);
  const to = alignDown(stop, unit);
  if (from >= to) {
    // No whole block, but maybe the border of two.
    await writePadded(node, tracked, at, zeroIov(node.aio, length, 1024), 0);
    return;
  }
  if (at < from) await writePadded(node, tracked, at, zeroIov(node.aio, from - at, 1024), 0);
  await zeroAligned(node, tracked, from, to - from, flags);
  if (to < stop) await writePadded(node, tracked, to, zeroIov(node.aio, stop - to, 1024), 0);
}

/** What the driver takes whole goes to it; the edges are written, where they are not zeroes already. */
export async function zeroAligned(
  node: BlockNode,
  tracked: Tracked,
  at: Offset,
  length: Bytes,
  flags: number,
): Promise<void> {
  const unit = node.limits.zeroAlignment || 1;
  const stop = at + length;
  if (node.impl.debugEvent !== undefined) await node.impl.debugEvent('pwritev_zero');
  const from = Math.min(alignUp(at, unit), stop);
  const to = stop === node.length ? stop : Math.max(from, alignDown(stop, unit));
  if (at < from) await zeroEdge(node, tracked, at, from - at, flags);
  if (from < to) await zeroPieces(node, tracked, from, to - from, flags);
  if (to < stop) await zeroEdge(node, tracked, to, stop - to, flags);
  if (node.impl.debugEvent !== undefined) await node.impl.debugEvent('pwritev_done');
}

async function zeroEdge(node: BlockNode, tracked: Tracked, at: Offset, length: Bytes, flags: number): Promise<void> {
  const look = new Mapping();
  for (let done = 0; done < length; ) {
    const pending = node.impl.map?.(at + done, length - done, 'status', look);
    if (pending !== undefined) await pending;
    const part = Math.min(look.length || length, length - done);
    const nothing = look.kind === 'absent' && (!node.cow || at + done >= node.cow.length);
    const zero = look.kind === 'zero' || (nothing && (flags & RequestFlags.OWN) === 0);
    if (!node.impl.map || !zero) await writeZeroBytes(node, tracked, at + done, part, flags);
    done += part;
  }
}

async function zeroPieces(node: BlockNode, tracked: Tracked, at: Offset, length: Bytes, flags: number): Promise<void> {
  const max = node.limits.maxZero || length;
  for (let done = 0; done < length; done += max) {
    const part = Math.min(max, length - done);
    if (node.impl.zero && (await node.impl.zero(at + done, part, flags)) === 'done') continue;
    if (!node.impl.zero && node.impl.map) await zeroMapped(node, tracked, at + done, part, flags);
    else await writeZeroBytes(node, tracked, at + done, part, flags);
  }
}

/** A format that has nothing to say about zeroes hands them to where its data is. */
async function zeroMapped(node: BlockNode, tracked: Tracked, at: Offset, length: Bytes, flags: number): Promise<void> {
  const mapping = new Mapping();
  mapping.holder = tracked;
  for (let done = 0; done < length; ) {
    const pending = node.impl.map!(at + done, length - done, 'write', mapping);
    if (pending !== undefined) await pending;
    let part = Math.min(mapping.length, length - done);
    if (mapping.kind === 'data') {
      const child = mapping.child as BlockChild;
      try {
        await zeroNode(child.node, mapping.at, part, flags & ~RequestFlags.FUA, child.mayGrow);
      } finally {
        unhold(tracked);
      }
    } else {
      // Why it may not be written in place is one thing, what it reads as another.
      const look = new Mapping();
      const looking = node.impl.map!(at + done, part, 'read', look);
      if (looking !== undefined) await looking;
      part = Math.min(look.length, part);
      const zero = look.kind === 'zero' || (look.kind === 'absent' && !node.cow);
      if (!zero) await writeZeroBytes(node, tracked, at + done, part, flags);
    }
    done += part;
  }
}

/** Zeroes as plain data, unless the caller does not want that. */
async function writeZeroBytes(
  node: BlockNode,
  tracked: Tracked,
  at: Offset,
  length: Bytes,
  flags: number,
): Promise<void> {
  if ((flags & RequestFlags.NO_FALLBACK) !== 0) {
    throw new BlockError(Errno.ENOTSUP, `Could not zero ${length} bytes at ${at} of node '${node.name}' quickly`);
  }
  for (let done = 0; done < length; ) {
    const iov = zeroIov(node.aio, Math.min(ZERO_PIECE, length - done), node.limits.maxIov);
    await writeAligned(node, tracked, at + done, iov, 0);
    done += iov.length;
  }
}

/** Advisory: what the range reads as after it is not defined, and what cannot be discarded is left alone (R7). */
export async function discardNode(node: BlockNode, at: Offset, length: Bytes): Promise<void> {
  assertWritable(node);
  const unit = node.alignment;
  const whole = Math.max(unit, node.limits.discardAlignment);
  const from = alignUp(at, whole);
  const last = Math.min(at + length, node.length);
  // The end of the node ends its last block, too.
  const to = last === node.length ? alignDown(last, unit) : alignDown(last, whole);
  if (!node.discardUnmap || from >= to) return;
  const tracked = new Tracked();
  begin(node, tracked, RequestKind.DISCARD, from, to - from);
  try {
    await admit(node, tracked, 0);
    const stop = Math.min(to, alignDown(node.length, unit));
    const max = node.limits.maxDiscard || to - from;
    for (let done = from; done < stop; done += max) await discardPiece(node, tracked, done, Math.min(max, stop - done));
  } finally {
    await renewLeases(node);
    node.changed(from, to - from);
    end(tracked);
  }
}

async function discardPiece(node: BlockNode, tracked: Tracked, at: Offset, length: Bytes): Promise<void> {
  try {
    if (node.impl.discard) node.countDiscard(length, (await node.impl.discard(at, length)) === 'done');
    else if (node.impl.map) await discardMapped(node, tracked, at, length);
  } catch (error) {
    if (node.impl.discard) node.countDiscard(length, false);
    const refused = error instanceof BlockError && (error.errno === Errno.ENOTSUP || error.errno === Errno.EINVAL);
    if (!refused) throw error;
  }
}

async function discardMapped(node: BlockNode, tracked: Tracked, at: Offset, length: Bytes): Promise<void> {
  const mapping = new Mapping();
  mapping.holder = tracked;
  for (let done = 0; done < length; ) {
    const pending = node.impl.map!(at + done, length - done, 'write', mapping);
    if (pending !== undefined) await pending;
    const part = Math.min(mapping.length, length - done);
    if (mapping.kind === 'data') {
      try {
        await discardNode((mapping.child as BlockChild).node, mapping.at, part);
      } finally {
        unhold(tracked);
      }
    }
    done += part;
  }
}
