/**
 * A tree of nodes that goes on in another thread (SEMANTICS B8; docs/CHANNELS.md, "Moving a tree"): who stands against
 * it, the time in which it is inactive here, and the way back. Nodes are opened again there from what is answered here,
 * since objects cannot change threads.
 */
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, MiB } from '../base/units.ts';
import type { BlockBackend } from './backend.ts';
import type { DirtyBitmap } from './dirty-bitmap.ts';
import { type Drained, drain } from './drain.ts';
import { flushNode } from './flush.ts';
import type { NodeOptions } from './graph.ts';
import type { BlockNode } from './node.ts';

/** A bitmap that no image keeps: pieces of its bits from the first on, null where all of them are clear. */
export interface MovedBitmap {
  readonly name: string;
  readonly granularity: Bytes;
  readonly enabled: boolean;
  readonly pieces: readonly (Uint8Array | null)[];
}

/** What a tree is opened from again; survives structured clone. Descriptors in it are good until the move has ended. */
export interface MovedTree {
  readonly options: NodeOptions;
  /** Of its root. */
  readonly bitmaps: readonly MovedBitmap[];
}

/** 8 MiB of bits is the most that one message copies in a piece. */
const PIECE: Bytes = MiB;

/** A drained and inactive tree, from {@link moveOut} to the end of the move. */
export class Leaving {
  readonly tree: MovedTree;
  readonly #root: BlockNode;
  readonly #drained: Drained;

  constructor(root: BlockNode, drained: Drained, tree: MovedTree) {
    this.#root = root;
    this.#drained = drained;
    this.tree = tree;
  }

  /** The move has failed: the nodes go on here. Rejects where one of them cannot; what it then answers to writes is its
   *  own affair. */
  async back(): Promise<void> {
    try {
      await activateNodes(this.#root);
    } finally {
      this.#drained.end();
    }
  }

  /** The tree is elsewhere. Requests that still wait here go on as soon as this is called: take them first. */
  end(): void {
    this.#drained.end();
  }
}

/** Throws EBUSY with whoever stands against a move of the disk `name` to `where`. */
export function assertMovable(blk: BlockBackend, name: string, where: string): BlockNode {
  const refuse = (why: string, errno: number = Errno.EBUSY): never => {
    throw new BlockError(errno, `Could not move '${name}' to ${where}: ${why}`);
  };
  const { root } = blk;
  if (!root) return refuse('it has no medium', Errno.ENOMEDIUM);
  for (const user of blk.users) {
    const why = user.cannotMove ? user.cannotMove() : 'something uses it that cannot move';
    if (why !== undefined) refuse(why);
  }
  for (const node of nodesOf(root)) {
    if (!node.impl.inactivate)
      refuse(`driver '${node.driver.name}' of node '${node.name}' does not support it`, Errno.ENOTSUP);
    if (node.parents.length > 1 || node.refs > 1) refuse(`node '${node.name}' is used by something else too`);
    const busy = node.bitmaps.list().find(({ users }) => users > 0);
    if (busy) refuse(`bitmap '${busy.name}' of node '${node.name}' is in use`);
    const lost = node === root ? undefined : node.bitmaps.list().find(({ persistent }) => !persistent);
    if (lost) refuse(`bitmap '${lost.name}' of node '${node.name}' is not kept in an image`);
    // Besides those of its bitmaps, which go along.
    if (node.watched) refuse(`writes to node '${node.name}' are watched`);
  }
  return root;
}

/**
 * Drains the tree, writes what only memory holds, and has it rest. Rejects where somebody stands against it, or
 * something cannot be written: then nothing has happened but that requests have waited.
 */
export async function moveOut(blk: BlockBackend, name: string, where: string): Promise<Leaving> {
  const asked = assertMovable(blk, name, where);
  const drained = await drain(asked);
  try {
    // Both may have changed while this waited.
    const root = assertMovable(blk, name, where);
    if (root !== asked) throw new BlockError(Errno.EAGAIN, `Could not move '${name}' to ${where}: it has changed`);
    return new Leaving(root, drained, { options: await inactivateNodes(root), bitmaps: bitmapsOf(root) });
  } catch (error) {
    drained.end();
    throw error;
  }
}

/** The bitmaps of a tree that has been opened from a {@link MovedTree}. */
export async function takeBitmaps(root: BlockNode, bitmaps: readonly MovedBitmap[]): Promise<void> {
  for (const { name, granularity, enabled, pieces } of bitmaps) {
    const { bits } = await root.bitmaps.add(name, { granularity, disabled: !enabled });
    for (const [i, piece] of pieces.entries()) if (piece) bits.writeBytes(i * PIECE, piece);
  }
}

/** All nodes of the tree are in use here again. Goes on where one of them fails, and rejects with the first failure. */
export function activateNodes(root: BlockNode): Promise<void> {
  return activate(nodesOf(root));
}

/** `nodes`: parents first. From the leaves up, so that a format finds its file as it left it. `anew`: as another
 *  process has left it. */
export async function activate(nodes: readonly BlockNode[], anew = false): Promise<void> {
  const failures: unknown[] = [];
  for (const node of [...nodes].reverse()) {
    try {
      await node.impl.activate?.(anew);
      await (anew ? node.bitmaps.load() : node.bitmaps.use());
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length > 0) throw failures[0];
}

async function inactivateNodes(root: BlockNode): Promise<NodeOptions> {
  return treeOf(root, await inactivate(root, nodesOf(root)));
}

/** `nodes`: of the drained tree below `root`, parents first. Answers what each of them is opened with again. */
export async function inactivate(
  root: BlockNode,
  nodes: readonly BlockNode[],
): Promise<ReadonlyMap<BlockNode, NodeOptions>> {
  const given = new Map<BlockNode, NodeOptions>();
  try {
    if (!root.readOnly) await flushNode(root);
    for (const node of nodes) {
      given.set(node, node.common as NodeOptions);
      await node.bitmaps.store();
      const more = await node.impl.inactivate!();
      // Written below by now, and perhaps after the flush.
      for (const { node: below } of node.children) await flushNode(below);
      given.set(node, { ...node.common, ...more });
    }
  } catch (error) {
    await activate([...given.keys()]).catch((failure: unknown) => {
      // What counts is why it had to go back.
      if (!(failure instanceof BlockError)) throw failure;
    });
    throw error;
  }
  return given;
}

/** The options of a node by now, with those of what is below it. */
function treeOf(node: BlockNode, given: ReadonlyMap<BlockNode, NodeOptions>): NodeOptions {
  const { 'node-name': name, ...options } = given.get(node)!;
  return {
    ...(options as NodeOptions),
    ...(name === undefined ? {} : { 'node-name': name }),
    'read-only': node.readOnly,
    ...Object.fromEntries(node.children.map((child) => [child.name, treeOf(child.node, given)])),
  };
}

/** A node and all below it, every one before its children. */
function nodesOf(root: BlockNode): BlockNode[] {
  return [root, ...root.children.flatMap((child) => nodesOf(child.node))];
}

function bitmapsOf(root: BlockNode): MovedBitmap[] {
  return root.bitmaps
    .list()
    .filter(({ persistent }) => !persistent)
    .map((bitmap) => ({
      name: bitmap.name,
      granularity: bitmap.granularity,
      enabled: bitmap.enabled,
      pieces: piecesOf(bitmap),
    }));
}

function piecesOf({ bits }: DirtyBitmap): (Uint8Array | null)[] {
  const bytes = Math.ceil(bits.length / 8);
  return Array.from({ length: Math.ceil(bytes / PIECE) }, (_, i) => {
    const end = Math.min((i + 1) * PIECE * 8, bits.length);
    if (bits.next(i * PIECE * 8, end, true) === end) return null;
    const piece = new Uint8Array(Math.min(PIECE, bytes - i * PIECE));
    bits.readBytes(i * PIECE, piece);
    return piece;
  });
}
