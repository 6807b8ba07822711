/** TLS over NBD, both ways: with GnuTLS in qemu-nbd, qemu-img, nbdkit and libnbd's tools, and with ourselves. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import * as net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Duplex } from 'node:stream';
import { after, before, type TestContext, test } from 'node:test';
import * as tls from 'node:tls';
import { RawClient } from '../src/exports/nbd/raw-client.ts';
import { open, serveNbd } from '../src/index.ts';
import { Option, OptionReply } from '../src/proto/nbd/constants.ts';
import { encodeOption } from '../src/proto/nbd/option.ts';
import { blockplane, needs, pattern, peer, run, scratch, serve, sparse } from './harness.ts';
import { authority, certificate } from './pki.ts';

const MiB = 1024 * 1024;
const WITH_CERTTOOL = needs('certtool');

/** Certificates and keys, as QEMU names them: folders `server`, `client`, `other` (another CA), `expired`, ... */
let pki = '';

const KEY = '0123456789abcdef'.repeat(4);

before(async () => {
  pki = mkdtempSync(join(tmpdir(), 'blockplane-pki-'));
  mkdirSync(`${pki}/psk`);
  writeFileSync(`${pki}/psk/keys.psk`, `qemu:${KEY}\nalice:${KEY.replaceAll('0', 'f')}\n`);
  mkdirSync(`${pki}/wrong`);
  writeFileSync(`${pki}/wrong/keys.psk`, `qemu:${KEY.replaceAll('1', '2')}\n`);
  if (WITH_CERTTOOL.skip !== false) return;
  await Promise.all([authority(`${pki}/ca`, 'Test CA'), authority(`${pki}/ca2`, 'Other CA')]);
  await Promise.all([
    certificate(`${pki}/ca`, `${pki}/server`, { endpoint: 'server' }),
    certificate(`${pki}/ca`, `${pki}/client`, { endpoint: 'client' }),
    certificate(`${pki}/ca2`, `${pki}/stranger`, { endpoint: 'client' }),
    certificate(`${pki}/ca`, `${pki}/expired`, { endpoint: 'server', expired: true }),
    certificate(`${pki}/ca`, `${pki}/elsewhere`, { endpoint: 'server', names: 'dns_name = elsewhere.example' }),
    certificate(`${pki}/ca2`, `${pki}/impostor`, { endpoint: 'server' }),
  ]);
});
after(() => rmSync(pki, { recursive: true, force: true }));

/** Each kind of credentials: as a server of ours has it, and as peers and we name it as a client. */
const KINDS = [
  {
    kind: 'x509',
    serve: () => ['--tls-certificates', `${pki}/server`],
    object: (endpoint: string) => `tls-creds-x509,id=tls0,endpoint=${endpoint},dir=${pki}/${endpoint}`,
    libnbd: (socket: string) => `nbds+unix:///?socket=${socket}&tls-certificates=${pki}/client`,
    ours: (socket: string) => `nbds+unix:///?socket=${socket}&tls-certificates=${pki}/client&tls-hostname=localhost`,
    nbdkit: () => [`--tls-certificates=${pki}/server`, '--tls-verify-peer'],
  },
  {
    kind: 'psk',
    serve: () => ['--tls-psk', `${pki}/psk/keys.psk`],
    object: (endpoint: string) => `tls-creds-psk,id=tls0,endpoint=${endpoint},dir=${pki}/psk`,
    libnbd: (socket: string) => `nbds+unix://alice@/?socket=${socket}&tls-psk-file=${pki}/psk/keys.psk`,
    ours: (socket: string) => `nbds+unix:///?socket=${socket}&tls-psk-file=${pki}/psk/keys.psk&tls-username=alice`,
    nbdkit: () => [`--tls-psk=${pki}/psk/keys.psk`],
  },
] as const;

/** A server of somebody else's; resolves once it listens on `socket`. */
async function peerServer(t: TestContext, socket: string, command: string, ...args: string[]): Promise<ChildProcess> {
  const child = spawn(command, args, { stdio: 'ignore' });
  const exited = once(child, 'exit');
  t.after(async () => {
    child.kill('SIGKILL');
    await exited;
  });
  for (const end = performance.now() + 10_000; !existsSync(socket); ) {
    if (child.exitCode !== null || performance.now() > end) throw new Error(`${command} does not serve`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return child;
}

for (const { kind, serve: options, object, libnbd, ours, nbdkit } of KINDS) {
  for (const aio of ['ring', 'pool']) {
    const all = needs('certtool', 'qemu-img', 'nbdinfo', 'nbdcopy');
    test(`${kind}: qemu-img, nbdinfo and nbdcopy with a server of ours (${aio})`, all, async (t) => {
      const dir = scratch(t);
      const bytes = pattern(9 * MiB + 512);
      writeFileSync(`${dir}/in.img`, bytes);
      sparse(`${dir}/disk.img`, bytes.length);
      const socket = `${dir}/nbd.sock`;
      const served = await serve(t, ['--aio', aio, '--socket', socket, ...options(), `${dir}/disk.img`]);
      assert.equal(served.uri(), `nbds+unix:///?socket=${socket}`);
      assert.equal((await peer('nbdinfo', '--size', libnbd(socket))).trim(), String(bytes.length));
      await peer('nbdcopy', '--flush', '--connections=2', `${dir}/in.img`, libnbd(socket));
      const node = `driver=nbd,server.type=unix,server.path=${socket},tls-creds=tls0,tls-hostname=localhost`;
      const from = ['--object', object('client'), '--image-opts', node];
      await peer('qemu-img', 'convert', ...from, '-O', 'raw', `${dir}/out.img`);
      assert.ok(readFileSync(`${dir}/out.img`).equals(bytes));
      const { code } = await run('nbdinfo', ['--size', `nbd+unix:///?socket=${socket}`]);
      assert.notEqual(code, 0, 'nothing without TLS');
      const copied = await blockplane('copy', ours(socket), `${dir}/own.img`);
      assert.equal(copied.code, 0, copied.stderr);
      assert.ok(readFileSync(`${dir}/own.img`).equals(bytes));
      assert.equal((await served.stop()).code, 0);
      assert.ok(readFileSync(`${dir}/disk.img`).equals(bytes));
    });
  }

  test(`${kind}: a disk of qemu-nbd and one of nbdkit`, needs('certtool', 'qemu-nbd', 'nbdkit'), async (t) => {
    const dir = scratch(t);
    const bytes = pattern(5 * MiB);
    const listen = (name: string): string => `${dir}/${name}.sock`;
    const image = sparse(`${dir}/disk.img`, bytes.length);
    const own = ['--object', object('server'), '--tls-creds', 'tls0', '-f', 'raw', image];
    await peerServer(t, listen('qemu'), '/usr/bin/qemu-nbd', '-t', '-e', '8', '-k', listen('qemu'), ...own);
    const kit = ['-f', '-U', listen('kit'), '--tls=require', ...nbdkit(), 'memory', String(bytes.length)];
    await peerServer(t, listen('kit'), 'nbdkit', ...kit);
    for (const name of ['qemu', 'kit']) {
      await using disk = await open(ours(listen(name)));
      await disk.write(bytes, 0, bytes.length, 0);
      await disk.sync();
      const back = new Uint8Array(bytes.length);
      await disk.read(back, 0, back.length, 0);
      assert.deepEqual(back, bytes);
      await assert.rejects(open(`nbd+unix:///?socket=${listen(name)}`), { code: 'EACCES', message: /it wants TLS/ });
    }
  });
}

test('anon: qemu-img with a server of ours, and a disk of qemu-nbd', needs('qemu-img', 'qemu-nbd'), async (t) => {
  const dir = scratch(t);
  await using disk = await open(sparse(`${dir}/disk.img`, MiB));
  await using service = await serveNbd(disk, { socket: `${dir}/own.sock`, tls: { type: 'anon' } });
  assert.equal(service.uri, `nbds+unix:///?socket=${dir}/own.sock`);
  const node = `driver=nbd,server.type=unix,server.path=${dir}/own.sock,tls-creds=tls0`;
  const object = 'tls-creds-anon,id=tls0,endpoint=client';
  const info = await peer('qemu-img', 'info', '--output=json', '--object', object, '--image-opts', node);
  assert.equal((JSON.parse(info) as { 'virtual-size': number })['virtual-size'], MiB);
  const image = sparse(`${dir}/peer.img`, 2 * MiB);
  const server = ['--object', 'tls-creds-anon,id=tls0,endpoint=server', '--tls-creds', 'tls0', '-f', 'raw', image];
  await peerServer(t, `${dir}/qemu.sock`, '/usr/bin/qemu-nbd', '-t', '-k', `${dir}/qemu.sock`, ...server);
  await using remote = await open(`nbds+unix:///?socket=${dir}/qemu.sock`, { tls: { type: 'anon' } });
  assert.equal(remote.size, 2 * MiB);
});

test(
  'a client refuses a server of another CA, of another host, that is expired or revoked',
  WITH_CERTTOOL,
  async (t) => {
    const dir = scratch(t);
    await using disk = await open(sparse(`${dir}/disk.img`, MiB));
    const tls = { type: 'x509', dir: `${pki}/client`, hostname: 'localhost' } as const;
    for (const [name, why] of [
      ['impostor', /its certificate is not accepted: unable to verify|self.signed/],
      ['elsewhere', /its certificate is not accepted: Hostname.* localhost/],
      ['expired', /its certificate is not accepted: certificate has expired/],
    ] as const) {
      const server = { type: 'x509', dir: `${pki}/${name}`, 'verify-peer': false } as const;
      await using service = await serveNbd(disk, { socket: `${dir}/${name}.sock`, tls: server });
      await assert.rejects(open(service.uri, { tls }), { code: 'EACCES', message: why });
      // Whom nobody asks for can be anybody.
      const careless = { ...tls, 'verify-peer': false } as const;
      await using reached = await open(service.uri, { tls: careless });
      assert.equal(reached.size, MiB);
    }
    await using service = await serveNbd(disk, { port: 0, tls: { type: 'x509', dir: `${pki}/server` } });
    await using reached = await open(service.uri, { tls: { type: 'x509', dir: `${pki}/client` } });
    assert.equal(reached.size, MiB);
    // Node's own authorities do not know this one.
    await assert.rejects(open(service.uri), { code: 'EACCES', message: /not accepted/ });
    mkdirSync(`${dir}/crl`);
    for (const file of ['ca-cert.pem', 'client-cert.pem', 'client-key.pem']) {
      copyFileSync(`${pki}/client/${file}`, `${dir}/crl/${file}`);
    }
    writeFileSync(`${dir}/crl.info`, 'crl_next_update = 30\ncrl_number = 1\n');
    const signer = ['--load-ca-certificate', `${pki}/ca/ca-cert.pem`, '--load-ca-privkey', `${pki}/ca/ca-key.pem`];
    const revoked = ['--load-certificate', `${pki}/server/server-cert.pem`, '--template', `${dir}/crl.info`];
    await peer('certtool', '--generate-crl', ...signer, ...revoked, '--outfile', `${dir}/crl/ca-crl.pem`);
    const careful = { type: 'x509', dir: `${dir}/crl` } as const;
    await assert.rejects(open(service.uri, { tls: careful }), { code: 'EACCES', message: /certificate revoked/ });
  },
);

test(
  'a server lets in who has a certificate it trusts, and of those only the names it was told',
  WITH_CERTTOOL,
  async (t) => {
    const dir = scratch(t);
    await using disk = await open(sparse(`${dir}/disk.img`, MiB));
    const name = 'C=GB,O=Example\\, Org,CN=client';
    const base = { type: 'x509', dir: `${pki}/server` } as const;
    const enter = async (socket: string, folder: string): Promise<number> => {
      const tls = { type: 'x509', dir: folder, hostname: 'localhost' } as const;
      await using reached = await open(`nbds+unix:///?socket=${socket}`, { tls });
      return reached.size;
    };
    mkdirSync(`${dir}/nobody`);
    copyFileSync(`${pki}/ca/ca-cert.pem`, `${dir}/nobody/ca-cert.pem`);
    mkdirSync(`${dir}/stranger`);
    copyFileSync(`${pki}/ca/ca-cert.pem`, `${dir}/stranger/ca-cert.pem`);
    for (const file of ['client-cert.pem', 'client-key.pem']) {
      copyFileSync(`${pki}/stranger/${file}`, `${dir}/stranger/${file}`);
    }
    for (const [authz, friend] of [
      [undefined, true],
      [[name], true],
      [[`${name} `, 'CN=client'], false],
    ] as const) {
      await using service = await serveNbd(disk, { socket: `${dir}/nbd.sock`, tls: { ...base, authz } });
      assert.ok(service.secure);
      if (friend) assert.equal(await enter(`${dir}/nbd.sock`, `${pki}/client`), MiB);
      else await assert.rejects(enter(`${dir}/nbd.sock`, `${pki}/client`), { code: /ECONNRESET|EPIPE/ });
      await assert.rejects(enter(`${dir}/nbd.sock`, `${dir}/nobody`), { code: /ECONNRESET|EPIPE/ });
      await assert.rejects(enter(`${dir}/nbd.sock`, `${dir}/stranger`), { code: /ECONNRESET|EPIPE/ });
    }
  },
);

test('psk: a wrong key and an unknown user get nothing, and no key is told', async (t) => {
  const dir = scratch(t);
  const served = await serve(t, ['--tls-psk', `${pki}/psk/keys.psk`, sparse(`${dir}/disk.img`, MiB)]);
  const socket = decodeURIComponent(/socket=(.*)$/.exec(served.uri())![1]!);
  const told: string[] = [];
  for (const [file, user] of [
    [`${pki}/wrong/keys.psk`, 'qemu'],
    [`${pki}/mallory.psk`, 'mallory'],
  ]) {
    if (user === 'mallory') writeFileSync(file!, `mallory:${KEY}\n`);
    const { code, stderr } = await blockplane(
      ...['info', `nbds+unix:///?socket=${socket}&tls-psk-file=${file}&tls-username=${user}`],
    );
    assert.notEqual(code, 0);
    assert.match(stderr, /TLS handshake/);
    told.push(stderr);
  }
  assert.match(readFileSync(`/proc/${served.child.pid}/cmdline`, 'utf8'), /keys\.psk/);
  const { stdout, stderr } = await served.stop();
  const all = [stdout, stderr, ...told].join('\n');
  for (const key of [KEY, KEY.replaceAll('1', '2')]) assert.ok(!all.includes(key));
});

test('where TLS is optional both get in, and where it is required nobody without it', async (t) => {
  const dir = scratch(t);
  await using disk = await open(sparse(`${dir}/disk.img`, MiB));
  const psk = { type: 'psk', dir: `${pki}/psk` } as const;
  {
    await using service = await serveNbd(disk, { socket: `${dir}/both.sock`, tls: { ...psk, required: false } });
    await using secure = await open(service.uri, { tls: psk });
    await using plain = await open(`nbd+unix:///?socket=${dir}/both.sock`);
    assert.equal(secure.size, plain.size);
  }
  await using strict = await serveNbd(disk, { socket: `${dir}/tls.sock`, tls: psk });
  assert.ok(strict.secure);
  await assert.rejects(open(`nbd+unix:///?socket=${dir}/tls.sock`), { code: 'EACCES', message: /it wants TLS/ });
  // A server that has none: no fallback.
  await using without = await serveNbd(disk, { socket: `${dir}/plain.sock` });
  assert.equal(without.secure, false);
  const asking = open(`nbds+unix:///?socket=${dir}/plain.sock`, { tls: psk });
  await assert.rejects(asking, { code: 'EACCES', message: /does not have TLS, which was asked for/ });
});

test('TLS handshakes that stall, break off or are none end, within their time, and disturb nobody', async (t) => {
  const dir = scratch(t);
  await using disk = await open(sparse(`${dir}/disk.img`, MiB));
  const psk = { type: 'psk', dir: `${pki}/psk` } as const;
  await using service = await serveNbd(disk, { port: 0, handshakeSeconds: 3, tls: psk });
  const [address] = service.addresses;
  assert.ok(address?.kind === 'inet');
  const server = { type: 'inet', host: address.host, port: String(address.port) } as const;
  // One connection and no more, so that clients can be counted.
  const connections = 1;
  await using good = await open({ driver: 'nbd', server, connections, 'tls-creds': psk });
  const begin = async (): Promise<RawClient> => {
    const client = await RawClient.connect(address.port);
    await client.greet();
    const [reply] = await client.option(Option.STARTTLS);
    assert.equal(reply?.type, OptionReply.ACK);
    return client;
  };
  const hello = Buffer.from('16030100fa010000f60303', 'hex');
  const silent = await begin();
  const slow = await begin();
  slow.write(hello);
  const noise = await begin();
  noise.write(Buffer.from('IHAVEOPT\0\0\0\x03\0\0\0\0'.repeat(20)));
  const half = await begin();
  half.write(hello);
  half.socket.end();
  const gone = await begin();
  gone.write(hello);
  await gone.reset();
  const left = await begin();
  await left.destroy();
  // Those that broke off are gone before those that stall have used up their time.
  const stalled = [silent, slow].map((client) => client.closed.then(() => 'stalled'));
  while (service.clients > connections + 2) {
    const first = await Promise.race([...stalled, once(service, 'disconnect').then(() => 'left')]);
    assert.equal(first, 'left');
  }
  await Promise.all([silent, slow, noise, half].map((client) => client.closed));
  const bytes = pattern(4096);
  await good.write(bytes, 0, bytes.length, 0);
  const back = new Uint8Array(4096);
  await good.read(back, 0, back.length, 0);
  assert.deepEqual(back, bytes);
  while (service.clients > connections) await once(service, 'disconnect');
});

test('a client that leaves with its first word in TLS is let go of at once, whatever could not be sent', async (t) => {
  const dir = scratch(t);
  await using disk = await open(sparse(`${dir}/disk.img`, MiB));
  const path = `${dir}/nbd.sock`;
  // As long as a test may take: nobody is let go of for the time that has passed.
  await using service = await serveNbd(disk, {
    socket: path,
    handshakeSeconds: 600,
    tls: { type: 'psk', dir: `${pki}/psk` },
  });
  const left = once(service, 'disconnect');
  const client = await RawClient.connect(path);
  const { socket } = client;
  await client.greet();
  await client.option(Option.STARTTLS);
  // What TLS has to say after its first message is held back, and then comes together with the end.
  const held: Uint8Array[] = [];
  let hello = true;
  const wire = new Duplex({
    read: () => undefined,
    write(chunk: Uint8Array, _encoding, done) {
      if (hello) socket.write(chunk);
      else held.push(chunk);
      hello = false;
      done();
    },
  });
  socket.on('data', (chunk) => wire.push(chunk));
  const inside = tls.connect({
    socket: wire as net.Socket,
    ciphers: 'TLS_AES_128_GCM_SHA256',
    pskCallback: () => ({ psk: Buffer.from(KEY, 'hex'), identity: 'qemu' }),
    checkServerIdentity: () => undefined,
  });
  await once(inside, 'secureConnect');
  await new Promise((resolve) => inside.write(encodeOption(Option.STRUCTURED_REPLY), resolve));
  socket.write(Buffer.concat(held), () => socket.destroy());
  await left;
  assert.equal(service.clients, 0);
});

/** Between a client and a server: cuts, and holds back what the server says. */
async function between(t: TestContext, path: string, target: string) {
  const sockets = new Set<net.Socket>();
  /** The client of each connection to the server. */
  const pairs = new Map<net.Socket, net.Socket>();
  const proxy = net.createServer((client) => {
    const server = net.connect(target);
    pairs.set(server, client);
    for (const [one, other] of [
      [client, server],
      [server, client],
    ] as const) {
      sockets.add(one);
      one.on('error', () => undefined);
      one.on('close', () => other.destroy());
      one.pipe(other);
    }
  });
  proxy.listen(path);
  await once(proxy, 'listening');
  t.after(() => proxy.close());
  return {
    cut(): void {
      for (const socket of sockets) socket.destroy();
    },
    hold(): void {
      for (const server of pairs.keys()) server.unpipe().pause();
    },
    /** Everything that was held back; connections of later went on. */
    letGo(): void {
      for (const [server, client] of pairs) if (server.isPaused()) server.pipe(client);
    },
  };
}

const PSK_DISK = 64 * MiB;

test('a client that dies in the middle of TLS takes nothing with it', async (t) => {
  const dir = scratch(t);
  await using disk = await open(sparse(`${dir}/disk.img`, PSK_DISK));
  const tls = { type: 'psk', dir: `${pki}/psk` } as const;
  await using service = await serveNbd(disk, { socket: `${dir}/nbd.sock`, tls });
  const proxy = await between(t, `${dir}/proxy.sock`, `${dir}/nbd.sock`);
  const cut = await open(`nbds+unix:///?socket=${dir}/proxy.sock`, { tls });
  proxy.hold();
  const reads = Array.from({ length: 32 }, (_, i) => cut.read(new Uint8Array(MiB), 0, MiB, i * MiB));
  proxy.cut();
  const ends = await Promise.allSettled(reads);
  assert.ok(ends.some(({ status }) => status === 'rejected'));
  await cut.close();
  while (service.clients > 0) await once(service, 'disconnect');
  await using again = await open(service.uri, { tls });
  assert.equal((await again.read(new Uint8Array(MiB), 0, MiB, 0)).bytesRead, MiB);
});

test('a client by TLS that reads late gets all of it, and the others are served meanwhile', async (t) => {
  const dir = scratch(t);
  const bytes = pattern(PSK_DISK);
  writeFileSync(`${dir}/disk.img`, bytes);
  await using disk = await open(`${dir}/disk.img`);
  const tls = { type: 'psk', dir: `${pki}/psk` } as const;
  await using service = await serveNbd(disk, { socket: `${dir}/nbd.sock`, tls });
  const proxy = await between(t, `${dir}/proxy.sock`, `${dir}/nbd.sock`);
  await using late = await open(`nbds+unix:///?socket=${dir}/proxy.sock`, { tls });
  await using other = await open(service.uri, { tls });
  proxy.hold();
  const back = new Uint8Array(PSK_DISK);
  const reads = Array.from({ length: 64 }, (_, i) => late.read(back, i * MiB, MiB, i * MiB));
  const small = new Uint8Array(4096);
  for (let i = 0; i < 100; i++) await other.read(small, 0, small.length, i * 4096);
  proxy.letGo();
  await Promise.all(reads);
  assert.ok(Buffer.from(back).equals(bytes));
});

test('a service ends in the time it was given, also where a client by TLS does not read', async (t) => {
  const dir = scratch(t);
  await using disk = await open(sparse(`${dir}/disk.img`, PSK_DISK));
  const tls = { type: 'psk', dir: `${pki}/psk` } as const;
  await using service = await serveNbd(disk, { socket: `${dir}/nbd.sock`, tls });
  const proxy = await between(t, `${dir}/proxy.sock`, `${dir}/nbd.sock`);
  const late = await open(`nbds+unix:///?socket=${dir}/proxy.sock`, { tls });
  proxy.hold();
  const reads = Array.from({ length: 16 }, (_, i) => late.read(new Uint8Array(MiB), 0, MiB, i * MiB));
  const ends = Promise.allSettled(reads);
  while ((await service.stats()).requests === 0);
  await service.stop(0);
  assert.equal(service.clients, 0);
  proxy.cut();
  await ends;
  await late.close();
});
