/** Certificates for tests and benchmarks, in folders with files of QEMU's names. By certtool. */
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { peer } from './harness.ts';

async function keyFor(folder: string, name: string): Promise<void> {
  await peer('certtool', '--generate-privkey', '--key-type', 'ecdsa', '--outfile', `${folder}/${name}-key.pem`);
}

/** Makes `folder` an authority: ca-cert.pem and ca-key.pem. */
export async function authority(folder: string, name: string): Promise<void> {
  mkdirSync(folder, { recursive: true });
  writeFileSync(`${folder}/ca.info`, `cn = ${name}\nca\ncert_signing_key\ncrl_signing_key\nexpiration_days = 30\n`);
  await keyFor(folder, 'ca');
  const files = ['--load-privkey', `${folder}/ca-key.pem`, '--template', `${folder}/ca.info`];
  await peer('certtool', '--generate-self-signed', ...files, '--outfile', `${folder}/ca-cert.pem`);
}

export interface Certificate {
  readonly endpoint: 'server' | 'client';
  readonly names?: string;
  readonly expired?: boolean;
}

/** A folder with a certificate of `ca`. */
export async function certificate(ca: string, folder: string, how: Certificate): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const { endpoint, names = 'dns_name = localhost\nip_address = 127.0.0.1', expired = false } = how;
  const times = expired
    ? 'activation_date = "2020-01-01 00:00:00"\nexpiration_date = "2020-01-02 00:00:00"'
    : 'expiration_days = 30';
  const subject = `country = GB\norganization = "Example, Org"\ncn = ${endpoint}`;
  writeFileSync(`${folder}/info`, `${subject}\n${names}\ntls_www_${endpoint}\n${times}\n`);
  await keyFor(folder, endpoint);
  const signer = ['--load-ca-certificate', `${ca}/ca-cert.pem`, '--load-ca-privkey', `${ca}/ca-key.pem`];
  const own = ['--load-privkey', `${folder}/${endpoint}-key.pem`, '--template', `${folder}/info`];
  const out = ['--outfile', `${folder}/${endpoint}-cert.pem`];
  await peer('certtool', '--generate-certificate', ...signer, ...own, ...out);
  copyFileSync(`${ca}/ca-cert.pem`, `${folder}/ca-cert.pem`);
}
