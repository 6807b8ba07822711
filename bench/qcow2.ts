/**
 * qcow2 over NBD, beside our own raw and beside qemu-nbd. Three parts, each with the servers in turn: a fully allocated
 * image whose metadata is cached; an image whose L2 tables are eight times the cache; and an empty image that every
 * write makes grow. Figures are medians over the rounds.
 */
import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  figure,
  fillImage,
  hasProgram,
  MAIN,
  machineLine,
  markdownTable,
  options,
  SKIPPED,
  workFolder,
} from './common.ts';
import { fio, type Load } from './fio.ts';
import { CACHE, CLIENTS, type Contestant, type Server, serve } from './peers.ts';
import { type Bar, medianOf, report, rounds, type Samples, verdicts } from './rounds.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
/** Of an image that has 1 MiB of L2 tables for 512 MiB. */
const SMALL_CLUSTER = 4 * KIB;
const SMALL_CACHE = 128 * KIB;

const load = (rw: Load['rw'], depth: number): Load => ({
  ...{ name: `${rw}-4k-qd${depth}`, rw, blockBytes: 4 * KIB, depth, jobs: 1 },
});
const LOADS = [load('randread', 1), load('randread', 32), load('randwrite', 1), load('randwrite', 32)];

const BARS: readonly Bar[] = [
  { load: 'randread-4k-qd32', against: 'ours-raw', ratio: 0.95 },
  { load: 'randread-4k-qd32', against: 'qemu', ratio: 1.3 },
  { load: 'randread-4k-qd1', against: 'qemu', ratio: 1 },
  { load: 'randwrite-4k-qd32', against: 'qemu', ratio: 1.2 },
];

/** Ours or qemu-nbd on a qcow2 image; with a bound on the L2 cache where one is given. */
function qcow2Server(name: string, ours: boolean, cacheBytes = 0): Contestant {
  return {
    ...{ name, exportName: '', program: ours ? 'node' : 'qemu-nbd' },
    command: (image, socket) => {
      const tree = [
        ...['driver=qcow2', 'discard=unmap', 'file.driver=file', `file.filename=${image}`],
        ...(cacheBytes > 0 ? [`l2-cache-size=${cacheBytes}`, 'l2-cache-entry-size=4096'] : []),
        ...(ours ? [] : ['file.aio=io_uring']),
      ].join(',');
      if (ours) return [process.execPath, MAIN, 'serve', '--image-opts', tree, '--cache', CACHE, '--socket', socket];
      return ['qemu-nbd', '--image-opts', `--cache=${CACHE}`, '-e', CLIENTS, '-t', '-k', socket, tree];
    },
  };
}

const RAW: Contestant = {
  ...{ name: 'ours-raw', exportName: '', program: 'node' },
  command: (image, socket) => {
    return [process.execPath, MAIN, 'serve', image, '-f', 'raw', '--cache', CACHE, '--socket', socket];
  },
};

function qemuImg(...args: string[]): void {
  const { status, stderr } = spawnSync('qemu-img', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`Could not make an image: qemu-img ${args.join(' ')}: ${stderr}`);
}

interface Sizes {
  readonly folder: string;
  readonly bytes: number;
  readonly rounds: number;
  readonly seconds: number;
  /** Requests of an allocating run. */
  readonly operations: number;
}

interface Entry {
  readonly contestant: Contestant;
  readonly image: string;
}

async function together(entries: readonly Entry[], loads: readonly Load[], sizes: Sizes): Promise<Samples> {
  const servers: Server[] = [];
  try {
    for (const { contestant, image } of entries) {
      servers.push(await serve(contestant, sizes.folder, image, sizes.bytes));
    }
    return await rounds(servers, loads, sizes.rounds, sizes.seconds);
  } finally {
    for (const server of servers) await server.stop();
  }
}

/** All clusters are there, all tables fit into the cache. */
async function allocated(sizes: Sizes): Promise<void> {
  const raw = join(sizes.folder, 'full.raw');
  fillImage(raw, sizes.bytes);
  const image = (name: string): string => {
    const path = join(sizes.folder, name);
    qemuImg('convert', '-f', 'raw', '-O', 'qcow2', raw, path);
    spawnSync('cat', [path], { stdio: ['ignore', 'ignore', 'ignore'] });
    return path;
  };
  const entries = [
    { contestant: qcow2Server('ours', true), image: image('ours.qcow2') },
    { contestant: RAW, image: raw },
    { contestant: qcow2Server('qemu', false), image: image('qemu.qcow2') },
  ];
  const samples = await together(entries, LOADS, sizes);
  console.log(`\nFully allocated, metadata cached\n\n${report(samples, 'ours')}\n`);
  console.log(verdicts(samples, BARS).join('\n'));
  for (const entry of entries) rmSync(entry.image);
}

/** Tables are eight times the cache: how much of the speed is left, here and there. */
async function beyondTheCache(sizes: Sizes): Promise<void> {
  const bytes = sizes.bytes / 2;
  const raw = join(sizes.folder, 'part.raw');
  const path = join(sizes.folder, 'part.qcow2');
  fillImage(raw, bytes);
  qemuImg('convert', '-f', 'raw', '-O', 'qcow2', '-o', `cluster_size=${SMALL_CLUSTER}`, raw, path);
  rmSync(raw);
  // Read only: the same image does for all.
  const all = [true, false].flatMap((ours) => {
    const name = ours ? 'ours' : 'qemu';
    const cache = Math.min(SMALL_CACHE, bytes / SMALL_CLUSTER);
    return [qcow2Server(name, ours), qcow2Server(`${name}-small-cache`, ours, cache)];
  });
  const entries = all.map((contestant) => ({ contestant: sharing(contestant), image: path }));
  const samples = await together(entries, LOADS.slice(0, 2), sizes);
  console.log(`\nL2 tables eight times the cache\n\n${report(samples, 'ours')}\n`);
  for (const [name, byName] of samples) {
    const kept = (who: string) =>
      medianOf(byName.get(`${who}-small-cache`)!, 'iops') / medianOf(byName.get(who)!, 'iops');
    const [ours, qemu] = [kept('ours'), kept('qemu')];
    const verdict = ours >= qemu ? 'held' : 'missed';
    console.log(
      `bar: ${name}: with the small cache ours keeps ${ours.toFixed(2)}, qemu ${qemu.toFixed(2)}: ${verdict}`,
    );
  }
  rmSync(path);
}

/** Several servers on one image, read-only. */
function sharing(contestant: Contestant): Contestant {
  return {
    ...contestant,
    command: (image, socket, bytes) => [...contestant.command(image, socket, bytes), '--read-only'],
  };
}

/** Every request of a run goes to a cluster that is not there yet; a fresh image and server each time. */
async function allocating(sizes: Sizes): Promise<void> {
  const contestants = [qcow2Server('ours', true), qcow2Server('qemu', false)];
  const one: Load = { ...load('randwrite', 32), name: 'allocating-randwrite-4k-qd32' };
  const samples: Samples = new Map([[one.name, new Map(contestants.map(({ name }) => [name, []]))]]);
  const path = join(sizes.folder, 'empty.qcow2');
  for (let round = 0; round < sizes.rounds; round++) {
    for (let turn = 0; turn < contestants.length; turn++) {
      const contestant = contestants[(round + turn) % contestants.length]!;
      qemuImg('create', '-q', '-f', 'qcow2', path, '64G');
      const server = await serve(contestant, sizes.folder, path, 0);
      try {
        const result = await fio(server.uri, one, { operations: sizes.operations });
        samples
          .get(one.name)!
          .get(contestant.name)!
          .push({ ...result, cpuSeconds: 0, iosPerCpuSecond: 0 });
      } finally {
        await server.stop();
      }
      const { status } = spawnSync('qemu-img', ['check', '-q', path]);
      if (status !== 0) throw new Error(`'${contestant.name}' has left an image that qemu-img finds damaged`);
      rmSync(path);
    }
  }
  const rows = [...samples.get(one.name)!].map(([name, list]) => [name, figure(medianOf(list, 'iops'))]);
  console.log(`\nAllocating 4k random writes, depth 32\n\n${markdownTable(['server', 'IOPS'], rows)}\n`);
  console.log(verdicts(samples, [{ load: one.name, against: 'qemu', ratio: 1 }]).join('\n'));
}

async function main(): Promise<number> {
  const given = options('qcow2 over NBD, beside raw and qemu-nbd', {
    rounds: { type: 'string', default: '5', help: 'rounds; the figures are medians over them' },
    seconds: { type: 'string', default: '1', help: 'seconds for each load, server and round' },
    size: { type: 'string', default: '1024', help: 'size of the full image in MiB' },
    operations: { type: 'string', default: '20000', help: 'requests of an allocating run' },
    only: { type: 'string', default: 'full,cache,allocating', help: 'parts to run' },
    dir: { type: 'string', default: tmpdir(), help: 'folder for the images' },
    smoke: { type: 'boolean', help: 'one short round on small images: does it still work' },
  });
  if (!['fio', 'qemu-nbd', 'qemu-img'].every(hasProgram)) {
    console.log('skipped: fio, qemu-nbd or qemu-img is not installed');
    return SKIPPED;
  }
  const small = given.get('smoke') === true;
  const number = (name: string, smoke: number) => (small ? smoke : Number(given.get(name)));
  const sizes: Sizes = {
    folder: workFolder(String(given.get('dir'))),
    bytes: number('size', 16) * MIB,
    rounds: number('rounds', 1),
    seconds: number('seconds', 0.3),
    operations: number('operations', 500),
  };
  console.log(machineLine(['fio', 'qemu-nbd']));
  const parts = String(given.get('only')).split(',');
  if (parts.includes('full')) await allocated(sizes);
  if (parts.includes('cache')) await beyondTheCache(sizes);
  if (parts.includes('allocating')) await allocating(sizes);
  return 0;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
