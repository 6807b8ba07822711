/**
 * Copying up (SEMANTICS R11): what only the layers below hold of a range becomes the active layer's own. Guests do not
 * notice: nothing reads differently afterwards, no bitmap records it, and no permission to write is needed.
 *
 * A copy is serialised in whole clusters of the layer. So nothing newer is written over, and whoever writes meanwhile
 * comes after it. Read and write errors are the caller's; what is done of the range stays so.
 */
import { BlockError, Errno } from '../base/errors.ts';
import { alignUp, type Bytes, KiB, type Offset } from '../base/units.ts';
import { BounceUse, bouncePool } from './bounce.ts';
import { BlockChild } from './child.ts';
import { Mapping, type MaybePromise } from './driver.ts';
import { zeroAligned } from './emulate.ts';
import { readNode, writeAligned } from './io.ts';
import { Joiner } from './joiner.ts';
import { withdrawLeases } from './lease.ts';
import type { BlockNode, NodeParent } from './node.ts';
import { RequestKind } from './request.ts';
import { BlockStatus, nodeStatus } from './status.ts';
import { begin, end, serialise, Tracked, waitConflicts } from './tracked.ts';

/** Copied at a time, unless a cluster is larger; the pool lets eight of them run. */
const PIECE: Bytes = 512 * KiB;

/** Of use within one call only: an answer that comes later is asked for again. */
const place = new Mapping();

/** The node that decides what `root` reads as: itself, or what is below its filters. */
export function layerOf(root: BlockNode): BlockNode {
  let node = root;
  for (let shown = node.filtered; shown !== undefined; shown = node.filtered) node = shown.node;
  return node;
}

/** What `root` is to its users: itself, or what is below the filters that jobs have put over it. */
export function explicitNode(root: BlockNode): BlockNode {
  let node = root;
  while (node.implicit && node.filtered) node = node.filtered.node;
  return node;
}

/** What a new user of `node` is put on: a filter of a job that lets nobody write past it, or the node itself. */
export function guestNode(node: BlockNode): BlockNode {
  for (const user of node.parents) {
    if (!(user instanceof BlockChild) || user.role !== 'filtered' || !user.parent.implicit) continue;
    if (user.parent.driver.claims) return guestNode(user.parent);
  }
  return node;
}

/** EBUSY where `node` is the backing file of another one, which would read differently if it changed. `but`: those that
 *  would not. */
export function assertNoOverlay(node: BlockNode, but?: ReadonlySet<NodeParent>): void {
  const over = node.parents.find((user) => user instanceof BlockChild && user.role === 'cow' && !but?.has(user));
  if (over === undefined) return;
  const why = `it is in use by ${over.describe}`;
  throw new BlockError(Errno.EBUSY, `Could not use node '${node.name}': ${why}`, { where: { node: node.name } });
}

/** The number of a layer in what `root` shows, as in BlockStatus: 1 is the active one. 0 where it is none of them. A
 *  filter belongs to the layer that it shows. */
export function layerNumber(root: BlockNode, isLayer: (node: BlockNode) => boolean): number {
  let node: BlockNode | undefined = root;
  for (let number = 1; node !== undefined; number++) {
    const layer: BlockNode = layerOf(node);
    for (let shown: BlockNode = node; ; shown = shown.filtered!.node) {
      if (isLayer(shown)) return number;
      if (shown === layer) break;
    }
    node = layer.cow?.node;
  }
  return 0;
}

/** How many bytes from `at` on the active layer holds itself; as a negative number, how many only those below it do. */
export function heldLength(root: BlockNode, at: Offset, want: Bytes): MaybePromise<number> {
  const node = layerOf(root);
  const { cow } = node;
  if (cow === undefined || at >= cow.node.length) return want;
  const pending = node.impl.map!(at, want, 'status', place);
  if (pending === undefined) return heldOf(place, cow, at, want);
  return pending.then(async () => {
    const mapping = new Mapping();
    await node.impl.map!(at, want, 'status', mapping);
    return heldOf(mapping, cow, at, want);
  });
}

function heldOf({ kind, length }: Mapping, cow: BlockChild, at: Offset, want: Bytes): number {
  if (kind !== 'absent') return Math.min(length, want);
  return -Math.min(length, want, cow.node.length - at);
}

/** Copies what of the range the active layer does not hold. Nothing happens where nothing is below, or the layer is
 *  read-only. */
export async function copyUp(root: BlockNode, at: Offset, length: Bytes): Promise<void> {
  const node = layerOf(root);
  if (node.cow === undefined || node.readOnly || length === 0) return;
  const unit = Math.max(node.limits.optimal, node.limits.alignment);
  const tracked = new Tracked();
  begin(node, tracked, RequestKind.READ, at, length);
  try {
    serialise(tracked, unit);
    const borrowed = withdrawLeases(node);
    if (borrowed !== undefined) await borrowed;
    await waitConflicts(tracked);
    const stop = Math.min(tracked.overlapEnd, alignUp(node.length, node.alignment));
    if (root.impl.debugEvent !== undefined) await root.impl.debugEvent('cor_write');
    await copyAbsent(node, tracked, tracked.overlapAt, stop, Math.max(PIECE, unit));
  } finally {
    // Nothing reads differently, but a flush has something to do.
    node.writeGen++;
    end(tracked);
  }
}

/** {@link copyUp} of what the layers down to number `last` hold: what is below these stays there alone. */
export async function copyUpTo(root: BlockNode, at: Offset, length: Bytes, last: number): Promise<void> {
  const status = new BlockStatus();
  for (let done = 0; done < length; done += status.length) {
    const pending = nodeStatus(root, at + done, length - done, status);
    if (pending !== undefined) await pending;
    if (status.depth > 1 && status.depth <= last) await copyUp(root, at + done, status.length);
  }
}

async function copyAbsent(node: BlockNode, tracked: Tracked, from: Offset, stop: Offset, most: Bytes): Promise<void> {
  const mapping = new Mapping();
  const parts = new Joiner();
  try {
    for (let at = from; at < stop && !parts.failed; ) {
      const pending = node.impl.map!(at, stop - at, 'status', mapping);
      if (pending !== undefined) await pending;
      const absent = mapping.kind === 'absent';
      const length = Math.min(mapping.length, stop - at, absent ? most - (at % most) : Number.POSITIVE_INFINITY);
      if (absent) await parts.add(copyPiece(node, tracked, at, length));
      at += length;
    }
  } catch (error) {
    await parts.settle();
    throw error;
  }
  await parts.join();
}

async function copyPiece(node: BlockNode, tracked: Tracked, at: Offset, length: Bytes): Promise<void> {
  const bounce = await bouncePool(node.aio, node.height, BounceUse.COPY).acquire(length);
  try {
    const { iov } = bounce;
    await readNode(node.cow!.node, at, iov, 0);
    if (iov.isZero()) await zeroAligned(node, tracked, at, length, 0);
    else await writeAligned(node, tracked, at, iov, 0);
  } finally {
    bounce.release();
  }
}
