/** What is done to a named node as a whole, while nothing else is. */
import type { CoMutex } from '../aio/co-mutex.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { assertUnclaimed } from '../block/claims.ts';
import { drain } from '../block/drain.ts';
import { assertActive } from '../block/inactive.ts';
import type { BlockNode } from '../block/node.ts';
import { nodeByName } from '../block/registry.ts';

/** Runs `body` when nothing is in flight on the node, and nothing else changes it. `control`: held by all who do. */
export async function alone<T>(control: CoMutex, name: string, body: (node: BlockNode) => T | Promise<T>): Promise<T> {
  using _turn = await control.lock();
  const node = nodeByName(name);
  assertActive(node);
  assertUnclaimed(node);
  using _drained = await drain(node);
  return await body(node);
}

/** ENOTSUP where the format has nothing that changes. */
export function amendAlone(control: CoMutex, name: string, changes: Readonly<Record<string, unknown>>): Promise<void> {
  return alone(control, name, ({ impl, driver }) => {
    if (impl.amend) return impl.amend(changes);
    const why = `the format '${driver.name}' does not support it`;
    throw new BlockError(Errno.ENOTSUP, `Could not amend node '${name}': ${why}`);
  });
}
