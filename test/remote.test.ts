/** Disks that NBD servers have: URIs, peers' servers, and servers that are killed. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type BlockdevOptions, create, inspect, open } from '../src/index.ts';
import { driverConformance, openImage } from '../src/lib/conformance.ts';
import { blockplane, MAIN, needs, pattern, peer, scratch, serve, socketOf, sparse } from './harness.ts';

const MiB = 1024 * 1024;
const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';

/** A peer's server on a unix socket, that can be killed. */
class Server {
  readonly socket: string;
  readonly #command: string;
  readonly #args: readonly string[];
  #child: ChildProcess | undefined;

  constructor(command: string, args: readonly string[], socket: string) {
    this.#command = command;
    this.#args = args;
    this.socket = socket;
  }

  async start(): Promise<void> {
    const child = spawn(this.#command, this.#args, { stdio: ['ignore', 'ignore', 'pipe'] });
    this.#child = child;
    let words = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      words = (words + text).slice(-2000);
    });
    while (!(await accepts(this.socket))) {
      if (child.exitCode !== null) throw new Error(`${this.#command} has ended with ${child.exitCode}: ${words}`);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  }

  async kill(): Promise<void> {
    const child = this.#child;
    if (child === undefined) return;
    this.#child = undefined;
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  }
}

function accepts(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const client = connect(socket);
    client.on('error', () => resolve(false));
    client.on('connect', () => {
      client.destroy();
      resolve(true);
    });
  });
}

async function started(t: TestContext, command: string, args: readonly string[], socket: string): Promise<Server> {
  const server = new Server(command, args, socket);
  t.after(() => server.kill());
  await server.start();
  return server;
}

function target(socket: string, more: Readonly<Record<string, unknown>> = {}): BlockdevOptions {
  return { driver: 'nbd', server: { type: 'unix', path: socket }, discard: 'unmap', ...more } as BlockdevOptions;
}

// Peers' servers.

/** The suite on a server of its own for each test. */
function conformance(
  name: string,
  command: string,
  args: (socket: string, size: number, image: string) => string[],
): void {
  const { skip } = needs(command);
  driverConformance({
    test: (title, body) => test(title, { skip, timeout: 60_000 }, body),
    name: `nbd on ${name}`,
    writable: true,
    open: async (size) => {
      const folder = mkdtempSync(join(tmpdir(), 'blockplane-remote-'));
      const socket = `${folder}/socket`;
      const server = new Server(command, args(socket, size, sparse(`${folder}/image`, size)), socket);
      await server.start();
      const image = await openImage(target(socket) as never);
      return {
        blk: image.blk,
        async close() {
          await image.close();
          await server.kill();
          rmSync(folder, { recursive: true });
        },
      };
    },
  });
}

conformance('nbdkit memory', 'nbdkit', (socket, size) => ['-f', '-U', socket, 'memory', `size=${size}`]);
conformance('nbdkit without structured replies', 'nbdkit', (socket, size) => [
  '-f',
  '-n',
  '--no-sr',
  '-U',
  socket,
  'memory',
  `size=${size}`,
]);
conformance('qemu-nbd', 'qemu-nbd', (socket, _size, image) => [
  '-f',
  'raw',
  '-t',
  '-e',
  '8',
  '--discard=unmap',
  '-k',
  socket,
  image,
]);

// URIs.

test('open() takes NBD URIs, over unix sockets and TCP', async (t) => {
  const dir = scratch(t);
  const bytes = pattern(MiB);
  const path = sparse(`${dir}/a.img`, MiB);
  const unix = await serve(t, ['-x', 'the disk/ü', path]);
  {
    await using disk = await open(unix.uri());
    assert.equal(disk.size, MiB);
    await disk.write(bytes, 0, MiB, 0);
    await disk.sync();
  }
  assert.deepEqual(new Uint8Array(readFileSync(path)), bytes);
  await unix.stop();
  const tcp = await serve(t, ['--listen', '127.0.0.1:0', '-x', 'd', path]);
  for (const uri of [tcp.uri(), tcp.uri().replace('127.0.0.1', 'localhost')]) {
    await using disk = await open(uri, { readOnly: true });
    const { buffer } = await disk.read(Buffer.alloc(MiB), 0, MiB, 0);
    assert.deepEqual(new Uint8Array(buffer), bytes);
    await assert.rejects(disk.write(bytes, 0, 512, 0), { code: 'EPERM' });
  }
  await assert.rejects(open(tcp.uri().replace('nbd:', 'nbds:')), {
    code: 'EACCES',
    message: /it does not have TLS, which was asked for/,
  });
  await assert.rejects(open(tcp.uri().replace(/d$/, 'e')), { code: 'ENOENT', message: /no such export/ });
});

test('block status comes through, so that copies are sparse', async (t) => {
  const dir = scratch(t);
  const served = await serve(t, [sparse(`${dir}/a.img`, 64 * MiB)]);
  await using disk = await open(served.uri());
  await disk.write(pattern(65536), 0, 65536, 16 * MiB);
  const extents: unknown[] = [];
  for await (const { offset, length, zero } of disk.blockStatus()) extents.push([offset, length, zero]);
  assert.deepEqual(extents, [
    [0, 16 * MiB, true],
    [16 * MiB, 65536, false],
    [16 * MiB + 65536, 48 * MiB - 65536, true],
  ]);
});

test('serve hands an export on, as it is and as the disk in a qcow2 image', needs('qemu-img', 'qemu-io'), async (t) => {
  const dir = scratch(t);
  await create(`${dir}/a.qcow2`, { size: 8 * MiB });
  await peer('qemu-io', '-c', 'write -P 6 1M 64k', `${dir}/a.qcow2`);
  const far = await serve(t, ['-f', 'raw', '-x', 'far', `${dir}/a.qcow2`]);
  const near = await serve(t, ['-f', 'qcow2', far.uri()]);
  // In place: the file of the image cannot grow from this side.
  await peer('qemu-io', '-f', 'raw', '-c', 'read -P 6 1M 64k', '-c', 'write -P 7 1M 32k', '-c', 'flush', near.uri());
  await near.stop();
  const proxy = await serve(t, [far.uri()]);
  assert.match(await peer('qemu-img', 'info', proxy.uri()), /file format: qcow2/);
  await proxy.stop();
  await far.stop();
  await peer('qemu-img', 'check', '-q', `${dir}/a.qcow2`);
  await peer('qemu-io', '-c', 'read -P 7 1M 32k', '-c', 'read -P 6 1056k 32k', `${dir}/a.qcow2`);
});

test('image options, info and check on remote images', needs('qemu-img', 'qemu-io', 'qemu-nbd'), async (t) => {
  const dir = scratch(t);
  const path = `${dir}/a.qcow2`;
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, '16M');
  await peer('qemu-io', '-c', 'write -P 9 1M 1M', path);
  const far = await started(
    t,
    'qemu-nbd',
    ['-f', 'raw', '-t', '-e', '4', '-x', 'e', '-k', `${dir}/s`, path],
    `${dir}/s`,
  );
  const uri = `nbd+unix:///e?socket=${far.socket}`;
  const about = await inspect(uri);
  assert.deepEqual([about.format, about.virtualSize, about.allocatedSize], ['qcow2', 16 * MiB, null]);
  const info = await blockplane('info', '--output', 'json', uri);
  assert.equal(JSON.parse(info.stdout)['virtual-size'], 16 * MiB);
  assert.match((await blockplane('info', uri)).stdout, /disk size: unavailable/);
  assert.equal((await blockplane('check', '-f', 'qcow2', uri)).code, 0);
  const opts = `driver=qcow2,file.driver=nbd,file.server.type=unix,file.server.path=${far.socket},file.export=e`;
  const served = await serve(t, ['--image-opts', '-r', opts]);
  await peer('qemu-io', '-r', '-f', 'raw', '-c', 'read -P 9 1M 1M', '-c', 'read -P 0 2M 1M', served.uri());
});

test(
  "a server's dirty bitmap is asked for in the place of its holes",
  needs('qemu-img', 'qemu-io', 'qemu-nbd'),
  async (t) => {
    const dir = scratch(t);
    const path = `${dir}/a.qcow2`;
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, '4M');
    await peer('qemu-img', 'bitmap', '--add', '-g', '64k', path, 'b0');
    await peer('qemu-io', '-c', 'write -P 9 1M 100k', path);
    const args = ['-f', 'qcow2', '-r', '-t', '-e', '8', '-B', 'b0', '-k', `${dir}/s`, path];
    const qemu = await started(t, 'qemu-nbd', args, `${dir}/s`);
    const ours = await serve(t, ['-r', '-B', 'b0', path]);
    for (const socket of [qemu.socket, socketOf(ours.uri())]) {
      const options = { 'read-only': true, 'x-dirty-bitmap': 'qemu:dirty-bitmap:b0' };
      await using disk = await open(target(socket, options));
      const dirty: number[][] = [];
      for await (const { offset, length, data, zero } of disk.blockStatus()) {
        assert.equal(zero, false);
        if (!data) dirty.push([offset, length]);
      }
      assert.deepEqual(dirty, [[MiB, 128 * 1024]]);
      const other = target(socket, { ...options, 'x-dirty-bitmap': 'qemu:dirty-bitmap:b1' });
      await assert.rejects(open(other), { code: 'ENOENT', message: /does not have 'qemu:dirty-bitmap:b1'/ });
    }
  },
);

test('what cannot be said of a remote disk is refused by name', async (t) => {
  const dir = scratch(t);
  const bad = async (options: Readonly<Record<string, unknown>>, message: RegExp, code = 'EINVAL'): Promise<void> => {
    await assert.rejects(open({ driver: 'nbd', ...options } as unknown as BlockdevOptions), { code, message });
  };
  const server = { type: 'unix', path: `${dir}/s` };
  await bad({}, /'server.type' is missing/);
  await bad({ server: { type: 'vsock' } }, /'server.type' is 'vsock'/);
  await bad({ server: { type: 'unix' } }, /'server.path' is missing/);
  await bad({ server: { type: 'inet' } }, /'server.host' is missing/);
  await bad({ server: { type: 'inet', host: 'x', port: '0' } }, /'server.port' is '0'/);
  await bad({ server: { ...server, host: 'x' } }, /'server.host' is not for/);
  await bad({ server: { ...server, colour: 'x' } }, /unknown option 'server.colour'/);
  await bad({ server, connections: 17 }, /'connections' is 17/);
  await bad({ server, 'reconnect-delay': -1 }, /'reconnect-delay' is -1/);
  await bad({ server, export: 'x'.repeat(5000) }, /'export'/);
  await bad({ server, 'x-dirty-bitmap': 'b0' }, /'x-dirty-bitmap' is 'b0'/);
  await bad({ server, 'tls-creds': 'tls0' }, /No TLS credentials with id 'tls0'/, 'ENOENT');
  await bad({ server, 'tls-creds': { type: 'x509' } }, /'tls-hostname' is missing: a unix socket/);
  await bad({ server, 'tls-creds': { type: 'psk', dir: '/nowhere' } }, /keys.psk' is missing/, 'ENOENT');
  await bad({ server, 'tls-creds': { dir: '/nowhere' } }, /type is 'undefined'/);
  await bad({ server, 'tls-hostname': 'x' }, /'tls-creds' is missing/);
  await bad({ server: { ...server, path: `/${'x'.repeat(200)}` } }, /File name too long/, 'ENAMETOOLONG');
  await bad({ server }, /No such file/, 'ENOENT');
});

test('an image that names an NBD server leads nowhere', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  const served = await serve(t, [sparse(`${dir}/a.img`, MiB)]);
  await peer('qemu-img', 'create', '-q', '-u', '-f', 'qcow2', '-F', 'raw', '-b', served.uri(), `${dir}/o.qcow2`, '1M');
  for (const references of ['directory', 'all'] as const) {
    await assert.rejects(open(`${dir}/o.qcow2`, { references }), { code: 'EACCES', message: /is not followed/ });
  }
});

// Servers that are killed.

/** Blocks with one writer each: what has been acknowledged must be there, whatever became of the server. */
async function killed(t: TestContext, server: Server, kills: number): Promise<void> {
  await using disk = await open(target(server.socket, { 'reconnect-delay': 30, 'restart-loses-cache': false }));
  const workers = 16;
  const blocks = Math.floor(disk.size / 4096);
  const model = new Uint8Array(blocks);
  let stopped = false;
  let ended = 0;
  const work = async (index: number): Promise<void> => {
    const bytes = new Uint8Array(4096);
    for (let turn = index; !stopped; turn += workers) {
      const block = ((Math.imul(turn, 40503) >>> 4) % Math.floor(blocks / workers)) * workers + index;
      if (turn % 3 === 0) {
        await disk.read(bytes, 0, 4096, block * 4096);
        assert.ok(
          bytes.every((byte) => byte === model[block]),
          `block ${block}`,
        );
      } else {
        bytes.fill(turn & 0xff);
        await disk.write(bytes, 0, 4096, block * 4096);
        model[block] = turn & 0xff;
        // Synced now and then: a flush must come through, too.
        if (turn % 64 === 1) await disk.sync();
      }
      ended++;
    }
  };
  const working = Promise.all(Array.from({ length: workers }, (_, index) => work(index)));
  for (let kill = 0; kill < kills; kill++) {
    const before = ended;
    const progress = (): boolean => ended > before + 100 + (kill % 50);
    while (!progress()) await Promise.race([working, new Promise((resolve) => setTimeout(resolve, 1))]);
    await server.kill();
    await server.start();
  }
  stopped = true;
  await working;
  const all = new Uint8Array(disk.size);
  await disk.read(all, 0, all.length, 0);
  for (let block = 0; block < blocks; block++) {
    assert.ok(
      all.subarray(block * 4096, (block + 1) * 4096).every((byte) => byte === model[block]),
      `block ${block}`,
    );
  }
  t.diagnostic(`${ended} requests, ${kills} kills`);
}

// Neither takes a socket that is there: they are killed before they could remove it.
const PEERS: readonly (readonly [program: string, args: (socket: string, image: string) => readonly string[]])[] = [
  ['nbdkit', (socket, image) => ['-f', '-U', socket, 'file', image]],
  ['qemu-nbd', (socket, image) => ['-t', '-e', '16', '-f', 'raw', '--cache=writeback', '-k', socket, image]],
];
for (const [program, args] of PEERS) {
  const kills = LONG ? 500 : 10;
  test(`${kills} kills of ${program} under verified load lose no acknowledged write`, {
    ...needs(program),
    timeout: 600_000,
  }, async (t) => {
    const dir = scratch(t);
    const own = args(`${dir}/s`, sparse(`${dir}/a.img`, 2 * MiB));
    const script = `rm -f ${dir}/s; exec ${program} "$@"`;
    await killed(t, await started(t, '/bin/sh', ['-c', script, 'sh', ...own], `${dir}/s`), kills);
  });
}

const ownKills = LONG ? 500 : 4;
test(`${ownKills} kills of our own server under verified load lose no acknowledged write`, {
  // Each start is one of Node's.
  timeout: LONG ? 1_800_000 : 600_000,
}, async (t) => {
  const dir = scratch(t);
  const image = sparse(`${dir}/a.img`, 2 * MiB);
  const server = await started(t, process.execPath, [MAIN, 'serve', '-k', `${dir}/s`, image], `${dir}/s`);
  await killed(t, server, ownKills);
  assert.ok(existsSync(image));
});
