/**
 * NBD servers side by side: every server runs all the time, each on a warm image of its own; each round gives every
 * load to every server, in an order that turns. Figures are medians over the rounds. IOPS per CPU second counts the
 * server's own processor time, user and system, of all its threads: with two cores and fio on one of them, it is what
 * scales.
 */
import { writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  figure,
  fillImage,
  hasProgram,
  machineLine,
  markdownTable,
  options,
  residentMib,
  SKIPPED,
  workFolder,
} from './common.ts';
import type { Load } from './fio.ts';
import { pick, type Server, serve } from './peers.ts';
import { type Bar, json, report, rounds, verdicts } from './rounds.ts';

const KIB = 1024;

function allLoads(): Load[] {
  const loads: Load[] = [];
  const add = (rw: Load['rw'], blockKib: number, depth: number, jobs: number) => {
    const size = blockKib >= KIB ? `${blockKib / KIB}M` : `${blockKib}k`;
    loads.push({ name: `${rw}-${size}-qd${depth}-j${jobs}`, rw, blockBytes: blockKib * KIB, depth, jobs });
  };
  for (const rw of ['randread', 'randwrite'] as const) {
    for (const depth of [1, 32]) for (const jobs of [1, 4, 8]) add(rw, 4, depth, jobs);
  }
  for (const rw of ['read', 'write'] as const) for (const kib of [64, KIB]) add(rw, kib, 4, 1);
  return loads;
}

const BARS: readonly Bar[] = [
  { load: 'randread-4k-qd32-j1', against: 'qemu-uring', ratio: 1.5 },
  { load: 'randread-4k-qd32-j1', against: 'nbdkit', ratio: 1.1 },
  { load: 'randread-4k-qd1-j1', against: 'qemu-uring', ratio: 1.1 },
  ...['read', 'write'].flatMap((rw) =>
    ['qemu-uring', 'nbdkit'].map((against) => ({ load: `${rw}-1M-qd4-j1`, against, ratio: 1 })),
  ),
];

async function main(): Promise<number> {
  const given = options('NBD servers side by side', {
    rounds: { type: 'string', default: '5', help: 'rounds; the figures are medians over them' },
    seconds: { type: 'string', default: '2', help: 'seconds for each load, server and round' },
    only: { type: 'string', help: 'loads whose name matches this regular expression' },
    with: {
      type: 'string',
      default: 'ours,qemu-uring,qemu-threads,nbdkit',
      help: 'servers; also ours-pool, ours-2-threads, ours-daemon (its node in an IOThread), ours-daemon-main',
    },
    ceiling: { type: 'boolean', help: 'adds a server with no disk behind it' },
    size: { type: 'string', default: '1024', help: 'size of each image in MiB' },
    dir: { type: 'string', default: tmpdir(), help: 'folder for the images' },
    json: { type: 'string', help: 'file for every sample' },
    smoke: { type: 'boolean', help: 'one short round on small images: does it still work' },
  });
  if (!hasProgram('fio')) {
    console.log('skipped: fio is not installed');
    return SKIPPED;
  }
  const small = given.get('smoke') === true;
  const number = (name: string, smoke: number) => (small ? smoke : Number(given.get(name)));
  const names = String(given.get('with')).split(',');
  if (given.get('ceiling')) names.push('null');
  const { found, absent } = pick(names);
  const only = new RegExp(
    String(given.get('only') ?? (small ? '^(randread-4k-qd(1|32)-j1|randwrite.*-qd32-j4|(read|write)-1M.*)$' : '')),
  );
  const loads = allLoads().filter((load) => only.test(load.name));
  if (found.length === 0 || loads.length === 0) throw new Error('Could not measure: no server or no load is left');
  const machine = machineLine(['fio', 'qemu-nbd', 'nbdkit']);
  console.log(machine);
  if (absent.length > 0) console.log(`absent here: ${absent.join(', ')}`);

  const bytes = number('size', 16) * 2 ** 20;
  const folder = workFolder(String(given.get('dir')));
  const servers: Server[] = [];
  try {
    for (const one of found) {
      const image = join(folder, `${one.name}.raw`);
      if (one.name !== 'null') fillImage(image, bytes);
      servers.push(await serve(one, folder, image, bytes));
    }
    const idle = servers.map((server) => residentMib(server.pid));
    const samples = await rounds(servers, loads, number('rounds', 1), number('seconds', 0.3));
    const memory = servers.map((server, at) => [
      server.contestant.name,
      server.readyMs.toFixed(0),
      figure(idle[at]!),
      figure(residentMib(server.pid)),
    ]);
    console.log(`\n${report(samples, found[0]!.name)}\n`);
    console.log(markdownTable(['server', 'ready ms', 'RSS idle MiB', 'RSS after load MiB'], memory));
    const lines = verdicts(samples, BARS);
    if (lines.length > 0) console.log(`\n${lines.join('\n')}`);
    const file = given.get('json');
    if (typeof file === 'string') writeFileSync(file, json(machine, samples, memory));
  } finally {
    for (const server of servers) await server.stop();
  }
  return 0;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
