/** What the head of a response says, checked. Pure. */
import { MAX_OFFSET } from '../../base/units.ts';

/** Names in lower case; a header that comes more than once is an array. */
export type Headers = Readonly<Record<string, string | string[] | undefined>>;

/** Bytes from `first` to `last`, both included, of `total`. */
export interface ContentRange {
  readonly first: number;
  readonly last: number;
  readonly total: number;
}

/** [RFC 9110, 14.4]; undefined for anything that is not one range of a file whose length is said, up to 2^53-1. */
export function contentRange(headers: Headers): ContentRange | undefined {
  const [, first, last, total] =
    /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16})$/i.exec(headerOf(headers, 'content-range') ?? '') ?? [];
  const range = { first: Number(first), last: Number(last), total: Number(total) };
  const sound = range.first <= range.last && range.last < range.total && range.total <= MAX_OFFSET;
  return sound ? range : undefined;
}

/** True of a file of no bytes, of which no range can be had. */
export function isEmptyFile(status: number, headers: Headers): boolean {
  if (status === 416) return /^bytes \*\/0$/i.test(headerOf(headers, 'content-range') ?? '');
  return status === 200 && headerOf(headers, 'content-length') === '0';
}

/** What tells one state of a file from another. */
export interface Validator {
  readonly header: 'etag' | 'last-modified';
  readonly value: string;
}

/** The strongest that there is. */
export function validatorOf(headers: Headers): Validator | undefined {
  for (const header of ['etag', 'last-modified'] as const) {
    const value = headerOf(headers, header);
    if (value !== undefined && value !== '') return { header, value };
  }
  return undefined;
}

/** Why the bytes of the body would not be the file's; undefined when they are. */
export function wrongCoding(headers: Headers): string | undefined {
  const content = headerOf(headers, 'content-encoding') ?? '';
  if (!/^(identity)?$/i.test(content)) return `the server encodes the content ('${printable(content)}')`;
  const transfer = headerOf(headers, 'transfer-encoding') ?? '';
  if (!/^(chunked)?$/i.test(transfer)) return `the server encodes the transfer ('${printable(transfer)}')`;
  return undefined;
}

/** Seconds that the server wants to be left alone; 0 where it says nothing that is understood. */
export function retryAfter(headers: Headers): number {
  const [seconds] = /^\d{1,6}$/.exec(headerOf(headers, 'retry-after') ?? '') ?? [];
  return Number(seconds ?? 0);
}

/** A header that comes more than once is one, with commas. [RFC 9110, 5.3] */
export function headerOf(headers: Headers, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value.join(', ') : value;
}

/** A server's words in a message: they go onto terminals. */
export function printable(text: string): string {
  return text.replace(/\p{C}/gu, '?').slice(0, 60);
}
