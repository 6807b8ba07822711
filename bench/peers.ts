/** The NBD servers that are measured: ours and its peers, each started on an image and a socket of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { hasProgram, MAIN, track, until } from './common.ts';

export interface Contestant {
  readonly name: string;
  /** The program that must be installed. */
  readonly program: string;
  readonly exportName: string;
  readonly command: (image: string, socket: string, bytes: number) => readonly string[];
  /** How a client gets in; without it, in plain text. */
  readonly uri?: (socket: string) => string;
}

/** The same guarantees for all: writes are done when in the page cache, a flush is fdatasync. */
export const CACHE = 'writeback';
/** Connections a server takes at once; the widest load has 8. */
export const CLIENTS = '16';

const ours = (name: string, aio: readonly string[]): Contestant => ({
  name,
  program: 'node',
  exportName: '',
  command: (image, socket) => {
    const options = ['--format', 'raw', '--cache', CACHE, '--socket', socket, ...aio];
    return [process.execPath, MAIN, 'serve', image, ...options];
  },
});

/** The words of a daemon of ours with the export 'n', whose node is in an IOThread of its own or in main-loop. */
export function daemonCommand(
  image: string,
  socket: string,
  { iothread, tls = [] }: { readonly iothread: boolean; readonly tls?: readonly string[] | undefined },
): string[] {
  const creds = tls.length > 0 ? ',tls-creds=tls0' : '';
  return [
    ...[process.execPath, MAIN, 'qemu-storage-daemon', '--object', 'iothread,id=io1', ...tls],
    ...['--blockdev', `driver=raw,node-name=n,file.driver=file,file.filename=${image}`],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket},max-connections=${CLIENTS}${creds}`],
    ...['--export', `type=nbd,id=e,node-name=n,writable=on${iothread ? ',iothread=io1' : ''}`],
  ];
}

const ourDaemon = (name: string, iothread: boolean): Contestant => ({
  name,
  program: 'node',
  exportName: 'n',
  command: (image, socket) => daemonCommand(image, socket, { iothread }),
});

const qemuNbd = (name: string, aio: string): Contestant => ({
  name,
  program: 'qemu-nbd',
  exportName: '',
  command: (image, socket) => {
    const options = ['-f', 'raw', `--aio=${aio}`, `--cache=${CACHE}`, '-e', CLIENTS, '-t', '-k', socket];
    return ['qemu-nbd', ...options, image];
  },
});

const CONTESTANTS: readonly Contestant[] = [
  ours('ours', []),
  ours('ours-pool', ['--aio', 'pool']),
  ours('ours-2-threads', ['--client-threads', '2']),
  ourDaemon('ours-daemon', true),
  ourDaemon('ours-daemon-main', false),
  qemuNbd('qemu-uring', 'io_uring'),
  qemuNbd('qemu-threads', 'threads'),
  {
    name: 'nbdkit',
    program: 'nbdkit',
    exportName: '',
    command: (image, socket) => ['nbdkit', '-f', '-U', socket, 'file', image],
  },
  {
    // No disk behind it: what the protocol, the socket and fio themselves allow on this machine.
    name: 'null',
    program: 'qemu-storage-daemon',
    exportName: 'null',
    command: (_image, socket, bytes) => [
      'qemu-storage-daemon',
      ...['--blockdev', `driver=null-co,node-name=null,size=${bytes},read-zeroes=on`],
      ...['--nbd-server', `addr.type=unix,addr.path=${socket},max-connections=${CLIENTS}`],
      ...['--export', 'type=nbd,id=null,node-name=null,writable=on'],
    ],
  },
];

/** The contestants of these names that can run here, and the names of those that cannot. */
export function pick(names: readonly string[]): { found: Contestant[]; absent: string[] } {
  const found: Contestant[] = [];
  const absent: string[] = [];
  for (const name of names) {
    const one = CONTESTANTS.find((contestant) => contestant.name === name);
    if (!one) {
      const all = CONTESTANTS.map((contestant) => contestant.name).join(', ');
      throw new Error(`Could not find contestant '${name}': there are ${all}`);
    }
    // Ours is always there: if it does not start, that is a failure and not a reason to skip it.
    if (one.program === 'node' || hasProgram(one.program)) found.push(one);
    else absent.push(name);
  }
  return { found, absent };
}

export interface Server {
  readonly contestant: Contestant;
  readonly pid: number;
  readonly socket: string;
  readonly uri: string;
  /** Milliseconds from spawn until a client was accepted. */
  readonly readyMs: number;
  stop(): Promise<void>;
}

function accepts(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const client = connect(socket);
    client.on('error', () => resolve(false));
    // The greeting, not the connection alone, shows that someone serves it.
    client.on('data', () => {
      client.destroy();
      resolve(true);
    });
  });
}

function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  return new Promise((resolve) => child.once('exit', () => resolve()));
}

/** Starts a server and waits until it greets a client. Throws with its own words when it ends instead. */
export async function serve(one: Contestant, folder: string, image: string, bytes: number): Promise<Server> {
  const socket = join(folder, `${one.name}.sock`);
  const [program, ...args] = one.command(image, socket, bytes);
  const began = performance.now();
  const child = track(spawn(program!, args, { stdio: ['ignore', 'ignore', 'pipe'] }));
  let words = '';
  let failed = '';
  child.stderr.on('data', (data: Uint8Array) => {
    words = (words + new TextDecoder().decode(data)).slice(-2000);
  });
  child.on('error', (error) => {
    failed = error.message;
  });
  await until(`${one.name} to accept`, 20_000, async () => {
    if (failed || child.exitCode !== null) throw new Error(`Could not start ${one.name}: ${failed || words.trim()}`);
    return existsSync(socket) && (await accepts(socket));
  });
  return {
    contestant: one,
    pid: child.pid!,
    socket,
    uri: one.uri?.(socket) ?? `nbd+unix:///${one.exportName}?socket=${socket}`,
    readyMs: performance.now() - began,
    async stop() {
      child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), 5000);
      await ended(child);
      clearTimeout(timer);
    },
  };
}
