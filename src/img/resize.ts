/** Changing the size of the disk in an image. */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import { type ImageSpec, type OpenHow, withImage } from './open.ts';

export interface ResizeHow extends Omit<OpenHow, 'write'> {
  /** The new size or, with a sign, what is added or taken away. */
  readonly bytes: Bytes;
  readonly sign?: '+' | '-' | undefined;
  /** It is meant that the disk becomes smaller. */
  readonly shrink?: boolean | undefined;
  /** What is allocated of what is added. Default off. */
  readonly preallocation?: 'off' | 'metadata' | 'falloc' | 'full' | undefined;
}

/** Answers the new size. */
export async function resizeImage(context: AioContext, spec: ImageSpec, how: ResizeHow): Promise<Bytes> {
  const { bytes, sign, shrink = false, preallocation = 'off', ...open } = how;
  const refuse = (why: string, errno: number = Errno.EINVAL): BlockError =>
    new BlockError(errno, `Could not resize '${spec.name}': ${why}`);
  return await withImage(context, spec, { ...open, write: true }, async (blk) => {
    const old = blk.length;
    const size = sign === undefined ? bytes : sign === '+' ? old + bytes : old - bytes;
    if (size <= 0 || size >= 2 ** 63) throw refuse('the size must be positive');
    if (size <= old && preallocation !== 'off') throw refuse('preallocation is for growing only');
    if (size < old && !shrink) throw refuse('it would become smaller; --shrink says that this is meant');
    if (preallocation === 'metadata') throw refuse("preallocation 'metadata' is not supported", Errno.ENOTSUP);
    await blk.truncate(size, preallocation);
    return blk.length;
  });
}
