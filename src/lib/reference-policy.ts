/** How far names inside images are followed; references.ts does it. */
import { BlockError, Errno } from '../base/errors.ts';

/**
 * Which files an image may lead to:
 * - `none`: no other;
 * - `directory`: regular files that are really inside the directory of the image that the caller named, or below, by
 *   relative names;
 * - `all`: regular files and block devices anywhere.
 */
export type References = 'none' | 'directory' | 'all';
export const REFERENCES: readonly References[] = ['none', 'directory', 'all'];

/** How far names inside images are followed, as a caller says it. */
export interface ReferenceOptions {
  /** Default: directory. An explicit `backing` or `data-file` of a tree is not asked about. */
  readonly references?: References | undefined;
  /** Files in these directories, or below, are allowed too, by absolute names as well. */
  readonly allowDirectories?: readonly string[] | undefined;
}

export interface ReferencePolicy {
  readonly references: References;
  readonly allowDirectories: readonly string[];
}

export const NO_REFERENCES: ReferencePolicy = { references: 'none', allowDirectories: [] };

/** The policy that options ask for. EINVAL. */
export function policyOf(options: ReferenceOptions): ReferencePolicy {
  const { references = 'directory', allowDirectories = [] } = options;
  if (!REFERENCES.includes(references)) {
    throw new BlockError(Errno.EINVAL, `Unknown references '${references}': use one of ${REFERENCES.join(', ')}`);
  }
  const wrong =
    !Array.isArray(allowDirectories) || allowDirectories.some((path) => typeof path !== 'string' || path === '');
  if (wrong) throw new BlockError(Errno.EINVAL, 'allowDirectories: expected an array of paths');
  return { references, allowDirectories: [...allowDirectories] };
}
