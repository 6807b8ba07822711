/** Trees of nodes that a message names, in this thread. */
import type { AioContext } from '../aio/context.ts';
import { BlockBackend, type BlockBackendOptions } from '../block/backend.ts';
import { type NodeOptions, openNode, releaseNode } from '../block/graph.ts';
import type { BlockNode } from '../block/node.ts';
import type { OpenMessage } from './messages.ts';
import { needDrivers } from './needed-drivers.ts';
import { probe } from './probe.ts';
import { NO_REFERENCES } from './reference-policy.ts';
import { assertUnchanged, resolveReferences } from './references.ts';

/** Opens a tree of nodes, with what its images name as far as the message's policy allows. */
export async function openTree(
  context: AioContext,
  message: OpenMessage,
  how: Pick<BlockBackendOptions, 'perm' | 'shared'> = {},
): Promise<BlockBackend> {
  const { node, readOnly } = await openTreeNode(context, message);
  const { name, writethrough } = message;
  try {
    return await BlockBackend.open(context, node.name, {
      ...{ ...how, name, writethrough },
      ...(readOnly === undefined ? {} : { readOnly }),
    });
  } finally {
    await releaseNode(node);
  }
}

/** As {@link openTree}, for a tree that nothing uses yet: the caller holds its root until it releases it. `readOnly`:
 *  what was asked for. */
export async function openTreeNode(
  context: AioContext,
  { options: given, name, probed, policy: allowed }: OpenMessage,
): Promise<{ readonly node: BlockNode; readonly readOnly: boolean | undefined }> {
  const options = probed ? await probe(context, given, name) : given;
  // Whatever the content has become since it was looked at.
  const policy = probed ? NO_REFERENCES : allowed;
  const resolved = await resolveReferences(options, policy);
  await needDrivers(resolved);
  const node = await openNode(context, resolved as unknown as NodeOptions);
  try {
    await assertUnchanged(options, resolved, policy, name);
    return { node, readOnly: options['read-only'] };
  } catch (error) {
    await releaseNode(node).catch(() => undefined);
    throw error;
  }
}
