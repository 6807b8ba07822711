/** Snapshots inside images. */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { withSnapshots } from '../block/control.ts';
import type { SnapshotInfo } from '../block/driver.ts';
import { imageInfo } from './info.ts';
import { type ImageSpec, type OpenHow, withImage } from './open.ts';

/** All of them; none of a format without snapshots. */
export async function listSnapshots(
  context: AioContext,
  spec: ImageSpec,
  how: Pick<OpenHow, 'forceShare' | 'objects'> = {},
): Promise<readonly SnapshotInfo[]> {
  return (await imageInfo(context, spec, how)).qcow2?.snapshots ?? [];
}

/** Makes one, sets the disk back to one (name or id), or deletes one (name). ENOENT where there is none, ENOTSUP for a
 *  format without snapshots. */
export async function changeSnapshots(
  context: AioContext,
  spec: ImageSpec,
  { action, which, ...how }: { readonly action: 'create' | 'apply' | 'delete'; readonly which: string } & OpenHow,
): Promise<void> {
  await withImage(context, spec, { ...how, write: true }, (blk) =>
    withSnapshots(blk, async (snapshots) => {
      if (action === 'create') await snapshots.create(which);
      else if (action === 'apply') await snapshots.apply(which);
      else {
        const found = snapshots.list().find(({ name }) => name === which);
        if (!found) throw new BlockError(Errno.ENOENT, `Could not delete the snapshot '${which}': there is none`);
        await snapshots.delete(found.id);
      }
    }),
  );
}
