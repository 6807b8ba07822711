/**
 * Integers. Offsets and lengths are plain numbers up to 2^53-1 ({@link MAX_OFFSET}); anything larger is refused at the
 * boundary with EFBIG. Bit operators truncate to 32 bits, so they never touch an offset: alignment goes through the
 * functions below, which are exact for every power of two up to 2^53.
 */

/** A length in bytes. */
export type Bytes = number;
/** A byte offset from the start of a node or a file. */
export type Offset = number;
/** A time or a duration in nanoseconds; monotonic clock. */
export type Nanoseconds = number;

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;

export const SECTOR: Bytes = 512;
/** The largest offset or length that is represented exactly. */
export const MAX_OFFSET: Offset = Number.MAX_SAFE_INTEGER;

export function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isSafeInteger(value) && Number.isInteger(Math.log2(value));
}

/** `value` rounded down to a multiple of `unit`. */
export function alignDown(value: number, unit: number): number {
  return value - (value % unit);
}

/** `value` rounded up to a multiple of `unit`. */
export function alignUp(value: number, unit: number): number {
  const over = value % unit;
  return over === 0 ? value : value - over + unit;
}

export function isAligned(value: number, unit: number): boolean {
  return value % unit === 0;
}

/** True when `value` can be an offset or a length: an integer in 0..2^53-1. */
export function isOffset(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/** The mask of bits `low`..`high` (both included) as a bigint; on-disk masks are derived from it, never typed in. */
export function bits(low: number, high: number): bigint {
  return ((1n << BigInt(high - low + 1)) - 1n) << BigInt(low);
}

const SUFFIXES = ['', 'K', 'M', 'G', 'T', 'P', 'E'];

/** Bytes from '512', '64K', '1.5G', '1GiB' (powers of 1024); undefined for anything else, and from 2^53 on. */
export function parseBytes(text: string): Bytes | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgtpe]?)(?:i?b)?$/i.exec(text);
  const value = match ? Number(match[1]) * KiB ** SUFFIXES.indexOf(match[2]!.toUpperCase()) : Number.NaN;
  return Number.isSafeInteger(value) ? value : undefined;
}
