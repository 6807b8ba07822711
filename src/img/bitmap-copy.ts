import { BlockError, Errno } from '../base/errors.ts';
import type { BlockBackend } from '../block/backend.ts';

/** `onBroken` is told of each persistent bitmap of a disk that is inconsistent; without it such a one is EINVAL. */
export function checkBitmaps(source: BlockBackend, onBroken: ((name: string) => void) | undefined): void {
  for (const { name, persistent, inconsistent } of source.root!.bitmaps.list()) {
    if (!persistent || !inconsistent) continue;
    if (!onBroken) throw new BlockError(Errno.EINVAL, `Cannot copy inconsistent bitmap '${name}'`);
    onBroken(name);
  }
}

/** Copies the persistent bitmaps of a disk, those that are consistent, into another of the same size. */
export async function copyBitmaps(source: BlockBackend, target: BlockBackend): Promise<void> {
  for (const bitmap of source.root!.bitmaps.list()) {
    const { name, granularity, enabled, persistent, inconsistent } = bitmap;
    if (!persistent || inconsistent) continue;
    const copy = await target.root!.bitmaps.add(name, { granularity, persistent: true, disabled: !enabled });
    copy.merge(bitmap);
  }
}
