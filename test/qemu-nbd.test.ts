/** `blockplane qemu-nbd` against the original: the same command lines through both. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, watch, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, type TestContext, test } from 'node:test';
import { run as qemuNbd } from '../src/cli/qemu-nbd/program.ts';
import { MAIN, needs, type Output, pattern, peer, run, scratch, underSystemd } from './harness.ts';

const ORIGINAL = ['/usr/bin/qemu-nbd'];
const OURS = [process.execPath, MAIN, 'qemu-nbd'];
const BOTH = [ORIGINAL, OURS] as const;

const MiB = 2 ** 20;

function command(program: readonly string[], args: readonly string[]): Promise<Output> {
  return run(program[0]!, [...program.slice(1), ...args]);
}

/** Ours in this process, which is quicker; what forks does not come back. */
async function inProcess(words: readonly string[]): Promise<Output> {
  if (words.includes('--fork')) return command(OURS, words);
  const text = { stdout: '', stderr: '' };
  const code = await qemuNbd(words, {
    out(some) {
      text.stdout += some;
    },
    err(some) {
      text.stderr += some;
    },
  });
  return { code, signal: null, ...text };
}

/** A folder with images that tests read, one after the other. */
let shared = '';

before(async () => {
  shared = mkdtempSync(join(tmpdir(), 'blockplane-test-'));
  if (!needs('qemu-img', 'qemu-io').skip) await makeImages(shared);
});

after(() => rmSync(shared, { recursive: true, force: true }));

/** Images that a test has for itself. */
async function images(t: TestContext): Promise<string> {
  const dir = scratch(t);
  await makeImages(dir);
  return dir;
}

async function makeImages(dir: string): Promise<void> {
  writeFileSync(`${dir}/raw`, pattern(MiB));
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${dir}/a.qcow2`, '1M');
  await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 128k', `${dir}/a.qcow2`);
  await peer('qemu-img', 'snapshot', '-c', 'monday', `${dir}/a.qcow2`);
  await peer('qemu-img', 'bitmap', '--add', `${dir}/a.qcow2`, 'b0');
  await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 2 64k 64k', `${dir}/a.qcow2`);
}

/** Both programs say the same and end with the same code. $D is the directory of the images. */
const SAME: readonly string[] = [
  '',
  'a b',
  '--bogus',
  '-z $D/raw',
  '-p',
  '--d $D/raw',
  '--fork=1 $D/raw',
  '-p abc -f raw $D/raw',
  '-e abc $D/raw',
  '-e -1 $D/raw',
  '-e 99999999999 $D/raw',
  '-o abc $D/raw',
  '-k $D/s -f raw -o 2097152 $D/raw',
  '-o 2M $D/raw',
  '--cache=bogus $D/raw',
  '-n --cache=none $D/raw',
  '--aio=bogus $D/raw',
  '--aio=threads --aio=native $D/raw',
  '-k $D/s --aio=native -f raw $D/raw',
  '--discard=bogus $D/raw',
  '--discard=unmap --discard=ignore $D/raw',
  '--detect-zeroes=bogus $D/raw',
  '--detect-zeroes=unmap $D/raw',
  '--image-opts -f raw $D/raw',
  '-k $D/s --image-opts driver=bogus',
  '-k $D/s -f bogus $D/raw',
  '-k relative $D/raw',
  '-k $D/s $D/none',
  '-k $D/s -f qcow2 $D/raw',
  '-k $D/none/s -f raw $D/raw',
  '--fork -k $D/s $D/none',
  '--fork --pid-file=$D/none/pid -k $D/s -f raw $D/raw',
  '-b nohost.invalid -f raw $D/raw',
  '-k $D/s -B none -f qcow2 $D/a.qcow2',
  '-k $D/s -l none -f qcow2 $D/a.qcow2',
  '-k $D/s -l snapshot.id=monday -f qcow2 $D/a.qcow2',
  '-k $D/s -l snapshot.none=1 -f qcow2 $D/a.qcow2',
  '-k $D/s -s -l monday -f qcow2 $D/a.qcow2',
  '-k $D/s -l monday -f raw $D/raw',
  '-L $D/raw',
  '-L -f raw',
  '-L -x name',
  '-L -A',
  '-L --fork',
  '-L -k $D/none',
  '-L -b 127.0.0.1 -p 1',
  '-L --tls-creds x -k $D/none',
  '--tls-creds x -k $D/s -f raw $D/raw',
  '--object secret,id=x,data=a --tls-creds x -k $D/s -f raw $D/raw',
  '--object tls-creds-psk,id=x,endpoint=server --tls-creds x -k $D/s -f raw $D/raw',
  '--object tls-creds-anon,id=x --tls-creds x -k $D/s -f raw $D/raw',
  '--object tls-creds-anon,id=x,endpoint=server --tls-creds x --tls-hostname y -k $D/s -f raw $D/raw',
  '--object tls-creds-anon,id=x,endpoint=server --tls-creds x -L -k $D/s',
  '--object authz-list,id=x,rules.0.match=y -k $D/s -f raw $D/raw',
  '--tls-authz x -f raw $D/raw',
  '--tls-hostname x -f raw $D/raw',
  '-k $D/s --object secret,id=x -f raw $D/raw',
  '-k $D/s --object secret,data=x -f raw $D/raw',
  '-k $D/s --object bogus,id=x -f raw $D/raw',
  '-k $D/s --object secret,id=x,data=a,y=b -f raw $D/raw',
];

for (const line of SAME) {
  test(`what cannot be is refused as by the original: ${line}`, needs('qemu-nbd', 'qemu-io'), async () => {
    const words = line === '' ? [] : line.replaceAll('$D', shared).split(' ');
    const theirs = await command(ORIGINAL, words);
    // It calls itself by the path that it was called by, here and there.
    const plain = { ...theirs, stderr: theirs.stderr.replaceAll(ORIGINAL[0]!, 'qemu-nbd') };
    assert.deepEqual(await inProcess(words), plain);
  });
}

/** Both programs show the same disk with the same flags. */
const SHOWN: readonly (readonly [line: string, ...maps: string[]])[] = [
  ['-f raw $D/raw', 'base:allocation'],
  ['$D/a.qcow2', 'base:allocation'],
  ['-r -e 0 -f raw $D/raw'],
  ['-e 2 -A -B b0 -f qcow2 $D/a.qcow2', 'qemu:allocation-depth', 'qemu:dirty-bitmap:b0'],
  ['-l monday -f qcow2 $D/a.qcow2', 'base:allocation'],
  ['-l snapshot.id=1,snapshot.name=monday -f qcow2 $D/a.qcow2', 'base:allocation'],
  ['-s -f qcow2 $D/a.qcow2', 'base:allocation'],
  ['-A -o 0x10000 -f qcow2 $D/a.qcow2', 'base:allocation', 'qemu:allocation-depth'],
  ['--cache=writethrough --discard=unmap --detect-zeroes=unmap --aio=threads -f raw $D/raw'],
  ['--image-opts file.filename=$D/a.qcow2', 'base:allocation'],
  ['--image-opts driver=raw,size=4096,offset=512,file.driver=file,file.filename=$D/raw'],
  ['json:{"driver":"qcow2","file":{"driver":"file","filename":"$D/a.qcow2"}}'],
];

/** A program that listens on `socket`; ended with the test. */
interface Running {
  readonly child: ChildProcess;
  readonly exited: Promise<readonly [number | null, NodeJS.Signals | null]>;
  readonly uri: string;
  readonly pidFile: string;
  readonly socket: string;
}

/** Starts it and waits for its pid file, which says that it listens. */
async function started(t: TestContext, dir: string, ...words: readonly string[]): Promise<Running> {
  return await startedOf(OURS, t, dir, words);
}

async function startedOf(
  program: readonly string[],
  t: TestContext,
  dir: string,
  words: readonly string[],
): Promise<Running> {
  const pidFile = `${dir}/pid`;
  const socket = `${dir}/sock`;
  const listening = new AbortController();
  const written = (async () => {
    // What was written before the watch began is seen at once.
    const watcher = watch(dir, { signal: listening.signal });
    const changes = (async () => {
      while (!existsSync(pidFile) || !readFileSync(pidFile, 'utf8').endsWith('\n')) await once(watcher, 'change');
    })();
    await changes.finally(() => watcher.close());
  })();
  const args = [...program.slice(1), '-k', socket, `--pid-file=${pidFile}`, ...words];
  const child = spawn(program[0]!, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  const exited = once(child, 'close') as Promise<[number | null, NodeJS.Signals | null]>;
  t.after(async () => {
    child.kill('SIGKILL');
    await exited;
  });
  const early = exited.then(([code]) => {
    throw new Error(`qemu-nbd ended with ${code}: ${said}`);
  });
  early.catch(() => undefined);
  await Promise.race([written, early]);
  return { child, exited, uri: `nbd+unix:///?socket=${socket}`, pidFile, socket };
}

/** What nbdinfo says of what a program serves, without what is better here. */
async function shown(
  t: TestContext,
  program: readonly string[],
  [line, ...maps]: (typeof SHOWN)[number],
): Promise<unknown> {
  const words = line.replaceAll('$D', shared).split(' ');
  const { uri, child, exited, pidFile } = await startedOf(program, t, shared, ['-t', ...words]);
  const { exports } = JSON.parse(await peer('nbdinfo', '--json', '--no-content', uri));
  const mapped: string[] = [];
  for (const map of maps) mapped.push(await peer('nbdinfo', `--map=${map}`, uri));
  child.kill();
  assert.deepEqual(await exited, [0, null]);
  // The original leaves it behind.
  rmSync(pidFile, { force: true });
  const plain = { block_size_preferred: undefined, uri: undefined };
  return { exports: exports.map((one: object) => ({ ...one, ...plain })), mapped };
}

for (const row of SHOWN) {
  test(`an export is what the original makes of it: ${row[0]}`, needs('qemu-nbd', 'qemu-io', 'nbdinfo'), async (t) => {
    const theirs = await shown(t, ORIGINAL, row);
    assert.deepEqual(await shown(t, OURS, row), theirs);
  });
}

test('it ends with the client that leaves last, and not with one that only looked', needs('nbdinfo'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/raw`, pattern(MiB));
  const server = await started(t, dir, '-f', 'raw', '-x', 'disk', `${dir}/raw`);
  assert.equal(readFileSync(server.pidFile, 'utf8'), `${server.child.pid}\n`);
  await peer('nbdinfo', '--list', server.uri);
  assert.notEqual((await run('nbdinfo', [server.uri])).code, 0);
  assert.equal(await peer('nbdinfo', '--size', server.uri.replace('///', '///disk')), `${MiB}\n`);
  assert.deepEqual(await server.exited, [0, null]);
  assert.equal(existsSync(server.socket), false);
  assert.equal(existsSync(server.pidFile), false);
});

for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
  test(`with -t it goes on, until ${signal}`, needs('nbdinfo', 'qemu-io'), async (t) => {
    const dir = scratch(t);
    writeFileSync(`${dir}/raw`, pattern(MiB));
    const server = await started(t, dir, '-t', '-f', 'raw', `${dir}/raw`);
    for (let client = 0; client < 3; client++) await peer('nbdinfo', '--size', server.uri);
    await peer('qemu-io', '-f', 'raw', '-c', 'write -P 9 0 64k', server.uri);
    server.child.kill(signal);
    assert.deepEqual(await server.exited, [0, null]);
    assert.deepEqual([existsSync(server.socket), existsSync(server.pidFile)], [false, false]);
    assert.equal(readFileSync(`${dir}/raw`)[65535], 9);
  });
}

test('--fork returns when clients can connect, and serves in a session of its own', needs('nbdinfo'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/raw`, pattern(MiB));
  const [pidFile, socket] = [`${dir}/pid`, `${dir}/sock`];
  const words = ['--fork', '-t', `--pid-file=${pidFile}`, '-k', socket, '-f', 'raw', `${dir}/raw`];
  const { code, stdout, stderr } = await command(OURS, words);
  const pid = Number(readFileSync(pidFile, 'utf8'));
  t.after(() => {
    if (existsSync(`/proc/${pid}`)) process.kill(pid, 'SIGKILL');
  });
  assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: '', stderr: '' });
  assert.equal(await peer('nbdinfo', '--size', `nbd+unix:///?socket=${socket}`), `${MiB}\n`);
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
  assert.equal(Number(stat[3]), pid, 'it leads its session');
  assert.equal(stat[4], '0', 'it has no terminal');
  // The second one that would have the same file is refused.
  const second = await command(OURS, [...words.slice(0, 3), '-k', `${dir}/other`, '-r', 'null-co://']);
  assert.deepEqual([second.code, existsSync(`${dir}/other`)], [1, false]);
  assert.match(second.stderr, /^qemu-nbd: Cannot lock /);
  const gone = new AbortController();
  const watcher = watch(dir, { signal: gone.signal });
  process.kill(pid, 'SIGTERM');
  while (existsSync(pidFile) || existsSync(socket)) await once(watcher, 'change');
  gone.abort();
});

test('-s keeps what is written away from the image, -o is where it begins', needs('qemu-io', 'nbdcopy'), async (t) => {
  const dir = await images(t);
  const before = readFileSync(`${dir}/a.qcow2`);
  const server = await started(t, dir, '-s', '-f', 'qcow2', `${dir}/a.qcow2`);
  const commands = ['-c', 'write -P 7 32k 64k', '-c', 'read -P 1 0 32k', '-c', 'read -P 7 32k 64k', '-c', 'flush'];
  const { stdout } = await run('qemu-io', ['-f', 'raw', ...commands, '-c', 'read -P 2 96k 32k', server.uri]);
  assert.doesNotMatch(stdout, /verification failed/);
  assert.deepEqual(await server.exited, [0, null]);
  assert.deepEqual(readFileSync(`${dir}/a.qcow2`), before);
  const window = await started(t, dir, '-o', '1000', '-f', 'raw', `${dir}/raw`);
  await peer('qemu-io', '-f', 'raw', '-c', 'write -P 7 0 24', window.uri);
  assert.deepEqual(await window.exited, [0, null]);
  const expected = pattern(MiB).fill(7, 1000, 1024);
  assert.deepEqual(new Uint8Array(readFileSync(`${dir}/raw`)), expected);
  await peer('nbdcopy', '--', '[', ...OURS, '-o', '4096', '-r', '-f', 'raw', `${dir}/raw`, ']', `${dir}/copy`);
  assert.deepEqual(new Uint8Array(readFileSync(`${dir}/copy`)), expected.subarray(4096));
});

test('a snapshot shows what was, and nobody writes to it', needs('qemu-io'), async (t) => {
  const dir = await images(t);
  const server = await started(t, dir, '-l', 'monday', '-t', '-f', 'qcow2', `${dir}/a.qcow2`);
  const { stdout } = await run('qemu-io', ['-r', '-f', 'raw', '-c', 'read -P 1 0 128k', server.uri]);
  assert.match(stdout, /read 131072\/131072/);
  assert.doesNotMatch(stdout, /verification failed/);
  assert.notEqual((await run('qemu-io', ['-f', 'raw', '-c', 'write 0 512', server.uri])).code, 0);
});

test('an encrypted image opens with the secret that options name', needs('qemu-img', 'qemu-io'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/key`, 'hush-hush');
  const secret = ['--object', `secret,id=sec0,file=${dir}/key`];
  const luks = 'encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10';
  await peer('qemu-img', 'create', '-q', ...secret, '-f', 'qcow2', '-o', luks, `${dir}/e.qcow2`, '1M');
  const tree = `driver=qcow2,encrypt.key-secret=sec0,file.filename=${dir}/e.qcow2`;
  const server = await started(t, dir, ...secret, '--image-opts', tree);
  await peer('qemu-io', '-f', 'raw', '-c', 'write -P 5 0 64k', server.uri);
  assert.deepEqual(await server.exited, [0, null]);
  await peer('qemu-io', ...secret, '--image-opts', tree, '-c', 'read -P 5 0 64k');
});

test('clients beyond -e wait until one leaves', needs('nbdinfo'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/raw`, pattern(MiB));
  const server = await started(t, dir, '-t', '-f', 'raw', `${dir}/raw`);
  const first = spawn('/usr/bin/qemu-io', ['-f', 'raw', server.uri], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.after(() => first.kill('SIGKILL'));
  first.stdin.write('read 0 512\n');
  await once(first.stdout, 'data');
  let served = false;
  const second = peer('nbdinfo', '--size', server.uri).then(() => {
    served = true;
  });
  first.stdin.write('read 0 512\n');
  await once(first.stdout, 'data');
  assert.equal(served, false);
  first.stdin.end('quit\n');
  await second;
});

test('the kernel has no client for it, and the help says what there is', needs('qemu-nbd'), async () => {
  for (const words of [
    ['-c', '/dev/nbd0', 'x'],
    ['-d', '/dev/nbd0'],
  ]) {
    const { code, stderr } = await command(OURS, words);
    assert.equal(code, 1);
    assert.match(stderr, new RegExp(`^qemu-nbd: ${words[0]} is not supported: .*nbd-client`));
  }
  const { code, stdout } = await command(OURS, ['--help']);
  const original = await command(ORIGINAL, ['--help']);
  const names = [...original.stdout.matchAll(/--[a-z-]+/g)].map(([name]) => name);
  assert.equal(code, 0);
  for (const name of new Set(names)) assert.ok(stdout.includes(name), name);
  assert.match((await command(OURS, ['--version'])).stdout, /^qemu-nbd 7\.2\.\d+ /);
});

test('the socket has the mode that the umask leaves it', needs(), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/raw`, pattern(MiB));
  const { socket } = await started(t, dir, '-n', '--aio=native', '-f', 'raw', `${dir}/raw`);
  assert.equal(statSync(socket).mode & 0o777, 0o777 & ~process.umask());
});

test('an image that another program writes to is said to be so', needs('qemu-nbd', 'qemu-io'), async (t) => {
  const dir = await images(t);
  await started(t, dir, '-t', '-f', 'qcow2', `${dir}/a.qcow2`);
  const words = ['-k', `${dir}/s`, '-f', 'qcow2', `${dir}/a.qcow2`];
  const [theirs, ours] = await Promise.all(BOTH.map((program) => command(program, words)));
  assert.deepEqual(ours, theirs);
});

test('--list says what the original says, of its servers and of ours', needs('qemu-nbd', 'qemu-io'), async (t) => {
  const dir = await images(t);
  for (const program of BOTH) {
    const words = ['-t', '-A', '-B', 'b0', '-x', 'disk', '-D', 'a disk', '-e', '3', '-f', 'qcow2', `${dir}/a.qcow2`];
    const server = await startedOf(program, t, dir, words);
    const [theirs, ours] = await Promise.all(BOTH.map((one) => command(one, ['-L', '-k', server.socket])));
    assert.deepEqual(ours, theirs);
    assert.match(ours!.stdout, /^exports available: 1\n export: 'disk'\n {2}description: a disk\n/);
    server.child.kill();
    await server.exited;
    rmSync(server.pidFile, { force: true });
  }
});

test('TLS: the credentials of servers, clients and nodes are objects', needs('qemu-nbd', 'qemu-img'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/raw`, pattern(MiB));
  writeFileSync(`${dir}/keys.psk`, `qemu:${'1f'.repeat(32)}\n`);
  const creds = (endpoint: string): string[] => [
    ...['--object', `tls-creds-psk,id=tls0,dir=${dir},endpoint=${endpoint}`, '--tls-creds', 'tls0'],
  ];
  const server = await started(t, dir, '-t', ...creds('server'), '-f', 'raw', `${dir}/raw`);
  const [theirs, ours] = await Promise.all(
    BOTH.map((one) => command(one, ['-L', ...creds('client'), '-k', server.socket])),
  );
  assert.deepEqual(ours, theirs);
  assert.match(ours!.stdout, /^exports available: 1\n/);
  const [plain, secret] = await Promise.all([
    command(OURS, ['-L', '-k', server.socket]),
    command(OURS, [
      ...['--object', `tls-creds-psk,id=tls0,dir=${dir},endpoint=client`, '-k', `${dir}/s`, '--image-opts'],
      `driver=nbd,server.type=unix,server.path=${server.socket},tls-creds=none`,
    ]),
  ]);
  assert.deepEqual([plain.code, secret.code], [1, 1]);
  assert.match(plain.stderr, /it wants TLS/);
  assert.match(secret.stderr, /No TLS credentials with id 'none'/);
  const object = ['--object', `tls-creds-psk,id=tls0,dir=${dir},endpoint=client`];
  const node = `driver=nbd,server.type=unix,server.path=${server.socket},tls-creds=tls0`;
  const words = [...object, '-r', '--image-opts', node];
  assert.equal(await peer('nbdinfo', '--size', '--', '[', ...OURS, ...words, ']'), `${MiB}\n`);
});

test('a raw image by guess does not become another format', needs('qemu-nbd', 'qemu-img', 'qemu-io'), async (t) => {
  const dir = await images(t);
  writeFileSync(`${dir}/head`, readFileSync(`${dir}/a.qcow2`).subarray(0, 512));
  for (const program of BOTH) {
    const server = await startedOf(program, t, dir, ['-t', `${dir}/raw`]);
    const become = ['-f', 'raw', '-c', `write -s ${dir}/head 0 512`, server.uri];
    const { code, stdout } = await run('qemu-io', become);
    assert.deepEqual([code, stdout], [1, 'write failed: Operation not permitted\n']);
    await peer('qemu-io', '-f', 'raw', '-c', 'write -P 8 0 512', '-c', `write -s ${dir}/head 512 512`, server.uri);
    server.child.kill();
    assert.deepEqual(await server.exited, [0, null]);
    rmSync(server.pidFile, { force: true });
  }
  assert.ok(
    readFileSync(`${dir}/raw`)
      .subarray(0, 512)
      .every((byte) => byte === 8),
  );
});

test('a socket from systemd is served, and no place beside it', needs('qemu-nbd', 'nbdinfo', 'python3'), async (t) => {
  for (const program of [ORIGINAL, OURS]) {
    const dir = scratch(t);
    const socket = `${dir}/sd.sock`;
    const path = program[0]!.includes('/') ? program[0]! : (await peer('which', program[0]!)).trim();
    const words = [path, ...program.slice(1), '-f', 'raw', `${shared}/raw`];
    const [python, ...args] = underSystemd([socket], words);
    const child = spawn(python!, args, { stdio: 'ignore' });
    t.after(() => child.kill('SIGKILL'));
    const exited = once(child, 'close');
    const watcher = watch(dir);
    while (!existsSync(socket)) await once(watcher, 'change');
    watcher.close();
    const size = await peer('nbdinfo', '--size', `nbd+unix:///?socket=${socket}`);
    assert.equal(Number(size), statSync(`${shared}/raw`).size);
    assert.deepEqual(await exited, [0, null]);
    const twice = underSystemd([`${dir}/second.sock`], [...words.slice(0, -1), '-p', '1', `${shared}/raw`]);
    const { code, stderr } = await run(twice[0]!, twice.slice(1));
    assert.equal(code, 1);
    assert.match(stderr, /TCP port number can't be set when using socket activation/);
  }
});
