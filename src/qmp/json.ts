/** JSON as it is on the wire of a monitor: integers of 64 bits exactly, and objects without a prototype. */

/** An integer beyond 2^53 that fits into 64 bits, signed or not, in decimal. */
export class WideInteger {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }
}

export type Json = null | boolean | number | string | WideInteger | readonly Json[] | JsonObject;

/** Made by {@link emptyObject}: `__proto__` and its like are names as any other. */
export interface JsonObject {
  readonly [name: string]: Json | undefined;
}

export type OpenObject = { [name: string]: Json | undefined };

export function emptyObject(): OpenObject {
  return Object.create(null) as OpenObject;
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof WideInteger);
}

const INT64_MIN = '9223372036854775808';
const UINT64_MAX = '18446744073709551615';

/** True where `digits`, without leading zeroes, is at most `limit`. */
function atMost(digits: string, limit: string): boolean {
  return digits.length < limit.length || (digits.length === limit.length && digits <= limit);
}

/** The value of an integer in decimal: exact as far as 64 bits go, else the nearest double. */
export function integerOf(text: string): number | WideInteger {
  const near = Number(text);
  // Without a sign: there is no negative zero among integers.
  if (Number.isSafeInteger(near)) return near + 0;
  const negative = text.startsWith('-');
  const digits = negative ? text.slice(1) : text;
  return atMost(digits, negative ? INT64_MIN : UINT64_MAX) ? new WideInteger(text) : near;
}

/** True where it fits into a signed integer of 64 bits. */
export function isInt64(value: WideInteger): boolean {
  return value.text.startsWith('-') || atMost(value.text, '9223372036854775807');
}

/** One line, or indented by four blanks. Everything beyond ASCII is escaped. */
export function writeJson(value: unknown, pretty = false): string {
  const text = write(value, pretty ? '\n' : '');
  return text.replace(
    /[\u007f-\uffff]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`,
  );
}

/** `indent`: the line break before a member of the value that is around, or nothing for one line. */
function write(value: unknown, indent: string): string {
  if (value instanceof WideInteger) return value.text;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value ?? null);
  const inner = indent === '' ? '' : `${indent}    `;
  const list = Array.isArray(value);
  const parts = list
    ? value.map((item) => write(item, inner))
    : Object.entries(value)
        .filter(([, member]) => member !== undefined)
        .map(([name, member]) => `${JSON.stringify(name)}: ${write(member, inner)}`);
  const [open, close] = list ? '[]' : '{}';
  if (parts.length === 0) return `${open}${close}`;
  if (indent === '') return `${open}${parts.join(', ')}${close}`;
  return `${open}${inner}${parts.join(`,${inner}`)}${indent}${close}`;
}
