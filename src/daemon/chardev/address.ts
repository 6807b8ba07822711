/** Where sockets of a daemon are: addresses as QAPI has them, and as Node takes them. */

import { lookup } from 'node:dns/promises';
import { existsSync, fstatSync } from 'node:fs';
import { isIP } from 'node:net';
import { dirname } from 'node:path';
import { type BlockError, Errno, errnoOf, errnoText } from '../../base/errors.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Qapi } from '../../qmp/schema/schema.ts';
import type { SocketAddress } from './chardev.ts';

export type InetAddress = Extract<SocketAddress, { readonly type: 'inet' }>;

/** sun_path of struct sockaddr_un. */
const UNIX_PATH_BYTES = 108;

/** The address without the object around its members. */
export function flatAddress({ type, data }: Qapi<'SocketAddressLegacy'>): SocketAddress {
  return { type, ...data } as SocketAddress;
}

export function addressText(addr: SocketAddress, protocol = 'tcp'): string {
  switch (addr.type) {
    case 'inet':
      return `${protocol}:${hostText(addr.host)}:${addr.port}`;
    case 'unix':
      return `unix:${addr.path}${addr.abstract ? `,abstract=on${(addr.tight ?? true) ? ',tight=on' : ''}` : ''}`;
    case 'fd':
      return `fd:${addr.str}`;
    default:
      return `vsock:${addr.cid}:${addr.port}`;
  }
}

/** An IPv6 address in brackets, anything else as it is. */
export function hostText(host: string): string {
  return host.includes(':') ? `[${host}]` : host;
}

/** The name that the system takes. One in the abstract namespace is as long as it is, or fills all that there is room
 *  for. Throws QmpError. */
export function unixPath({ path, abstract = false, tight = true }: Qapi<'UnixSocketAddress'>): string {
  if (path.includes('\0')) throw new QmpError(`UNIX socket path '${path.replaceAll('\0', '\\0')}' has a zero byte`);
  const bytes = new TextEncoder().encode(path).length;
  if (bytes >= UNIX_PATH_BYTES) throw new QmpError(`UNIX socket path '${path}' is too long`);
  if (!abstract) return path;
  return `\0${path}${tight ? '' : '\0'.repeat(UNIX_PATH_BYTES - 1 - bytes)}`;
}

/** A port by its number. */
export function portOf(text: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : Number.NaN;
  if (port <= 65_535) return port;
  throw new QmpError(`address resolution failed for port '${text}': it is not a number up to 65535`);
}

/** The first and the last port of a range, which may be one. Throws QmpError. */
export function portsOf({ port, to }: InetAddress): readonly [number, number] {
  const first = portOf(port);
  if (to !== undefined && to < first)
    throw new QmpError(`Failed to find an available port: 'to' is less than ${first}`);
  return [first, to ?? first];
}

/** A descriptor that was handed to this process. */
export function descriptorOf(text: string): number {
  const fd = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  if (Number.isInteger(fd)) return fd;
  throw new QmpError(`File descriptor '${text}' has not been found`);
}

/** As {@link descriptorOf}, of a socket. */
export function socketOf(text: string): number {
  const fd = descriptorOf(text);
  try {
    if (fstatSync(fd).isSocket()) return fd;
  } catch {
    // It is no descriptor at all.
  }
  throw new QmpError(`File descriptor '${text}' is not a socket`);
}

/** The families that are wanted: 4, 6, or 0 for both. */
function familyOf({ ipv4, ipv6 }: InetAddress): 0 | 4 | 6 {
  const [wants4, wants6] = [ipv4 ?? ipv6 !== true, ipv6 ?? ipv4 !== true];
  if (!wants4 && !wants6) throw new QmpError('Cannot disable IPv4 and IPv6 at same time');
  return wants4 && wants6 ? 0 : wants4 ? 4 : 6;
}

export interface Host {
  readonly address: string;
  /** Of an address that is all of them: IPv4 is not meant. */
  readonly only6: boolean;
}

/** The address of a host, of a family that is wanted. None stands for all there are to listen on, and for this host to
 *  connect to. Rejects with QmpError. */
export async function resolveHost(addr: InetAddress, toListen: boolean): Promise<Host> {
  const family = familyOf(addr);
  if (addr.host === '' && toListen) return { address: family === 4 ? '0.0.0.0' : '::', only6: family === 6 };
  const [first] = await addressesOf(addr, family);
  return first!;
}

/** Where to listen for a host: all of its addresses, of a family that is wanted. Rejects with QmpError. */
export async function hostsToListen(addr: InetAddress): Promise<readonly Host[]> {
  const family = familyOf(addr);
  if (addr.host !== '') return addressesOf(addr, family);
  const all4 = { address: '0.0.0.0', only6: false };
  const all6 = { address: '::', only6: true };
  return family === 0 ? [all4, all6] : [family === 4 ? all4 : all6];
}

async function addressesOf(addr: InetAddress, family: 0 | 4 | 6): Promise<readonly Host[]> {
  const { host, port, numeric = false } = addr;
  const fail = (why: string): QmpError => new QmpError(`address resolution failed for ${host}:${port}: ${why}`);
  if (numeric && isIP(host) === 0) throw fail('Name or service not known');
  const options = { family, all: true } as const;
  const found = await lookup(host === '' ? 'localhost' : host, options).catch((error: NodeJS.ErrnoException) => {
    throw fail(error.code === 'ENOTFOUND' ? 'Name or service not known' : errnoText(errnoOf(error)));
  });
  const fitting = found.filter((one) => family === 0 || one.family === family);
  if (fitting.length === 0) throw fail('Address family for hostname not supported');
  // A name may be there several times.
  const addresses = new Set(fitting.map(({ address }) => address));
  return [...addresses].map((address) => ({ address, only6: family === 6 && address === '::' }));
}

/** What could not be listened on, and why. */
export function bindFailure(addr: SocketAddress, error: NodeJS.ErrnoException | BlockError): QmpError {
  // Node says EACCES where there is no directory.
  const missing = addr.type === 'unix' && !addr.abstract && !existsSync(dirname(addr.path));
  const errno = missing ? Errno.ENOENT : errnoOf(error);
  const where = addr.type === 'unix' ? ` to ${addr.path}` : '';
  const taken = addr.type === 'inet' && errno === Errno.EADDRINUSE;
  const what = taken ? 'Failed to find an available port' : `Failed to bind socket${where}`;
  return new QmpError(`${what}: ${errnoText(errno)}`, 'GenericError', error);
}
