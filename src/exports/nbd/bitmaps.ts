/** Dirty bitmaps of an export: who may show them, and that they stay as they are meanwhile. */
import type { MaybePromise } from '../../aio/op.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import type { Offset } from '../../base/units.ts';
import type { BlockBackend } from '../../block/backend.ts';
import type { DirtyBitmap } from '../../block/dirty-bitmap.ts';
import type { BlockNode } from '../../block/node.ts';
import { nodeByName } from '../../block/registry.ts';

/** Bitmaps of one export: the answer about block status is divided between all that a client has chosen. */
export const EXPORT_BITMAPS_MAX = 64;

/** Bitmaps that an export relies on, wherever they are. */
export interface ExportBitmaps {
  readonly names: readonly string[];
  /**
   * Where the bitmap of that number changes from `at` to `end`: first where what is clean ends (`at` itself where that
   * is dirty), then where the dirty part behind it ends, and so on. No more than `max`; the last of all is `end`. What
   * lies beyond the bitmap's own node is clean. Rejects with BlockError.
   */
  edges(index: number, at: Offset, end: Offset, max: number): MaybePromise<readonly Offset[]>;
  /** They may be removed and changed again. */
  release(): void;
}

/** A name, which is looked for from the export's node down, or the node that has it. */
export type BitmapReference = string | { readonly node: string; readonly name: string };

interface Share {
  readonly bitmap: DirtyBitmap;
  readonly release: () => void;
}

/** Bitmaps of this thread's nodes. */
class OwnBitmaps implements ExportBitmaps {
  readonly names: readonly string[];
  readonly #shares: readonly Share[];

  constructor(shares: readonly Share[]) {
    this.names = shares.map(({ bitmap }) => bitmap.name);
    this.#shares = shares;
  }

  edges(index: number, at: Offset, end: Offset, max: number): readonly Offset[] {
    const { bitmap } = this.#shares[index]!;
    const edges: Offset[] = [];
    for (let from = at, dirty = true; edges.length < max && edges.at(-1) !== end; dirty = !dirty) {
      from = next(bitmap, from, end, dirty);
      edges.push(from);
    }
    return edges;
  }

  release(): void {
    for (const { release } of this.#shares) release();
  }
}

/** As DirtyBitmap.next, for a range that may reach beyond the bitmap. */
function next(bitmap: DirtyBitmap, at: Offset, end: Offset, dirty: boolean): Offset {
  const last = Math.min(end, bitmap.size);
  const found = at < last ? bitmap.next(at, last, dirty) : at;
  return dirty && found >= last ? end : found;
}

/**
 * Takes bitmaps for an export of `blk`; those of what is below its node too. ENOENT; EINVAL for one that is
 * inconsistent, for two of one name, and for one that goes on recording writes below a read-only export: its clients
 * take it for settled.
 */
export function exportBitmaps(
  blk: BlockBackend,
  wanted: readonly BitmapReference[],
  writable: boolean,
): ExportBitmaps | undefined {
  const refuse = (name: string, why: string): never => {
    throw new BlockError(Errno.EINVAL, `Could not export bitmap '${name}': ${why}`);
  };
  if (wanted.length === 0) return undefined;
  const shares: Share[] = [];
  try {
    for (const reference of wanted) {
      const name = typeof reference === 'string' ? reference : reference.name;
      if (shares.length === EXPORT_BITMAPS_MAX) refuse(name, `${EXPORT_BITMAPS_MAX} are the limit of an export`);
      if (shares.some(({ bitmap }) => bitmap.name === name)) refuse(name, 'it is named twice');
      const node = typeof reference === 'string' ? holder(blk, name) : nodeByName(reference.node);
      const share = node.bitmaps.share(name);
      shares.push(share);
      if (!writable && !node.readOnly && share.bitmap.recording) {
        refuse(name, 'it records writes, and the export is read-only; disable it first');
      }
    }
  } catch (error) {
    for (const { release } of shares) release();
    throw error;
  }
  return new OwnBitmaps(shares);
}

/** The node whose bitmap is meant: the root, or the first that has one of the name on the way down. */
function holder(blk: BlockBackend, name: string): BlockNode {
  const { root } = blk;
  if (!root) throw new BlockError(Errno.ENOMEDIUM, `Could not export bitmap '${name}': there is no medium`);
  for (let node: BlockNode | undefined = root; node; ) {
    if (node.bitmaps.list().some((bitmap) => bitmap.name === name)) return node;
    node = node.children.find(({ role }) => role === 'filtered' || role === 'cow')?.node;
  }
  return root;
}
