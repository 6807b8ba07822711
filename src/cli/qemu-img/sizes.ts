/** Sizes as qemu-img writes and reads them. */
import { KiB } from '../../base/units.ts';
import { LARGEST, readSize } from '../../img/sizes.ts';
import { Failure } from './verb.ts';

const UNITS = ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei'];

/** '196 KiB', '2.19 MiB': three digits, in the unit in which there are less than a thousand. */
export function shortSize(bytes: number): string {
  let unit = 0;
  let value = bytes;
  while (value >= 1000) {
    value /= KiB;
    unit++;
  }
  return `${threeDigits(value)} ${UNITS[unit]}B`;
}

function threeDigits(value: number): number {
  const scale = value < 10 ? 100 : value < 100 ? 10 : 1;
  return rounded(value * scale) / scale;
}

/** '3.12' with two digits. */
export function decimals(value: number, digits: number): string {
  const scale = 10 ** digits;
  return (rounded(value * scale) / scale).toFixed(digits);
}

/** As C rounds: what is half-way goes to the even number. */
function rounded(value: number): number {
  const whole = Math.floor(value);
  const rest = value - whole;
  return whole + (rest > 0.5 || (rest === 0.5 && whole % 2 === 1) ? 1 : 0);
}

/** A size between `least` and `most`, or the failure that says what of `what` is wrong. */
export function sizeOf(text: string, what: string, least = 0, most = LARGEST): number {
  const bytes = readSize(text);
  if (bytes === 'form') {
    throw new Failure(
      `Invalid ${what} specified. You may use k, M, G, T, P or E suffixes for\n` +
        'qemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.',
    );
  }
  if (bytes === 'range' || bytes < least || bytes > most) {
    const shown = (value: number): string => (value === LARGEST ? '9223372036854775807' : String(value));
    throw new Failure(`Invalid ${what} specified. Must be between ${shown(least)} and ${shown(most)}.`);
  }
  return bytes;
}
