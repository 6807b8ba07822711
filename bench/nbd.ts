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
  cpuSeconds,
  figure,
  fillImage,
  hasProgram,
  machineLine,
  markdownTable,
  median,
  options,
  residentMib,
  SKIPPED,
  workFolder,
} from './common.ts';
import { type FioResult, fio, type Load } from './fio.ts';
import { pick, type Server, serve } from './peers.ts';

type Sample = FioResult & { readonly cpuSeconds: number; readonly iosPerCpuSecond: number };
/** Load's name -> contestant's name -> one sample a round. */
type Samples = Map<string, Map<string, Sample[]>>;

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

async function measure(server: Server, load: Load, seconds: number): Promise<Sample> {
  const before = cpuSeconds(server.pid);
  const result = await fio(server.uri, load, { seconds });
  const spent = cpuSeconds(server.pid) - before;
  return { ...result, cpuSeconds: spent, iosPerCpuSecond: result.operations / Math.max(spent, 0.01) };
}

function medianOf(samples: readonly Sample[], field: keyof Sample): number {
  return median(samples.map((sample) => sample[field]));
}

/** One table a load group: a row for each load and contestant, with the ratio of the first contestant to that row. */
function report(samples: Samples, first: string): string {
  const rows: string[][] = [];
  for (const [load, byName] of samples) {
    const own = byName.get(first);
    for (const [name, list] of byName) {
      const ratio = (field: keyof Sample) =>
        own && name !== first ? (medianOf(own, field) / medianOf(list, field)).toFixed(2) : '';
      const cells = (['iops', 'mibPerSecond', 'p50Us', 'p99Us', 'iosPerCpuSecond'] as const).map((field) =>
        figure(medianOf(list, field)),
      );
      rows.push([load, name, ...cells, ratio('iops'), ratio('p99Us'), ratio('iosPerCpuSecond')]);
    }
  }
  const ratios = ['IOPS', 'p99', 'IO/CPU s'].map((what) => `${first}: ${what} x`);
  return markdownTable(['load', 'server', 'IOPS', 'MiB/s', 'p50 us', 'p99 us', 'IO per CPU s', ...ratios], rows);
}

interface Bar {
  readonly load: string;
  readonly against: string;
  /** Our IOPS by theirs, at least. */
  readonly ratio: number;
}

const BARS: readonly Bar[] = [
  { load: 'randread-4k-qd32-j1', against: 'qemu-uring', ratio: 1.5 },
  { load: 'randread-4k-qd32-j1', against: 'nbdkit', ratio: 1.1 },
  { load: 'randread-4k-qd1-j1', against: 'qemu-uring', ratio: 1.1 },
  ...['read', 'write'].flatMap((rw) =>
    ['qemu-uring', 'nbdkit'].map((against) => ({ load: `${rw}-1M-qd4-j1`, against, ratio: 1 })),
  ),
];

/** One line for each bar that was measured. Figures of a busy or small machine vary: never a failure. */
function verdicts(samples: Samples): string[] {
  return BARS.flatMap(({ load, against, ratio }) => {
    const own = samples.get(load)?.get('ours');
    const other = samples.get(load)?.get(against);
    if (!own?.length || !other?.length) return [];
    const got = medianOf(own, 'iops') / medianOf(other, 'iops');
    const verdict = got >= ratio ? 'held' : 'missed';
    return [`bar: ${load}: ours by ${against} at least ${ratio.toFixed(1)}: ${got.toFixed(2)}: ${verdict}`];
  });
}

async function rounds(servers: readonly Server[], loads: readonly Load[], count: number, seconds: number) {
  const samples: Samples = new Map(
    loads.map((load) => [load.name, new Map(servers.map((server) => [server.contestant.name, []]))]),
  );
  // Every server sees every load once before it counts: compilers and caches are then warm for all of them.
  for (const server of servers) for (const load of loads) await fio(server.uri, load, { seconds: seconds / 4 });
  for (let round = 0; round < count; round += 1) {
    for (const load of loads) {
      for (let turn = 0; turn < servers.length; turn += 1) {
        const server = servers[(turn + round) % servers.length]!;
        const sample = await measure(server, load, seconds);
        samples.get(load.name)!.get(server.contestant.name)!.push(sample);
      }
      process.stderr.write(`\rround ${round + 1} of ${count}: ${load.name}`.padEnd(60));
    }
  }
  process.stderr.write('\n');
  return samples;
}

function json(machine: string, samples: Samples, memory: readonly (readonly string[])[]): string {
  const loads = Object.fromEntries([...samples].map(([load, byName]) => [load, Object.fromEntries(byName)]));
  return `${JSON.stringify({ machine, memory, loads }, undefined, 1)}\n`;
}

async function main(): Promise<number> {
  const given = options('NBD servers side by side', {
    rounds: { type: 'string', default: '5', help: 'rounds; the figures are medians over them' },
    seconds: { type: 'string', default: '2', help: 'seconds for each load, server and round' },
    only: { type: 'string', help: 'loads whose name matches this regular expression' },
    with: { type: 'string', default: 'ours,qemu-uring,qemu-threads,nbdkit', help: 'servers; also ours-pool' },
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
    const lines = verdicts(samples);
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
