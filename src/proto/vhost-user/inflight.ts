/**
 * The area that remembers which requests of split rings are in flight, for a back-end that comes after a killed one.
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
const LINE = 64;

/** Bytes of one queue's region. */
export function inflightRegionBytes(queueSize: number): number {
  const bytes = InflightAt.DESCRIPTORS + queueSize * INFLIGHT_DESCRIPTOR_BYTES;
  return Math.ceil(bytes / LINE) * LINE;
}
