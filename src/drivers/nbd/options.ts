/** The options of an nbd node, by their QAPI names, and what they come to. */
import { BlockError, Errno } from '../../base/errors.ts';
import type { OptionSpec } from '../../block/driver.ts';
import { BASE_ALLOCATION, DEFAULT_PORT, DIRTY_BITMAP } from '../../proto/nbd/constants.ts';
import { isWireString } from '../../proto/nbd/option.ts';
import { checkCredentials, type TlsCredentials } from '../../tls/options.ts';

export interface NbdOptions {
  readonly 'server.type': 'unix' | 'inet';
  readonly 'server.path'?: string;
  readonly 'server.abstract'?: boolean;
  readonly 'server.host'?: string;
  readonly 'server.port'?: string;
  readonly export?: string;
  readonly 'tls-creds.type'?: TlsCredentials['type'];
  readonly 'tls-creds.dir'?: string;
  readonly 'tls-creds.file'?: string;
  readonly 'tls-creds.username'?: string;
  readonly 'tls-creds.verify-peer'?: boolean;
  readonly 'tls-creds.passphrase'?: string;
  readonly 'tls-hostname'?: string;
  readonly 'reconnect-delay'?: number;
  readonly 'open-timeout'?: number;
  readonly connections?: number;
  readonly 'restart-loses-cache'?: boolean;
  readonly 'x-dirty-bitmap'?: string;
}

export const NBD_OPTIONS: Readonly<Record<string, OptionSpec>> = {
  'server.type': { type: 'enum', values: ['unix', 'inet'], required: true, help: 'unix or inet (TCP)' },
  'server.path': { type: 'string', help: 'path of the unix socket' },
  'server.abstract': { type: 'boolean', help: 'the path is in the abstract namespace (default off)' },
  'server.host': { type: 'string', help: 'host name or address' },
  'server.port': { type: 'string', help: `TCP port (default ${DEFAULT_PORT})` },
  export: { type: 'string', help: "name of the export (default: '')" },
  'tls-creds.type': { type: 'enum', values: ['x509', 'psk', 'anon'], help: 'TLS, and what it rests on' },
  'tls-creds.dir': { type: 'string', help: 'x509: folder of ca-cert.pem, client-cert.pem...; psk: of keys.psk' },
  'tls-creds.file': { type: 'string', help: 'psk: file of USER:KEY lines' },
  'tls-creds.username': { type: 'string', help: 'psk: whose key (default qemu)' },
  'tls-creds.verify-peer': { type: 'boolean', help: "x509: check the server's certificate (default on)" },
  'tls-creds.passphrase': { type: 'secret', help: 'x509: of the private key, where it is encrypted' },
  'tls-hostname': { type: 'string', help: "x509: whose certificate it must be (default: the server's host)" },
  'reconnect-delay': { type: 'number', help: 'seconds that requests wait for a server that was lost (default 0)' },
  'open-timeout': { type: 'number', help: 'seconds that opening waits for a server that is not there (default 0)' },
  connections: { type: 'number', help: 'connections at most, where the server allows several: 1 to 16 (default 4)' },
  'restart-loses-cache': {
    type: 'boolean',
    help: 'after all connections were lost, flush fails where writes may be lost with the server (default on)',
  },
  'x-dirty-bitmap': { type: 'string', help: `${DIRTY_BITMAP}NAME: block status has no data where that is dirty` },
};

const CONNECTIONS_MAX = 16;
const CONNECTIONS = 4;
/** A day. */
const SECONDS_MAX = 86_400;

export type NbdAddress =
  | { readonly kind: 'unix'; readonly path: string }
  /** A name or an address. */
  | { readonly kind: 'inet'; readonly host: string; readonly port: number };

export interface NbdTarget {
  readonly address: NbdAddress;
  /** For messages: 'nbd://host:port/export' or 'nbd+unix:///export?socket=path'. */
  readonly name: string;
  readonly exportName: string;
  readonly reconnectNs: number;
  readonly openNs: number;
  readonly connections: number;
  readonly losesCache: boolean;
  /** The meta context that block status is asked for. */
  readonly context: string;
  readonly tls: TlsWish | undefined;
}

export interface TlsWish {
  readonly credentials: TlsCredentials;
  /** Whose certificate the server has to have. */
  readonly host: string | undefined;
}

/** EINVAL names the option that is wrong, ENOTSUP what is not there yet. */
export function nbdTarget(options: NbdOptions): NbdTarget {
  const exportName = options.export ?? '';
  if (!isWireString(exportName)) throw refuse("'export' is longer than 4096 bytes of UTF-8, or none");
  const address = addressOf(options);
  const tls = tlsWish(options, address);
  const connections = options.connections ?? CONNECTIONS;
  if (!Number.isInteger(connections) || connections < 1 || connections > CONNECTIONS_MAX) {
    throw refuse(`'connections' is ${connections}, not 1 to ${CONNECTIONS_MAX}`);
  }
  return {
    ...{ address, name: nameOf(address, exportName, tls !== undefined), exportName, connections, tls },
    reconnectNs: nanoseconds('reconnect-delay', options['reconnect-delay']),
    openNs: nanoseconds('open-timeout', options['open-timeout']),
    losesCache: options['restart-loses-cache'] ?? true,
    context: contextOf(options['x-dirty-bitmap']),
  };
}

/** As in QAPI: the whole name of the context. */
function contextOf(name: string | undefined): string {
  if (name === undefined) return BASE_ALLOCATION;
  if (name.startsWith(DIRTY_BITMAP) && name.length > DIRTY_BITMAP.length && isWireString(name)) return name;
  throw refuse(`'x-dirty-bitmap' is '${name}', not ${DIRTY_BITMAP}NAME`);
}

function addressOf(options: NbdOptions): NbdAddress {
  const { 'server.path': path, 'server.host': host, 'server.port': port = String(DEFAULT_PORT) } = options;
  if (options['server.type'] === 'unix') {
    if (path === undefined || path === '') throw refuse("'server.path' is missing");
    if (host !== undefined) throw refuse("'server.host' is not for a unix socket");
    return { kind: 'unix', path: options['server.abstract'] === true ? `\0${path}` : path };
  }
  if (host === undefined || host === '') throw refuse("'server.host' is missing");
  if (path !== undefined) throw refuse("'server.path' is for a unix socket only");
  const number = /^\d{1,5}$/.test(port) ? Number(port) : 0;
  if (number < 1 || number > 65535) throw refuse(`'server.port' is '${port}', not 1 to 65535`);
  return { kind: 'inet', host, port: number };
}

/** Undefined: plain text. EINVAL where it could not be known whose certificate it has to be. */
function tlsWish(options: NbdOptions, address: NbdAddress): TlsWish | undefined {
  const given = Object.entries(options).filter(([name]) => name.startsWith('tls-creds.'));
  const hostname = options['tls-hostname'];
  if (given.length === 0) {
    if (hostname !== undefined) throw refuse("'tls-hostname' is for TLS, and 'tls-creds' is missing");
    return undefined;
  }
  const credentials = Object.fromEntries(given.map(([name, value]) => [name.slice('tls-creds.'.length), value]));
  checkCredentials(credentials as unknown as TlsCredentials);
  const host = hostname ?? (address.kind === 'inet' ? address.host : undefined);
  if (host === undefined && options['tls-creds.type'] === 'x509' && options['tls-creds.verify-peer'] !== false) {
    throw refuse("'tls-hostname' is missing: a unix socket does not say whose certificate it has to be");
  }
  return { credentials: credentials as unknown as TlsCredentials, host };
}

function nameOf(address: NbdAddress, exportName: string, secure: boolean): string {
  const scheme = secure ? 'nbds' : 'nbd';
  const path = encodeURIComponent(exportName);
  if (address.kind === 'unix') return `${scheme}+unix:///${path}?socket=${address.path.replace('\0', '%00')}`;
  const host = address.host.includes(':') ? `[${address.host}]` : address.host;
  return `${scheme}://${host}:${address.port}/${path}`;
}

function nanoseconds(name: string, seconds = 0): number {
  if (!(seconds >= 0 && seconds <= SECONDS_MAX))
    throw refuse(`'${name}' is ${seconds}, not 0 to ${SECONDS_MAX} seconds`);
  return seconds * 1e9;
}

function refuse(why: string): BlockError {
  return new BlockError(Errno.EINVAL, `Could not open an 'nbd' node: option ${why}`);
}
