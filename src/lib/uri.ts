/** NBD URIs, as the NBD URI specification has them. */
import type { SocketAddress } from '../aio/backend.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { DEFAULT_PORT } from '../proto/nbd/constants.ts';
import { TLS_PARAMETERS, type TlsNodeOptions, tlsOfUri } from './tls-options.ts';

/** Where an NBD server is, by QAPI's names. */
export type NbdServerAddress =
  | { readonly type: 'unix'; readonly path: string; readonly abstract?: boolean }
  | { readonly type: 'inet'; readonly host: string; readonly port: string };

export interface NbdLocation extends TlsNodeOptions {
  readonly server: NbdServerAddress;
  readonly export: string;
}

/** Where a name leads that is older than the URIs. */
export interface OlderNbdName {
  readonly server: NbdServerAddress;
  readonly export?: string;
}

/** True for what is written like an NBD URI, and so names no file. */
export function isNbdUri(text: string): boolean {
  return /^nbds?(\+unix|\+vsock)?:\/\//i.test(text);
}

/** `nbd:HOST:PORT[:exportname=NAME]` and `nbd:unix:PATH[:exportname=NAME]`: older than the URIs, and in many guides.
 *  Undefined for what is neither. */
export function olderNbdName(name: string): OlderNbdName | undefined {
  const [, place = '', exportName] = /^nbd:(?!\/\/)(.*?)(?::exportname=(.*))?$/s.exec(name) ?? [];
  const [, path] = /^unix:(.+)$/s.exec(place) ?? [];
  const [, ipv6, host = ipv6, port] = /^(?:\[([^\]]*)\]|([^:]*)):(\d+)$/.exec(place) ?? [];
  const named = exportName === undefined ? {} : { export: exportName };
  if (path !== undefined) return { server: { type: 'unix', path }, ...named };
  return port === undefined ? undefined : { server: { type: 'inet', host: host!, port }, ...named };
}

/**
 * What `nbd://HOST:PORT/EXPORT` and `nbd+unix:///EXPORT?socket=PATH` say. With nbds instead of nbd: by TLS.
 * EINVAL for one that is malformed, ENOTSUP for vsock.
 */
export function parseNbdUri(text: string): NbdLocation {
  const refuse = (why: string, errno: number = Errno.EINVAL): BlockError =>
    new BlockError(errno, `Could not open '${text}': ${why}`);
  // Not the URL class: that has its own ideas about paths, as in '//' or '..'.
  const match = /^([a-z+]+):\/\/([^/?#]*)(?:\/([^?#]*))?(?:\?([^#]*))?$/i.exec(text);
  const [, scheme = '', at = '', path = '', query = ''] = match ?? [];
  if (match === null) throw refuse('it is no NBD URI');
  if (/vsock$/i.test(scheme)) throw refuse('vsock is not supported', Errno.ENOTSUP);
  const decoded = (part: string): string => {
    try {
      return decodeURIComponent(part);
    } catch {
      throw refuse(`'${part}' is not percent-encoded UTF-8`);
    }
  };
  const parameters = parametersOf(query, decoded, refuse);
  const secure = /^nbds/i.test(scheme);
  // Who a client by TLS is may stand before the host.
  const [, user, authority = at] = (secure && /^([^@]*)@(.*)$/.exec(at)) || [];
  if (user !== undefined) {
    if (parameters.has('tls-username')) throw refuse("'tls-username' is given twice");
    parameters.set('tls-username', decoded(user));
  }
  for (const key of parameters.keys()) {
    if (key === 'socket' || (secure && TLS_PARAMETERS.includes(key))) continue;
    throw refuse(TLS_PARAMETERS.includes(key) ? `'${key}' is for nbds` : `unknown parameter '${key}'`);
  }
  const tls = secure ? tlsOfUri(parameters, refuse) : {};
  const socket = parameters.get('socket');
  const name = decoded(path);
  if (/unix$/i.test(scheme)) {
    if (authority !== '') throw refuse(`it names a host, '${authority}', and a unix socket has none`);
    if (socket === undefined || socket === '') throw refuse("'?socket=PATH' is missing");
    // A name in the abstract namespace begins with NUL.
    if (socket.startsWith('\0')) {
      return { server: { type: 'unix', path: socket.slice(1), abstract: true }, export: name, ...tls };
    }
    return { server: { type: 'unix', path: socket }, export: name, ...tls };
  }
  if (socket !== undefined) throw refuse("'socket' is for nbd+unix");
  const [, ipv6, host, port] = /^(?:\[([0-9a-f:.]+)\]|([^:@[\]]*))(?::(\d{0,5}))?$/i.exec(authority) ?? [];
  if (ipv6 === undefined && host === undefined) throw refuse(`'${authority}' is not HOST:PORT`);
  // An empty host is this machine.
  const inet = {
    type: 'inet',
    host: ipv6 ?? (decoded(host!) || 'localhost'),
    port: port || String(DEFAULT_PORT),
  } as const;
  return { server: inet, export: name, ...tls };
}

function parametersOf(
  query: string,
  decoded: (part: string) => string,
  refuse: (why: string) => BlockError,
): Map<string, string> {
  const parameters = new Map<string, string>();
  for (const part of query.split('&')) {
    if (part === '') continue;
    const [, key = '', value = ''] = /^([^=]*)=?(.*)$/s.exec(part) ?? [];
    const name = decoded(key);
    if (parameters.has(name)) throw refuse(`'${name}' is given twice`);
    parameters.set(name, decoded(value));
  }
  return parameters;
}

/** The address that a client on this machine uses for one that a server listens on. */
function reachable(host: string): string {
  if (host === '0.0.0.0') return '127.0.0.1';
  if (host === '::') return '::1';
  return host;
}

/** `nbd+unix:///EXPORT?socket=PATH` or `nbd://HOST:PORT/EXPORT`; `secure`: nbds instead of nbd. */
export function nbdUri(address: SocketAddress, exportName: string, secure = false): string {
  const scheme = secure ? 'nbds' : 'nbd';
  const path = encodeURIComponent(exportName);
  if (address.kind === 'unix') {
    return `${scheme}+unix:///${path}?socket=${encodeURIComponent(address.path).replaceAll('%2F', '/')}`;
  }
  const host = reachable(address.host);
  return `${scheme}://${host.includes(':') ? `[${host}]` : host}:${address.port}/${path}`;
}
