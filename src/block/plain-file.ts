/** Disks whose bytes are those of a file, so that the system can copy from one to another. */
import { Mapping } from './driver.ts';
import type { BlockNode } from './node.ts';

/** The node of the file whose bytes are the node's, each at its own offset, with a descriptor that others may use;
 *  undefined where there is more to it. */
export function plainFile(root: BlockNode): BlockNode | undefined {
  let node = root;
  while (node.impl.map !== undefined) {
    const place = new Mapping();
    const pending = node.length === 0 ? undefined : node.impl.map(0, node.length, 'read', place);
    const whole = pending === undefined && place.kind === 'data' && place.at === 0 && place.length === node.length;
    const next = node.children.find((child) => child === place.child)?.node;
    if (!whole || next === undefined) return undefined;
    node = next;
  }
  return (node.impl.descriptor ?? -1) < 0 || node.serialising > 0 ? undefined : node;
}

/** A range of a {@link plainFile} was written without its nodes. */
export function writtenBehind(root: BlockNode, at: number, length: number): void {
  for (let node: BlockNode | undefined = root; node !== undefined; node = node.children[0]?.node)
    node.written(at, length);
}
