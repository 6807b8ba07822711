/**
 * From spawn to the first client: how long each server takes, what memory it has when idle and under 100 idle
 * connections. Ours is also measured to its first line on stdout, as a script waits for it, beside node with an empty
 * program.
 */
import { spawn } from 'node:child_process';
import { rmSync, truncateSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { figure, MAIN, machineLine, markdownTable, median, options, residentMib, track, workFolder } from './common.ts';
import { attach } from './nbd-client.ts';
import { type Contestant, pick, serve } from './peers.ts';

const BYTES = 64 * 2 ** 20;
/** What our own server may take at most, with this many clients. */
const IDLE_MIB_MAX = 90;
const LOADED_MIB_MAX = 200;
const CLIENTS = 100;

/** Milliseconds from spawn until the program's stdout holds a line, or it ends. */
function firstLine(program: string, args: readonly string[]): Promise<number> {
  return new Promise((resolve, reject) => {
    const began = performance.now();
    const child = track(spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] }));
    let ms = Number.NaN;
    child.stdout.on('data', (data: Uint8Array) => {
      if (!Number.isNaN(ms) || !data.includes(10)) return;
      ms = performance.now() - began;
      child.kill('SIGTERM');
    });
    child.on('error', reject);
    child.on('exit', () => resolve(Number.isNaN(ms) ? performance.now() - began : ms));
  });
}

interface Figures {
  readonly readyMs: number;
  readonly idleMib: number;
  readonly loadedMib: number;
}

async function once(one: Contestant, folder: string, image: string, clients: number): Promise<Figures> {
  const server = await serve(one, folder, image, BYTES);
  const sockets: Socket[] = [];
  try {
    const idleMib = residentMib(server.pid);
    for (let count = 0; count < clients; count += 1) sockets.push(await attach(server.socket, one.exportName));
    return { readyMs: server.readyMs, idleMib, loadedMib: residentMib(server.pid) };
  } finally {
    for (const socket of sockets) socket.destroy();
    await server.stop();
    rmSync(server.socket, { force: true });
  }
}

/** The servers' limit of connections must be above what is measured here. */
function widened(one: Contestant, clients: number): Contestant {
  const limit = String(clients + 8);
  return {
    ...one,
    command: (image, socket, bytes) => {
      const words = one
        .command(image, socket, bytes)
        .map((word) => word.replace(/max-connections=\d+/, `max-connections=${limit}`));
      const at = words.indexOf('-e');
      if (at >= 0) words[at + 1] = limit;
      return one.program === 'node' ? [...words, '--max-connections', limit] : words;
    },
  };
}

/** Says what our own servers take too much of; true when there is nothing. */
function withinBounds(figures: ReadonlyMap<string, readonly Figures[]>): boolean {
  let good = true;
  for (const [name, list] of figures) {
    if (!name.startsWith('ours')) continue;
    const idle = median(list.map((f) => f.idleMib));
    const loaded = median(list.map((f) => f.loadedMib));
    const held = idle <= IDLE_MIB_MAX && loaded <= LOADED_MIB_MAX;
    const bars = `at most ${IDLE_MIB_MAX} MiB idle and ${LOADED_MIB_MAX} MiB with ${CLIENTS} clients`;
    console.log(`bar: ${name}: ${bars}: ${figure(idle)} and ${figure(loaded)} MiB: ${held ? 'held' : 'missed'}`);
    good &&= held;
  }
  return good;
}

async function main(): Promise<number> {
  const given = options('Start-up time and memory', {
    rounds: { type: 'string', default: '9', help: 'rounds; the figures are medians over them' },
    with: { type: 'string', default: 'ours,ours-pool,qemu-uring,nbdkit', help: 'servers' },
    clients: { type: 'string', default: String(CLIENTS), help: 'connections held open' },
    smoke: { type: 'boolean', help: 'one round: does it still work, and keep to its memory' },
  });
  const small = given.get('smoke') === true;
  const rounds = small ? 1 : Number(given.get('rounds'));
  const clients = small ? CLIENTS : Number(given.get('clients'));
  const { found, absent } = pick(String(given.get('with')).split(','));
  console.log(machineLine(['qemu-nbd', 'nbdkit']));
  if (absent.length > 0) console.log(`absent here: ${absent.join(', ')}`);
  const folder = workFolder();
  const image = join(folder, 'disk.raw');
  writeFileSync(image, '');
  truncateSync(image, BYTES);
  const figures = new Map<string, Figures[]>(found.map((one) => [one.name, []]));
  const bare: number[] = [];
  const line: number[] = [];
  for (let round = 0; round < rounds; round += 1) {
    bare.push(await firstLine(process.execPath, ['-e', 'console.log()']));
    if (found.some((one) => one.program === 'node')) {
      line.push(await firstLine(process.execPath, [MAIN, 'serve', image, '--format', 'raw']));
    }
    for (const one of found) figures.get(one.name)!.push(await once(widened(one, clients), folder, image, clients));
  }
  const rows = [...figures].map(([name, list]) => {
    const columns = [list.map((f) => f.readyMs), list.map((f) => f.idleMib), list.map((f) => f.loadedMib)];
    return [name, ...columns.map((values) => figure(median(values)))];
  });
  console.log(`\n${markdownTable(['server', 'ready ms', 'RSS idle MiB', `RSS ${clients} clients MiB`], rows)}\n`);
  console.log(`node, empty program, to its first line: ${figure(median(bare))} ms`);
  if (line.length > 0) console.log(`blockplane serve, to the URI on stdout: ${figure(median(line))} ms`);
  const held = clients !== CLIENTS || withinBounds(figures);
  return small && !held ? 1 : 0;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
