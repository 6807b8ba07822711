/** The TLS options of `serve`. */
import type { TlsServerOptions } from '../lib/tls-options.ts';
import { oneOf } from './image-args.ts';
import { UsageError } from './report.ts';

/** As commander delivers them. */
export interface RawTlsOptions {
  readonly tls?: string;
  readonly tlsCertificates?: string;
  readonly tlsPsk?: string;
  /** Id of an object. */
  readonly tlsCreds?: string;
  /** False with --no-tls-verify-peer. */
  readonly tlsVerifyPeer?: boolean;
  readonly tlsAuthz?: readonly string[];
}

/** TLS with credentials that are an object, of this id. */
export interface TlsByObject extends Pick<TlsServerOptions, 'required' | 'authz'> {
  readonly creds: string;
}

/** Undefined: no TLS. Credentials alone mean that it is required. Throws {@link UsageError}. */
export function tlsOptions(raw: RawTlsOptions): TlsServerOptions | TlsByObject | undefined {
  const {
    tlsCertificates: dir,
    tlsPsk: file,
    tlsVerifyPeer: verify = true,
    tlsAuthz: names = [],
    tlsCreds: creds,
  } = raw;
  const ways = [dir, file, creds].filter((one) => one !== undefined).length;
  if (ways > 1) throw new UsageError('--tls-certificates, --tls-psk and --tls-creds: give one of them');
  if (dir === undefined && (!verify || (names.length > 0 && creds === undefined))) {
    throw new UsageError('--tls-authz and --no-tls-verify-peer: only with --tls-certificates');
  }
  if (!verify && names.length > 0) throw new UsageError('--tls-authz: not with --no-tls-verify-peer');
  const mode = oneOf(raw.tls, ['off', 'on', 'require'] as const, '--tls') ?? (ways > 0 ? 'require' : 'off');
  if (mode === 'off') return undefined;
  const required = mode === 'require';
  const authz = names.length > 0 ? names : undefined;
  if (dir !== undefined) return { type: 'x509', dir, 'verify-peer': verify, required, authz };
  if (file !== undefined) return { type: 'psk', file, required };
  if (creds !== undefined) return { creds, required, authz };
  throw new UsageError(`--tls ${mode}: --tls-certificates, --tls-psk or --tls-creds is missing`);
}
