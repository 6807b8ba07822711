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
  const parts: string[] = [];
  write(value, pretty ? '\n' : '', parts);
  return parts.join('');
}

/** `indent`: the line break before a member of the value that is around, or nothing for one line. */
function write(value: unknown, indent: string, parts: string[]): void {
  if (typeof value === 'string') parts.push(quoted(value));
  else if (value instanceof WideInteger) parts.push(value.text);
  else if (typeof value !== 'object' || value === null) parts.push(JSON.stringify(value ?? null));
  else if (Array.isArray(value))
    writeAll('[', value.length, (i) => write(value[i], inner(indent), parts), ']', indent, parts);
  else {
    const members = Object.entries(value).filter(([, member]) => member !== undefined);
    const member = (i: number): void => {
      const [name, one] = members[i]!;
      parts.push(quoted(name), ': ');
      write(one, inner(indent), parts);
    };
    writeAll('{', members.length, member, '}', indent, parts);
  }
}

function inner(indent: string): string {
  return indent === '' ? '' : `${indent}    `;
}

function writeAll(
  open: string,
  count: number,
  one: (i: number) => void,
  close: string,
  indent: string,
  parts: string[],
): void {
  parts.push(open);
  for (let i = 0; i < count; i++) {
    if (indent !== '') parts.push(i > 0 ? ',' : '', inner(indent));
    else if (i > 0) parts.push(', ');
    one(i);
  }
  parts.push(count > 0 ? indent : '', close);
}

/** Characters that are escaped at once. */
const PIECE = 4096;
const ASCII = new TextDecoder();
const HEX = new TextEncoder().encode('0123456789ABCDEF');

function quoted(text: string): string {
  const json = JSON.stringify(text);
  if (!/[\u007f-\uffff]/.test(json)) return json;
  const ascii = new Uint8Array(6 * PIECE);
  const parts: string[] = [];
  for (let at = 0; at < json.length; at += PIECE) {
    const end = Math.min(at + PIECE, json.length);
    let length = 0;
    for (let i = at; i < end; i++) {
      const code = json.charCodeAt(i);
      if (code < 0x7f) ascii[length++] = code;
      else length = escapeAt(ascii, length, code);
    }
    parts.push(ASCII.decode(ascii.subarray(0, length)));
  }
  return parts.join('');
}

/** Writes \\uXXXX; answers where that ends. */
function escapeAt(ascii: Uint8Array, at: number, code: number): number {
  ascii[at] = 0x5c;
  ascii[at + 1] = 0x75;
  for (let digit = 0; digit < 4; digit++) ascii[at + 2 + digit] = HEX[(code >> (12 - 4 * digit)) & 15]!;
  return at + 6;
}
