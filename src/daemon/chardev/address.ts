/** Where sockets of a daemon are: addresses as QAPI has them, and as Node takes them. */

import { lookup } from 'node:dns/promises';
import { fstatSync } from 'node:fs';
import { errnoOf, errnoText } from '../../base/errors.ts';
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

/** The name that Node takes. One in the abstract namespace is as long as it is, or fills all that there is room for. */
export function unixPath({ path, abstract = false, tight = true }: Qapi<'UnixSocketAddress'>): string {
  if (!abstract) return path;
  return `\0${tight ? path : path.padEnd(UNIX_PATH_BYTES - 1, '\0')}`;
}

/** A port by its number. */
export function portOf(text: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : Number.NaN;
  if (port <= 65_535) return port;
  throw new QmpError(`address resolution failed for port '${text}': it is not a number up to 65535`);
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
 *  connect to. */
export async function resolveHost(addr: InetAddress, toListen: boolean): Promise<Host> {
  const { host, port } = addr;
  const family = familyOf(addr);
  if (host === '' && toListen) return { address: family === 4 ? '0.0.0.0' : '::', only6: family === 6 };
  const fail = (why: string): QmpError => new QmpError(`address resolution failed for ${host}:${port}: ${why}`);
  const found = await lookup(host === '' ? 'localhost' : host, { family }).catch((error: NodeJS.ErrnoException) => {
    throw fail(error.code === 'ENOTFOUND' ? 'Name or service not known' : errnoText(errnoOf(error)));
  });
  if (family !== 0 && found.family !== family) throw fail('Address family for hostname not supported');
  return { address: found.address, only6: false };
}
