/** Changing what an open image has below it, once the layers in between are not needed any more. Control functions. */
import { BlockError, Errno } from '../base/errors.ts';
import { layerOf } from './copy-up.ts';
import { drain } from './drain.ts';
import { flushNode } from './flush.ts';
import { removeBacking, replaceChild } from './graph.ts';
import type { BlockNode } from './node.ts';

/** What a layer is to have below it, and what the image says of that. */
export interface NewBacking {
  readonly node: BlockNode;
  readonly name: string;
  readonly format: string;
}

/** Throws where the active layer of `root` cannot be given another backing file: ENOTSUP, EPERM, EBUSY. `same`: the new
 *  one reads as the old one does. */
export function assertRebasable(root: BlockNode, same = false): BlockNode {
  const layer = layerOf(root);
  const refuse = (errno: number, why: string): BlockError =>
    new BlockError(errno, `Could not change what is below node '${layer.name}': ${why}`);
  const { impl, driver } = layer;
  if (!impl.amend || !impl.dropBacking) throw refuse(Errno.ENOTSUP, `the format '${driver.name}' does not support it`);
  if (layer.readOnly) throw refuse(Errno.EPERM, 'it is read-only');
  // What they do not hold themselves is below, and would change or go.
  if (!same && layer.cow !== undefined && (impl.snapshots?.list().length ?? 0) > 0)
    throw refuse(Errno.EBUSY, 'its internal snapshots need it');
  return layer;
}

/**
 * Makes `to` (null: nothing) what is below the active layer of `root`, which must read the same with it. All that was
 * copied is on stable storage before the image says so, and the image says so before the graph changes: whatever fails,
 * or crashes, the image reads as it did. `same`: `to` reads as what is below now.
 */
export async function rebase(root: BlockNode, to: NewBacking | null, same = false): Promise<void> {
  const layer = assertRebasable(root, same);
  using _drained = await drain(layer);
  const { cow } = layer;
  if (cow === undefined) return;
  await flushNode(layer);
  await layer.impl.amend!({ 'backing-file': to?.name ?? null, 'backing-fmt': to?.format ?? null });
  if (to === null) await removeBacking(cow);
  else await replaceChild(cow, to.node);
}
