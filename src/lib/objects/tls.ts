/** `tls-creds-x509`, `tls-creds-psk` and `tls-creds-anon`. Their files are read here to see whether they are right, and
 *  again in the thread that uses them. */
import type { TlsCredentials, TlsEndpoint } from '../../tls/options.ts';
import type { TlsSide } from '../../tls/side.ts';
import type { TlsServerOptions } from '../tls-options.ts';
import { AUTHZ } from './authz.ts';
import { ObjectKind, type ObjectOption, type ObjectType, wrong } from './object-type.ts';
import { SECRET } from './secret.ts';
import type { ObjectStore } from './store.ts';

export type { TlsSide } from '../../tls/side.ts';

interface CommonTlsOptions {
  readonly id: string;
  /** Default client. */
  readonly endpoint?: TlsEndpoint | undefined;
  /** Where the files are. */
  readonly dir?: string | undefined;
  /** The other side has to show a certificate that is trusted; default true. */
  readonly 'verify-peer'?: boolean | undefined;
}

export interface TlsX509Options extends CommonTlsOptions {
  readonly 'qom-type': 'tls-creds-x509';
  /** The secret with the passphrase of the private key. */
  readonly passwordid?: string | undefined;
}

export interface TlsPskOptions extends CommonTlsOptions {
  readonly 'qom-type': 'tls-creds-psk';
  /** Who a client is; default 'qemu'. */
  readonly username?: string | undefined;
}

export interface TlsAnonOptions extends CommonTlsOptions {
  readonly 'qom-type': 'tls-creds-anon';
}

/** What such an object holds. */
export interface TlsObject {
  readonly credentials: TlsCredentials;
  readonly endpoint: TlsEndpoint;
}

export const TLS_CREDENTIALS = new ObjectKind<TlsObject>('TLS credentials', 'TLS credentials');

const COMMON: Readonly<Record<string, ObjectOption>> = {
  endpoint: { type: 'enum', values: ['client', 'server'], help: 'which side they are for (client)' },
  dir: { type: 'string', help: 'where the files are' },
  'verify-peer': { type: 'boolean', help: 'whether the other side needs a certificate that is trusted (on)' },
  priority: { type: 'string', help: 'algorithms as GnuTLS names them: not supported' },
};

type Given = Readonly<Record<string, unknown>>;

/** `create` makes the credentials of checked options. */
function credentialsType(
  name: string,
  options: Readonly<Record<string, ObjectOption>>,
  create: (options: Given, objects: ObjectStore) => TlsCredentials,
): ObjectType<TlsObject> {
  return {
    name,
    kind: TLS_CREDENTIALS,
    options: { ...COMMON, ...options },
    async create(given, objects) {
      if (given.priority !== undefined) throw wrong("Parameter 'priority' is for GnuTLS, and this is another TLS");
      const endpoint = (given.endpoint ?? 'client') as TlsEndpoint;
      const needsDir = name === 'tls-creds-psk' || (name === 'tls-creds-x509' && endpoint === 'server');
      if (needsDir && given.dir === undefined) throw wrong("Missing 'dir' property value");
      const credentials = create(given, objects);
      const { loadCredentials } = await import('../../tls/credentials.ts');
      await loadCredentials(credentials, endpoint);
      return { credentials, endpoint };
    },
  };
}

export const tlsX509Type = credentialsType(
  'tls-creds-x509',
  {
    passwordid: { type: 'string', help: "id of the secret with the private key's passphrase" },
    'sanity-check': { type: 'boolean', help: 'accepted; the certificates are always looked at' },
  },
  ({ dir, 'verify-peer': verify, passwordid }, objects) => ({
    type: 'x509',
    dir: dir as string | undefined,
    'verify-peer': verify as boolean | undefined,
    passphrase: passwordid === undefined ? undefined : objects.get(passwordid as string, SECRET).text,
  }),
);

export const tlsPskType = credentialsType(
  'tls-creds-psk',
  { username: { type: 'string', help: 'who a client is (qemu)' } },
  ({ dir, username }) => ({
    type: 'psk',
    dir: dir as string | undefined,
    username: username as string | undefined,
  }),
);

export const tlsAnonType = credentialsType('tls-creds-anon', {}, () => ({ type: 'anon' }));

/** Credentials for one side. ENOENT; EINVAL for those of the other. */
export function credentialsOf(objects: ObjectStore, id: string, side: TlsEndpoint): TlsCredentials {
  const { credentials, endpoint } = objects.get(id, TLS_CREDENTIALS);
  if (endpoint !== side) throw wrong(`Expected TLS credentials for a ${side} endpoint`);
  return credentials;
}

/** TLS of a service, with the credentials and, where it is given, the authorization of these ids. */
export function serverTlsOf(objects: ObjectStore, id: string, authz?: string): TlsServerOptions {
  return {
    ...credentialsOf(objects, id, 'server'),
    ...(authz === undefined ? {} : { authz: objects.get(authz, AUTHZ) }),
  };
}

/** The server's side of handshakes on streams of this thread, as of {@link serverTlsOf}. */
export async function serverSideOf(objects: ObjectStore, id: string, authz?: string): Promise<TlsSide> {
  const { authz: allowed, ...credentials } = serverTlsOf(objects, id, authz);
  const { serverSide } = await import('../../tls/side.ts');
  return serverSide(credentials, allowed);
}

/** The client's side; `host`: whose certificate the other one has to show. */
export async function clientSideOf(objects: ObjectStore, id: string, host: string | undefined): Promise<TlsSide> {
  const credentials = credentialsOf(objects, id, 'client');
  const { clientSide } = await import('../../tls/side.ts');
  return clientSide(credentials, host);
}
