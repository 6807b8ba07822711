/** NBD URIs, as the NBD URI specification has them. */
import type { SocketAddress } from '../aio/backend.ts';

/** The address that a client on this machine uses for one that a server listens on. */
function reachable(host: string): string {
  if (host === '0.0.0.0') return '127.0.0.1';
  if (host === '::') return '::1';
  return host;
}

/** `nbd+unix:///EXPORT?socket=PATH` or `nbd://HOST:PORT/EXPORT`. */
export function nbdUri(address: SocketAddress, exportName: string): string {
  const path = encodeURIComponent(exportName);
  if (address.kind === 'unix') {
    return `nbd+unix:///${path}?socket=${encodeURIComponent(address.path).replaceAll('%2F', '/')}`;
  }
  const host = reachable(address.host);
  return `nbd://${host.includes(':') ? `[${host}]` : host}:${address.port}/${path}`;
}
