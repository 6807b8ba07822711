/** struct sockaddr to and from what the engine calls an address. Sources: unix(7), ip(7), ipv6(7), RFC 5952. */
import { networkInterfaces } from 'node:os';
import { Errno } from '../base/errors.ts';

/** The same shape as aio's SocketAddress. A unix path that begins with NUL is in the abstract name space; an unbound
 *  socket has the path ''. */
export type NativeAddress =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'inet'; readonly host: string; readonly port: number };

export const AF_UNIX = 1;
export const AF_INET = 2;
export const AF_INET6 = 10;
export const SOCKADDR_MAX = 128;
/** sizeof(sun_path). */
const UNIX_PATH_MAX = 108;

export function familyOf(address: NativeAddress): number {
  if (address.kind === 'unix') return AF_UNIX;
  return address.host.includes(':') ? AF_INET6 : AF_INET;
}

/** Writes `address` at the start of `out` (128 bytes at least). Its length, or -ENAMETOOLONG for a unix path of more
 *  than 107 bytes, -EINVAL for a path with a NUL inside, a host that is not a literal address, or a bad port. */
export function encodeAddress(address: NativeAddress, out: Uint8Array): number {
  out.fill(0, 0, SOCKADDR_MAX);
  const view = new DataView(out.buffer, out.byteOffset, out.byteLength);
  view.setUint16(0, familyOf(address), true);
  return address.kind === 'unix' ? encodeUnix(address.path, out) : encodeInet(address.host, address.port, view, out);
}

function encodeUnix(path: string, out: Uint8Array): number {
  const name = new TextEncoder().encode(path);
  const abstract = name[0] === 0;
  if (name.length === 0 || (!abstract && name.includes(0))) return -Errno.EINVAL;
  if (name.length > (abstract ? UNIX_PATH_MAX : UNIX_PATH_MAX - 1)) return -Errno.ENAMETOOLONG;
  out.set(name, 2);
  return 2 + name.length + (abstract ? 0 : 1);
}

function encodeInet(host: string, port: number, view: DataView, out: Uint8Array): number {
  if (!Number.isInteger(port) || port < 0 || port > 65535) return -Errno.EINVAL;
  view.setUint16(2, port);
  // Not loaded for those who have no use for it: it costs every start some milliseconds.
  const { isIPv4, isIPv6 } = process.getBuiltinModule('node:net');
  if (isIPv4(host)) {
    out.set(host.split('.').map(Number), 4);
    return 16;
  }
  if (!isIPv6(host)) return -Errno.EINVAL;
  const [literal, zone] = host.split('%') as [string, string?];
  const scope = zone === undefined ? 0 : scopeOf(zone);
  if (scope < 0) return -Errno.EINVAL;
  out.set(parseIPv6(literal), 8);
  view.setUint32(24, scope, true);
  return 28;
}

/** The index of an interface, given as a number or a name; -1 when there is none. */
function scopeOf(zone: string): number {
  if (/^\d{1,9}$/.test(zone)) return Number(zone);
  for (const entry of networkInterfaces()[zone] ?? []) if (entry.family === 'IPv6') return entry.scopeid;
  return -1;
}

/** `literal` must be valid and without zone. */
function parseIPv6(literal: string): Uint8Array {
  const groups = (part: string): number[] =>
    part === '' ? [] : part.split(':').flatMap((g) => (g.includes('.') ? pairs(g) : [Number.parseInt(g, 16)]));
  const [head, tail] = literal.split('::') as [string, string?];
  const before = groups(head);
  const after = tail === undefined ? [] : groups(tail);
  const words = [...before, ...new Array<number>(8 - before.length - after.length).fill(0), ...after];
  return Uint8Array.from(words.flatMap((word) => [word >> 8, word & 255]));
}

function pairs(dotted: string): number[] {
  const [a, b, c, d] = dotted.split('.').map(Number) as [number, number, number, number];
  return [a * 256 + b, c * 256 + d];
}

/** The address in the first `length` bytes of `bytes`; undefined for a family that is not ours. */
export function decodeAddress(bytes: Uint8Array, length: number): NativeAddress | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const family = length < 2 ? AF_UNIX : view.getUint16(0, true);
  if (family === AF_UNIX) return { kind: 'unix', path: decodeUnix(bytes.slice(2, Math.max(2, length))) };
  if (family === AF_INET) return { kind: 'inet', host: bytes.slice(4, 8).join('.'), port: view.getUint16(2) };
  if (family !== AF_INET6) return undefined;
  const scope = view.getUint32(24, true);
  const host = formatIPv6(bytes.slice(8, 24)) + (scope === 0 ? '' : `%${scope}`);
  return { kind: 'inet', host, port: view.getUint16(2) };
}

function decodeUnix(name: Uint8Array): string {
  const end = name[0] === 0 ? -1 : name.indexOf(0);
  return new TextDecoder().decode(end < 0 ? name : name.subarray(0, end));
}

/** RFC 5952: the longest run of two or more zero groups becomes '::'; IPv4-mapped addresses keep their dots. */
function formatIPv6(bytes: Uint8Array): string {
  const words = Array.from({ length: 8 }, (_, i) => bytes[2 * i]! * 256 + bytes[2 * i + 1]!);
  if (words.slice(0, 5).every((word) => word === 0) && words[5] === 0xffff) {
    return `::ffff:${bytes.slice(12).join('.')}`;
  }
  let best = 0;
  let from = 0;
  for (let i = 0; i < 8; i++) {
    let run = 0;
    while (i + run < 8 && words[i + run] === 0) run++;
    if (run > best) {
      best = run;
      from = i;
    }
    i += run;
  }
  const hex = (part: number[]) => part.map((word) => word.toString(16)).join(':');
  return best < 2 ? hex(words) : `${hex(words.slice(0, from))}::${hex(words.slice(from + best))}`;
}
