/**
 * Reads TLS credentials from files of QEMU's names. Keys are read in the thread that uses them, and stand in no
 * message, error or log: what is wrong with a file is said by its name and a line's number.
 */
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { createSecureContext, rootCertificates } from 'node:tls';
import { BlockError, Errno, errnoOf, errnoText } from '../base/errors.ts';
import { MiB } from '../base/units.ts';
import {
  checkCredentials,
  type PskCredentials,
  refuseCredentials as refuse,
  type TlsCredentials,
  type TlsEndpoint,
  type X509Credentials,
} from './options.ts';

/** What was read: secrets, for the thread that uses them. */
export type LoadedCredentials =
  | {
      readonly type: 'x509';
      readonly verifyPeer: boolean;
      readonly ca: string | readonly string[] | undefined;
      readonly crl: string | undefined;
      readonly cert: string | undefined;
      readonly key: string | undefined;
      readonly passphrase: string | undefined;
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

async function loadX509(given: X509Credentials, endpoint: TlsEndpoint): Promise<LoadedCredentials> {
  const { dir, 'verify-peer': verifyPeer = true, passphrase } = given;
  if (dir === undefined) {
    if (endpoint === 'server') throw refuse('a server needs dir, where its certificate is');
    const none = { crl: undefined, cert: undefined, key: undefined, passphrase };
    return { type: 'x509', verifyPeer, ca: rootCertificates, ...none };
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
  tryContext(join(dir, `${endpoint}-key.pem`), { cert, key, passphrase });
  return { type: 'x509', verifyPeer, ca, crl, cert, key, passphrase };
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
