/** Putting an overlay over a node that is in use: an external snapshot. Control functions. */
import { BlockError, Errno } from '../base/errors.ts';
import { BlockChild } from './child.ts';
import { assertUnclaimed } from './claims.ts';
import { drain } from './drain.ts';
import type { CommonOptions } from './driver.ts';
import { PERM_ALL } from './driver.ts';
import { attach, checkPlace, followChange, removeBacking } from './graph.ts';
import type { BlockNode } from './node.ts';
import { childPermissions } from './permissions.ts';
import { replaceNode } from './replace-node.ts';

/** Throws where `overlay` cannot come over `node`: EINVAL, ENOTSUP, EBUSY. */
function assertOverlay(node: BlockNode, overlay: BlockNode): void {
  const refuse = (why: string, errno: number = Errno.EINVAL): never => {
    throw new BlockError(errno, why);
  };
  assertUnclaimed(node);
  if (overlay.parents.length > 0) refuse('The overlay is already in use', Errno.EBUSY);
  if (!overlay.impl.takeBacking) refuse('The overlay does not support backing images', Errno.ENOTSUP);
  if (overlay.cow !== undefined) refuse('The overlay already has a backing image');
}

/** Has `node` below `parent`, which has nothing below it. What it reads changes at once. */
export async function giveBacking(parent: BlockNode, node: BlockNode): Promise<BlockChild> {
  const child = new BlockChild(parent, 'backing', 'cow', node);
  using _drained = await drain(parent);
  parent.children.push(child);
  try {
    checkPlace(child, node);
    await attach(child, node, childPermissions(child, { perm: 0, shared: PERM_ALL }, false));
  } catch (error) {
    parent.children.splice(parent.children.indexOf(child), 1);
    throw error;
  }
  parent.impl.takeBacking!(child);
  parent.common = { ...parent.common, backing: node.name } as CommonOptions;
  followChange(parent);
  return child;
}

/**
 * Whoever uses `node` uses `overlay` from now on, which has it below. Answers what undoes that. Nothing has changed
 * when it throws.
 */
export async function putOverlay(node: BlockNode, overlay: BlockNode): Promise<() => Promise<void>> {
  assertOverlay(node, overlay);
  const child = await giveBacking(overlay, node);
  try {
    await replaceNode(node, overlay);
  } catch (error) {
    await removeBacking(child);
    throw error;
  }
  return async () => {
    await replaceNode(overlay, node, (parent) => parent !== child);
    await removeBacking(child);
  };
}
