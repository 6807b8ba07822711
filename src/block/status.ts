/** Block status (SEMANTICS R10): where the bytes of a range are, one extent at a time. */
import type { Bytes, Offset } from '../base/units.ts';
import type { BlockChild } from './child.ts';
import { Mapping, type MaybePromise, type StatusResult } from './driver.ts';
import type { BlockNode } from './node.ts';

/** One extent. Filled in place; reuse it. */
export class BlockStatus {
  /** From the asked offset, in bytes; at least 1. */
  length: Bytes = 0;
  /** There are bytes on a disk for it. */
  data = true;
  /** It reads as zeroes. */
  zero = false;
  /** Some layer decides what it reads as; false where only the absence of data does. */
  allocated = true;
  /** Which layer that is: 1 is the top one; 0 for none. */
  depth = 1;
  /** Where the data is in `child`, for the top layer's plain data; null otherwise. */
  child: BlockChild | null = null;
  at: Offset = 0;

  set(length: Bytes, data: boolean, zero: boolean, depth: number): void {
    this.length = length;
    this.data = data;
    this.zero = zero;
    this.allocated = depth > 0;
    this.depth = depth;
    this.child = null;
    this.at = 0;
  }

  /** True when `other` can be one extent with this: all but the length is the same. */
  sameKind(other: BlockStatus): boolean {
    return this.data === other.data && this.zero === other.zero && this.depth === other.depth;
  }
}

/** Fills `out` for the extent at `at`, at most `want` bytes; both inside the node. Backing layers included. */
export function nodeStatus(node: BlockNode, at: Offset, want: Bytes, out: BlockStatus): MaybePromise<void> {
  if (node.impl.blockStatus) return node.impl.blockStatus(at, want, out);
  if (!node.impl.map) return ownStatus(node, at, want, out);
  const mapping = new Mapping();
  const pending = node.impl.map(at, want, 'status', mapping);
  if (pending !== undefined) return pending.then(() => mapped(node, at, want, mapping, out));
  return mapped(node, at, want, mapping, out);
}

function mapped(node: BlockNode, at: Offset, want: Bytes, mapping: Mapping, out: BlockStatus): MaybePromise<void> {
  const length = Math.min(mapping.length, want);
  switch (mapping.kind) {
    case 'data':
      return dataStatus(mapping.child as BlockChild, mapping.at, length, out);
    case 'zero':
      out.set(length, false, true, 1);
      return undefined;
    case 'opaque':
      out.set(length, true, false, 1);
      return undefined;
    case 'absent':
      return absentStatus(node.cow, at, length, out);
  }
}

/** The layer below knows more: a hole under plain data reads as zeroes. */
function dataStatus(child: BlockChild, at: Offset, length: Bytes, out: BlockStatus): MaybePromise<void> {
  const node = child.node;
  const through = child.role === 'filtered' || child.parent.impl.window === true;
  if (at >= node.length) {
    out.set(length, !through, true, 1);
    return undefined;
  }
  const settle = (): void => {
    // A filter, or a window, is no layer of its own; a format's extent is allocated in it whatever the file below is.
    if (!through) out.set(out.length, true, out.zero, 1);
    out.child = child;
    out.at = at;
  };
  const pending = nodeStatus(node, at, Math.min(length, node.length - at), out);
  if (pending !== undefined) return pending.then(settle);
  settle();
  return undefined;
}

function absentStatus(cow: BlockChild | undefined, at: Offset, length: Bytes, out: BlockStatus): MaybePromise<void> {
  if (!cow) {
    out.set(length, false, true, 0);
    return undefined;
  }
  const size = cow.node.length;
  if (at >= size) {
    // A short backing image reads as zeroes past its end, and that counts as its own.
    out.set(length, false, true, 2);
    return undefined;
  }
  const settle = (): void => {
    if (out.depth > 0) out.depth++;
    out.child = null;
  };
  const pending = nodeStatus(cow.node, at, Math.min(length, size - at), out);
  if (pending !== undefined) return pending.then(settle);
  settle();
  return undefined;
}

/** A protocol answers for itself, in whole blocks of its alignment; one that cannot has data everywhere. */
function ownStatus(node: BlockNode, at: Offset, want: Bytes, out: BlockStatus): MaybePromise<void> {
  if (!node.impl.status) {
    out.set(want, true, false, 1);
    return undefined;
  }
  const unit = node.alignment;
  const before = at % unit;
  const result: StatusResult = { kind: 'data', length: want };
  const settle = (): void => {
    let length = Math.min(result.length - before, want);
    const over = (before + length) % unit;
    let { kind } = result;
    if (over !== 0 && length < want) {
      length -= over;
      if (length <= 0) {
        length = Math.min(unit - before, want);
        kind = 'data';
      }
    }
    out.set(Math.max(length, Math.min(1, want)), kind === 'data', kind === 'zero', 1);
  };
  const pending = node.impl.status(at - before, want + before, result);
  if (pending !== undefined) return pending.then(settle);
  settle();
  return undefined;
}
