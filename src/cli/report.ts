/** What people read: errors, sizes, rates. */
import { KiB, parseBytes } from '../base/units.ts';

export const PROGRAM = 'blockplane';

/** A mistake in how the program was called: exit code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

/** `blockplane: MESSAGE`, on one line. */
export function errorLine(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return `${PROGRAM}: ${text.replaceAll(/\s*\n\s*/g, ' ')}\n`;
}

const SUFFIXES = ['', 'K', 'M', 'G', 'T', 'P'];

/** Bytes from '512', '64K', '1.5G', '1GiB' (powers of 1024). Throws {@link UsageError}. */
export function parseSize(text: string, what: string): number {
  const value = parseBytes(text);
  if (value === undefined) throw new UsageError(`${what}: '${text}' is not a size such as 512, 64K or 1G`);
  return value;
}

/** A whole number from `least` to `most`. Throws {@link UsageError}. */
export function parseCount(text: string, what: string, least = 0, most = Number.MAX_SAFE_INTEGER): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value) || value < least || value > most) {
    const range = most === Number.MAX_SAFE_INTEGER ? `${least} on` : `${least} to ${most}`;
    throw new UsageError(`${what}: '${text}' is not a whole number from ${range}`);
  }
  return value;
}

/** '1.5 GiB' */
export function sizeText(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= KiB && unit < SUFFIXES.length - 1) {
    value /= KiB;
    unit++;
  }
  const text = Number.isInteger(value) ? String(value) : value.toFixed(1);
  return unit === 0 ? `${text} B` : `${text} ${SUFFIXES[unit]}iB`;
}

/** A word that a shell takes as it is. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
