/** Flush (SEMANTICS R8): one at a time on a node, skipped when nothing was written since, then the children. */
import { Gate } from '../aio/op.ts';
import { kickDrain } from './drain.ts';
import type { BlockNode } from './node.ts';

/** Everything that had completed on `node` before the call is on stable storage when it resolves. */
export async function flushNode(node: BlockNode): Promise<void> {
  node.inFlight++;
  try {
    const generation = node.writeGen;
    while (node.flushing !== null) await node.flushing.promise;
    const gate = new Gate();
    node.flushing = gate;
    try {
      const primary = node.primary;
      const toOs = primary?.point('flush_to_os');
      if (toOs !== undefined) await toOs;
      if (node.flushedGen < generation || node.writtenElsewhere) await flushSelf(node);
      const toDisk = primary?.point('flush_to_disk');
      if (toDisk !== undefined) await toDisk;
      await flushChildren(node);
      // Not before the children: a failed flush leaves the generation alone.
      if (node.flushedGen < generation) node.flushedGen = generation;
    } finally {
      node.flushing = null;
      gate.open();
    }
  } finally {
    node.inFlight--;
    if (node.quiesce !== 0) kickDrain();
  }
}

async function flushSelf(node: BlockNode): Promise<void> {
  if (!node.noFlush) await node.impl.flush?.();
}

async function flushChildren(node: BlockNode): Promise<void> {
  // A snapshot: the graph may change meanwhile. Not asked: who may write now. Who might, once, left its writes there.
  for (const child of [...node.children]) {
    // What a filter writes for itself it makes stable itself.
    if (child.role !== 'target' && !child.node.clean) await flushNode(child.node);
  }
}
