/** Putting one node in the place of another for those who use it: filters, overlays, the end of a mirror. */
import { BlockError, Errno } from '../base/errors.ts';
import { BlockChild } from './child.ts';
import { drain } from './drain.ts';
import { checkPlace, followChange, releaseNode } from './graph.ts';
import { type BlockNode, graphBelow, type NodeParent } from './node.ts';
import { graphSection, PermChange } from './permissions.ts';

/** Which of the parents go along. Default: all. */
type Choice = (parent: NodeParent) => boolean;

/**
 * Puts `to` in the place of `from`: the parents of `from` become those of `to`, but for what is `to` itself or below
 * it, and what `moves` leaves out. Nothing changes when a permission, a cycle or the depth stands against it: EPERM,
 * EINVAL, ELOOP. The caller holds `to`. Control function; must not be called from a request of either.
 */
export async function replaceNode(from: BlockNode, to: BlockNode, moves: Choice = () => true): Promise<void> {
  if (from.aio !== to.aio) {
    throw new BlockError(
      Errno.EINVAL,
      `Could not put node '${to.name}' in the place of '${from.name}': contexts differ`,
    );
  }
  let left = 0;
  using _drained = await drain(from, to);
  {
    using _section = await graphSection();
    const below = graphBelow(to);
    const parents = from.parents.filter(
      (parent) => !(parent instanceof BlockChild && below.has(parent.parent)) && moves(parent),
    );
    for (const parent of parents) if (parent instanceof BlockChild) checkPlace(parent, to);
    const change = new PermChange();
    for (const parent of parents) {
      change.remove(parent, from).add(parent, to).set(parent, to, parent.perm, parent.shared);
    }
    await change.apply();
    for (const parent of parents) move(parent, from, to);
    left = parents.length;
    for (const parent of parents) {
      if (parent instanceof BlockChild) followChange(parent.parent);
      if (from.length !== to.length) parent.resized();
    }
  }
  for (; left > 0; left--) await releaseNode(from);
}

function move(parent: NodeParent, from: BlockNode, to: BlockNode): void {
  from.parents.splice(from.parents.indexOf(parent), 1);
  parent.node = to;
  to.parents.push(parent);
  to.refs++;
  // In this order: at no moment it may go on.
  if (to.quiesce > 0) parent.drainBegin();
  if (from.quiesce > 0) parent.drainEnd();
}
