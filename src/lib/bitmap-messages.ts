/** What crosses between a program's thread and an IOThread about dirty bitmaps. */
import type { Bytes, Offset } from '../base/units.ts';

export interface BitmapInfo {
  readonly name: string;
  /** Bytes of the disk that a bit stands for. */
  readonly granularity: Bytes;
  /** It records writes. */
  readonly enabled: boolean;
  /** It is kept in the image. */
  readonly persistent: boolean;
  /** Whoever had it in use did not store it: it can only be removed. */
  readonly inconsistent: boolean;
  /** An export relies on it. */
  readonly busy: boolean;
  /** Dirty bytes, in whole granules. */
  readonly dirty: Bytes;
}

export interface DirtyExtent {
  readonly offset: Offset;
  readonly length: Bytes;
  readonly dirty: boolean;
}

interface BitmapsMessage {
  /** The number of a disk, or the name of a node. */
  readonly disk: number | string;
}

export interface BitmapMessage extends BitmapsMessage {
  readonly name: string;
}

export interface BitmapAddMessage extends BitmapMessage {
  readonly granularity: Bytes | undefined;
  readonly persistent: boolean;
  readonly disabled: boolean;
}

export interface BitmapChangeMessage extends BitmapMessage {
  readonly change: 'remove' | 'clear' | 'enable' | 'disable';
}

export interface BitmapMergeMessage extends BitmapMessage {
  /** Names, and those of other nodes with the name of the node. */
  readonly sources: readonly (string | { readonly node: string; readonly name: string })[];
}

export interface BitmapExtentsMessage extends BitmapMessage {
  readonly at: Offset;
  readonly length: Bytes;
}

export interface BitmapMethods {
  'bitmap-list'(args: BitmapsMessage): BitmapInfo[];
  'bitmap-add'(args: BitmapAddMessage): void;
  'bitmap-change'(args: BitmapChangeMessage): void;
  'bitmap-merge'(args: BitmapMergeMessage): void;
  /** SHA-256 of what is dirty: a bit for each granule, the first one lowest, up to a whole number of 64-bit words. */
  'bitmap-hash'(args: BitmapMessage): string;
  /** From `at` on, as many as go into one answer; none at the end of the disk. */
  'bitmap-extents'(args: BitmapExtentsMessage): DirtyExtent[];
}
