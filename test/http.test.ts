/** Images on web servers: the library and the command line, TLS, and QEMU's reading of the same server beside ours. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { BlockError, Errno } from '../src/base/errors.ts';
import { MiB } from '../src/base/units.ts';
import { RangeServer } from '../src/drivers/http/testing-server.ts';
import { create, type HttpSettings, inspect, open } from '../src/index.ts';
import { blockplane, certificate, needs, pattern, peer, run, scratch, serve } from './harness.ts';

const DATA = pattern(2 * MiB, 7);

/** A qcow2 image of 10 GiB with DATA at 0 and at 5 GiB. */
async function image(t: TestContext): Promise<{ readonly path: string; readonly bytes: Uint8Array }> {
  const path = join(scratch(t), 'disk.qcow2');
  await create(path, { size: 10 * 2 ** 30 });
  const disk = await open(path);
  for (const at of [0, 5 * 2 ** 30]) await disk.write(DATA, 0, DATA.length, at);
  await disk.close();
  return { path, bytes: readFileSync(path) };
}

async function refused(attempt: Promise<unknown>): Promise<BlockError> {
  const error = await attempt.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof BlockError, `not a BlockError: ${String(error)}`);
  return error;
}

test('the first sector of a 10 GiB qcow2 image takes three requests', { timeout: 120_000 }, async (t) => {
  const { bytes } = await image(t);
  const server = await RangeServer.start(t, bytes);
  await using disk = await open(server.url('/disk.qcow2?signature=x'));
  assert.equal(disk.size, 10 * 2 ** 30);
  const { buffer } = await disk.read(new Uint8Array(512), 0, 512, 0);
  assert.deepEqual(buffer, DATA.subarray(0, 512));
  assert.ok(server.asked.length <= 3, `${server.asked.length} requests`);
  const rest = await disk.read(new Uint8Array(DATA.length), 0, DATA.length, 5 * 2 ** 30);
  assert.deepEqual(rest.buffer, DATA);
});

test('a URL is read-only, its format is looked for, and a raw image is its bytes', { timeout: 120_000 }, async (t) => {
  const { bytes } = await image(t);
  const server = await RangeServer.start(t, bytes);
  const sizes = { '/disk': 10 * 2 ** 30, '/disk.img': 10 * 2 ** 30 };
  for (const [path, size] of Object.entries(sizes)) {
    await using disk = await open(server.url(path));
    assert.equal(disk.size, size);
    assert.equal(disk.readOnly, true);
  }
  await using raw = await open(server.url('/disk'), { format: 'raw' });
  assert.equal(raw.size, bytes.length);
  const { buffer } = await raw.read(new Uint8Array(4096), 0, 4096, 0);
  assert.deepEqual(buffer, new Uint8Array(bytes.subarray(0, 4096)));
  assert.equal((await refused(raw.write(new Uint8Array(1), 0, 1, 0))).errno, Errno.EPERM);
});

test('an error of a read says what the server did, to the thread that reads', { timeout: 120_000 }, async (t) => {
  const server = await RangeServer.start(t, DATA);
  await using disk = await open(server.url('/x', 'me:hush@'), { http: { readahead: 0 } });
  server.etag = '"2"';
  const error = await refused(disk.read(new Uint8Array(512), 0, 512, MiB));
  assert.equal(error.code, 'ESTALE');
  assert.match(error.message, /Could not read 'http:\/\/127.*\/x': .*changed on the server \(its ETag differs\)/);
  assert.doesNotMatch(error.message, /hush/);
});

test('names inside images lead to no server, and an image on a server to no file', { timeout: 120_000 }, async (t) => {
  const base = await RangeServer.start(t, DATA);
  const path = join(scratch(t), 'overlay.qcow2');
  await create(path, { size: MiB });
  await blockplane('amend', '-o', `backing_file=${base.url('/base.img')},backing_fmt=raw`, path);
  for (const references of ['none', 'directory', 'all'] as const) {
    const error = await refused(open(path, { references }));
    assert.match(error.message, /'http:' is not followed/);
  }
  assert.equal(base.asked.length, 0);
  const remote = await RangeServer.start(t, readFileSync(path));
  for (const name of ['/etc/passwd', base.url('/base.img'), 'other.qcow2']) {
    await blockplane('amend', '-o', `backing_file=${name},backing_fmt=raw`, path);
    remote.bytes = readFileSync(path);
    const error = await refused(open(remote.url('/disk.qcow2'), { references: 'all' }));
    assert.match(error.message, /it has a backing file .*option 'backing' is missing/);
  }
  assert.equal(base.asked.length, 0);
  assert.match(
    (await refused(create(path, { overwrite: true, backingFile: base.url('/x', 'u:hush@') }))).message,
    /not a file here/,
  );
});

test('info, check and the list of snapshots of an image on a server', { timeout: 40_000 }, async (t) => {
  const { path, bytes } = await image(t);
  const server = await RangeServer.start(t, bytes);
  const url = server.url('/disk.qcow2', 'me:hush@');
  const about = await inspect(url);
  assert.equal(about.virtualSize, 10 * 2 ** 30);
  assert.deepEqual(about.qcow2, (await inspect(path)).qcow2);
  const info = await blockplane('info', `${url}?hush`);
  assert.match(info.stdout, /^image: http:\/\/127.0.0.1:\d+\/disk.qcow2\?…\nfile format: qcow2\nvirtual size: 10 GiB/);
  const check = await blockplane('check', '--output', 'json', url);
  assert.equal(check.code, 0, check.stderr);
  assert.equal((await blockplane('snapshot', url)).code, 0);
  const wrong = await Promise.all([
    blockplane('info', url.replace(String(server.port), '1')),
    blockplane('resize', url, '20G'),
    blockplane('create', url, '20G'),
    blockplane('info', 'ftp://me:hush@127.0.0.1:1/x'),
    blockplane('check', '-r', 'all', url),
    blockplane('info', 'ftps://me:hush@127.0.0.1:1/x'),
  ]);
  assert.ok(wrong.every(({ code }) => code !== 0));
  assert.match(wrong[3].stderr, /ftp:.*connection refused/i);
  assert.match(wrong[5].stderr, /ftps:.*connection refused/i);
  for (const { stdout, stderr } of [info, check, ...wrong]) assert.doesNotMatch(stdout + stderr, /hush/);
});

test('serve: what clients read is what QEMU reads of the file', needs('qemu-img'), async (t) => {
  const { path, bytes } = await image(t);
  const server = await RangeServer.start(t, bytes);
  const authorized: (string | undefined)[] = [];
  server.script = ({ headers }) => {
    authorized.push(headers.authorization);
    return false;
  };
  const passwordFile = join(scratch(t), 'password');
  writeFileSync(passwordFile, 'hush\n');
  const options = ['--http-opts', `username=me,password-file=${passwordFile}`];
  const served = await serve(t, [...options, server.url('/disk.qcow2')]);
  await peer('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', served.uri(), path);
  assert.ok(authorized.includes(`Basic ${btoa('me:hush')}`));
  if (existsSync('/proc/self/cmdline')) {
    assert.doesNotMatch(readFileSync(`/proc/${served.child.pid}/cmdline`, 'latin1'), /hush/);
  }
  const { code, stdout, stderr } = await served.stop();
  assert.equal(code, 0);
  assert.doesNotMatch(stdout + stderr, /hush/);
});

test('serve: what clients read is what nbdkit reads from the same server', needs('nbdkit', 'qemu-img'), async (t) => {
  const server = await RangeServer.start(t, DATA);
  const served = await serve(t, ['--format', 'raw', server.url('/disk')]);
  const compare = `qemu-img compare -f raw -F raw "$uri" '${served.uri()}'`;
  const { code, stdout, stderr } = await run('nbdkit', [
    '-U',
    '-',
    '-r',
    'curl',
    `url=${server.url()}`,
    '--run',
    compare,
  ]);
  if (stderr.includes('cannot open plugin')) t.skip('nbdkit has no curl plugin here');
  else assert.equal(code, 0, stdout + stderr);
});

test('an option of --http-opts that is a secret is not taken', async () => {
  const { code, stderr } = await blockplane('info', '--http-opts', 'password=hush', 'http://127.0.0.1:1/');
  assert.notEqual(code, 0);
  assert.match(stderr, /Unknown option 'password' of http: .*password-file/);
  assert.doesNotMatch(stderr, /hush/);
});

async function firstByte(url: string, http: HttpSettings): Promise<number> {
  await using disk = await open(url, { http: { retries: 0, ...http } });
  const { buffer } = await disk.read(new Uint8Array(1), 0, 1, MiB);
  return buffer[0]!;
}

test('a certificate must be trusted and for the host', needs('openssl'), async (t) => {
  const right = await certificate(t, 'IP:127.0.0.1');
  const server = await RangeServer.start(t, DATA, right);
  const error = await refused(firstByte(server.url(), {}));
  assert.equal(error.errno, Errno.EACCES);
  assert.match(error.message, /cannot be trusted: DEPTH_ZERO_SELF_SIGNED_CERT/);
  assert.equal(await firstByte(server.url(), { cafile: right.path }), DATA[MiB]);
  assert.equal(await firstByte(server.url(), { sslverify: false }), DATA[MiB]);
  const other = await certificate(t, 'DNS:other.example');
  const wrong = await RangeServer.start(t, DATA, other);
  assert.match((await refused(firstByte(wrong.url(), { cafile: other.path }))).message, /ALTNAME/);
  assert.equal(wrong.asked.length, 0);
});

test('from https to http only where that is allowed; from http to https always', needs('openssl'), async (t) => {
  const secure = await RangeServer.start(t, DATA, await certificate(t, 'IP:127.0.0.1'));
  const plain = await RangeServer.start(t, DATA);
  secure.script = (_asked, response) => void response.writeHead(301, { location: plain.url() }).end();
  const error = await refused(firstByte(secure.url('/', 'me:hush@'), { sslverify: false }));
  assert.match(error.message, /redirects from https to http/);
  assert.equal(plain.asked.length, 0);
  assert.equal(await firstByte(secure.url(), { sslverify: false, 'insecure-redirects': true }), DATA[MiB]);
  secure.script = undefined;
  plain.script = (_asked, response) => void response.writeHead(301, { location: secure.url() }).end();
  assert.equal(await firstByte(plain.url(), { sslverify: false }), DATA[MiB]);
});

test('https goes through a proxy by CONNECT; one that refuses is an error', needs('openssl'), async (t) => {
  const server = await RangeServer.start(t, DATA, await certificate(t, 'IP:127.0.0.1'));
  const asked: { readonly place: string; readonly authorization: string | undefined }[] = [];
  let status = 200;
  const sockets: Socket[] = [];
  const proxy = createServer();
  proxy.on('connect', (request: IncomingMessage, socket: Socket) => {
    asked.push({ place: request.url ?? '', authorization: request.headers['proxy-authorization'] });
    socket.write(`HTTP/1.1 ${status} x\r\n\r\n`);
    if (status !== 200) socket.end();
    const onward = connect(server.port, '127.0.0.1').on('error', () => undefined);
    sockets.push(
      socket.on('error', () => undefined),
      onward,
    );
    socket.pipe(onward).pipe(socket);
  });
  proxy.listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    proxy.close();
  });
  const http = { sslverify: false, proxy: `http://p:hush@127.0.0.1:${(proxy.address() as AddressInfo).port}` };
  assert.equal(await firstByte(server.url(), http), DATA[MiB]);
  assert.equal(asked[0]?.place, `127.0.0.1:${server.port}`);
  assert.equal(asked[0]?.authorization, `Basic ${btoa('p:hush')}`);
  status = 407;
  const error = await refused(firstByte(server.url(), http));
  assert.match(error.message, /the proxy answered 407/);
  assert.doesNotMatch(error.message, /hush/);
});

test('serve --download serves an image from a server without ranges', needs('qemu-img'), async (t) => {
  const { path, bytes } = await image(t);
  const server = await RangeServer.start(t, bytes);
  server.script = (_asked, response) =>
    void response.writeHead(200, { 'content-length': String(bytes.length) }).end(bytes);
  const { code, stderr } = await blockplane('serve', server.url('/disk.qcow2'));
  assert.equal(code, 1);
  assert.match(stderr, /^blockplane: [^\n]*does not serve ranges[^\n]*'download'[^\n]*\n$/);
  const served = await serve(t, ['--download', server.url('/disk.qcow2')]);
  await peer('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', served.uri(), path);
  assert.equal((await served.stop()).code, 0);
});

test('serve --overlay: what was read of a URL is not fetched again after a restart', needs('nbdcopy'), async (t) => {
  const server = await RangeServer.start(t, DATA);
  const dir = scratch(t);
  const words = ['--format', 'raw', '--overlay', join(dir, 'mine.qcow2'), server.url()];
  for (const round of [0, 1]) {
    server.asked.length = 0;
    const served = await serve(t, words);
    await peer('nbdcopy', served.uri(), join(dir, `${round}.raw`));
    assert.deepEqual(new Uint8Array(readFileSync(join(dir, `${round}.raw`))), DATA);
    assert.equal((await served.stop()).code, 0);
    const behind = server.asked.filter(({ last }) => last >= 256 * 1024);
    assert.equal(behind.length > 0, round === 0, `round ${round}: ${behind.length} requests`);
  }
});

test('serve: a token and cookies from secret objects reach the server and nobody else', {
  timeout: 60_000,
}, async (t) => {
  const server = await RangeServer.start(t, DATA);
  const dir = scratch(t);
  for (const name of ['token', 'crumb']) writeFileSync(join(dir, name), `hush-${name}\n`);
  const objects = ['token', 'crumb'].flatMap((name) => ['--object', `secret,id=${name},file=${join(dir, name)}`]);
  const given = ['--http-opts', 'bearer-token-secret=token,cookie-secret=crumb'];
  const served = await serve(t, ['--format', 'raw', ...objects, ...given, server.url()]);
  for (const { headers } of server.asked) {
    assert.deepEqual([headers.authorization, headers.cookie], ['Bearer hush-token', 'hush-crumb']);
  }
  assert.ok(server.asked.length > 0);
  if (existsSync('/proc/self/cmdline')) {
    assert.doesNotMatch(readFileSync(`/proc/${served.child.pid}/cmdline`, 'latin1'), /hush/);
  }
  const { code, stdout, stderr } = await served.stop();
  assert.equal(code, 0);
  assert.doesNotMatch(stdout + stderr, /hush/);
});
