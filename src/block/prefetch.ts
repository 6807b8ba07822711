/** Prefetching (NBD's CACHE): a hint that goes down to whoever can make use of it. */
import { alignDown, alignUp, type Bytes, type Offset } from '../base/units.ts';
import type { BlockChild } from './child.ts';
import { Mapping } from './driver.ts';
import { admit } from './io.ts';
import type { BlockNode } from './node.ts';
import { RequestKind } from './request.ts';
import { begin, end, Tracked, unhold } from './tracked.ts';

/** True when a node here or below takes such hints. */
export function canPrefetch(node: BlockNode): boolean {
  return node.impl.prefetch !== undefined || node.children.some((child) => canPrefetch(child.node));
}

/** Tells whoever has the bytes of the range that they will be read soon. */
export async function prefetchNode(node: BlockNode, at: Offset, length: Bytes): Promise<void> {
  const from = alignDown(at, node.alignment);
  const stop = Math.min(alignUp(at + length, node.alignment), node.length);
  if (from >= stop) return;
  const tracked = new Tracked();
  begin(node, tracked, RequestKind.CACHE, from, stop - from);
  try {
    await admit(node, tracked, 0);
    if (node.impl.prefetch) await node.impl.prefetch(from, stop - from);
    else if (node.impl.map) await prefetchMapped(node, tracked, from, stop - from);
  } finally {
    end(tracked);
  }
}

async function prefetchMapped(node: BlockNode, tracked: Tracked, at: Offset, length: Bytes): Promise<void> {
  const mapping = new Mapping();
  mapping.holder = tracked;
  for (let done = 0; done < length; ) {
    const pending = node.impl.map!(at + done, length - done, 'read', mapping);
    if (pending !== undefined) await pending;
    const part = Math.min(mapping.length, length - done);
    if (mapping.kind === 'data') {
      const child = mapping.child as BlockChild;
      try {
        if (canPrefetch(child.node)) await prefetchNode(child.node, mapping.at, part);
      } finally {
        unhold(tracked);
      }
    } else if (mapping.kind === 'absent' && node.cow && canPrefetch(node.cow.node)) {
      await prefetchNode(node.cow.node, at + done, part);
    }
    done += part;
  }
}
