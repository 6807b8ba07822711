/**
 * TLS credentials, in QEMU's terms and from files of QEMU's names: `tls-creds-x509`, `tls-creds-psk`, `tls-creds-anon`.
 * Keys are read in the thread that uses them, and stand in no message, error or log: what is wrong with a file is said
 * by its name and a line's number.
 */
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { createSecureContext, rootCertificates } from 'node:tls';
import { BlockError, Errno, errnoOf, errnoText } from '../base/errors.ts';
import { MiB } from '../base/units.ts';

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

/** What was read: secrets, for the thread that uses them. */
export type LoadedCredentials =
  | {
      readonly type: 'x509';
      readonly verifyPeer: boolean;
      readonly ca: string | readonly string[] | undefined;
      readonly crl: string | undefined;
      readonly cert: string | undefined;
      readonly key: string | undefined;
    }
  | { readonly type: 'psk'; readonly keys: ReadonlyMap<string, Uint8Array>; readonly username: string }
  | { readonly type: 'anon' };

const FILE_MAX = 1 * MiB;
/** What OpenSSL takes. */
const IDENTITY_MAX = 128;
const KEY_MAX = 256;
const DEFAULT_USER = 'qemu';

/** Reads the files. EINVAL names the file, or the field, that is wrong; ENOENT the file that is missing. */
export async function loadCredentials(given: TlsCredentials, endpoint: TlsEndpoint): Promise<LoadedCredentials> {
  checkCredentials(given);
  switch (given.type) {
    case 'x509':
      return loadX509(given, endpoint);
    case 'psk':
      return loadPsk(given, endpoint);
    default:
      return { type: 'anon' };
  }
}

/** EINVAL for what no credentials are. */
export function checkCredentials(given: TlsCredentials): void {
  if (typeof given !== 'object' || given === null) throw refuse('expected an object with type x509, psk or anon');
  const fields = Object.hasOwn(FIELDS, given.type) ? FIELDS[given.type] : undefined;
  if (!fields) throw refuse(`type is '${String(given.type)}', not x509, psk or anon`);
  for (const [name, value] of Object.entries(given)) {
    const type = Object.hasOwn(fields, name) ? fields[name] : undefined;
    if (type === undefined) throw refuse(`${name} is not a field of type ${given.type}`);
    if (value === undefined) continue;
    if (typeof value !== type || value === '') throw refuse(`${name} is not a ${type}`);
  }
}

const FIELDS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  x509: { type: 'string', dir: 'string', 'verify-peer': 'boolean' },
  psk: { type: 'string', dir: 'string', file: 'string', username: 'string' },
  anon: { type: 'string' },
};

async function loadX509(given: X509Credentials, endpoint: TlsEndpoint): Promise<LoadedCredentials> {
  const { dir, 'verify-peer': verifyPeer = true } = given;
  if (dir === undefined) {
    if (endpoint === 'server') throw refuse('a server needs dir, where its certificate is');
    return { type: 'x509', verifyPeer, ca: rootCertificates, crl: undefined, cert: undefined, key: undefined };
  }
  const [ca, crl, cert, key] = await Promise.all(
    ['ca-cert.pem', 'ca-crl.pem', `${endpoint}-cert.pem`, `${endpoint}-key.pem`].map((name) => read(join(dir, name))),
  );
  const need = (what: string | undefined, name: string): void => {
    if (what === undefined) throw missing(join(dir, name));
  };
  if (verifyPeer) need(ca, 'ca-cert.pem');
  if (endpoint === 'server' || key !== undefined) need(cert, `${endpoint}-cert.pem`);
  if (endpoint === 'server' || cert !== undefined) need(key, `${endpoint}-key.pem`);
  tryContext(join(dir, 'ca-cert.pem'), { ca });
  tryContext(join(dir, 'ca-crl.pem'), { crl });
  tryContext(join(dir, `${endpoint}-cert.pem`), { cert });
  tryContext(join(dir, `${endpoint}-key.pem`), { cert, key });
  return { type: 'x509', verifyPeer, ca, crl, cert, key };
}

/** Says of a file that OpenSSL does not take that it does not, in its words, which quote nothing of the file. */
function tryContext(path: string, part: Parameters<typeof createSecureContext>[0]): void {
  try {
    createSecureContext(part);
  } catch (error) {
    const { reason, message } = error as Error & { readonly reason?: string };
    throw refuse(`'${path}' is not usable: ${reason ?? message.replace(/^error:[^:]*:/, '')}`);
  }
}

async function loadPsk(given: PskCredentials, endpoint: TlsEndpoint): Promise<LoadedCredentials> {
  const { dir, file, username = DEFAULT_USER } = given;
  if ((dir === undefined) === (file === undefined)) throw refuse('psk needs dir, where keys.psk is, or file');
  const path = file ?? join(dir!, 'keys.psk');
  const text = await read(path);
  if (text === undefined) throw missing(path);
  const keys = parseKeys(text, path);
  if (endpoint === 'client' && !keys.has(username)) throw refuse(`'${path}' has no key of user '${username}'`);
  return { type: 'psk', keys, username };
}

function parseKeys(text: string, path: string): Map<string, Uint8Array> {
  const keys = new Map<string, Uint8Array>();
  for (const [index, line] of text.split('\n').entries()) {
    if (line.trim() === '') continue;
    const [, user, hex] = /^([^:]+):((?:[0-9a-fA-F]{2})+)\s*$/.exec(line) ?? [];
    const where = `line ${index + 1} of '${path}'`;
    if (user === undefined || hex === undefined) throw refuse(`${where} is not USER:KEY, the key in hexadecimal`);
    if (new TextEncoder().encode(user).length > IDENTITY_MAX)
      throw refuse(`the user in ${where} has more than ${IDENTITY_MAX} bytes`);
    if (hex.length / 2 > KEY_MAX) throw refuse(`the key in ${where} has more than ${KEY_MAX} bytes`);
    if (keys.has(user)) throw refuse(`the user in ${where} had a key before`);
    keys.set(
      user,
      Uint8Array.from(hex.match(/../g)!, (digits) => Number.parseInt(digits, 16)),
    );
  }
  if (keys.size === 0) throw refuse(`'${path}' has no keys`);
  return keys;
}

/** Undefined where there is no such file. */
async function read(path: string): Promise<string | undefined> {
  try {
    // A FIFO would keep us waiting for its writer.
    await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const stat = await file.stat();
    if (!stat.isFile()) throw refuse(`'${path}' is not a file`);
    if (stat.size > FILE_MAX) throw refuse(`'${path}' is larger than ${FILE_MAX} bytes`);
    return await file.readFile('utf8');
  } catch (error) {
    if (error instanceof BlockError) throw error;
    const errno = errnoOf(error);
    if (errno === Errno.ENOENT) return undefined;
    throw new BlockError(errno, `Could not load TLS credentials: '${path}': ${errnoText(errno)}`);
  }
}

function missing(path: string): BlockError {
  return new BlockError(Errno.ENOENT, `Could not load TLS credentials: '${path}' is missing`);
}

function refuse(why: string): BlockError {
  return new BlockError(Errno.EINVAL, `Could not load TLS credentials: ${why}`);
}
