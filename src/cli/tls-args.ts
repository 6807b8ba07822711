/** The TLS options of `serve`. */
import type { TlsServerOptions } from '../lib/tls-options.ts';
import { oneOf } from './image-args.ts';
import { UsageError } from './report.ts';

/** As commander delivers them. */
export interface RawTlsOptions {
  readonly tls?: string;
  readonly tlsCertificates?: string;
  readonly tlsPsk?: string;
  /** False with --no-tls-verify-peer. */
  readonly tlsVerifyPeer?: boolean;
  readonly tlsAuthz?: readonly string[];
}

/** Undefined: no TLS. Credentials alone mean that it is required. Throws {@link UsageError}. */
export function tlsOptions(raw: RawTlsOptions): TlsServerOptions | undefined {
  const { tlsCertificates: dir, tlsPsk: file, tlsVerifyPeer: verify = true, tlsAuthz: names = [] } = raw;
  if (dir !== undefined && file !== undefined) {
    throw new UsageError('--tls-certificates and --tls-psk: give one of them');
  }
  if (dir === undefined && (!verify || names.length > 0)) {
    throw new UsageError('--tls-authz and --no-tls-verify-peer: only with --tls-certificates');
  }
  if (!verify && names.length > 0) throw new UsageError('--tls-authz: not with --no-tls-verify-peer');
  const given = dir !== undefined || file !== undefined;
  const mode = oneOf(raw.tls, ['off', 'on', 'require'] as const, '--tls') ?? (given ? 'require' : 'off');
  if (mode === 'off') return undefined;
  const required = mode === 'require';
  const authz = names.length > 0 ? names : undefined;
  if (dir !== undefined) return { type: 'x509', dir, 'verify-peer': verify, required, authz };
  if (file !== undefined) return { type: 'psk', file, required };
  throw new UsageError(`--tls ${mode}: --tls-certificates or --tls-psk is missing`);
}
