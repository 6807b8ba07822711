/** The dirty bitmaps of an IOThread's disks. */
import { createHash } from 'node:crypto';
import { BlockError, Errno } from '../base/errors.ts';
import { KiB } from '../base/units.ts';
import { explicitNode } from '../block/copy-up.ts';
import type { DirtyBitmap, NodeBitmaps } from '../block/dirty-bitmap.ts';
import { assertActive } from '../block/inactive.ts';
import { nodeByName } from '../block/registry.ts';
import type {
  BitmapChangeMessage,
  BitmapExtentsMessage,
  BitmapInfo,
  BitmapMethods,
  DirtyExtent,
} from './bitmap-messages.ts';
import type { ThreadDisks } from './thread-disks.ts';

/** Extents in one answer. */
const MAX_EXTENTS = 4096;

type Handlers = {
  readonly [M in keyof BitmapMethods]: (args: Parameters<BitmapMethods[M]>[0]) => Promise<ReturnType<BitmapMethods[M]>>;
};

export function bitmapHandlers(disks: ThreadDisks): Handlers {
  const of = (disk: number | string): NodeBitmaps => {
    if (typeof disk === 'string') return nodeByName(disk).bitmaps;
    const { root } = disks.blk(disk);
    if (root) return explicitNode(root).bitmaps;
    throw new BlockError(Errno.ENOMEDIUM, `Could not use disk ${disk}: there is no medium`);
  };
  const changing = (disk: number | string): NodeBitmaps => {
    if (typeof disk === 'string') assertActive(nodeByName(disk));
    return of(disk);
  };
  return {
    'bitmap-list': async ({ disk }) => of(disk).list().map(describeBitmap),
    'bitmap-add': async ({ disk, name, ...options }) => void (await changing(disk).add(name, options)),
    'bitmap-change': (args) => change(changing(args.disk), args),
    'bitmap-merge': async ({ disk, name, sources }) => {
      const found = sources.map((source) =>
        typeof source === 'string' ? source : sharedBitmap(of(source.node), source.name),
      );
      await changing(disk).merge(name, found);
    },
    'bitmap-hash': async ({ disk, name }) => hash(sharedBitmap(of(disk), name)),
    'bitmap-extents': async (args) => extents(of(args.disk), args),
  };
}

/** A bitmap that says something, for the length of a step. */
export function sharedBitmap(bitmaps: NodeBitmaps, name: string): DirtyBitmap {
  const { bitmap, release } = bitmaps.share(name);
  release();
  return bitmap;
}

function hash({ bits }: DirtyBitmap): string {
  const sum = createHash('sha256');
  const bytes = Math.ceil(bits.length / 64) * 8;
  const piece = new Uint8Array(Math.min(bytes, 64 * KiB));
  for (let at = 0; at < bytes; at += piece.length) {
    const part = piece.subarray(0, Math.min(piece.length, bytes - at)).fill(0);
    bits.readBytes(at, part.subarray(0, Math.max(0, Math.ceil(bits.length / 8) - at)));
    sum.update(part);
  }
  return sum.digest('hex');
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
  const bitmap = sharedBitmap(bitmaps, name);
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
