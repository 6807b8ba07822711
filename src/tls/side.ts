/** The two sides of a TLS handshake on a stream of Node's, and who is let in. Home thread. */
import { constants } from 'node:crypto';
import { isIP, type Socket } from 'node:net';
import * as tls from 'node:tls';
import { Gate } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { Authorizer, type Authz } from './authz.ts';
import { type LoadedCredentials, loadCredentials } from './credentials.ts';
import type { TlsCredentials } from './options.ts';

/** One side of the handshake. */
export interface TlsSide {
  /** Runs it on `stream`, and answers the stream inside. Rejects with BlockError, whose message is the end of a
   *  sentence that begins with the peer; the stream is destroyed then. A stream that is destroyed meanwhile ends it. */
  handshake(stream: Socket): Promise<tls.TLSSocket>;
}

/** TLS 1.3 gives a pre-shared key without a hash SHA-256, so its suite has to have that one too. */
const PSK_CIPHERS = [
  ...['TLS_AES_128_GCM_SHA256', 'TLS_CHACHA20_POLY1305_SHA256'],
  ...['ECDHE-PSK-CHACHA20-POLY1305', 'DHE-PSK-AES128-GCM-SHA256', 'DHE-PSK-AES256-GCM-SHA384'],
].join(':');
/** Nobody is authenticated, which OpenSSL allows at its lowest level only. */
const ANON_CIPHERS = 'ADH-AES256-GCM-SHA384:ADH-AES128-GCM-SHA256:@SECLEVEL=0';
/** What a peer's certificate says is quoted so far. */
const TEXT_MAX = 200;

function contextOptions(loaded: LoadedCredentials): tls.SecureContextOptions {
  const common: tls.SecureContextOptions = {
    minVersion: 'TLSv1.2',
    // A peer that negotiates again and again costs us and nobody else.
    secureOptions: constants.SSL_OP_NO_RENEGOTIATION,
  };
  switch (loaded.type) {
    case 'x509': {
      const { ca, crl, cert, key, passphrase } = loaded;
      return { ...common, ca: ca as string | string[], crl, cert, key, passphrase };
    }
    case 'psk':
      return { ...common, ciphers: PSK_CIPHERS, dhparam: 'auto' };
    default:
      return { ...common, ciphers: ANON_CIPHERS, dhparam: 'auto', maxVersion: 'TLSv1.2' };
  }
}

/** Reads the credentials of a server. `allowed`: see {@link TlsServerSide}. */
export async function serverSide(given: TlsCredentials, allowed?: Authz): Promise<TlsSide> {
  return new TlsServerSide(await loadCredentials(given, 'server'), allowed);
}

/** Reads the credentials of a client. `host`: see {@link TlsClientSide}. */
export async function clientSide(given: TlsCredentials, host: string | undefined): Promise<TlsSide> {
  return new TlsClientSide(await loadCredentials(given, 'client'), host);
}

/** The server's. `allowed`: who may come in, by the distinguished name of its certificate; undefined: anybody. */
export class TlsServerSide implements TlsSide {
  readonly #options: tls.TlsOptions;
  readonly #verify: boolean;
  readonly #allowed: Authorizer | undefined;

  /** Throws EINVAL where `allowed` names clients that need not say who they are. */
  constructor(loaded: LoadedCredentials, allowed?: Authz) {
    this.#verify = loaded.type === 'x509' && loaded.verifyPeer;
    if (allowed && !this.#verify) {
      throw new BlockError(Errno.EINVAL, 'tls-authz: only with x509 credentials and verify-peer are clients known');
    }
    this.#allowed = allowed && new Authorizer(allowed);
    this.#options = {
      ...contextOptions(loaded),
      // Whom to refuse, and for what reason, is decided below.
      ...{ requestCert: this.#verify, rejectUnauthorized: false },
      ...(loaded.type === 'psk' ? { pskCallback: (_, identity) => loaded.keys.get(identity) ?? null } : {}),
    };
  }

  async handshake(stream: Socket): Promise<tls.TLSSocket> {
    const gate = new Gate<tls.TLSSocket>();
    // One for each connection: sessions of one client are not taken up by another, and nothing is shared to be checked.
    const server = tls.createServer(this.#options);
    server.once('secureConnection', (socket) => gate.open(socket));
    server.on('tlsClientError', (error) => gate.fail(failure(error)));
    // A client that says no more ends its handshake; half open is for what comes later.
    stream.allowHalfOpen = false;
    server.emit('connection', stream);
    return await decide(stream, gate, (socket) => this.#judge(socket));
  }

  /** Why `socket` is refused. */
  #judge(socket: tls.TLSSocket): string | undefined {
    if (!this.#verify) return undefined;
    const certificate = socket.getPeerX509Certificate();
    if (!certificate) return 'it showed no certificate';
    if (!socket.authorized) return `its certificate is not accepted: ${quoted(socket.authorizationError)}`;
    const name = distinguishedName(certificate.subject);
    if (this.#allowed && !this.#allowed.allows(name)) return `'${quoted(name)}' is not among those who may come in`;
    return undefined;
  }
}

/** The client's. `host`: whose certificate it has to be; undefined: nobody's is looked at, or there are none. */
export class TlsClientSide implements TlsSide {
  readonly #options: tls.ConnectionOptions;

  constructor(loaded: LoadedCredentials, host: string | undefined) {
    const verify = loaded.type === 'x509' && loaded.verifyPeer;
    // A name is told to the server; an address is not one.
    const name = host === undefined || isIP(host) !== 0 ? {} : { servername: host };
    this.#options = {
      ...contextOptions(loaded),
      ...{ host, ...name, rejectUnauthorized: verify },
      ...(loaded.type === 'psk' ? pskClient(loaded.keys.get(loaded.username)!, loaded.username) : {}),
    };
  }

  async handshake(stream: Socket): Promise<tls.TLSSocket> {
    const gate = new Gate<tls.TLSSocket>();
    const socket = tls.connect({ ...this.#options, socket: stream });
    const onError = (error: Error): void => gate.fail(failure(error));
    socket.once('error', onError);
    socket.once('secureConnect', () => gate.open(socket));
    return await decide(stream, gate, () => undefined);
  }
}

function pskClient(psk: Uint8Array, identity: string): tls.ConnectionOptions {
  return {
    pskCallback: () => ({ psk, identity }),
    // The key is who the server is. Without it there is no connection.
    rejectUnauthorized: true,
    checkServerIdentity: () => undefined,
  };
}

/** Waits for the handshake's end; a stream that is closed before ends it. */
async function decide(
  stream: Socket,
  gate: Gate<tls.TLSSocket>,
  judge: (socket: tls.TLSSocket) => string | undefined,
): Promise<tls.TLSSocket> {
  const onClose = (): void => {
    if (!gate.opened) gate.fail(new BlockError(Errno.ECONNRESET, 'the connection has ended in the TLS handshake'));
  };
  stream.once('close', onClose);
  if (stream.destroyed) onClose();
  try {
    const socket = await gate.promise;
    // Errors are the business of whom the stream goes to; until then nobody's.
    socket.on('error', ignore);
    const why = judge(socket);
    socket.allowHalfOpen = true;
    if (why === undefined) return socket;
    socket.destroy();
    throw new BlockError(Errno.EACCES, why);
  } catch (error) {
    stream.destroy();
    throw error;
  } finally {
    stream.off('close', onClose);
  }
}

function ignore(): void {}

/** What OpenSSL and Node say, as the end of a sentence that begins with the peer. */
function failure(error: Error): BlockError {
  const { code = '', reason } = error as NodeJS.ErrnoException & { readonly reason?: string };
  if (code === 'ECONNRESET' || code === 'EPIPE') {
    return new BlockError(Errno.ECONNRESET, 'it ended the connection in the TLS handshake');
  }
  // OpenSSL's reasons are the library's own; a certificate's are named by code.
  if (code.startsWith('ERR_SSL_') || (reason !== undefined && !code.startsWith('ERR_TLS_'))) {
    return new BlockError(Errno.EPROTO, `the TLS handshake failed: ${quoted(reason ?? code)}`);
  }
  return new BlockError(Errno.EACCES, `its certificate is not accepted: ${quoted(error.message)}`);
}

function quoted(text: unknown): string {
  const clean = String(text).replace(/\p{C}/gu, '?');
  return clean.length > TEXT_MAX ? `${clean.slice(0, TEXT_MAX)}...` : clean;
}

/** 'C=GB,O=Example,CN=laptop': the parts in the certificate's order, special characters escaped as in RFC 4514.
 *  `lines`: as X509Certificate has them, escaped already and one a line. */
export function distinguishedName(lines: string): string {
  return lines.split('\n').join(',');
}
