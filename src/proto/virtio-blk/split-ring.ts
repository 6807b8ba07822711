/** The layout of split virtqueues. [virtio 1.2: 2.7 Split Virtqueues] */

export const DescriptorFlag = { NEXT: 1, WRITE: 2, INDIRECT: 4 } as const;
/** address u64 | length u32 | flags u16 | next u16 */
export const DESCRIPTOR_BYTES = 16;
/** In the flags of the available ring: the driver wants no interrupts. */
export const AVAIL_NO_INTERRUPT = 1;
/** In the flags of the used ring: the device wants no notifications. */
export const USED_NO_NOTIFY = 1;

/** flags u16 | index u16 | heads u16... | used_event u16 */
export function availBytes(size: number): number {
  return 6 + 2 * size;
}

/** flags u16 | index u16 | (id u32, length u32)... | avail_event u16 */
export function usedBytes(size: number): number {
  return 6 + 8 * size;
}

/** In u16 from the start of the available ring: where the index, the heads and used_event are. */
export const AVAIL_INDEX = 1;
export const AVAIL_HEADS = 2;
/** In u32 from the start of the used ring: where the elements are. */
export const USED_ELEMENTS = 1;

/**
 * True when an index that went from `before` to `now` has passed the place at which the other side asked to be told.
 * [2.7.10: The Virtqueue Available Notification Suppression]
 */
export function passedEvent(event: number, now: number, before: number): boolean {
  return ((now - event - 1) & 0xffff) < ((now - before) & 0xffff);
}
