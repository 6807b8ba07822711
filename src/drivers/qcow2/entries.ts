/** L2 entries as two 32-bit halves. Specification: "Cluster mapping", "Extended L2 Entries". */
import type { Offset } from '../../base/units.ts';
import { EntryHigh, EntryLow } from '../../proto/qcow2/constants.ts';

/** What an entry, or a subcluster of it, says. ZERO may have a place in the file, too. */
export const Kind = { ABSENT: 0, DATA: 1, ZERO: 2, COMPRESSED: 3, INVALID: 4 } as const;

/** Bits that no standard entry may have: those that the format reserves, and of offsets that are too large. */
const HIGH_RESERVED = 0x3f00_0000 | EntryHigh.BEYOND;

/** Where the cluster is in the file; of any entry but a compressed one. */
export function hostOf(high: number, low: number): Offset {
  return (high & EntryHigh.OFFSET) * 2 ** 32 + ((low & EntryLow.OFFSET) >>> 0);
}

/**
 * Of a standard entry. `offsetLow` masks the bits of the lower half that are not part of an offset; `zeroFlag`: version
 * 3; `flat`: the data is in an external file, where offset 0 is a place when COPIED is set.
 */
export function kindOf(high: number, low: number, offsetLow: number, zeroFlag: boolean, flat: boolean): number {
  if ((high & EntryHigh.COMPRESSED) !== 0) return Kind.COMPRESSED;
  if ((high & HIGH_RESERVED) !== 0) return Kind.INVALID;
  const flags = low & offsetLow;
  if (flags !== 0) return flags === EntryLow.ZERO && zeroFlag ? Kind.ZERO : Kind.INVALID;
  if ((high & EntryHigh.OFFSET) !== 0 || low !== 0) return Kind.DATA;
  return flat && high >= EntryHigh.COPIED ? Kind.DATA : Kind.ABSENT;
}

/** Of one subcluster of an extended entry. */
export function subclusterKind(
  high: number,
  low: number,
  zeroes: number,
  allocated: number,
  sub: number,
  offsetLow: number,
  flat: boolean,
): number {
  const whole = kindOf(high, low, offsetLow, false, flat);
  if (whole === Kind.COMPRESSED || whole === Kind.INVALID) return whole;
  const bit = (1 << sub) >>> 0;
  const zero = (zeroes & bit) !== 0;
  if ((allocated & bit) === 0) return zero ? Kind.ZERO : Kind.ABSENT;
  return zero || whole === Kind.ABSENT ? Kind.INVALID : Kind.DATA;
}
