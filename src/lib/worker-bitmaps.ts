/** The dirty bitmaps of an IOThread's disks. */
import { BlockError, Errno } from '../base/errors.ts';
import type { DirtyBitmap, NodeBitmaps } from '../block/dirty-bitmap.ts';
import type {
  BitmapChangeMessage,
  BitmapExtentsMessage,
  BitmapInfo,
  BitmapMethods,
  DirtyExtent,
} from './bitmap-messages.ts';
import type { WorkerDisks } from './worker-disks.ts';

/** Extents in one answer. */
const MAX_EXTENTS = 4096;

type Handlers = {
  readonly [M in keyof BitmapMethods]: (args: Parameters<BitmapMethods[M]>[0]) => Promise<ReturnType<BitmapMethods[M]>>;
};

export function bitmapHandlers(disks: WorkerDisks): Handlers {
  const of = (disk: number): NodeBitmaps => {
    const { root } = disks.blk(disk);
    if (root) return root.bitmaps;
    throw new BlockError(Errno.ENOMEDIUM, `Could not use disk ${disk}: there is no medium`);
  };
  return {
    'bitmap-list': async ({ disk }) => of(disk).list().map(describeBitmap),
    'bitmap-add': async ({ disk, name, ...options }) => void (await of(disk).add(name, options)),
    'bitmap-change': (args) => change(of(args.disk), args),
    'bitmap-merge': ({ disk, name, sources }) => of(disk).merge(name, sources),
    'bitmap-extents': async (args) => extents(of(args.disk), args),
  };
}

export function describeBitmap(bitmap: DirtyBitmap): BitmapInfo {
  const { name, granularity, enabled, persistent, inconsistent, users, dirty } = bitmap;
  return { name, granularity, enabled, persistent, inconsistent, busy: users > 0, dirty };
}

function change(bitmaps: NodeBitmaps, { name, change: what }: BitmapChangeMessage): Promise<void> {
  if (what === 'remove') return bitmaps.remove(name);
  if (what === 'clear') return bitmaps.clear(name);
  return bitmaps.enable(name, what === 'enable');
}

function extents(bitmaps: NodeBitmaps, { name, at, length }: BitmapExtentsMessage): DirtyExtent[] {
  const { bitmap, release } = bitmaps.share(name);
  release();
  const end = Math.min(at + length, bitmap.size);
  const found: DirtyExtent[] = [];
  for (let offset = at; offset < end && found.length < MAX_EXTENTS; ) {
    const dirtyAt = bitmap.next(offset, end, true);
    const dirty = dirtyAt === offset;
    const stop = dirty ? bitmap.next(offset, end, false) : dirtyAt;
    found.push({ offset, length: stop - offset, dirty });
    offset = stop;
  }
  return found;
}
