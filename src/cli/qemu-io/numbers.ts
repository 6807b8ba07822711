/** Numbers as the commands of qemu-io read and write them. */
import { KiB } from '../../base/units.ts';
import { readSize } from '../../img/sizes.ts';
import { decimals } from '../qemu-img/sizes.ts';
import { Failed } from './command.ts';

/** The most that one request is for. */
export const LENGTH_MAX = 2 ** 31 - 512;

export function sizeOf(text: string): number {
  const bytes = readSize(text);
  if (bytes === 'range') throw new Failed(`Parsing error: argument too large -- ${text}`);
  if (bytes === 'form') {
    throw new Failed(`Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- ${text}`);
  }
  return bytes;
}

/** The length of one request. `unless`: what would make more of it possible. */
export function lengthOf(text: string, unless = ''): number {
  const bytes = sizeOf(text);
  if (bytes > LENGTH_MAX) throw new Failed(`length cannot exceed ${LENGTH_MAX}${unless}, given ${text}`);
  return bytes;
}

/** The lengths of the parts of one request. */
export function lengthsOf(texts: readonly string[]): number[] {
  let total = 0;
  return texts.map((text) => {
    const bytes = sizeOf(text);
    total += bytes;
    if (bytes > LENGTH_MAX) throw new Failed(`Argument '${text}' exceeds maximum size ${LENGTH_MAX}`);
    if (total > LENGTH_MAX) throw new Failed(`The total number of bytes exceed the maximum size ${LENGTH_MAX}`);
    return bytes;
  });
}

/** A byte, or undefined where none is given. */
export function patternOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const value = wholeOf(text);
  if (!(value <= 0xff)) throw new Failed(`${text} is not a valid pattern byte`);
  return value;
}

/** A whole number as C writes them: 10, 0xa, 012; NaN for anything else. */
export function wholeOf(text: string): number {
  const [, hex, octal, decimal] = /^\s*\+?(?:0[xX]([0-9a-fA-F]+)|0([0-7]+)|(0|[1-9]\d*))$/.exec(text) ?? [];
  if (hex !== undefined) return Number.parseInt(hex, 16);
  return octal === undefined ? Number(decimal ?? Number.NaN) : Number.parseInt(octal, 8);
}

export function assertSectors(value: number, what: string): void {
  if (value % 512 !== 0) throw new Failed(`${value} is not a sector-aligned value for '${what}'`);
}

const UNITS = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

/** '64 KiB', '1.465 KiB', '20 bytes' */
export function sizeText(bytes: number): string {
  let unit = 0;
  let value = bytes;
  while (value >= KiB && unit < UNITS.length - 1) {
    value /= KiB;
    unit++;
  }
  const digits = decimals(value, 3).replace(/\.000$/, '');
  return `${digits} ${UNITS[unit]}`;
}
