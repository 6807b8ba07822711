/**
 * Opening, linking and closing nodes. A tree of QAPI-like options becomes a tree of nodes; a failure half-way closes
 * what had been opened. Control functions: one thread, no request in flight on what is changed.
 */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { BlockChild } from './child.ts';
import { drain, inDrainAll } from './drain.ts';
import type { Child, ChildRole, CommonOptions, OpenContext } from './driver.ts';
import { PERM_ALL } from './driver.ts';
import { flushNode } from './flush.ts';
import { BlockNode, type NodeParent } from './node.ts';
import { ownOptions } from './options.ts';
import { childPermissions, graphSection, PermChange } from './permissions.ts';
import { driverByName, freeName, nodeByName, reserveName, setNode } from './registry.ts';

/** Nodes from a root down to its furthest leaf. */
export const MAX_DEPTH = 64;

/** Options of a node by their QAPI names; children nested, or by the node-name of one that is open. */
export type NodeOptions = CommonOptions & Readonly<Record<string, unknown>>;

/** Opens a node and what is below it. The caller holds it until `releaseNode`. */
export function openNode(aio: AioContext, options: NodeOptions): Promise<BlockNode> {
  return openAt(aio, options, 1);
}

async function openAt(aio: AioContext, options: NodeOptions, depth: number): Promise<BlockNode> {
  if (depth > MAX_DEPTH) throw new BlockError(Errno.ELOOP, `Could not open the graph: deeper than ${MAX_DEPTH} nodes`);
  if (inDrainAll()) throw new BlockError(Errno.EBUSY, 'Could not open a node: all nodes are being drained');
  const driver = driverByName(options.driver);
  const own = ownOptions(driver, options);
  const name = reserveName(options['node-name']);
  const node = new BlockNode(name, driver, aio, options);
  try {
    node.opened(await driver.open(openContext(node, options, depth), own));
  } catch (error) {
    try {
      // The driver may be open: its limits can be refused after that.
      await node.impl?.close?.();
      await detachChildren(node);
    } finally {
      freeName(name);
    }
    throw error;
  }
  setNode(name, node);
  return node;
}

function openContext(node: BlockNode, options: NodeOptions, depth: number): OpenContext {
  return {
    aio: node.aio,
    nodeName: node.name,
    readOnly: node.readOnly,
    common: node.common,
    grace: () => node.grace(),
    openChild: (name, role) => openChild(node, options, name, role, depth),
  };
}

async function openChild(
  parent: BlockNode,
  options: NodeOptions,
  name: string,
  role: ChildRole,
  depth: number,
): Promise<Child | undefined> {
  const wanted = options[name];
  if (wanted === undefined || wanted === null) return undefined;
  let node: BlockNode;
  if (typeof wanted === 'string') {
    node = nodeByName(wanted);
    if (node.aio !== parent.aio) {
      throw new BlockError(
        Errno.EINVAL,
        `Could not use node '${wanted}' as '${name}': it lives in context '${node.aio.name}', not '${parent.aio.name}'`,
      );
    }
    if (node.height + depth >= MAX_DEPTH) {
      throw new BlockError(Errno.ELOOP, `Could not open the graph: deeper than ${MAX_DEPTH} nodes`);
    }
    node.refs++;
  } else {
    node = await openAt(parent.aio, inherit(parent, wanted as NodeOptions, role), depth + 1);
  }
  const child = new BlockChild(parent, name, role, node);
  try {
    await attach(child, node, childPermissions(child, { perm: 0, shared: PERM_ALL }));
    parent.children.push(child);
  } finally {
    await releaseNode(node);
  }
  return child;
}

/** What a nested child gets of its parent's options where it has none of its own. */
function inherit(parent: BlockNode, options: NodeOptions, role: ChildRole): NodeOptions {
  const { common } = parent;
  const cow = role === 'cow';
  const inherited: Record<string, unknown> = {
    'read-only': cow ? true : common['read-only'],
    'auto-read-only': cow ? false : common['auto-read-only'],
    'force-share': common['force-share'],
    // Formats and filters decide what to discard; what reaches the child is meant.
    discard: 'unmap',
    cache: common.cache,
  };
  const kept = Object.fromEntries(Object.entries(inherited).filter(([, value]) => value !== undefined));
  return { ...kept, ...options };
}

/** Makes `parent` a user of `node`. All or nothing. */
export async function attach(
  parent: NodeParent,
  node: BlockNode,
  wish: { readonly perm: number; readonly shared: number },
): Promise<void> {
  using _section = await graphSection();
  await new PermChange().add(parent, node).set(parent, node, wish.perm, wish.shared).apply();
  node.parents.push(parent);
  node.refs++;
  if (node.quiesce > 0) parent.drainBegin();
}

/** Takes `parent` away from `node`; the node closes when nobody else holds it. */
export async function detach(parent: NodeParent, node: BlockNode): Promise<void> {
  {
    using _section = await graphSection();
    await new PermChange().remove(parent, node).apply();
    const index = node.parents.indexOf(parent);
    if (index >= 0) node.parents.splice(index, 1);
    if (node.quiesce > 0) parent.drainEnd();
    parent.perm = 0;
    parent.shared = PERM_ALL;
  }
  await releaseNode(node);
}

/** Puts `to` in the place of the child's node. Nothing changes when a permission stands against it. */
export async function replaceChild(child: BlockChild, to: BlockNode): Promise<void> {
  const from = child.node;
  if (to === from) return;
  if (reaches(to, child.parent)) {
    throw new BlockError(Errno.EINVAL, `Could not put node '${to.name}' below '${child.parent.name}': it is above it`);
  }
  if (to.aio !== from.aio) throw new BlockError(Errno.EINVAL, `Node '${to.name}' lives in another context`);
  using _drained = await drain(child.parent);
  {
    using _section = await graphSection();
    const { perm, shared } = child;
    await new PermChange().remove(child, from).apply();
    try {
      await new PermChange().add(child, to).set(child, to, perm, shared).apply();
    } catch (error) {
      await new PermChange().add(child, from).set(child, from, perm, shared).apply();
      throw error;
    }
    from.parents.splice(from.parents.indexOf(child), 1);
    if (from.quiesce > 0) child.drainEnd();
    child.node = to;
    to.parents.push(child);
    to.refs++;
    if (to.quiesce > 0) child.drainBegin();
    child.parent.refreshLimits();
  }
  await releaseNode(from);
}

function reaches(from: BlockNode, to: BlockNode): boolean {
  return from === to || from.children.some((child) => reaches(child.node, to));
}

/** Somebody lets go of a node. The last one closes it: its requests end, its data is flushed, then its children go. */
export async function releaseNode(node: BlockNode): Promise<void> {
  if (--node.refs > 0 || node.closed) return;
  node.closed = true;
  await closeNode(node);
}

async function closeNode(node: BlockNode): Promise<void> {
  let failure: unknown;
  const attempt = async (step: () => unknown): Promise<void> => {
    try {
      await step();
    } catch (error) {
      failure ??= error;
    }
  };
  // A name goes first, so that it can be used again at once.
  freeName(node.name);
  const drained = await drain(node);
  if (!node.readOnly) await attempt(() => flushNode(node));
  await attempt(() => node.impl.close?.());
  drained.end();
  await attempt(() => detachChildren(node));
  if (failure !== undefined) throw failure;
}

async function detachChildren(node: BlockNode): Promise<void> {
  for (const child of node.children.splice(0)) await detach(child, child.node);
}
