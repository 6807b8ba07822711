import type { AioContext } from '../aio/context.ts';
import { BlockBackend, type BlockBackendOptions } from '../block/backend.ts';
import type { NodeOptions } from '../block/graph.ts';
import type { OpenMessage } from './messages.ts';
import { probe } from './probe.ts';
import { NO_REFERENCES } from './reference-policy.ts';
import { assertUnchanged, resolveReferences } from './references.ts';

/** Opens a tree of nodes in this thread, with what its images name as far as the message's policy allows. */
export async function openTree(
  context: AioContext,
  { options: given, name, writethrough, probed, policy: allowed }: OpenMessage,
  how: Pick<BlockBackendOptions, 'perm' | 'shared'> = {},
): Promise<BlockBackend> {
  const options = probed ? await probe(context, given, name) : given;
  // Whatever the content has become since it was looked at.
  const policy = probed ? NO_REFERENCES : allowed;
  const resolved = await resolveReferences(options, policy);
  const readOnly = options['read-only'];
  const blk = await BlockBackend.open(context, resolved as unknown as NodeOptions, {
    ...{ ...how, name, writethrough },
    ...(readOnly === undefined ? {} : { readOnly }),
  });
  try {
    await assertUnchanged(options, resolved, policy, name);
    return blk;
  } catch (error) {
    await blk.close().catch(() => undefined);
    throw error;
  }
}
