/**
 * Opening, linking and closing nodes. A tree of QAPI-like options becomes a tree of nodes; a failure half-way closes
 * what had been opened. Control functions: one thread, no request in flight on what is changed.
 */
import type { AioContext } from '../aio/context.ts';
import { assert } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { everyStep } from '../base/every-step.ts';
import { BlockChild, DriverRequest } from './child.ts';
import { MAX_DEPTH } from './depth.ts';
import { drain, inDrainAll, kickDrain } from './drain.ts';
import type { Child, ChildRole, CommonOptions, Driver, MaybePromise, OpenContext } from './driver.ts';
import { PERM_ALL } from './driver.ts';
import { flushNode } from './flush.ts';
import { assertCanRest } from './inactive.ts';
import { BlockNode, type NodeParent } from './node.ts';
import { ownOptions } from './options.ts';
import { AT_REST, childPermissions, graphSection, PermChange } from './permissions.ts';
import { driverByName, freeName, nodeByName, reserveName, setNode, tellDamage } from './registry.ts';
import { throttleGroup } from './throttle-group.ts';

/** Options of a node by their QAPI names; children nested, or by the node-name of one that is open. */
export type NodeOptions = CommonOptions & Readonly<Record<string, unknown>>;

/** Opens a node and what is below it. The caller holds it until `releaseNode`. `former`: a name that was made up for it
 *  in another thread, and is its name here where that is free. */
export async function openNode(aio: AioContext, options: NodeOptions, former?: string): Promise<BlockNode> {
  return openWith(aio, driverByName(options.driver), options, 1, former);
}

/** {@link openNode} of a driver that is not registered: for nodes that nobody can ask for by name. */
export function openNodeOf(aio: AioContext, driver: Driver, options: Omit<NodeOptions, 'driver'>): Promise<BlockNode> {
  return openWith(aio, driver, { ...options, driver: driver.name }, 1);
}

async function openAt(aio: AioContext, options: NodeOptions, depth: number): Promise<BlockNode> {
  return openWith(aio, driverByName(options.driver), options, depth);
}

async function openWith(
  aio: AioContext,
  driver: Driver,
  options: NodeOptions,
  depth: number,
  former?: string,
): Promise<BlockNode> {
  if (depth > MAX_DEPTH) throw new BlockError(Errno.ELOOP, `Could not open the graph: deeper than ${MAX_DEPTH} nodes`);
  if (inDrainAll()) throw drainingAll();
  const own = ownOptions(driver, options);
  const name = reserveName(options['node-name'], former);
  // What it is to begin with; it may become active.
  const { active = true, ...lasting } = options;
  const node = new BlockNode(name, driver, aio, lasting as NodeOptions);
  node.inactive = !active;
  try {
    const context = openContext(node, (child, role) => openChild(node, options, child, role, depth));
    node.opened(await driver.open(context, own));
    if (active) await node.bitmaps.load();
    else assertCanRest(node);
    // It may have begun while the driver opened, and does not know of this node.
    if (inDrainAll()) throw drainingAll();
  } catch (error) {
    // The driver may be open: its limits can be refused after that. What is thrown is why the node did not open.
    await everyStep(
      () => Promise.reject(error),
      () => node.bitmaps.store(),
      () => closeDriver(node),
      () => detachChildren(node),
      () => freeName(name),
    );
  }
  if (!driver.hidden) setNode(name, node);
  return node;
}

function drainingAll(): BlockError {
  return new BlockError(Errno.EBUSY, 'Could not open a node: all nodes are being drained');
}

/** What the driver of `node` is opened with. */
export function openContext(node: BlockNode, openChild: OpenContext['openChild']): OpenContext {
  return {
    aio: node.aio,
    nodeName: node.name,
    get readOnly() {
      return node.readOnly;
    },
    get common() {
      return node.common;
    },
    inactive: node.inactive,
    grace: () => node.grace(),
    request: (done) => new DriverRequest(done),
    quiet: kickDrain,
    joinThrottle: (group) => throttleGroup(group).join(node.aio),
    dirtyRanges,
    resized: () => node.resized(),
    damaged: (what, fatal) => tellDamage({ node: node.name, what, fatal }),
    openChild,
  };
}

function dirtyRanges(name: string, bitmapName: string, visit: (at: number, length: number) => void): void {
  const { bitmap, release } = nodeByName(name).bitmaps.share(bitmapName);
  release();
  bitmap.eachRange(visit);
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
    const own = wanted as NodeOptions;
    const resting = parent.inactive ? { active: false } : {};
    node = await openAt(parent.aio, { ...inherited(parent.common, role), ...resting, ...own }, depth + 1);
    node.openedWith = parent.name;
    node.inheritsCache = own.cache === undefined;
  }
  // Before it asks for permissions: a format that may write its file asks for that.
  if (node.readOnly && role !== 'cow' && parent.common['auto-read-only'] === true) parent.readOnly = true;
  const child = new BlockChild(parent, name, role, node);
  try {
    await attach(child, node, childPermissions(child, AT_REST, false));
    parent.children.push(child);
  } finally {
    await releaseNode(node);
  }
  return child;
}

/** What a child whose options are inside its parent's gets of those where it has none of its own. */
export function inherited(parent: CommonOptions, role: ChildRole): Omit<CommonOptions, 'driver'> {
  const cow = role === 'cow';
  const all: Record<string, unknown> = {
    'read-only': cow ? true : parent['read-only'],
    'auto-read-only': cow ? false : parent['auto-read-only'],
    'force-share': parent['force-share'],
    // Formats and filters decide what to discard; what reaches the child is meant.
    discard: 'unmap',
    cache: parent.cache,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
}

/** The files of an image, by the names that they have as children. */
export interface ImageFiles {
  readonly file: NodeOptions;
  readonly 'data-file'?: NodeOptions;
}

/**
 * Opens the files of an image that is not opened itself, for the time of `body`: what makes, checks or mends it. They
 * are children of a node that nobody finds, so that they are locked as an open image's would be.
 */
export async function withFiles<T>(
  aio: AioContext,
  driver: Driver,
  files: ImageFiles,
  readOnly: boolean,
  body: (file: Child, dataFile: Child | undefined) => Promise<T>,
): Promise<T> {
  const options: NodeOptions = { driver: driver.name, ...(readOnly ? { 'read-only': true } : {}), ...files };
  const name = reserveName(undefined);
  const node = new BlockNode(name, driver, aio, options);
  let result: T | undefined;
  await everyStep(
    async () => {
      const file = (await openChild(node, options, 'file', 'primary', 1))!;
      result = await body(file, await openChild(node, options, 'data-file', 'primary', 1));
    },
    () => detachChildren(node),
    () => freeName(name),
  );
  return result as T;
}

/** Makes `parent` a user of `node`. All or nothing. */
export async function attach(
  parent: NodeParent,
  node: BlockNode,
  wish: { readonly perm: number; readonly shared: number },
): Promise<void> {
  using _section = await graphSection();
  const { perm, shared } = node.inactive && parent.onceActive ? AT_REST : wish;
  await new PermChange().add(parent, node).set(parent, node, perm, shared).apply();
  node.parents.push(parent);
  node.refs++;
  if (node.quiesce > 0) parent.drainBegin();
}

/** Takes `parent` away from `node`; the node closes when nobody else holds it. */
export async function detach(parent: NodeParent, node: BlockNode): Promise<void> {
  let from = node;
  try {
    using _section = await graphSection();
    // An edge may have got another node while this waited.
    if (parent instanceof BlockChild) from = parent.node;
    try {
      await new PermChange().remove(parent, from).apply();
    } finally {
      // A driver that could not give up its locks does not keep the user.
      const index = from.parents.indexOf(parent);
      assert(index >= 0, `${parent.describe} does not use node '${from.name}'`);
      from.parents.splice(index, 1);
      if (from.quiesce > 0) parent.drainEnd();
      parent.perm = 0;
      parent.shared = PERM_ALL;
    }
  } finally {
    await releaseNode(from);
  }
}

/**
 * Puts `to` in the place of the child's node. Nothing changes when a permission, a cycle or the depth stands against
 * it: EPERM, EINVAL, ELOOP. Must not be called from a request of the node above.
 */
export async function replaceChild(child: BlockChild, to: BlockNode): Promise<void> {
  // Whoever else holds it may let go while this waits.
  to.refs++;
  let gone = to;
  try {
    using _drained = await drain(child.parent);
    using _section = await graphSection();
    const from = child.node;
    if (to === from) return;
    checkPlace(child, to);
    const { perm, shared } = child;
    const length = child.parent.length;
    await new PermChange().remove(child, from).add(child, to).set(child, to, perm, shared).apply();
    from.parents.splice(from.parents.indexOf(child), 1);
    if (from.quiesce > 0) child.drainEnd();
    child.node = to;
    to.parents.push(child);
    if (to.quiesce > 0) child.drainBegin();
    // The reference of above is the edge's from here on.
    gone = from;
    followChange(child.parent);
    if (child.parent.length !== length) child.resized();
  } finally {
    await releaseNode(gone);
  }
}

/** Takes a child away for good: its parent's options say that there is none. Nothing changes when the driver cannot do
 *  without it (ENOTSUP). Must not be called from a request of the node above. */
export async function removeBacking(child: BlockChild): Promise<void> {
  const { parent } = child;
  using _drained = await drain(parent);
  if (!parent.impl.dropBacking || child.role !== 'cow') {
    throw new BlockError(Errno.ENOTSUP, `Could not take '${child.name}' away from node '${parent.name}': it needs it`);
  }
  const index = parent.children.indexOf(child);
  if (index < 0) return;
  parent.children.splice(index, 1);
  parent.impl.dropBacking();
  parent.common = { ...parent.common, [child.name]: null } as CommonOptions;
  try {
    await detach(child, child.node);
  } finally {
    followChange(parent);
  }
}

/** Something else is below `parent`: limits and heights follow, there and above. */
export function followChange(parent: BlockNode): void {
  for (const above of upwards(parent)) if (above.live) above.refreshLimits();
}

/** Throws where the graph would not be one any more, or too deep. */
export function checkPlace(child: BlockChild, to: BlockNode): void {
  const { parent } = child;
  const refuse = (errno: number, why: string): BlockError =>
    new BlockError(errno, `Could not put node '${to.name}' below '${parent.name}': ${why}`);
  if (!parent.children.includes(child)) throw refuse(Errno.EINVAL, `'${parent.name}' is closed`);
  if (to.aio !== parent.aio) throw refuse(Errno.EINVAL, `it lives in context '${to.aio.name}'`);
  const above = upwards(parent);
  if (above.includes(to)) throw refuse(Errno.EINVAL, 'it is above it');
  if (levels(above) + to.height + 1 > MAX_DEPTH) throw refuse(Errno.ELOOP, `deeper than ${MAX_DEPTH} nodes`);
}

/** The node and all that are above it, every one of them after those of them that are below it. */
function upwards(node: BlockNode): BlockNode[] {
  const seen = new Set<BlockNode>();
  const order: BlockNode[] = [];
  const visit = (at: BlockNode): void => {
    if (seen.has(at)) return;
    seen.add(at);
    for (const parent of at.parents) if (parent instanceof BlockChild) visit(parent.parent);
    order.push(at);
  };
  visit(node);
  return order.reverse();
}

/** The longest way from a root to the first of `above`, in nodes; see {@link upwards}. */
function levels(above: readonly BlockNode[]): number {
  const depths = new Map<BlockNode, number>();
  let depth = 0;
  for (const node of [...above].reverse()) {
    depth = 1;
    for (const parent of node.parents) {
      if (parent instanceof BlockChild) depth = Math.max(depth, 1 + depths.get(parent.parent)!);
    }
    depths.set(node, depth);
  }
  return depth;
}

/** Somebody lets go of a node. The last one closes it: its requests end, its data is flushed, then its children go.
 *  What a job has put over a disk for a time is not flushed: it holds no data of its own, the disk's users go on. */
export async function releaseNode(node: BlockNode): Promise<void> {
  if (--node.refs > 0 || node.closed) return;
  node.closed = true;
  await closeNode(node);
}

async function closeNode(node: BlockNode): Promise<void> {
  // A name goes first, so that it can be used again at once.
  freeName(node.name);
  const drained = await drain(node);
  await everyStep(
    () => (node.readOnly || node.implicit ? undefined : flushNode(node)),
    () => node.bitmaps.store(),
    () => closeDriver(node),
    () => drained.end(),
    () => detachChildren(node),
  );
}

function closeDriver(node: BlockNode): MaybePromise<void> {
  node.live = false;
  return node.impl?.close?.();
}

async function detachChildren(node: BlockNode): Promise<void> {
  await everyStep(...node.children.splice(0).map((child) => () => detach(child, child.node)));
}
