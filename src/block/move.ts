/**
 * Nodes that go on in another thread (SEMANTICS B8; docs/CHANNELS.md, "Moving a tree"): who stands against it, the time
 * in which they are inactive here, and the way back. Nodes are opened again there from what is answered here, since
 * objects cannot change threads.
 */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, MiB, type Offset } from '../base/units.ts';
import type { BlockBackend } from './backend.ts';
import { BlockChild } from './child.ts';
import { claimOf } from './claims.ts';
import type { DirtyBitmap } from './dirty-bitmap.ts';
import { type Drained, drain } from './drain.ts';
import { flushNode } from './flush.ts';
import { type NodeOptions, openNode, releaseNode } from './graph.ts';
import { type BlockNode, type DiscardCounts, graphBelow } from './node.ts';

/** A bitmap that no image keeps: pieces of its bits from the first on, null where all of them are clear. */
export interface MovedBitmap {
  readonly name: string;
  readonly granularity: Bytes;
  readonly enabled: boolean;
  readonly pieces: readonly (Uint8Array | null)[];
}

/** What a node is opened from again; survives structured clone. Descriptors in it are good until the move has ended. */
export interface MovedNode {
  readonly name: string;
  readonly options: NodeOptions;
  /** Names of nodes, by what the node calls them. */
  readonly children: Readonly<Record<string, string>>;
  /** Of those, the nodes that were opened with it. */
  readonly openedWith: readonly string[];
  readonly bitmaps: readonly MovedBitmap[];
  /** See BlockNode.setWriteThreshold; 0 for none. */
  readonly threshold: Bytes;
  /** See BlockNode. */
  readonly highestWrite: Offset;
  readonly discards: DiscardCounts;
}

/** Each node after those that are below it. */
export type MovedGraph = readonly MovedNode[];

/** 8 MiB of bits is the most that one message copies in a piece. */
const PIECE: Bytes = MiB;

/** What is to move, and to where. */
export interface Departure {
  /** What is moved, and where to, for messages. */
  readonly name: string;
  readonly where: string;
  /** As of now: each node before those below it. */
  readonly nodes: () => readonly BlockNode[];
  /** Users that go along; any other is in the way. */
  readonly backends: ReadonlySet<BlockBackend>;
  /** Nodes that somebody holds who goes along. */
  readonly held: ReadonlySet<BlockNode>;
}

/** Drained and inactive nodes, from {@link moveOut} to the end of the move. */
export class Leaving {
  readonly graph: MovedGraph;
  readonly #nodes: readonly BlockNode[];
  readonly #drained: Drained;

  constructor(nodes: readonly BlockNode[], drained: Drained, graph: MovedGraph) {
    this.#nodes = nodes;
    this.#drained = drained;
    this.graph = graph;
  }

  /** The move has failed: the nodes go on here. Rejects where one of them cannot; what it then answers to writes is its
   *  own affair. */
  async back(): Promise<void> {
    try {
      await activate(this.#nodes);
    } finally {
      this.#drained.end();
    }
  }

  /** The nodes are elsewhere. Requests that still wait here go on as soon as this is called: take them first. */
  end(): void {
    this.#drained.end();
  }
}

/** A node and all below it, each before its children. */
export function nodesBelow(root: BlockNode): BlockNode[] {
  return topDown(graphBelow(root));
}

/** All nodes that hang together with `node`, each before its children. */
export function nodesAround(node: BlockNode): BlockNode[] {
  const all = new Set([node]);
  for (const one of all) {
    for (const child of one.children) all.add(child.node);
    for (const parent of one.parents) if (parent instanceof BlockChild) all.add(parent.parent);
  }
  return topDown(all);
}

function topDown(nodes: Iterable<BlockNode>): BlockNode[] {
  return [...nodes].sort((a, b) => b.height - a.height);
}

/** Throws EBUSY, or ENOTSUP for a driver, with whoever stands against a move; answers the nodes that would move. */
export function assertMovable({ name, where, nodes, backends, held }: Departure): readonly BlockNode[] {
  const refuse = (why: string, errno: number = Errno.EBUSY): never => {
    throw new BlockError(errno, `Could not move '${name}' to ${where}: ${why}`);
  };
  for (const blk of backends) {
    for (const user of blk.users) {
      const why = user.cannotMove ? user.cannotMove() : 'something uses it that cannot move';
      if (why !== undefined) refuse(why);
    }
  }
  const all = nodes();
  const within = new Set(all);
  for (const node of all) {
    const who = claimOf(node);
    if (who !== undefined) refuse(`${who} uses node '${node.name}'`);
    if (!node.live || node.closed) refuse(`node '${node.name}' is being opened or closed`);
    if (node.inactive) refuse(`node '${node.name}' is inactive`);
    if (!node.impl.inactivate)
      refuse(`driver '${node.driver.name}' of node '${node.name}' does not support it`, Errno.ENOTSUP);
    const stays = node.parents.some((parent) =>
      parent instanceof BlockChild ? !within.has(parent.parent) : !backends.has(parent as BlockBackend),
    );
    const holders = node.parents.length + (held.has(node) ? 1 : 0);
    if (stays || node.refs > holders) refuse(`node '${node.name}' is used by something else too`);
    const busy = node.bitmaps.list().find(({ users }) => users > 0);
    if (busy) refuse(`bitmap '${busy.name}' of node '${node.name}' is in use`);
    // Besides those of its bitmaps, which go along.
    if (node.hooked) refuse(`writes to node '${node.name}' are watched`);
  }
  return all;
}

/**
 * Drains the nodes, writes what only memory holds, and has them rest. Rejects where somebody stands against it, or
 * something cannot be written: then nothing has happened but that requests have waited.
 */
export async function moveOut(departure: Departure): Promise<Leaving> {
  const asked = assertMovable(departure);
  const drained = await drain(...asked);
  try {
    // Both may have changed while this waited.
    const nodes = assertMovable(departure);
    if (nodes.length !== asked.length || nodes.some((node, i) => node !== asked[i])) {
      const { name, where } = departure;
      throw new BlockError(Errno.EAGAIN, `Could not move '${name}' to ${where}: it has changed`);
    }
    const given = await inactivate(nodes.filter(isRoot), nodes);
    return new Leaving(
      nodes,
      drained,
      [...nodes].reverse().map((node) => movedNode(node, given.get(node)!)),
    );
  } catch (error) {
    drained.end();
    throw error;
  }
}

function isRoot({ parents }: BlockNode): boolean {
  return !parents.some((parent) => parent instanceof BlockChild);
}

/**
 * Opens nodes that rest elsewhere, in their order, under the names that they have there; a name that was made up gives
 * way where it is not free. The caller holds each of them; a failure leaves none.
 */
export async function moveIn(aio: AioContext, graph: MovedGraph): Promise<ReadonlyMap<string, BlockNode>> {
  const opened = new Map<string, BlockNode>();
  try {
    for (const { name, options, children, openedWith, bitmaps, highestWrite, discards } of graph) {
      const below = Object.entries(children).map(([child, node]) => [child, opened.get(node)!.name]);
      const node = await openNode(aio, { ...options, ...Object.fromEntries(below) }, name);
      opened.set(name, node);
      for (const below of openedWith) opened.get(below)!.openedWith = node.name;
      node.highestWrite = highestWrite;
      node.discards = discards;
      await takeBitmaps(node, bitmaps);
    }
    return opened;
  } catch (error) {
    await letGo([...opened.values()].reverse());
    throw error;
  }
}

/** Lets go of nodes that go on elsewhere: there is nothing here that a failure could tell of. */
export async function letGo(nodes: Iterable<BlockNode>): Promise<void> {
  for (const node of nodes) {
    try {
      await releaseNode(node);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
    }
  }
}

async function takeBitmaps(node: BlockNode, bitmaps: readonly MovedBitmap[]): Promise<void> {
  for (const { name, granularity, enabled, pieces } of bitmaps) {
    const { bits } = await node.bitmaps.add(name, { granularity, disabled: !enabled });
    for (const [i, piece] of pieces.entries()) if (piece) bits.writeBytes(i * PIECE, piece);
  }
}

/**
 * All of `nodes` are in use here again. They come with their parents first; from the leaves up, so that a format finds
 * its file as it left it. Goes on where one of them fails, and rejects with the first failure. `anew`: they
 * are as another process has left them.
 */
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

/** `nodes`: drained, parents first; `roots`: those that all writes have come through. Answers what each of them is
 *  opened with again. */
export async function inactivate(
  roots: readonly BlockNode[],
  nodes: readonly BlockNode[],
): Promise<ReadonlyMap<BlockNode, NodeOptions>> {
  const given = new Map<BlockNode, NodeOptions>();
  try {
    for (const root of roots) if (!root.readOnly) await flushNode(root);
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

/** A node with its options by now. */
function movedNode(node: BlockNode, options: NodeOptions): MovedNode {
  return {
    name: node.name,
    options: { ...options, 'read-only': node.readOnly },
    children: Object.fromEntries(node.children.map((child) => [child.name, child.node.name])),
    openedWith: node.children
      .filter(({ node: below }) => below.openedWith === node.name)
      .map((child) => child.node.name),
    bitmaps: bitmapsOf(node),
    threshold: node.writeThreshold,
    highestWrite: node.highestWrite,
    discards: node.discards,
  };
}

function bitmapsOf(node: BlockNode): MovedBitmap[] {
  return node.bitmaps
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
