/** The layout of packed virtqueues. [virtio 1.2: 2.8 Packed Virtqueues] */

/** Besides those of split rings, in the flags of a descriptor. */
export const PackedFlag = { AVAIL: 1 << 7, USED: 1 << 15 } as const;
/** address u64 | length u32 | id u16 | flags u16 */
export const PACKED_FLAGS_AT = 14;
/** descriptor u16 (offset, and the wrap counter on top) | flags u16 */
export const EVENT_BYTES = 4;
export const EventFlag = { ENABLE: 0, DISABLE: 1, DESC: 2, MASK: 3 } as const;

/** Where the parts of a ring are that a driver makes, from its start: both event areas, and the end. */
export function packedParts(size: number): {
  readonly driver: number;
  readonly device: number;
  readonly bytes: number;
} {
  const driver = size * 16;
  return { driver, device: driver + EVENT_BYTES, bytes: driver + 2 * EVENT_BYTES };
}

/** True when a descriptor is the device's to take, in the round of `wrap` (0 or 1). */
export function isAvailable(flags: number, wrap: number): boolean {
  return ((flags >>> 7) & 1) === wrap && flags >>> 15 !== wrap;
}

/** True when a descriptor is used, in the round of `wrap`. */
export function isUsed(flags: number, wrap: number): boolean {
  return ((flags >>> 7) & 1) === wrap && flags >>> 15 === wrap;
}

/** Index 0..size-1 and wrap counter as one number, as in event areas and in the base of a ring. */
export function withWrap(index: number, wrap: number): number {
  return index | (wrap << 15);
}
