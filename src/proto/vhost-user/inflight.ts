/**
 * The area that remembers which requests are in flight, for a back-end that comes after a killed one.
 * [Inflight I/O tracking]
 *
 * One region a queue, each on cache lines of its own:
 *
 *     0 features u64 | 8 version u16 | 10 count u16 | 12 head of the last batch u16 | 14 used index u16
 *     then for each descriptor: 0 inflight u8 | 6 next u16 | 8 counter u64
 */

export const INFLIGHT_VERSION = 1;
export const InflightAt = { VERSION: 8, COUNT: 10, LAST_BATCH: 12, USED: 14, DESCRIPTORS: 16 } as const;
export const InflightDescriptorAt = { INFLIGHT: 0, NEXT: 6, COUNTER: 8 } as const;
export const INFLIGHT_DESCRIPTOR_BYTES = 16;
/**
 * The same of packed rings. A used element is written over the descriptors of chains that were taken earlier, so each
 * chain is copied here when it is taken: as a list of entries, of which the first says what the chain is.
 *
 *     0 features u64 | 8 version u16 | 10 count u16 | 12 first free u16, 14 as it was shown last | 16 used index u16,
 *     18 as it was shown last | 20 its wrap counter u8, 21 as it was shown last | 32 entries
 *     each: 0 inflight u8 | 2 next u16 | 4 last of the chain u16 | 6 descriptors of it u16 | 8 counter u64
 *     then the descriptor: 16 id u16 | 18 flags u16 | 20 length u32 | 24 address u64
 */
export const PackedInflightAt = {
  ...{ VERSION: 8, COUNT: 10, FREE: 12, SHOWN_FREE: 14, USED: 16, SHOWN_USED: 18, WRAP: 20, SHOWN_WRAP: 21 },
  ENTRIES: 32,
} as const;
export const PackedEntryAt = {
  ...{ INFLIGHT: 0, NEXT: 2, LAST: 4, COUNT: 6, COUNTER: 8, ID: 16, FLAGS: 18, LENGTH: 20, ADDRESS: 24 },
} as const;
export const PACKED_ENTRY_BYTES = 32;
const LINE = 64;

/** Bytes of one queue's region. */
export function inflightRegionBytes(queueSize: number, packed: boolean): number {
  const bytes = packed
    ? PackedInflightAt.ENTRIES + queueSize * PACKED_ENTRY_BYTES
    : InflightAt.DESCRIPTORS + queueSize * INFLIGHT_DESCRIPTOR_BYTES;
  return Math.ceil(bytes / LINE) * LINE;
}
