/**
 * Nodes that rest while somebody else has their images: another process to which they go, or from which they come
 * (migration). All that only memory holds is written, and the locks are given up; nobody can use such a node, and of
 * its users only those stay who said that they would (BlockBackendOptions.allowInactive). When it becomes active again,
 * its driver reads everything anew. Control functions.
 */
import { BlockError, Errno } from '../base/errors.ts';
import { BlockChild } from './child.ts';
import { assertUnclaimed } from './claims.ts';
import { drain } from './drain.ts';
import { activate, inactivate } from './move.ts';
import type { BlockNode, NodeParent } from './node.ts';
import { AT_REST, graphSection, PermChange } from './permissions.ts';

/** EPERM. */
export function assertActive(node: BlockNode): void {
  if (node.inactive) throw new BlockError(Errno.EPERM, `Could not use node '${node.name}': it is inactive`);
}

/**
 * The node, and what only it and its like use below it. EBUSY where it is in use, ENOTSUP for a driver that cannot
 * rest; EAGAIN where the locks of an image cannot be had again: it is inactive then as it was.
 */
export async function setActive(node: BlockNode, active: boolean): Promise<void> {
  if (node.inactive !== active) return;
  if (active) await wake(node);
  else await rest(node);
}

async function rest(root: BlockNode): Promise<void> {
  assertIdle(root);
  const asked = restable(root);
  using _drained = await drain(...asked);
  assertIdle(root);
  // Others may have let go of more meanwhile, which is not drained.
  const nodes = restable(root).filter((node) => asked.includes(node));
  const formats = nodes.filter(holdsMetadata);
  await inactivate([root], formats);
  try {
    await mark(root, nodes, true);
  } catch (error) {
    await activate(formats);
    throw error;
  }
  for (const node of nodes) await node.bitmaps.forget();
}

function assertIdle(node: BlockNode): void {
  assertUnclaimed(node);
  const refuse = (why: string, errno: number): BlockError =>
    new BlockError(errno, `Could not inactivate node '${node.name}': ${why}`);
  const user = node.parents.find((parent) => !mayStay(parent));
  if (user) throw refuse(`${user.describe} uses it`, Errno.EBUSY);
  for (const one of restable(node)) {
    assertCanRest(one);
    const shown = one.bitmaps.list().find(({ users }) => users > 0);
    if (shown) throw refuse(`bitmap '${shown.name}' of node '${one.name}' is in use`, Errno.EBUSY);
  }
}

/** A user that an inactive node may have. */
function mayStay(parent: NodeParent): boolean {
  return parent.onceActive !== undefined || (parent instanceof BlockChild && parent.parent.inactive);
}

/** ENOTSUP. */
export function assertCanRest(node: BlockNode): void {
  if (!holdsMetadata(node) || node.impl.inactivate) return;
  const why = `driver '${node.driver.name}' does not support it`;
  throw new BlockError(Errno.ENOTSUP, `Could not inactivate node '${node.name}': ${why}`);
}

async function wake(root: BlockNode): Promise<void> {
  using _drained = await drain(...inactiveBelow(root));
  const nodes = inactiveBelow(root);
  const lengths = nodes.map(({ length }) => length);
  await mark(root, nodes, false);
  try {
    await activate(nodes, true);
    for (const [i, node] of nodes.entries()) if (node.length !== lengths[i]) node.resized();
  } catch (error) {
    await restAgain(nodes);
    await mark(root, nodes, true);
    for (const node of nodes) await node.bitmaps.forget();
    throw error;
  }
}

/** Those that did become active. What matters is why another one did not. */
async function restAgain(nodes: readonly BlockNode[]): Promise<void> {
  for (const node of nodes) {
    try {
      await node.impl.inactivate?.();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
    }
  }
}

/** All of `nodes`, or none; of their users, those that stay. */
async function mark(root: BlockNode, nodes: readonly BlockNode[], inactive: boolean): Promise<void> {
  using _section = await graphSection();
  for (const node of nodes) node.inactive = inactive;
  try {
    const change = new PermChange().refresh(root);
    for (const node of nodes) {
      for (const parent of node.parents) {
        if (!parent.onceActive) continue;
        const { perm, shared } = inactive ? AT_REST : parent.onceActive;
        change.set(parent, node, perm, shared);
      }
    }
    await change.apply();
  } catch (error) {
    for (const node of nodes) node.inactive = !inactive;
    throw error;
  }
}

/** A leaf has nothing to write but what a flush does. */
function holdsMetadata({ children }: BlockNode): boolean {
  return children.length > 0;
}

/** The node and what nobody else keeps active below it, parents first. */
function restable(root: BlockNode): BlockNode[] {
  const nodes = new Set([root]);
  for (const node of nodes) {
    for (const { node: below } of node.children) {
      const others = below.parents.some(
        (parent) => !mayStay(parent) && !(parent instanceof BlockChild && nodes.has(parent.parent)),
      );
      if (!below.inactive && !others) nodes.add(below);
    }
  }
  return [...nodes];
}

/** The node and what is inactive below it, parents first. */
function inactiveBelow(root: BlockNode): BlockNode[] {
  const nodes = new Set([root]);
  for (const node of nodes) for (const child of node.children) if (child.node.inactive) nodes.add(child.node);
  return [...nodes];
}
