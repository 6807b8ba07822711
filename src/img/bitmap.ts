/** Dirty bitmaps in images. */
import type { AioContext } from '../aio/context.ts';
import type { Bytes } from '../base/units.ts';
import type { DirtyBitmap, NodeBitmaps } from '../block/dirty-bitmap.ts';
import { type ImageSpec, type OpenHow, openImage, withImage } from './open.ts';

export type BitmapAction =
  | { readonly action: 'add' | 'remove' | 'clear' | 'enable' | 'disable' }
  /** `source`: of `from`, or else of the image itself. */
  | { readonly action: 'merge'; readonly source: string };

export interface BitmapHow extends Omit<OpenHow, 'write'> {
  /** One after the other, as far as the first that fails. */
  readonly actions: readonly BitmapAction[];
  /** Of one that is added: bytes that a bit stands for. */
  readonly granularity?: Bytes | undefined;
  /** Where bitmaps that are merged come from. */
  readonly from?: ImageSpec | undefined;
}

/** What an action failed with is its cause. */
export class BitmapActionError extends Error {
  override readonly name = 'BitmapActionError';
  readonly action: BitmapAction['action'];

  constructor(action: BitmapAction['action'], cause: unknown) {
    super(`Could not ${action} the bitmap`, { cause });
    this.action = action;
  }
}

/** Changes the bitmap `name` of an image. Throws {@link BitmapActionError} for an action that fails; those before it
 *  have been done. */
export async function changeBitmap(
  context: AioContext,
  spec: ImageSpec,
  name: string,
  { actions, granularity, from, ...open }: BitmapHow,
): Promise<void> {
  await withImage(context, spec, { ...open, write: true }, async (blk) => {
    const other = from === undefined ? undefined : await openImage(context, from, { objects: open.objects });
    try {
      const bitmaps = blk.root!.bitmaps;
      for (const one of actions) {
        await act(bitmaps, name, one, { granularity, others: other?.root?.bitmaps }).catch((error: unknown) => {
          throw new BitmapActionError(one.action, error);
        });
      }
    } finally {
      await other?.close();
    }
  });
}

async function act(
  bitmaps: NodeBitmaps,
  name: string,
  one: BitmapAction,
  { granularity, others }: { readonly granularity: Bytes | undefined; readonly others: NodeBitmaps | undefined },
): Promise<void> {
  switch (one.action) {
    case 'add':
      await bitmaps.add(name, { granularity, persistent: true });
      return;
    case 'remove':
      return bitmaps.remove(name);
    case 'clear':
      return bitmaps.clear(name);
    case 'merge':
      return bitmaps.merge(name, [others === undefined ? one.source : usable(others, one.source)]);
    default:
      return bitmaps.enable(name, one.action === 'enable');
  }
}

/** One that says something; it does not change while its image is open for reading. */
function usable(bitmaps: NodeBitmaps, name: string): DirtyBitmap {
  const { bitmap, release } = bitmaps.share(name);
  release();
  return bitmap;
}
