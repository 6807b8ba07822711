/**
 * Who relies on the graph around a node: a job. Two that would change it do not go together, and whoever changes the
 * graph for somebody else asks {@link assertUnclaimed} first.
 */
import { BlockError, Errno } from '../base/errors.ts';
import type { BlockNode } from './node.ts';

const claims = new WeakMap<BlockNode, string>();

/** Takes all of `nodes` for `who` ("job 'x'") until the answer is disposed. EBUSY names who has one of them. */
export function claim(nodes: Iterable<BlockNode>, who: string): Disposable {
  const all = new Set(nodes);
  for (const node of all) assertUnclaimed(node);
  for (const node of all) claims.set(node, who);
  return {
    [Symbol.dispose]() {
      for (const node of all) claims.delete(node);
      all.clear();
    },
  };
}

/** Who has it; undefined for nobody. */
export function claimOf(node: BlockNode): string | undefined {
  return claims.get(node);
}

/** EBUSY where somebody has it. */
export function assertUnclaimed(node: BlockNode): void {
  const who = claims.get(node);
  if (who === undefined) return;
  throw new BlockError(Errno.EBUSY, `Could not use node '${node.name}': it is in use by ${who}`, {
    where: { node: node.name },
  });
}
