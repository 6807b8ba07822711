/** The dirty bitmaps that a driver keeps in its image, as block/ and the driver see them. */
import type { PagedBits } from '../base/paged-bits.ts';
import type { Bytes, Nanoseconds } from '../base/units.ts';

/** A bitmap as an image holds it. */
export interface StoredBitmap {
  readonly name: string;
  /** Bytes of the disk that a bit stands for. */
  readonly granularity: Bytes;
  /** It records writes. */
  readonly enabled: boolean;
  /** It is not known what it should hold (whoever had it in use did not store it): it can only be removed. */
  readonly inconsistent: boolean;
}

/** A bitmap to be kept: bit i of `bits` stands for the i-th granule of the disk. */
export interface BitmapToStore {
  readonly name: string;
  readonly granularity: Bytes;
  readonly enabled: boolean;
  readonly bits: PagedBits;
  /** With `inUse`: it is not marked, and has all of its bits in the file, since `extend` keeps them right. */
  readonly covered?: boolean | undefined;
}

/** Bits of a bitmap, from byte `at` of its bits on. */
export interface BitmapPart {
  readonly name: string;
  readonly at: Bytes;
  readonly bytes: Uint8Array;
}

/**
 * Bitmaps in an image. block/ loads all that are consistent when the node opens, marks those in use that are about to
 * change, and stores them before the node closes. Everything but `stored`, `assertStorable` and `load` writes: never on
 * a read-only node.
 */
export interface BitmapStore {
  /** What the image holds now. */
  readonly stored: readonly StoredBitmap[];
  /** Of a read-only node: why `stored` is empty, where the image has bitmaps that cannot be right. */
  readonly damage?: string | undefined;
  /** Throws where a bitmap like this could not be stored: ENOTSUP, EINVAL, EFBIG. */
  assertStorable(name: string, granularity: Bytes): void;
  /** Fills `bits`, which are clear and which the node's bitmap goes on with. */
  load(name: string, bits: PagedBits): Promise<void>;
  /** From here on, and until `store`, whoever finds the image takes these for inconsistent; on stable storage. Names
   *  that are not stored are passed over. */
  use(names: readonly string[]): Promise<void>;
  /**
   * Makes `bitmaps`, and the inconsistent ones, what the image holds; on stable storage. Where it fails, what was in
   * use stays so. `inUse`: the node goes on (a checkpoint), and they stay in use.
   */
  store(bitmaps: readonly BitmapToStore[], inUse: boolean): Promise<void>;
  /** Takes one out, on stable storage. A name that is not stored is passed over. */
  remove(name: string): Promise<void>;
  /** Sets bits of bitmaps that were stored covered, in place, on stable storage. Requests may be in flight. */
  extend(parts: readonly BitmapPart[]): Promise<void>;
  /** Between two checkpoints that the node is to make of its own accord (block/bitmap-checkpoints.ts); 0 for none. */
  readonly checkpointEvery: Nanoseconds;
}
