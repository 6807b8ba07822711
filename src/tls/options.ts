/**
 * TLS credentials in QEMU's terms, as plain objects: `tls-creds-x509`, `tls-creds-psk`, `tls-creds-anon`. They name
 * files, which credentials.ts reads where TLS is used.
 */
import { BlockError, Errno } from '../base/errors.ts';

/**
 * Certificates. A server has `server-cert.pem` and `server-key.pem` in `dir`, a client may have `client-cert.pem` and
 * `client-key.pem`; `ca-cert.pem` is whom they trust, and `ca-crl.pem`, where it is, what is revoked. A client without
 * `dir` trusts the authorities that Node.js comes with.
 */
export interface X509Credentials {
  readonly type: 'x509';
  readonly dir?: string | undefined;
  /** The other side has to show a certificate that is trusted; default true. A client that does not ask cannot know
   *  whom it talks to. */
  readonly 'verify-peer'?: boolean | undefined;
  /** Of the private key, where that is encrypted. */
  readonly passphrase?: string | undefined;
}

/** Keys that both sides know: `keys.psk` in `dir`, or `file`: a line `USER:KEY` for each, the key in hexadecimal. */
export interface PskCredentials {
  readonly type: 'psk';
  readonly dir?: string | undefined;
  readonly file?: string | undefined;
  /** Who a client is; default 'qemu'. */
  readonly username?: string | undefined;
}

/** Encryption without knowing with whom: no protection against somebody in the middle. TLS 1.2 at most. */
export interface AnonCredentials {
  readonly type: 'anon';
}

export type TlsCredentials = X509Credentials | PskCredentials | AnonCredentials;

/** Which side of the connection they are for. */
export type TlsEndpoint = 'server' | 'client';

/** EINVAL for what no credentials are. */
export function checkCredentials(given: TlsCredentials): void {
  if (typeof given !== 'object' || given === null)
    throw refuseCredentials('expected an object with type x509, psk or anon');
  const fields = Object.hasOwn(FIELDS, given.type) ? FIELDS[given.type] : undefined;
  if (!fields) throw refuseCredentials(`type is '${String(given.type)}', not x509, psk or anon`);
  for (const [name, value] of Object.entries(given)) {
    const type = Object.hasOwn(fields, name) ? fields[name] : undefined;
    if (type === undefined) throw refuseCredentials(`${name} is not a field of type ${given.type}`);
    if (value === undefined) continue;
    if (typeof value !== type || value === '') throw refuseCredentials(`${name} is not a ${type}`);
  }
}

const FIELDS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  x509: { type: 'string', dir: 'string', 'verify-peer': 'boolean', passphrase: 'string' },
  psk: { type: 'string', dir: 'string', file: 'string', username: 'string' },
  anon: { type: 'string' },
};

/** @internal EINVAL. */
export function refuseCredentials(why: string): BlockError {
  return new BlockError(Errno.EINVAL, `Could not load TLS credentials: ${why}`);
}
