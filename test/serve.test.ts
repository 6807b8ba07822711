/** `blockplane serve` as a command: what it prints, how it ends, what it refuses. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { dirname } from 'node:path';
import { type TestContext, test } from 'node:test';
import {
  blockplane,
  MAIN,
  needs,
  needsPythonNbd,
  pattern,
  peer,
  run,
  Served,
  scratch,
  serve,
  socketOf,
  sparse,
  underSystemd,
} from './harness.ts';

const MiB = 1024 * 1024;

test('the first line is a URI that works, the next ones say how to connect and what it runs on', async (t) => {
  const image = sparse(`${scratch(t)}/a b.img`, MiB);
  const served = await serve(t, [image]);
  assert.match(served.uri(), /^nbd\+unix:\/\/\/\?socket=\/.+$/);
  const client = connect(socketOf(served.uri()));
  const [greeting] = (await once(client, 'data')) as [Buffer];
  assert.equal(greeting.subarray(0, 16).toString('latin1'), 'NBDMAGICIHAVEOPT');
  client.destroy();
  const { code, stdout, stderr } = await served.stop();
  assert.equal(code, 0);
  assert.equal(stderr, '');
  assert.match(stdout, /nbdinfo 'nbd\+unix:/);
  assert.match(stdout, /IOThread io0: (ring|pool)/);
  const { BLOCKPLANE_AIO: forced } = process.env;
  if (forced) assert.match(stdout, new RegExp(`IOThread io0: ${forced}`));
});

test('a socket of its own is private to the user, and is gone afterwards, as a given one is', async (t) => {
  const dir = scratch(t);
  const image = sparse(`${dir}/a.img`, MiB);
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    const served = await serve(t, [image]);
    const socket = socketOf(served.uri());
    assert.equal(statSync(dirname(socket)).mode & 0o777, 0o700);
    assert.equal(statSync(socket).mode & 0o777, 0o600);
    assert.equal((await served.stop(signal)).code, 0);
    assert.equal(existsSync(dirname(socket)), false);
  }
  const served = await serve(t, ['-k', `${dir}/nbd.sock`, image]);
  assert.ok(existsSync(`${dir}/nbd.sock`));
  await served.stop();
  assert.equal(existsSync(`${dir}/nbd.sock`), false);
});

test('clients that say nothing do not hold the end up', async (t) => {
  const served = await serve(t, [sparse(`${scratch(t)}/a.img`, MiB)]);
  const clients = Array.from({ length: 20 }, () => connect(socketOf(served.uri())));
  await Promise.all(clients.map((client) => once(client, 'data')));
  const ends = clients.map((client) =>
    once(
      client.on('error', () => undefined),
      'close',
    ),
  );
  const began = performance.now();
  assert.equal((await served.stop()).code, 0);
  assert.ok(performance.now() - began < 8000, 'less than the grace that requests in flight have');
  await Promise.all(ends);
});

test('a socket that a killed server left behind is taken over, one in use is not', async (t) => {
  const dir = scratch(t);
  const image = sparse(`${dir}/a.img`, MiB);
  const killed = await serve(t, ['-k', `${dir}/nbd.sock`, image]);
  await killed.stop('SIGKILL');
  assert.ok(existsSync(`${dir}/nbd.sock`));
  await serve(t, ['-k', `${dir}/nbd.sock`, image]);
  const second = await blockplane('serve', '-k', `${dir}/nbd.sock`, sparse(`${dir}/b.img`, MiB));
  assert.equal(second.code, 1);
  assert.match(second.stderr, /^blockplane: Could not listen on '.*nbd\.sock': Address already in use\n$/);
});

test('without an image a temporary one is served, and removed at the end', needs('nbdinfo'), async (t) => {
  const served = await serve(t, ['--size', '3M']);
  assert.equal((await peer('nbdinfo', '--size', served.uri())).trim(), String(3 * MiB));
  const image = `${dirname(socketOf(served.uri()))}/disk.qcow2`;
  assert.equal(readFileSync(image).subarray(0, 4).toString('latin1'), 'QFI\xfb');
  assert.ok(statSync(image).blocks * 512 < MiB, 'it is sparse');
  const { stdout } = await served.stop();
  assert.match(stdout, /temporary/);
  assert.equal(existsSync(image), false);
});

test('an image that cannot be served is one clear line and exit code 1', async (t) => {
  const dir = scratch(t);
  const qcow2 = pattern(4096);
  qcow2.set([0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]);
  writeFileSync(`${dir}/a.qcow2`, qcow2);
  writeFileSync(`${dir}/a.img`, qcow2);
  writeFileSync(`${dir}/b.qcow2`, pattern(4096));
  writeFileSync(`${dir}/secret.img`, 'x');
  const cases: [string, RegExp][] = [
    [`${dir}/missing.img`, /^blockplane: Could not open '.*missing\.img': No such file or directory\n$/],
    [dir, /^blockplane: Could not open '.*': Is a directory\n$/],
    [`${dir}/a.qcow2`, /^blockplane: Could not open '.*a\.qcow2': cluster_bits is [^\n]*\n$/],
    [`${dir}/a.img`, /^blockplane: Could not open '.*a\.img': it looks like a qcow2 image[^\n]*\n$/],
    [`${dir}/b.qcow2`, /^blockplane: Could not open '.*b\.qcow2': it is not in qcow2 format\n$/],
    [`${dir}/secret.img/under`, /^blockplane: Could not open '.*under': Not a directory\n$/],
  ];
  for (const [image, message] of cases) {
    const { code, stdout, stderr } = await blockplane('serve', image);
    assert.equal(code, 1);
    assert.match(stderr, message);
    assert.equal(stdout, '');
  }
});

test('L7 an image that another program has locked is refused', async (t) => {
  const image = sparse(`${scratch(t)}/a.img`, MiB);
  await serve(t, [image]);
  const { code, stderr } = await blockplane('serve', image);
  assert.equal(code, 1);
  assert.match(stderr, /^blockplane: Could not open '.*a\.img': Failed to get .*lock[^\n]*\n$/);
  const reader = await serve(t, ['--read-only', '--force-share', image]);
  assert.equal((await reader.stop()).code, 0);
});

test('bad usage says what is wrong, exit code 2', async (t) => {
  const image = sparse(`${scratch(t)}/a.img`, MiB);
  const cases: [string[], RegExp][] = [
    [['serve', '--no-such', image], /unknown option '--no-such'/],
    [['no-such-verb'], /unknown command 'no-such-verb'/],
    [['serve', '--format', 'vhs', image], /--format: 'vhs' is not one of raw/],
    [['serve', '--listen', 'a:b:c', image], /--listen: 'a:b:c' is not HOST:PORT/],
    [['serve', '--listen', 'x:99999', image], /port 99999/],
    [['serve', '-k', 's', '-l', ':1', image], /give one of them/],
    [['serve', '--aio', 'threads', image], /--aio: 'threads'/],
    [['serve', '--size', '1G', image], /--size: only without an IMAGE/],
    [['serve', '--size', '1X'], /--size: '1X' is not a size/],
    [['serve', '-U', image], /--force-share: only with --read-only/],
    [['serve', '-x', 'a', '-x', 'a', image, image], /same name/],
    [['serve', '--iothreads', '0', image], /--iothreads: '0'/],
    [['serve', '--memory', '2G', image], /--memory: '2G' is not from 32 MiB to 1 GiB/],
    [['serve', '--memory', '64K', image], /--memory: '64K' is not from 32 MiB to 1 GiB/],
    [['serve', '--max-connections', '20000', image], /--max-connections: '20000' is not .* 0 to 10000/],
  ];
  const outputs = [];
  for (const [args] of cases) outputs.push(await blockplane(...args));
  for (const [i, { code, stderr, stdout }] of outputs.entries()) {
    assert.match(stderr, cases[i]![1]);
    assert.match(stderr, /^blockplane: /);
    assert.equal(code, 2, cases[i]![0].join(' '));
    assert.equal(stdout, '');
  }
});

test('--help and --version answer on standard output', async () => {
  const [help, serveHelp, version] = await Promise.all([
    blockplane('--help'),
    blockplane('serve', '--help'),
    blockplane('--version'),
  ]);
  assert.match(help.stdout, /serve/);
  assert.match(serveHelp.stdout, /--max-connections/);
  assert.match(version.stdout, /^\d+\.\d+\.\d+/);
  for (const { code } of [help, serveHelp, version]) assert.equal(code, 0);
});

test('the temporary image and every cache mode work end to end', needs('qemu-io'), async (t) => {
  for (const mode of ['writeback', 'none', 'writethrough', 'directsync', 'unsafe']) {
    const image = sparse(`${scratch(t)}/${mode}.img`, MiB);
    const served = await serve(t, ['--cache', mode, image]);
    const commands = ['write -P 3 1000 5000', 'flush', 'read -P 3 1000 5000', 'read -P 0 0 1000'];
    await peer('qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command]), served.uri());
    assert.equal((await served.stop()).code, 0);
    assert.equal(readFileSync(image)[1000], 3, mode);
  }
});

test('--progress=json prints a line a second with what has gone through', needs('qemu-io'), async (t) => {
  const served = await serve(t, ['--progress=json', sparse(`${scratch(t)}/a.img`, MiB)]);
  await peer('qemu-io', '-f', 'raw', '-c', 'write 0 64k', served.uri());
  await served.printed(3);
  const { stdout, stderr } = await served.stop();
  const lines = stdout.trim().split('\n').slice(1);
  const last = JSON.parse(lines.at(-1)!) as Record<string, number | boolean>;
  assert.equal(last.done, true);
  assert.ok((last.bytesIn as number) >= 65536, stdout);
  assert.ok((last.requests as number) >= 1);
  assert.equal(last.clients, 0);
  assert.match(stderr, /nbdinfo/);
});

test('SIGTERM under load: every acknowledged write is in the image, exit code 0', needsPythonNbd(), async (t) => {
  const image = sparse(`${scratch(t)}/a.img`, 64 * MiB);
  const served = await serve(t, [image]);
  const script = `
import nbd, sys
h = nbd.NBD()
h.connect_uri(${JSON.stringify(served.uri())})
n = 0
try:
    while True:
        h.pwrite(bytes([n % 251 + 1]) * 4096, n % 16384 * 4096)
        n += 1
        if n % 64 == 0:
            print(n, flush=True)
except nbd.Error as e:
    print("end", n, flush=True)
`;
  const client = spawn('/usr/bin/python3', ['-c', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => client.kill());
  let text = '';
  client.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  const clientEnd = once(client, 'close');
  while (!text.includes('\n')) await once(client.stdout, 'data');
  const { code, stderr } = await served.stop();
  assert.equal(code, 0, stderr);
  await clientEnd;
  const written = Number(/end (\d+)/.exec(text)?.[1]);
  assert.ok(written >= 64, text);
  const bytes = readFileSync(image);
  for (let n = Math.max(0, written - 16384); n < written; n++) {
    assert.equal(bytes[(n % 16384) * 4096], (n % 251) + 1, `write ${n} of ${written}`);
  }
});

/** Starts serve as systemd does, with a listening socket at each of `paths`. */
function activated(t: TestContext, paths: readonly string[], ...args: string[]): Served {
  const [program, ...words] = underSystemd(paths, [process.execPath, MAIN, 'serve', ...args]);
  const child = spawn(program!, words, { stdio: ['ignore', 'pipe', 'pipe'] });
  t.after(() => child.kill('SIGKILL'));
  return new Served(child);
}

test('a socket from systemd is served as it was handed over', needs('nbdinfo', 'python3'), async (t) => {
  const dir = scratch(t);
  const served = activated(t, [`${dir}/sd.sock`], sparse(`${dir}/a.img`, MiB));
  await served.printed(1);
  assert.equal(socketOf(served.uri()), `${dir}/sd.sock`);
  assert.equal((await peer('nbdinfo', '--size', served.uri())).trim(), String(MiB));
  assert.equal((await served.stop()).code, 0);
  assert.ok(existsSync(`${dir}/sd.sock`));
});

test('more sockets from systemd than threads are all served; fewer are refused', needs('nbdinfo'), async (t) => {
  const dir = scratch(t);
  const images = ['a', 'b'].map((name) => sparse(`${dir}/${name}.img`, MiB));
  const sockets = ['1', '2', '3'].map((name) => `${dir}/${name}.sock`);
  const served = activated(t, sockets, '--iothreads', '2', ...images);
  await served.printed(2);
  for (const [i, name] of ['a', 'b', 'a'].entries()) {
    const uri = `nbd+unix:///${name}?socket=${sockets[i]}`;
    assert.equal((await peer('nbdinfo', '--size', uri)).trim(), String(MiB), uri);
  }
  assert.deepEqual(served.lines.slice(0, 2).map(socketOf), sockets.slice(0, 2));
  assert.equal((await served.stop()).code, 0);
  const refused = await activated(t, [`${dir}/4.sock`], '--iothreads', '2', ...images).exited;
  assert.equal(refused.code, 2);
  assert.match(refused.stderr, /^blockplane: systemd gave 1 socket for 2 IOThreads[^\n]*\n$/);
});

test('an image that the user may not read is one clear line and exit code 1', async (t) => {
  const path = `${scratch(t)}/secret.img`;
  writeFileSync(path, 'x', { mode: 0o600 });
  chmodSync(dirname(path), 0o755);
  const root = process.getuid?.() === 0;
  if (!root) chmodSync(path, 0);
  const as = root ? { uid: 65534, gid: 65534 } : {};
  const child = spawn(process.execPath, [MAIN, 'serve', path], { stdio: ['ignore', 'pipe', 'pipe'], cwd: '/', ...as });
  const { code, stdout, stderr } = await new Served(child).exited;
  if (/Cannot find module|permission denied, open.*main\.js/.test(stderr))
    return t.skip('nobody cannot read the build');
  assert.match(stderr, /^blockplane: Could not open '.*secret\.img': Permission denied\n$/);
  assert.equal(code, 1);
  assert.equal(stdout, '');
});

test('it accepts soon after it was started', async (t) => {
  const image = sparse(`${scratch(t)}/a.img`, MiB);
  const times: number[] = [];
  for (let i = 0; i < 3; i++) {
    const began = performance.now();
    const served = await serve(t, [image]);
    times.push(Math.round(performance.now() - began));
    await served.stop();
  }
  t.diagnostic(`ms from spawn to the URI: ${times.join(', ')}`);
  assert.ok(Math.min(...times) < 5000);
});

test('standard output that nobody reads ends nothing', async (t) => {
  const image = sparse(`${scratch(t)}/a.img`, MiB);
  const command = `'${process.execPath}' '${MAIN}' serve '${image}' --progress=json`;
  const script = `${command} & p=$!; sleep 2.5; kill -TERM $p; wait $p; echo "code $?" >&2`;
  const { stderr } = await run('/bin/sh', ['-c', `( ${script} ) | head -n 1`]);
  assert.match(stderr, /code 0/);
});
