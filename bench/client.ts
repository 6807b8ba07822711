/**
 * `npm run bench -- client`: our NBD client beside `qemu-img bench`, both on the same nbdkit memory server over a unix
 * socket. Medians over alternating rounds; each run is a process of its own.
 */
import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { figure, hasProgram, machineLine, markdownTable, median, options, SKIPPED, workFolder } from './common.ts';
import { type Contestant, serve } from './peers.ts';

const MIB = 2 ** 20;

interface Load {
  readonly name: string;
  readonly kind: 'read' | 'write';
  readonly blockBytes: number;
  readonly depth: number;
  /** Of one run. */
  readonly bytes: number;
}

const LOADS: readonly Load[] = [
  { name: 'randread-4k-qd1', kind: 'read', blockBytes: 4096, depth: 1, bytes: 80 * MIB },
  { name: 'randread-4k-qd32', kind: 'read', blockBytes: 4096, depth: 32, bytes: 800 * MIB },
  { name: 'randwrite-4k-qd32', kind: 'write', blockBytes: 4096, depth: 32, bytes: 800 * MIB },
  { name: 'randread-64k-qd16', kind: 'read', blockBytes: 65_536, depth: 16, bytes: 3000 * MIB },
  { name: 'randread-1M-qd8', kind: 'read', blockBytes: MIB, depth: 8, bytes: 3000 * MIB },
  { name: 'randwrite-1M-qd8', kind: 'write', blockBytes: MIB, depth: 8, bytes: 3000 * MIB },
];
const BAR = { load: 'randread-4k-qd32', ratio: 1.2 };

const NBDKIT: Contestant = {
  name: 'nbdkit-memory',
  program: 'nbdkit',
  exportName: '',
  command: (_image, socket, bytes) => ['nbdkit', '-f', '-U', socket, 'memory', `size=${bytes}`],
};

/** Seconds that the run has taken, without start and end of the process. */
type Client = (socket: string, load: Load, count: number) => number;

const READER = join(dirname(fileURLToPath(import.meta.url)), 'client-reader.js');

function output(program: string, args: readonly string[]): string {
  const { status, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`Could not measure ${program}: ${stderr.trim()}`);
  return stdout;
}

function ours(connections: number): Client {
  return (socket, { blockBytes, depth, kind }, count) => {
    const args = [READER, socket, kind, ...[blockBytes, depth, count, connections].map(String)];
    return Number(output(process.execPath, args));
  };
}

/** Each request begins so many bytes after the last: scattered, as far as a memory server can tell. */
const STEP = 1021;

function qemu(socket: string, { blockBytes, depth, kind }: Load, count: number): number {
  const numbers = ['-c', count, '-d', depth, '-s', blockBytes, '-S', blockBytes * STEP].map(String);
  const write = kind === 'write' ? ['-w'] : [];
  const text = output('qemu-img', ['bench', '-f', 'raw', ...write, ...numbers, `nbd+unix:///?socket=${socket}`]);
  return Number(/completed in ([\d.]+) seconds/.exec(text)?.[1]);
}

const CLIENTS: Readonly<Record<string, Client>> = { ours: ours(4), 'ours-1-connection': ours(1), 'qemu-img': qemu };

async function main(): Promise<number> {
  const given = options('the NBD client beside qemu-img bench', {
    rounds: { type: 'string', default: '5', help: 'rounds; the figures are medians over them' },
    only: { type: 'string', default: '', help: 'loads whose name matches this regular expression' },
    smoke: { type: 'boolean', help: 'one short round: does it still work' },
  });
  if (!hasProgram('nbdkit') || !hasProgram('qemu-img')) {
    console.log('skipped: nbdkit or qemu-img is not installed');
    return SKIPPED;
  }
  const small = given.get('smoke') === true;
  const rounds = small ? 1 : Number(given.get('rounds'));
  const loads = LOADS.filter(({ name }) => new RegExp(String(given.get('only'))).test(name));
  console.log(machineLine(['qemu-img', 'nbdkit']));
  const server = await serve(NBDKIT, workFolder(), '', 1024 * MIB);
  const rows: string[][] = [];
  const lines: string[] = [];
  try {
    for (const load of loads) {
      const count = Math.ceil(load.bytes / load.blockBytes / (small ? 100 : 1));
      const rates = new Map(Object.keys(CLIENTS).map((name) => [name, [] as number[]]));
      for (let round = 0; round < rounds; round++) {
        for (const [name, client] of Object.entries(CLIENTS)) {
          rates.get(name)!.push(count / client(server.socket, load, count));
        }
      }
      const theirs = median(rates.get('qemu-img')!);
      for (const [name, list] of rates) {
        const rate = median(list);
        const ratio = name === 'qemu-img' ? '' : (rate / theirs).toFixed(2);
        rows.push([load.name, name, figure(rate), figure((rate * load.blockBytes) / MIB), ratio]);
        if (name !== 'ours' || load.name !== BAR.load) continue;
        const verdict = rate / theirs >= BAR.ratio ? 'held' : 'missed';
        lines.push(`bar: ${load.name}: ours by qemu-img at least ${BAR.ratio}: ${ratio}: ${verdict}`);
      }
    }
  } finally {
    await server.stop();
  }
  console.log(`\n${markdownTable(['load', 'client', 'IOPS', 'MiB/s', 'by qemu-img'], rows)}\n\n${lines.join('\n')}`);
  return 0;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
