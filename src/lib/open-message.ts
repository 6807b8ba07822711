import type { OpenMessage } from './messages.ts';
import { withObjects } from './objects/resolve.ts';
import { type BlockdevOptions, blockdevOf, isProbed, isWritethrough, nameOf, type TargetOptions } from './options.ts';
import { policyOf, type ReferenceOptions } from './reference-policy.ts';

/** What opens `target` in an IOThread. EINVAL for options that cannot be. */
export function openMessage(target: string | BlockdevOptions, options: TargetOptions & ReferenceOptions): OpenMessage {
  const tree = withObjects(blockdevOf(target, options), options.objects);
  return {
    options: tree,
    name: nameOf(tree),
    writethrough: isWritethrough(options.cache),
    probed: isProbed(target, options),
    policy: policyOf(options),
  };
}
