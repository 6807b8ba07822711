/** How programs and URIs say what TLS is to be like. */
import { BlockError, Errno } from '../base/errors.ts';
import { type Authz, checkAuthz } from '../tls/authz.ts';
import { checkCredentials, type TlsCredentials } from '../tls/options.ts';

/** TLS of an NBD client. */
export type TlsClientOptions = TlsCredentials & {
  /** Whose certificate the server must have; default: the host of its address. A unix socket has no such default. */
  readonly hostname?: string | undefined;
};

/** TLS of an NBD service. */
export type TlsServerOptions = TlsCredentials & {
  /** false: clients that do not ask for TLS are served without it. Default true. */
  readonly required?: boolean | undefined;
  /** The distinguished names that clients' certificates may have, as GnuTLS writes them: `C=GB,O=Example,CN=laptop`;
   *  or rules for them, or a file with such rules. Default: whoever has a certificate that is trusted. */
  readonly authz?: Authz | undefined;
};

/** What a node of driver nbd has of it. */
export interface TlsNodeOptions {
  readonly 'tls-creds'?: TlsCredentials;
  readonly 'tls-hostname'?: string;
}

/** What a service's threads are told; the files are read there. */
export interface TlsMessage {
  readonly credentials: TlsCredentials;
  readonly required: boolean;
  readonly authz: Authz | undefined;
}

/** EINVAL. */
export function tlsNode(options: TlsClientOptions): TlsNodeOptions {
  const { hostname, ...credentials } = options;
  checkCredentials(credentials);
  return { 'tls-creds': credentials, ...(hostname === undefined ? {} : { 'tls-hostname': hostname }) };
}

/** EINVAL. */
export function tlsMessage(options: TlsServerOptions): TlsMessage {
  const { required = true, authz, ...credentials } = options;
  checkCredentials(credentials);
  if (typeof required !== 'boolean') throw new BlockError(Errno.EINVAL, 'tls.required: expected a boolean');
  if (authz !== undefined) checkAuthz(authz);
  return { credentials, required, authz };
}

/** The parameters of an nbds URI. */
export const TLS_PARAMETERS: readonly string[] = [
  ...['tls-type', 'tls-certificates', 'tls-psk-file', 'tls-username', 'tls-hostname', 'tls-verify-peer'],
];

/** What the parameters of an nbds URI say; without any, x509 with the authorities that Node.js comes with. */
export function tlsOfUri(given: ReadonlyMap<string, string>, refuse: (why: string) => BlockError): TlsNodeOptions {
  const dir = given.get('tls-certificates');
  const file = given.get('tls-psk-file');
  const username = given.get('tls-username');
  const hostname = given.get('tls-hostname');
  const verify = given.get('tls-verify-peer');
  const type = given.get('tls-type') ?? (file === undefined && username === undefined ? 'x509' : 'psk');
  const flags: Readonly<Record<string, boolean>> = { '1': true, true: true, '0': false, false: false };
  const flag = verify === undefined ? undefined : flags[verify];
  if (verify !== undefined && flag === undefined) throw refuse(`'tls-verify-peer' is '${verify}', not 0 or 1`);
  const fields = { dir, file, username, 'verify-peer': flag };
  const known = Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
  try {
    return tlsNode({ type, ...known, hostname } as TlsClientOptions);
  } catch (error) {
    throw refuse((error as Error).message.replace('Could not load TLS credentials: ', ''));
  }
}
