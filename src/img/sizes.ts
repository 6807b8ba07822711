/** Sizes as image tools read them. */
import { KiB } from '../base/units.ts';

const SUFFIXES = 'BKMGTPE';
/** What qemu-img can say; what we can use ends at 2^53. */
export const LARGEST = 2 ** 63 - 1;

export type SizeFault = 'form' | 'range';

/** Bytes from '512', '64k', '1.5G', '0x100'; a fraction needs a suffix. `unit`: of a number without one. */
export function readSize(text: string, unit: 'B' | 'K' | 'M' = 'B'): number | SizeFault {
  const hex = /^\s*\+?0[xX]([0-9a-fA-F]+)([a-zA-Z]?)$/.exec(text);
  const decimal = /^\s*\+?(\d*)(\.\d*)?([a-zA-Z]?)$/.exec(text);
  const [number, fraction, suffix] = hex
    ? [Number.parseInt(hex[1]!, 16), undefined, hex[2]!]
    : decimal && decimal[1] !== ''
      ? [Number(decimal[1]), decimal[2], decimal[3]!]
      : [Number.NaN, undefined, ''];
  const power = SUFFIXES.indexOf((suffix === '' ? unit : suffix).toUpperCase());
  if (Number.isNaN(number) || power < 0 || suffix === undefined) return 'form';
  const part = fraction === undefined || fraction === '.' ? 0 : Number(fraction);
  if (hex && suffix !== '') return 'form';
  // Half a byte is none.
  if (part !== 0 && power === 0) return 'form';
  const bytes = number * KiB ** power + Math.floor(part * KiB ** power);
  return bytes >= LARGEST && text !== String(2n ** 63n - 1n) ? 'range' : bytes;
}
