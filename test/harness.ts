/** What the end-to-end tests share: our command as a child process, real peers, temporary files. */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

/** The command line: what was compiled last, or what is published where the caller says so (tools/setup.mjs). */
export const MAIN = process.env.BLOCKPLANE_MAIN ?? fileURLToPath(new URL('../src/cli/main.js', import.meta.url));
const PEER_PATHS = ['/usr/bin', '/usr/sbin', '/bin', '/sbin'];

/** Where a Debian program is; not by PATH, which may lead to other builds. */
export function peerPath(name: string): string | undefined {
  return PEER_PATHS.map((path) => join(path, name)).find((path) => existsSync(path));
}

/** Options for test(): skipped, with the reason, where one of the programs is missing. */
export function needs(...names: string[]): { skip: string | false; timeout: number } {
  const missing = names.filter((name) => !peerPath(name));
  return { skip: missing.length > 0 && `${missing.join(', ')} not installed`, timeout: 60_000 };
}

/** A directory that goes with the test. */
export function scratch(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'blockplane-test-'));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

export interface Output {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

function collect(child: ChildProcess): { stdout: string; stderr: string } {
  const text = { stdout: '', stderr: '' };
  child.stdout?.setEncoding('utf8').on('data', (chunk: string) => {
    text.stdout += chunk;
  });
  child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
    text.stderr += chunk;
  });
  return text;
}

/** Runs a program to its end. */
export async function run(command: string, args: readonly string[], input?: string): Promise<Output> {
  const child = spawn(peerPath(command) ?? command, args, { stdio: ['pipe', 'pipe', 'pipe'], timeout: 50_000 });
  const text = collect(child);
  child.stdin.on('error', () => undefined);
  child.stdin.end(input ?? '');
  const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  return { code, signal, ...text };
}

/** qemu-img measures how quick it is at passphrases, and gives up where the clock is too coarse: it is asked again. */
export function wasTooCoarse(stderr: string, tries: number): boolean {
  return tries < 30 && stderr.includes('accurate CPU usage');
}

/** Runs a peer that must succeed; answers its standard output. */
export async function peer(command: string, ...args: string[]): Promise<string> {
  let { code, signal, stdout, stderr } = await run(command, args);
  for (let tries = 0; wasTooCoarse(stderr, tries); tries++) {
    ({ code, signal, stdout, stderr } = await run(command, args));
  }
  if (code !== 0) throw new Error(`${command} ${args.join(' ')} ended with ${code ?? signal}: ${stderr}${stdout}`);
  return stdout;
}

/** Our own command, to its end. */
export function blockplane(...args: string[]): Promise<Output> {
  return run(process.execPath, [MAIN, ...args]);
}

/** The Python that Debian's libnbd belongs to. */
export function python(script: string): Promise<Output> {
  return run('/usr/bin/python3', ['-c', script]);
}

export function needsPythonNbd(): { skip: string | false; timeout: number } {
  try {
    execFileSync('/usr/bin/python3', ['-c', 'import nbd'], { stdio: 'ignore' });
    return { skip: false, timeout: 60_000 };
  } catch {
    return { skip: 'python3-libnbd not installed', timeout: 60_000 };
  }
}

/** A running `blockplane serve`. */
export class Served {
  readonly child: ChildProcess;
  readonly text: { stdout: string; stderr: string };
  readonly exited: Promise<Output>;

  constructor(child: ChildProcess) {
    this.child = child;
    this.text = collect(child);
    this.exited = once(child, 'close').then(([code, signal]) => ({ code, signal, ...this.text }));
  }

  get lines(): string[] {
    return this.text.stdout.split('\n');
  }

  /** The URI of the n-th image. */
  uri(n = 0): string {
    return this.lines[n]!;
  }

  /** Resolves once `lines` whole lines were printed; rejects when it ends before. */
  async printed(lines: number): Promise<void> {
    const ended = this.exited.then(({ code, stderr }) => {
      throw new Error(`serve ended with ${code}: ${stderr}`);
    });
    ended.catch(() => undefined);
    while (this.lines.length <= lines) await Promise.race([once(this.child.stdout!, 'data'), ended]);
  }

  stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<Output> {
    this.child.kill(signal);
    return this.exited;
  }
}

export interface ServeSpawn {
  readonly env?: NodeJS.ProcessEnv;
  /** Lines to wait for. */
  readonly lines?: number;
  readonly stdio?: readonly ('pipe' | 'ignore' | number)[];
}

/** Starts `blockplane serve ARGS` and waits for its URI; ended with the test. */
export async function serve(t: TestContext, args: readonly string[], options: ServeSpawn = {}): Promise<Served> {
  const child = spawn(process.execPath, [MAIN, 'serve', ...args], {
    stdio: [...(options.stdio ?? ['ignore', 'pipe', 'pipe'])],
    env: { ...process.env, ...options.env },
  });
  const served = new Served(child);
  t.after(async () => {
    // Killed only when it does not end in good order, since it could not remove its files then.
    const timer = setTimeout(() => child.kill('SIGKILL'), 5000);
    await served.stop();
    clearTimeout(timer);
  });
  await served.printed(options.lines ?? 1);
  return served;
}

/** Bytes that depend on their place, so that a mix-up is seen. */
export function pattern(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed >>> 0 || 1;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

/** An empty file of `size` bytes; answers its path. */
export function sparse(path: string, size: number): string {
  writeFileSync(path, '');
  truncateSync(path, size);
  return path;
}

/** The path in an nbd+unix URI. */
export function socketOf(uri: string): string {
  return decodeURIComponent(new URL(uri).searchParams.get('socket')!);
}

/** A key and a self-signed certificate for `name`. */
export async function certificate(t: TestContext, name: string): Promise<{ key: string; cert: string; path: string }> {
  const folder = scratch(t);
  const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
  const kind = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'];
  const names = ['-subj', '/CN=test', '-addext', `subjectAltName=${name}`];
  await peer('openssl', 'req', '-x509', ...kind, ...names, '-keyout', key, '-out', cert);
  return { key: readFileSync(key, 'utf8'), cert: readFileSync(cert, 'utf8'), path: cert };
}

/** A file of the project, wherever the build is. */
export function projectFile(path: string): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return join(folder, path);
}

/** Hands sockets over, and becomes the program. */
const ACTIVATION = `
import os, socket, sys
paths = sys.argv[1].split(":")
sockets = [socket.socket(socket.AF_UNIX) for path in paths]
for i, (s, path) in enumerate(zip(sockets, paths)):
    s.bind(path)
    s.listen()
    os.set_inheritable(os.dup2(s.fileno(), 50 + i), False)
for i in range(len(paths)):
    os.dup2(50 + i, 3 + i)
os.environ.update(LISTEN_FDS=str(len(paths)), LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
`;

/** The words that start `command` as systemd does, with a listening socket at each of `paths`. Needs python3. */
export function underSystemd(paths: readonly string[], command: readonly string[]): readonly string[] {
  return ['/usr/bin/python3', '-c', ACTIVATION, paths.join(':'), ...command];
}

/** fio that writes and verifies what it has written, over NBD, until it is stopped. */
export class VerifyingLoad {
  /** It has ended by itself. */
  over = false;
  readonly #child: ChildProcess;
  readonly #closed: Promise<unknown>;
  #text = '';

  constructor(t: TestContext, uri: string, sizeMiB: number) {
    const load = ['--name=verify', '--ioengine=nbd', `--uri=${uri}`, '--rw=randrw', '--bs=4k', '--iodepth=16'];
    const checks = ['--verify=crc32c', '--verify_fatal=1', '--verify_backlog=256', '--verify_dump=0'];
    const forever = ['--verify_state_save=0', `--size=${sizeMiB}m`, '--time_based', '--runtime=3600'];
    const args = [...load, ...checks, ...forever, '--output-format=json'];
    this.#child = spawn('fio', args, { stdio: ['ignore', 'pipe', 'inherit'] });
    t.after(() => this.#child.kill('SIGKILL'));
    this.#child.stdout!.setEncoding('utf8').on('data', (data: string) => {
      this.#text += data;
    });
    this.#closed = once(this.#child, 'close').finally(() => {
      this.over = true;
    });
  }

  /** Ends it, which must not have ended by itself; answers its error. */
  async stop(): Promise<number> {
    assert.equal(this.over, false, `fio ended early: ${this.#text}`);
    this.#child.kill('SIGINT');
    await this.#closed;
    const { jobs } = JSON.parse(this.#text.slice(this.#text.indexOf('{'))) as { jobs: [{ error: number }] };
    return jobs[0].error;
  }
}
