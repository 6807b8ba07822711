/** Socket addresses: how they are written in messages, and what is refused before anything is opened. */
import { BlockError, Errno, errnoText } from '../base/errors.ts';
import type { SocketAddress } from './backend.ts';

/** sun_path of unix(7). A path in it ends with a NUL; an abstract name begins with one. */
const UNIX_PATH_MAX = 108;

/** True for a name in the abstract namespace, which no file stands for. */
export function isAbstract(path: string): boolean {
  return path.startsWith('\0');
}

/** True for a path, or an abstract name, that there is room for. */
export function fitsUnixPath(path: string): boolean {
  return new TextEncoder().encode(path).length <= UNIX_PATH_MAX - (isAbstract(path) ? 0 : 1);
}

/** '/run/x.sock', '@name' for an abstract one, '127.0.0.1:10809', '[::1]:10809'. */
export function describeAddress(address: SocketAddress): string {
  if (address.kind === 'unix') return isAbstract(address.path) ? address.path.replaceAll('\0', '@') : address.path;
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}

/** Throws ENAMETOOLONG for a path that would be cut short, EINVAL for a host that is not a literal address. */
export function checkAddress(address: SocketAddress, what: string): void {
  if (address.kind === 'unix') {
    if (fitsUnixPath(address.path)) return;
    throw new BlockError(Errno.ENAMETOOLONG, `Could not ${what} '${address.path}': ${errnoText(Errno.ENAMETOOLONG)}`);
  }
  // Not loaded for those who have no use for it: it costs every start some milliseconds.
  if (process.getBuiltinModule('node:net').isIP(address.host) !== 0) return;
  throw new BlockError(Errno.EINVAL, `Could not ${what} '${address.host}': not an IPv4 or IPv6 address`);
}
