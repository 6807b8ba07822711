/**
 * The fast path of reads and writes (ARCHITECTURE section 7): bounds, in-flight accounting and `map`, all synchronous,
 * down to a leaf that takes the request as its operation. Whatever does not fit goes, from one place, to the coroutine
 * path, which ends in the same `done`.
 */

import { spawn } from '../aio/op.ts';
import { Bug } from '../base/assert.ts';
import { BlockError, Errno, errnoOf } from '../base/errors.ts';
import { Iov, type Memory } from '../base/memory.ts';
import type { Bytes, Offset } from '../base/units.ts';
import type { BlockChild } from './child.ts';
import { type DriverNode, Mapping, RequestFlags } from './driver.ts';
import { discardNode, zeroNode } from './emulate.ts';
import { flushNode } from './flush.ts';
import { readNode, writeNode } from './io.ts';
import type { BlockNode } from './node.ts';
import { canPrefetch, prefetchNode } from './prefetch.ts';
import { type BlockRequest, Phase, RequestKind } from './request.ts';
import { begin, end } from './tracked.ts';

const SLOW_FLAGS = RequestFlags.SERIALISING | RequestFlags.COMPRESSED;

/** Starts a request that has passed the BlockBackend's checks. */
export function start(request: BlockRequest, root: BlockNode): void {
  request.pending = null;
  if (request.kind <= RequestKind.WRITE) {
    try {
      if (tryFast(request, root)) return;
    } catch (error) {
      // The coroutine path comes to the same error and reports it.
      if (!(error instanceof BlockError)) throw error;
    }
    giveBack(request);
  } else if (request.kind === RequestKind.FLUSH && root.clean) {
    end0(request);
    return;
  } else if (request.kind === RequestKind.CACHE && !canPrefetch(root)) {
    end0(request);
    return;
  }
  request.phase = Phase.SLOW;
  if (request.blk !== null) request.blk.stats.slow++;
  spawn(runSlow(request, root));
}

/** Ends the request in the next turn with 0. */
function end0(request: BlockRequest): void {
  request.phase = Phase.ENDING;
  request.blk!.context.completeLater(request, 0);
}

/** True when the request is on its way in a leaf. */
function tryFast(request: BlockRequest, root: BlockNode): boolean {
  const write = request.kind === RequestKind.WRITE;
  const length = request.length;
  const mapping = request.mapping;
  let node = root;
  let at = request.at;
  request.depth = 0;
  if (length === 0 || (request.effective & SLOW_FLAGS) !== 0) return false;
  for (;;) {
    if (!fits(node, request, at, write)) return false;
    const impl = node.impl;
    const level = request.level(request.depth++);
    begin(node, level, request.kind, at, length);
    if (write ? impl.submitWrite !== undefined : impl.submitRead !== undefined) {
      request.leaf = node;
      request.leafAt = at;
      request.progress = 0;
      request.phase = Phase.LEAF;
      if (write) impl.submitWrite!(request, request.iov, at, leafFlags(request, node));
      else impl.submitRead!(request, request.iov, at);
      return true;
    }
    if (impl.map === undefined) return false;
    const pending = impl.map(at, length, write ? 'write' : 'read', mapping);
    if (pending !== undefined) {
      request.pending = pending;
      return false;
    }
    if (mapping.kind === 'opaque' && write && impl.beginWrite?.(request, request.iov, at) === true) {
      request.leaf = node;
      request.leafAt = at;
      request.progress = 0;
      request.phase = Phase.LEAF;
      return true;
    }
    if (mapping.kind !== 'data' || mapping.length < length) return false;
    level.holds = 1;
    at = mapping.at;
    node = (mapping.child as BlockChild).node;
  }
}

/** What {@link readNow} is told by `map`; of use within one call only. */
const place = new Mapping();

/** The read of a parent that cannot wait: the bytes are at hand, all the way down, or it is false and nothing has
 *  happened but that metadata may be on its way. One moment, so it is not in flight for anybody. */
export function readNow(root: BlockNode, start: Offset, memory: Memory, offset: Bytes, length: Bytes): boolean {
  let node = root;
  let at = start;
  for (;;) {
    if (node.serialising !== 0 || at + length > node.length) return false;
    if (at % node.alignment !== 0 || length % node.alignment !== 0) return false;
    const { impl } = node;
    if (impl.readNow !== undefined) return impl.readNow(at, memory, offset, length);
    if (impl.map === undefined) return false;
    const pending = impl.map(at, length, 'read', place);
    // An error comes again, to whoever asks the usual way.
    pending?.catch(() => undefined);
    if (pending !== undefined || place.kind !== 'data' || place.length < length) return false;
    at = place.at;
    node = (place.child as BlockChild).node;
  }
}

/** True when this node puts nothing in the way of the request. */
function fits(node: BlockNode, request: BlockRequest, at: number, write: boolean): boolean {
  const limits = node.limits;
  const length = request.length;
  if (node.serialising !== 0 || at + length > node.length) return false;
  if (node.alignment !== 1 && (at % node.alignment !== 0 || length % node.alignment !== 0)) return false;
  if (limits.maxTransfer !== 0 && length > limits.maxTransfer) return false;
  if (request.iov.count > limits.maxIov) return false;
  if (limits.memoryAlignment !== 1 && !isIovAligned(request.iov, limits.memoryAlignment)) return false;
  if (!write) return true;
  if (node.readOnly || node.detectZeroes !== 'off') return false;
  const { checkpoints } = node.bitmaps;
  if (checkpoints !== null && !checkpoints.isOpen(at, length)) return false;
  if ((request.effective & RequestFlags.FUA) === 0) return true;
  return node.noFlush || !flushesForFua(node.impl);
}

/** True when only a flush of the node makes a write stable: it moves bytes without native FUA, or it is a format whose
 *  metadata may be ahead of what is on the disk even where the write goes in place. */
export function flushesForFua(impl: DriverNode): boolean {
  if (impl.nativeFua === true) return false;
  return impl.submitWrite !== undefined || impl.pwritev !== undefined || impl.reserve !== undefined;
}

/** True when every run is aligned in address and length. */
export function isIovAligned(iov: Iov, unit: number): boolean {
  for (let i = 0; i < iov.count; i++) {
    const address = iov.memories[i]!.address + iov.offsets[i]!;
    if (address % unit !== 0 || iov.lengths[i]! % unit !== 0) return false;
  }
  return true;
}

/** FUA is left out when any level on the way is opened with cache.no-flush. */
function leafFlags(request: BlockRequest, leaf: BlockNode): number {
  if ((request.effective & RequestFlags.FUA) === 0 || leaf.noFlush) return 0;
  for (let i = 0; i < request.depth; i++) if (request.levels[i]!.node!.noFlush) return 0;
  return RequestFlags.FUA;
}

/** The levels that were begun are ended, before the coroutine path begins its own. */
function giveBack(request: BlockRequest): void {
  while (request.depth > 0) end(request.levels[--request.depth]!);
}

/** The leaf's backend has completed the operation. */
export function leafDone(request: BlockRequest, result: number): void {
  const write = request.kind === RequestKind.WRITE;
  const left = request.length - request.progress;
  if (result === left) {
    unwind(request, 0, write);
    return;
  }
  if (result < 0 && result !== -Errno.EINTR && result !== -Errno.EAGAIN) {
    unwind(request, result, write);
    return;
  }
  if (result > 0) request.progress += result;
  else if (result === 0) {
    if (!write) request.iov.fill(0, request.progress);
    unwind(request, write ? -Errno.ENOSPC : 0, write);
    return;
  }
  goOn(request, write);
}

/** Submits what is left after a short result. */
function goOn(request: BlockRequest, write: boolean): void {
  const leaf = request.leaf!;
  const at = request.leafAt + request.progress;
  const unaligned = at % leaf.alignment !== 0;
  if (unaligned && !write) {
    // Direct I/O comes up short in the middle of a block only at the end of the file.
    request.iov.fill(0, request.progress);
    unwind(request, 0, write);
    return;
  }
  request.rest ??= new Iov();
  const rest = request.rest.sliceOf(request.iov, request.progress, request.length - request.progress);
  if (write) leaf.impl.submitWrite!(request, rest, at, leafFlags(request, leaf));
  else leaf.impl.submitRead!(request, rest, at);
}

function unwind(request: BlockRequest, error: number, write: boolean): void {
  request.leaf = null;
  for (let depth = request.depth; depth > 0; ) {
    const level = request.levels[--depth]!;
    if (write) level.node!.written(level.at, level.length);
    end(level);
  }
  request.depth = 0;
  request.finish(error);
}

async function runSlow(request: BlockRequest, root: BlockNode): Promise<void> {
  let error = 0;
  try {
    const { pending } = request;
    request.pending = null;
    // What map said is asked again: only that it is at hand by now matters, or that it cannot be had.
    if (pending !== null) await pending;
    await perform(request, root);
  } catch (failure) {
    if (failure instanceof Bug || failure instanceof TypeError || failure instanceof ReferenceError) throw failure;
    request.failure = failure;
    error = -errnoOf(failure);
  }
  request.finish(error);
}

function perform(request: BlockRequest, root: BlockNode): Promise<void> {
  const { at, length, effective } = request;
  const grow = request.blk?.mayGrow ?? false;
  switch (request.kind) {
    case RequestKind.READ:
      return readNode(root, at, request.iov, effective);
    case RequestKind.WRITE:
      return writeNode(root, at, request.iov, effective, grow);
    case RequestKind.ZERO:
      return zeroNode(root, at, length, effective, grow);
    case RequestKind.DISCARD:
      return discardNode(root, at, length);
    case RequestKind.FLUSH:
      return flushNode(root);
    case RequestKind.CACHE:
      return prefetchNode(root, at, length);
    default:
      throw new Bug(`unknown request kind ${request.kind}`);
  }
}
