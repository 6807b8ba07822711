/** 64-bit big-endian wire integers as numbers, without BigInt. */

const TWO_32 = 0x1_0000_0000;
/** High halves from here on are beyond 2^53-1. */
const HIGH_LIMIT = 0x20_0000;

/** The u64 at `at`, or -1 when it is 2^53 or more. */
export function getU64(view: DataView, at: number): number {
  const high = view.getUint32(at);
  return high >= HIGH_LIMIT ? -1 : high * TWO_32 + view.getUint32(at + 4);
}

/** Writes `value` (0..2^53-1) at `at`. */
export function setU64(view: DataView, at: number, value: number): void {
  const high = Math.floor(value / TWO_32);
  view.setUint32(at, high);
  view.setUint32(at + 4, value - high * TWO_32);
}
