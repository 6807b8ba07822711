/**
 * What the tools share: where the project is, and making sure that its npm packages, its build and the Debian programs
 * the tests talk to are there. Plain JavaScript with no dependency, because it runs before anything is installed.
 * Everything it says goes to stderr, and only when it does something: stdout belongs to the program that is started.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** The folders that tsconfig.json compiles. */
const SOURCE_FOLDERS = ['src', 'test', 'bench', 'tools'];
/** More files than this in the source folders is a mistake (an image, a checkout): the start-up check stays quick. */
const SOURCE_FILES_MAX = 4000;
const APT_TIMEOUT_MS = 8 * 60 * 1000;
const NPM_TIMEOUT_MS = 8 * 60 * 1000;
const TSC_TIMEOUT_MS = 5 * 60 * 1000;

/** Debian package -> the program that shows it is there, and what is not tested without it. */
const PEERS = [
  { name: 'qemu-utils', program: 'qemu-nbd', tests: 'qemu-img, qemu-io and qemu-nbd interoperability, benchmarks' },
  { name: 'qemu-system-common', program: 'qemu-storage-daemon', tests: 'the benchmark ceiling' },
  { name: 'qemu-system-x86', program: 'qemu-system-x86_64', tests: 'a guest on our disk' },
  { name: 'nbdkit', program: 'nbdkit', tests: 'nbdkit interoperability, benchmarks' },
  { name: 'libnbd-bin', program: 'nbdinfo', tests: 'nbdinfo and nbdcopy interoperability' },
  { name: 'python3-libnbd', program: 'nbdsh', tests: 'nbdsh protocol tests' },
  { name: 'fio', program: 'fio', tests: 'fio verification, benchmarks' },
  { name: 'gnutls-bin', program: 'certtool', tests: 'TLS' },
  { name: 'strace', program: 'strace', tests: 'that names inside an image lead nowhere' },
  { name: 'nbd-client', program: 'nbd-client', tests: 'the nbd-client handshake' },
];

export function say(text) {
  process.stderr.write(`${text}\n`);
}

/** The modification time in milliseconds, or 0 when there is no such file. */
function modified(path) {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

/** Runs a program to its end with its output on stderr. Returns '' or why it failed. */
async function run(program, args, { timeout, env = {} }) {
  const { spawnSync } = await import('node:child_process');
  const done = spawnSync(program, args, {
    cwd: root,
    stdio: ['ignore', 2, 2],
    timeout,
    env: { ...process.env, ...env },
  });
  if (done.error?.code === 'ETIMEDOUT') return `it ran longer than ${timeout / 1000} seconds`;
  if (done.error) return done.error.message;
  if (done.signal) return `it was ended by ${done.signal}`;
  return done.status === 0 ? '' : `exit code ${done.status}`;
}

/** Installs the npm packages when node_modules is missing or older than the lockfile. Throws when npm fails. */
export async function ensureDependencies() {
  const marker = join(root, 'node_modules', '.package-lock.json');
  if (modified(marker) >= modified(join(root, 'package-lock.json')) && modified(marker) > 0) return;
  say('Installing the npm packages (npm ci)');
  const why = await run('npm', ['ci', '--include=dev', '--no-audit', '--no-fund'], { timeout: NPM_TIMEOUT_MS });
  if (why) throw new Error(`Could not install the npm packages: npm ci: ${why}`);
  // npm keeps the marker's old time when nothing changed; the check above is by time.
  const { utimesSync } = await import('node:fs');
  if (existsSync(marker)) utimesSync(marker, new Date(), new Date());
}

/** Every source file of the build and the newest modification time among them. */
function sources() {
  const files = ['package-lock.json', 'tsconfig.json', 'tools/bundle.mjs', 'tools/warm.mjs'];
  let newest = 0;
  const walk = (folder) => {
    for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
      if (files.length > SOURCE_FILES_MAX) throw new Error(`Could not check the build: too many files in '${folder}'`);
      const path = `${folder}/${entry.name}`;
      if (entry.isDirectory()) walk(path);
      else if (entry.name.endsWith('.ts')) files.push(path);
    }
  };
  for (const folder of SOURCE_FOLDERS) if (existsSync(join(root, folder))) walk(folder);
  for (const file of files) newest = Math.max(newest, modified(join(root, file)));
  return { list: `${files.sort().join('\n')}\n`, newest };
}

/** Compiles into dist/ and bundles, when a source is newer than the last build, was added or removed. Throws when that
 *  fails. */
export async function ensureBuilt() {
  const stamp = join(root, 'dist', '.built');
  const { list, newest } = sources();
  const same = existsSync(stamp) && readFileSync(stamp, 'utf8') === list;
  if (same && modified(stamp) > newest) return;
  say('Building (tsc)');
  const began = new Date();
  // A removed source must not live on as an old output: its tests would still run.
  if (!same) for (const folder of SOURCE_FOLDERS) rmSync(join(root, 'dist', folder), { recursive: true, force: true });
  rmSync(stamp, { force: true });
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  const why = await run(process.execPath, [tsc, '-p', 'tsconfig.json'], { timeout: TSC_TIMEOUT_MS });
  if (why) throw new Error(`Could not build: tsc: ${why}`);
  const { bundle } = await import('./bundle.mjs');
  await bundle(root);
  mkdirSync(join(root, 'dist'), { recursive: true });
  writeFileSync(stamp, list);
  // The stamp says when the build began: a file saved meanwhile is newer, and is built next time.
  const { utimesSync } = await import('node:fs');
  utimesSync(stamp, began, began);
}

/** For programs that start our command: the one that is published. */
export const published = { BLOCKPLANE_MAIN: join(root, 'dist', 'bundle', 'main.cjs') };

/** The path of a program, or undefined when it is not installed. */
export function which(program) {
  for (const folder of [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/sbin']) {
    if (folder && existsSync(join(folder, program))) return join(folder, program);
  }
  return undefined;
}

/** The peers that are not there: by dpkg where there is one, by their programs elsewhere. */
async function missingPeers() {
  if (!which('dpkg-query')) return PEERS.filter((peer) => !which(peer.program));
  const { spawnSync } = await import('node:child_process');
  // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query's own format language
  const format = '${Package} ${db:Status-Status}\\n';
  const query = spawnSync('dpkg-query', ['-W', '-f', format, ...PEERS.map((peer) => peer.name)], { encoding: 'utf8' });
  const installed = new Set((query.stdout ?? '').split('\n'));
  return PEERS.filter((peer) => !installed.has(`${peer.name} installed`) && !which(peer.program));
}

/** Installs the missing peers when it may. What stays missing is named with what it leaves untested; never fatal. */
export async function ensureDebian() {
  let missing = await missingPeers();
  if (missing.length === 0) return;
  const names = missing.map((peer) => peer.name);
  if (process.getuid?.() === 0 && which('apt-get')) {
    say(`Installing Debian packages: ${names.join(' ')}`);
    const env = { DEBIAN_FRONTEND: 'noninteractive' };
    const began = Date.now();
    let why = await run('apt-get', ['update', '-q'], { timeout: APT_TIMEOUT_MS, env });
    const left = Math.max(APT_TIMEOUT_MS - (Date.now() - began), 1000);
    const install = ['install', '-q', '-y', '--no-install-recommends', ...names];
    why = (await run('apt-get', install, { timeout: left, env })) || (why && `apt-get update: ${why}`);
    if (why) say(`Could not install the Debian packages: ${why}`);
    missing = await missingPeers();
  }
  for (const peer of missing) say(`Missing program '${peer.program}' (package ${peer.name}): skipped: ${peer.tests}`);
}

/** The benchmarks are the files of bench/ that run by themselves. */
const SHARED = new Set([
  ...[
    'channel-client',
    'client-reader',
    'common',
    'fio',
    'http-server',
    'nbd-client',
    'peers',
    'rounds',
    'vhost-user-client',
  ],
]);

/** Names of the benchmarks, in the order they run. */
export function benchmarks() {
  return readdirSync(join(root, 'bench'))
    .filter((file) => file.endsWith('.ts') && !file.endsWith('.test.ts'))
    .map((file) => file.slice(0, -'.ts'.length))
    .filter((name) => !SHARED.has(name))
    .sort();
}
