/**
 * Leases: extents whose bytes lie in a file, used by other threads of this process by themselves, without a request to
 * the home of the graph (docs/CHANNELS.md, "Lent extents"). Here is what the graph has to know of that.
 *
 * An extent is lent only where a write would go in place, or where nobody can write at all: then no write moves it.
 * What else takes it away (zeroes, a discard, a compressed write, the reuse of a cluster) renews the leases of its node
 * before it is done; drained sections and serialising requests withdraw them.
 */
import type { Bytes, Offset } from '../base/units.ts';
import type { BlockChild } from './child.ts';
import { Mapping, type MaybePromise } from './driver.ts';
import type { BlockNode } from './node.ts';

/** What is lent of the nodes that it is registered with. */
export interface NodeLease {
  /** Somebody may write by himself: a flush cannot know that there is nothing to make stable. */
  readonly writes: boolean;
  /** What was lent may not be true any more: resolves once nobody uses it. */
  renew(node: BlockNode): MaybePromise<void>;
  /** Nothing is lent until it is asked for again: resolves once nobody uses what was. */
  withdraw(): MaybePromise<void>;
}

/** Where a range is in a file; filled by {@link findLendable}. */
export class Lendable {
  /** From the asked offset; 0 where it cannot be lent. */
  length: Bytes = 0;
  /** Nothing of this graph can be lent, wherever it is. */
  never = false;
  /** The file's node, and the place in it. */
  leaf: BlockNode | null = null;
  at: Offset = 0;
  mayWrite = false;
  /** From the root to the leaf. */
  readonly nodes: BlockNode[] = [];
}

const place = new Mapping();

/** Looks for the file and the place of the bytes at `at`, at most `want` of them. A promise says to look again once it
 *  has resolved. */
export function findLendable(root: BlockNode, at: Offset, want: Bytes, out: Lendable): MaybePromise<void> {
  out.length = 0;
  out.never = false;
  out.leaf = null;
  out.nodes.length = 0;
  out.mayWrite = true;
  let node = root;
  let length = Math.min(want, root.length - at);
  let from = at;
  while (length > 0) {
    out.never = node.alignment !== 1;
    if (out.never || node.serialising !== 0 || node.inactive) return undefined;
    out.nodes.push(node);
    if (node.readOnly || node.detectZeroes !== 'off' || node.dirtyHooks.length > 0 || node.watched)
      out.mayWrite = false;
    const { impl } = node;
    if (impl.descriptor !== undefined) {
      out.never = impl.descriptor < 0;
      if (out.never) return undefined;
      out.leaf = node;
      out.at = from;
      out.length = Math.min(length, node.length - from);
      return undefined;
    }
    out.never = impl.map === undefined;
    if (impl.map === undefined) return undefined;
    const pending = impl.map(from, length, node.readOnly ? 'read' : 'write', place);
    if (pending !== undefined) return pending;
    if (place.kind !== 'data') return undefined;
    length = Math.min(length, place.length);
    from = place.at;
    node = (place.child as BlockChild).node;
  }
  return undefined;
}

/** Waits until nobody uses what was lent of `node` before now. */
export function renewLeases(node: BlockNode): MaybePromise<void> {
  return each(node, (lease) => lease.renew(node));
}

export function withdrawLeases(node: BlockNode): MaybePromise<void> {
  return each(node, (lease) => lease.withdraw());
}

function each(node: BlockNode, end: (lease: NodeLease) => MaybePromise<void>): MaybePromise<void> {
  if (node.leases.length === 0) return undefined;
  const pending = node.leases.map(end).filter((wait) => wait !== undefined);
  return pending.length === 0 ? undefined : Promise.all(pending).then(() => undefined);
}
