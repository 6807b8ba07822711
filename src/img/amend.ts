/** Changing options of an image that is there. */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { BlockBackend } from '../block/backend.ts';
import { amend } from '../block/control.ts';
import { type ImageSpec, type OpenHow, withImage } from './open.ts';

/** ENOTSUP for a format that cannot be amended. */
export function assertAmendable(blk: BlockBackend): void {
  if (blk.root?.impl.amend) return;
  const { name } = blk.root!.driver;
  throw new BlockError(Errno.ENOTSUP, `Could not amend the image: driver '${name}' does not support it`);
}

/** `changes` by the names of the driver's creation options; `size` as well. `changesOf` is called once the image is
 *  open. */
export async function amendImage(
  context: AioContext,
  spec: ImageSpec,
  changesOf: (blk: BlockBackend) => Readonly<Record<string, unknown>>,
  how: Omit<OpenHow, 'write'> = {},
): Promise<void> {
  await withImage(context, spec, { ...how, write: true }, async (blk) => {
    assertAmendable(blk);
    const { size, ...changes } = changesOf(blk);
    if (Object.keys(changes).length > 0) await amend(blk, changes);
    if (typeof size === 'number') await blk.truncate(size);
  });
}
