/** Where the bytes of an image are: its extents, with the layer that each is in. */
import { resolve } from 'node:path';
import { alignUp, type Bytes, type Offset, SECTOR } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { layerOf } from '../block/copy-up.ts';
import type { BlockNode } from '../block/node.ts';
import { BlockStatus, nodeStatus } from '../block/status.ts';
import { type BlockdevOptions, nameOf } from '../lib/options.ts';
import { backingPath } from './backing.ts';

/** A range of one kind. */
export interface MapExtent {
  readonly start: Offset;
  readonly length: Bytes;
  /** How many layers above the one that decides: 0 for the image itself. */
  readonly depth: number;
  /** That layer has an entry for it; false where only the absence of data decides. */
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  /** Where the bytes are in `file`, where they are there as they are. */
  readonly offset: Offset | undefined;
  readonly file: string | undefined;
}

export interface MapRange {
  readonly start?: Offset | undefined;
  readonly length?: Bytes | undefined;
}

/** The extents of a range, neighbours of one kind as one. The image may be read meanwhile; home thread. */
export async function* mapImage(blk: BlockBackend, { start = 0, length }: MapRange = {}): AsyncGenerator<MapExtent> {
  // A disk has whole sectors.
  const size = alignUp(blk.length, SECTOR);
  const end = length === undefined ? size : Math.min(start + length, size);
  let last: MapExtent | undefined;
  for (let at = start; at < end; ) {
    const found = await extentAt(blk.root!, at, Math.min(end, blk.length) - at, end);
    at += found.length;
    if (last !== undefined && continues(last, found)) last = { ...last, length: last.length + found.length };
    else {
      if (last !== undefined) yield last;
      last = found;
    }
  }
  if (last !== undefined) yield last;
}

/** Whether `next` is more of the same, in the same place. */
function continues(last: MapExtent, next: MapExtent): boolean {
  return (
    last.depth === next.depth &&
    last.present === next.present &&
    last.zero === next.zero &&
    last.data === next.data &&
    last.file === next.file &&
    (last.offset === undefined ? next.offset === undefined : next.offset === last.offset + last.length)
  );
}

/** The first extent from `start`, from the layer that decides it. */
async function extentAt(root: BlockNode, start: Offset, want: Bytes, end: Offset): Promise<MapExtent> {
  const status = new BlockStatus();
  let layer = root;
  let image = fileOf(root);
  let length = Math.max(want, 1);
  for (let depth = 0; ; depth++) {
    await nodeStatus(layer, start, length, status);
    length = status.length;
    const below = layerOf(layer).cow?.node;
    const decided = status.depth === 1;
    if (!decided && below !== undefined && start < below.length) {
      length = Math.min(length, below.length - start);
      image = nameBelow(layer, image, fileOf(below));
      layer = below;
      continue;
    }
    const { data, child, at } = status;
    const zero = status.zero && (!data || isSparse(layer));
    // What is left of the last sector is like what is before it.
    if (start + length === root.length) length = Math.max(length, end - start);
    if (!decided)
      return { start, length, depth, present: false, zero: true, data: false, offset: undefined, file: undefined };
    if (child === null) return { start, length, depth, present: true, zero, data, offset: undefined, file: undefined };
    // A data file is another file than the image.
    const file = depth === 0 || child.name === 'data-file' ? fileOf(child.node) : image;
    return { start, length, depth, present: true, zero, data, offset: at, file };
  }
}

/**
 * Whether a hole under a format's data counts as zeroes: where the file takes up much less room than it has clusters,
 * since then they were given places in advance. Elsewhere a cluster that was written in part would come in pieces.
 */
function isSparse(layer: BlockNode): boolean {
  const cluster = layer.limits.zeroAlignment;
  const file = layer.children.find(({ name }) => name === 'file')?.node;
  const info = file?.impl.info?.();
  if (file === undefined || info === undefined || info instanceof Promise || cluster === 0) return true;
  if (layer.driver.name === 'raw' || typeof info.allocated !== 'number') return true;
  const real = Math.floor(info.allocated / cluster);
  return Math.ceil(file.length / cluster) >= Math.max((real * 10) / 9, real + 2);
}

/** What the file below an image is called: as the image calls it, where that is what is open. */
function nameBelow(layer: BlockNode, image: string, open: string): string {
  const info = layerOf(layer).impl.info?.();
  const name = info === undefined || info instanceof Promise ? undefined : info['backing-filename'];
  if (typeof name !== 'string') return open;
  const path = backingPath(image, name);
  return resolve(path) === open ? path : open;
}

function fileOf({ common }: BlockNode): string {
  return nameOf(common as unknown as BlockdevOptions);
}
