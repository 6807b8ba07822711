/** L2 entries of compressed clusters (specification: "Compressed Clusters Descriptor"). */
import { type Bytes, type Offset, SECTOR } from '../../base/units.ts';
import { EntryHigh } from './constants.ts';

export interface CompressedPlace {
  /** Where the bytes begin in the file: any byte. Beyond 2^53 it is not exact, and beyond the end of any file. */
  readonly offset: Offset;
  /** To the end of the last sector that they are in. */
  readonly length: Bytes;
}

/** Bits of the upper half that belong to the offset; the others, up to bit 61, count the sectors after the first. */
function offsetBits(clusterBits: number): number {
  return 62 - (clusterBits - 8) - 32;
}

/** Where the bytes of a compressed cluster are. */
export function decodeCompressed(high: number, low: number, clusterBits: number): CompressedPlace {
  const bits = offsetBits(clusterBits);
  const upper = high & 0x3fff_ffff;
  const offset = (upper & (2 ** bits - 1)) * 2 ** 32 + low;
  const sectors = (upper >>> bits) + 1;
  return { offset, length: sectors * SECTOR - (offset % SECTOR) };
}

/** The entry for `length` bytes at `offset`. */
export function encodeCompressed(
  offset: Offset,
  length: Bytes,
  clusterBits: number,
): { readonly high: number; readonly low: number } {
  const bits = offsetBits(clusterBits);
  const more = Math.floor((offset + length - 1) / SECTOR) - Math.floor(offset / SECTOR);
  const upper = Math.floor(offset / 2 ** 32) + more * 2 ** bits;
  return { high: (EntryHigh.COMPRESSED | upper) >>> 0, low: offset % 2 ** 32 };
}
