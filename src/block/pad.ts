/**
 * Requests that do not fit the node's alignment (SEMANTICS R3). Reads are padded; writes read the blocks at their edges
 * first and are ordered against everything that overlaps these (R2).
 */
import { Iov } from '../base/memory.ts';
import type { Offset } from '../base/units.ts';
import { BounceUse, bouncePool } from './bounce.ts';
import { readAligned, writeAligned } from './io.ts';
import type { BlockNode } from './node.ts';
import type { Tracked } from './tracked.ts';
import { appendIov } from './transfer.ts';

/** One aligned read around the caller's memory. */
export async function readPadded(node: BlockNode, tracked: Tracked, at: Offset, iov: Iov): Promise<void> {
  const unit = node.alignment;
  const head = at % unit;
  const over = (at + iov.length) % unit;
  const tail = over === 0 ? 0 : unit - over;
  const bounce = await bouncePool(node.aio, node.height, BounceUse.PADDING).acquire(head + tail);
  try {
    const whole = bounce.iov.slice(0, head);
    appendIov(whole, iov, 0, iov.length);
    appendIov(whole, bounce.iov, head, tail);
    await readAligned(node, tracked, at - head, whole);
  } finally {
    bounce.release();
  }
}

/** Read, modify, write, of a request that is serialised. True when FUA was asked for and a flush has to see to it. */
export async function writePadded(
  node: BlockNode,
  tracked: Tracked,
  at: Offset,
  iov: Iov,
  flags: number,
): Promise<boolean> {
  const unit = node.alignment;
  const head = at % unit;
  const over = (at + iov.length) % unit;
  const tail = over === 0 ? 0 : unit - over;
  const start = at - head;
  const whole = head + iov.length + tail;
  const firstBlock = head > 0 ? unit : 0;
  const lastBlock = tail > 0 && !(head > 0 && whole === unit) ? unit : 0;
  const bounce = await bouncePool(node.aio, node.height, BounceUse.PADDING).acquire(firstBlock + lastBlock);
  try {
    const edges = bounce.iov;
    if (edges.length === whole) {
      await readEdge(node, tracked, start, edges, head > 0, tail > 0);
    } else {
      if (firstBlock > 0) await readEdge(node, tracked, start, edges.slice(0, unit), true, false);
      if (lastBlock > 0)
        await readEdge(node, tracked, start + whole - unit, edges.slice(firstBlock, unit), false, true);
    }
    const padded = new Iov();
    appendIov(padded, edges, 0, head);
    appendIov(padded, iov, 0, iov.length);
    appendIov(padded, edges, edges.length - tail, tail);
    return await writeAligned(node, tracked, start, padded, flags);
  } finally {
    bounce.release();
  }
}

async function readEdge(
  node: BlockNode,
  tracked: Tracked,
  at: Offset,
  iov: Iov,
  head: boolean,
  tail: boolean,
): Promise<void> {
  const { impl } = node;
  if (impl.debugEvent !== undefined) {
    if (head) await impl.debugEvent('pwritev_rmw_head');
    if (tail) await impl.debugEvent('pwritev_rmw_tail');
  }
  await readAligned(node, tracked, at, iov);
  if (impl.debugEvent === undefined) return;
  if (head) await impl.debugEvent('pwritev_rmw_after_head');
  if (tail) await impl.debugEvent('pwritev_rmw_after_tail');
}
