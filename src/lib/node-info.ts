import { BlockBackend } from '../block/backend.ts';
import { BlockChild } from '../block/child.ts';
import { layerOf } from '../block/copy-up.ts';
import type { BlockNode } from '../block/node.ts';
import type { NodeInfo } from './node-messages.ts';
import { type BlockdevOptions, nameOf } from './options.ts';
import { describeBitmap } from './worker-bitmaps.ts';

/** What is known of a node; `owned`: see NodeInfo. */
export async function nodeInfo(node: BlockNode, owned: boolean): Promise<NodeInfo> {
  const { impl, common } = node;
  return {
    name: node.name,
    driver: common.driver,
    layer: layerOf(node).name,
    filename: filenameOf(node),
    readOnly: node.readOnly,
    detectZeroes: node.detectZeroes,
    direct: common.cache?.direct ?? false,
    noFlush: node.noFlush,
    active: !node.inactive,
    length: node.length,
    allocated: await allocatedBytes(node),
    threshold: node.writeThreshold,
    // One that was refused may have been beyond the end.
    highestWrite: Math.min(node.highestWrite, node.length),
    discards: node.discards,
    bitmaps: node.bitmaps.list().map(describeBitmap),
    snapshots: impl.snapshots?.list() ?? [],
    image: node.driver.role === 'format' ? ((await impl.info?.()) ?? {}) : {},
    children: node.children.map(({ name, node: below, perm, shared }) => ({ name, node: below.name, perm, shared })),
    backends: node.parents
      .filter((parent) => !(parent instanceof BlockChild))
      .map((parent) => ({
        name: parent instanceof BlockBackend ? parent.name : parent.describe,
        perm: parent.perm,
        shared: parent.shared,
      })),
    owned,
  };
}

/** The name of the file that it is in, or what stands for that. */
function filenameOf(node: BlockNode): string {
  const file = node.children.find(({ role }) => role !== 'cow' && role !== 'target');
  return file ? filenameOf(file.node) : nameOf(node.common as unknown as BlockdevOptions);
}

/** Of the node's own storage: layers below it have theirs. */
async function allocatedBytes(node: BlockNode): Promise<number | undefined> {
  if (node.children.length === 0) {
    const { allocated } = (await node.impl.info?.()) ?? {};
    return typeof allocated === 'number' ? allocated : node.driver.name === 'null-co' ? 0 : undefined;
  }
  let sum: number | undefined;
  for (const { role, node: below } of node.children) {
    const bytes = role === 'cow' ? undefined : await allocatedBytes(below);
    if (bytes !== undefined) sum = (sum ?? 0) + bytes;
  }
  return sum;
}
