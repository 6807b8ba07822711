/** Dirty bitmaps of an export: who may show them, and that they stay as they are meanwhile. */
import { BlockError, Errno } from '../../base/errors.ts';
import type { BlockBackend } from '../../block/backend.ts';
import type { DirtyBitmap } from '../../block/dirty-bitmap.ts';
import type { BlockNode } from '../../block/node.ts';

/** Bitmaps of one export: the answer about block status is divided between all that a client has chosen. */
export const EXPORT_BITMAPS_MAX = 64;

/** Bitmaps that an export relies on. */
export interface ExportBitmaps {
  readonly list: readonly DirtyBitmap[];
  /** They may be removed and changed again. */
  release(): void;
}

/**
 * Takes the bitmaps of these names for an export of `blk`; those of filters' nodes too. ENOENT; EINVAL for one that is
 * inconsistent, and for one that goes on recording writes below a read-only export: its clients take it for settled.
 */
export function exportBitmaps(blk: BlockBackend, names: readonly string[], writable: boolean): ExportBitmaps {
  const refuse = (name: string, why: string): never => {
    throw new BlockError(Errno.EINVAL, `Could not export bitmap '${name}': ${why}`);
  };
  if (names.length > EXPORT_BITMAPS_MAX) refuse(names.at(-1)!, `${EXPORT_BITMAPS_MAX} are the limit of an export`);
  const shares: { readonly bitmap: DirtyBitmap; readonly release: () => void }[] = [];
  const release = (): void => {
    for (const share of shares) share.release();
  };
  try {
    for (const name of names) {
      const share = holder(blk, name).bitmaps.share(name);
      shares.push(share);
      if (shares.filter(({ bitmap }) => bitmap === share.bitmap).length > 1) refuse(name, 'it is named twice');
      if (!writable && !blk.readOnly && share.bitmap.recording) {
        refuse(name, 'it records writes, and the export is read-only; disable it first');
      }
    }
  } catch (error) {
    release();
    throw error;
  }
  return { list: shares.map(({ bitmap }) => bitmap), release };
}

/** The node whose bitmap is meant: the root, or one below filters. */
function holder(blk: BlockBackend, name: string): BlockNode {
  const { root } = blk;
  if (!root) throw new BlockError(Errno.ENOMEDIUM, `Could not export bitmap '${name}': there is no medium`);
  for (let node: BlockNode | undefined = root; node; ) {
    if (node.bitmaps.list().some((bitmap) => bitmap.name === name)) return node;
    node = node.children.find(({ role }) => role === 'filtered')?.node;
  }
  return root;
}
