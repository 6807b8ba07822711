/** Socket addresses: how they are written in messages, and what is refused before anything is opened. */
import { BlockError, Errno, errnoText } from '../base/errors.ts';
import type { SocketAddress } from './backend.ts';

/** Longest path of a unix socket in bytes (sun_path of unix(7), less the closing NUL). */
const UNIX_PATH_MAX = 107;

/** '/run/x.sock', '127.0.0.1:10809', '[::1]:10809'. */
export function describeAddress(address: SocketAddress): string {
  if (address.kind === 'unix') return address.path;
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}

/** Throws ENAMETOOLONG for a path that would be cut short, EINVAL for a host that is not a literal address. */
export function checkAddress(address: SocketAddress, what: string): void {
  if (address.kind === 'unix') {
    if (new TextEncoder().encode(address.path).length <= UNIX_PATH_MAX) return;
    throw new BlockError(Errno.ENAMETOOLONG, `Could not ${what} '${address.path}': ${errnoText(Errno.ENAMETOOLONG)}`);
  }
  // Not loaded for those who have no use for it: it costs every start some milliseconds.
  if (process.getBuiltinModule('node:net').isIP(address.host) !== 0) return;
  throw new BlockError(Errno.EINVAL, `Could not ${what} '${address.host}': not an IPv4 or IPv6 address`);
}
