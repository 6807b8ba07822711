import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { BlockError } from '../base/errors.ts';
import { loadCredentials } from './credentials.ts';
import type { TlsCredentials, TlsEndpoint } from './options.ts';
import { distinguishedName, TlsServerSide } from './side.ts';

const SECRET = 'c0ffee'.repeat(8);

function folder(t: TestContext, files: Readonly<Record<string, string>> = {}): string {
  const path = mkdtempSync(join(tmpdir(), 'blockplane-tls-'));
  t.after(() => rmSync(path, { recursive: true }));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(path, name), text);
  return path;
}

async function refused(given: unknown, message: RegExp, code = 'EINVAL', endpoint: TlsEndpoint = 'server') {
  await assert.rejects(loadCredentials(given as TlsCredentials, endpoint), (error: unknown) => {
    assert.ok(error instanceof BlockError);
    assert.equal(error.code, code);
    assert.match(error.message, /^Could not load TLS credentials: /);
    assert.match(error.message, message);
    assert.ok(!`${error.stack}${JSON.stringify(error)}`.includes(SECRET), 'no secret is told');
    return true;
  });
}

test('credentials that cannot be are refused by their field', async () => {
  await refused(null, /expected an object/);
  await refused({ type: 'x509' }, /a server needs dir/);
  await refused({ type: 'kerberos' }, /type is 'kerberos'/);
  await refused({ type: 'toString' }, /type is 'toString'/);
  await refused({ type: 'x509', dir: 3 }, /dir is not a string/);
  await refused({ type: 'x509', dir: '/x', 'verify-peer': 'no' }, /verify-peer is not a boolean/);
  await refused({ type: 'anon', dir: '/x' }, /dir is not a field of type anon/);
  await refused({ type: 'psk' }, /psk needs dir/);
  await refused({ type: 'psk', dir: '/x', file: '/y' }, /psk needs dir/);
});

test('keys are read as GnuTLS writes them; a line that is none is named, and nothing of it told', async (t) => {
  const file = join(folder(t), 'keys.psk');
  const given = { type: 'psk', file } as const;
  const write = (text: string): void => writeFileSync(file, text);
  write(`alice:00ff\n\nbob marley:${SECRET}\r\n`);
  const loaded = await loadCredentials(given, 'server');
  assert.ok(loaded.type === 'psk');
  assert.deepEqual(loaded.keys.get('alice'), new Uint8Array([0, 255]));
  assert.deepEqual([...loaded.keys.keys()], ['alice', 'bob marley']);
  await refused(given, /no key of user 'qemu'/, 'EINVAL', 'client');
  for (const [text, why] of [
    [`alice:00\nbob ${SECRET}`, /line 2 of .* is not USER:KEY/],
    [`:${SECRET}`, /line 1/],
    [`alice:${SECRET}0`, /line 1/],
    [`alice:${SECRET}xy`, /line 1/],
    [`alice:${SECRET}\nalice:${SECRET}`, /line 2 .* had a key before/],
    [`${'a'.repeat(129)}:${SECRET}`, /more than 128 bytes/],
    [`alice:${SECRET.repeat(11)}`, /more than 256 bytes/],
    ['\n', /has no keys/],
  ] as const) {
    write(text);
    await refused(given, why);
  }
});

test('files that are missing, no files, too large or no PEM are named', async (t) => {
  const dir = folder(t);
  const given = { type: 'x509', dir } as const;
  await refused(given, /ca-cert.pem' is missing/, 'ENOENT');
  await refused({ ...given, 'verify-peer': false }, /server-cert.pem' is missing/, 'ENOENT');
  await refused({ type: 'psk', dir }, /keys.psk' is missing/, 'ENOENT');
  writeFileSync(join(dir, 'ca-cert.pem'), SECRET);
  writeFileSync(join(dir, 'server-cert.pem'), SECRET);
  writeFileSync(join(dir, 'server-key.pem'), SECRET);
  await refused(given, /pem' is not usable: /);
  writeFileSync(join(dir, 'ca-cert.pem'), Buffer.alloc(2 ** 20 + 1));
  await refused(given, /larger than 1048576 bytes/);
  rmSync(join(dir, 'ca-cert.pem'));
  execFileSync('mkfifo', [join(dir, 'ca-cert.pem')]);
  await refused(given, /is not a file/);
});

test('an encrypted key needs its passphrase, which nothing tells', async (t) => {
  const dir = folder(t);
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const pem = { type: 'pkcs8', format: 'pem' } as const;
  writeFileSync(join(dir, 'plain.pem'), privateKey.export(pem));
  const own = ['-new', '-x509', '-days', '2', '-subj', '/CN=localhost', '-key', join(dir, 'plain.pem')];
  execFileSync('openssl', ['req', ...own, '-out', join(dir, 'server-cert.pem')]);
  copyFileSync(join(dir, 'server-cert.pem'), join(dir, 'ca-cert.pem'));
  const encrypted = privateKey.export({ ...pem, cipher: 'aes-256-cbc', passphrase: SECRET });
  writeFileSync(join(dir, 'server-key.pem'), encrypted);
  const given = { type: 'x509', dir } as const;
  const loaded = await loadCredentials({ ...given, passphrase: SECRET }, 'server');
  assert.ok(new TlsServerSide(loaded));
  await refused(given, /server-key.pem' is not usable: /);
  await refused({ ...given, passphrase: `${SECRET}x` }, /server-key.pem' is not usable: /);
  await refused({ ...given, passphrase: 3 }, /passphrase is not a string/);
});

test('who may come in can be said only where clients show who they are', () => {
  const said = { code: 'EINVAL', message: /tls-authz/ };
  assert.throws(() => new TlsServerSide({ type: 'anon' }, ['CN=x']), said);
  assert.throws(() => new TlsServerSide({ type: 'psk', keys: new Map(), username: '' }, ['CN=x']), said);
});

test('a distinguished name is one line, in the order of the certificate', () => {
  assert.equal(distinguishedName('C=GB\nO=Example\\, Org\nCN=client'), 'C=GB,O=Example\\, Org,CN=client');
});
