/** Entries of refcount blocks, of every width (specification: "Refcount blocks"). `order` is log2 of the bits. */
import { assert } from '../../base/assert.ts';
import { MAX_OFFSET } from '../../base/units.ts';
import { setU64 } from '../nbd/words.ts';

/** By order. */
const MAX = [1, 3, 15, 255, 65_535, 0xffff_ffff, MAX_OFFSET] as const;
/** Upper halves from here on are beyond 2^53-1. */
const HIGH_LIMIT = 0x20_0000;

/** The largest refcount of an order; 2^53-1 for 64 bits. */
export function refcountMax(order: number): number {
  return MAX[order]!;
}

/** Entry `index` of a block; one beyond 2^53-1 reads as 2^53-1. */
export function getRefcount(view: DataView, index: number, order: number): number {
  switch (order) {
    case 3:
      return view.getUint8(index);
    case 4:
      return view.getUint16(index * 2);
    case 5:
      return view.getUint32(index * 4);
    case 6: {
      const high = view.getUint32(index * 8);
      return high >= HIGH_LIMIT ? MAX_OFFSET : high * 2 ** 32 + view.getUint32(index * 8 + 4);
    }
    default:
      // Several in a byte, the first in the lowest bits.
      return (view.getUint8(index >>> (3 - order)) >>> ((index << order) & 7)) & MAX[order]!;
  }
}

/** Sets entry `index` of a block to 0..refcountMax(order). */
export function setRefcount(view: DataView, index: number, order: number, value: number): void {
  assert(value >= 0 && value <= MAX[order]!, 'a refcount does not fit in its bits');
  switch (order) {
    case 3:
      view.setUint8(index, value);
      break;
    case 4:
      view.setUint16(index * 2, value);
      break;
    case 5:
      view.setUint32(index * 4, value);
      break;
    case 6:
      setU64(view, index * 8, value);
      break;
    default: {
      const at = index >>> (3 - order);
      const shift = (index << order) & 7;
      view.setUint8(at, (view.getUint8(at) & ~(MAX[order]! << shift)) | (value << shift));
    }
  }
}
