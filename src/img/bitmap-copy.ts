import { BlockError, Errno } from '../base/errors.ts';
import type { BlockBackend } from '../block/backend.ts';

/** Copies the persistent bitmaps of a disk into another of the same size. `onBroken` is told of each that is
 *  inconsistent and passed over; without it such a one is EINVAL, before any is copied. */
export async function copyBitmaps(
  source: BlockBackend,
  target: BlockBackend,
  { onBroken }: { readonly onBroken?: ((name: string) => void) | undefined },
): Promise<void> {
  const all = source.root!.bitmaps.list().filter(({ persistent }) => persistent);
  for (const bitmap of all) {
    if (bitmap.inconsistent) {
      onBroken?.(bitmap.name);
      continue;
    }
    const { name, granularity, enabled } = bitmap;
    const copy = await target.root!.bitmaps.add(name, { granularity, persistent: true, disabled: !enabled });
    copy.merge(bitmap);
  }
}

/** EINVAL for the first bitmap of a disk that could not be copied. */
export function assertBitmapsWhole(source: BlockBackend): void {
  const broken = source.root!.bitmaps.list().find(({ persistent, inconsistent }) => persistent && inconsistent);
  if (broken) throw new BlockError(Errno.EINVAL, `Cannot copy inconsistent bitmap '${broken.name}'`);
}
