/**
 * vhost-user-blk exports side by side, under the same front-end (our driver, vhost-user-client.ts): ours and
 * qemu-storage-daemon's, each polling as it does by itself, and not at all; under a client that waits for interrupts,
 * and one that spins before it does. Figures are medians over rounds in turning order; requests per CPU second count
 * the back-end's processor time with all its threads. At the end: what each takes of a processor with an idle client.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import {
  cpuSeconds,
  figure,
  fillImage,
  hasProgram,
  MAIN,
  machineLine,
  markdownTable,
  median,
  options,
  SKIPPED,
  track,
  until,
  workFolder,
} from './common.ts';
import type { VhostLoad, VhostResult } from './vhost-user-client.ts';

const CLIENT = fileURLToPath(new URL('./vhost-user-client.js', import.meta.url));
const run = promisify(execFile);
/** Queues of the idle client, and how long it is watched: the clock of processor time ticks every 10 ms. */
const IDLE_QUEUES = 4;
const IDLE_MS = 4000;

interface BackEnd {
  readonly name: string;
  readonly command: (image: string, format: string, socket: string) => readonly string[];
}

const ours = (name: string, more: readonly string[]): BackEnd => ({
  name,
  command: (image, format, socket) => [
    process.execPath,
    ...[MAIN, 'serve', '--vhost-user', socket, ...more, '--image-opts'],
    `driver=${format},file.driver=file,file.filename=${image},file.locking=off,discard=unmap,file.discard=unmap`,
  ],
});

const daemon = (name: string, pollMaxNs: string): BackEnd => ({
  name,
  command: (image, format, socket) => [
    'qemu-storage-daemon',
    ...['--object', `iothread,id=io0${pollMaxNs}`],
    ...['--blockdev', `driver=file,node-name=file,filename=${image},locking=off,aio=io_uring,discard=unmap`],
    ...['--blockdev', `driver=${format},node-name=disk,file=file`],
    '--export',
    `type=vhost-user-blk,id=e,node-name=disk,writable=on,iothread=io0,num-queues=${IDLE_QUEUES}` +
      `,addr.type=unix,addr.path=${socket}`,
  ],
});

const BACK_ENDS: readonly BackEnd[] = [
  ours('ours', []),
  daemon('qsd', ''),
  ours('ours-quiet', ['--poll-max-ns', '0']),
  daemon('qsd-quiet', ',poll-max-ns=0'),
];

/**
 * Left alone, one back-end may have the client on its processor for a whole run, and another not: so each side has one
 * of its own, where there are two.
 */
function onProcessor(index: 0 | 1, command: readonly string[]): readonly string[] {
  if (availableParallelism() < 2 || !hasProgram('taskset')) return command;
  return ['taskset', '-c', String(index), ...command];
}

interface Running {
  readonly name: string;
  readonly child: ChildProcess;
  readonly socket: string;
}

interface Sample extends VhostResult {
  readonly perCpuSecond: number;
}
/** By load, and by name of the back-end. */
type Samples = Map<string, Map<string, Sample[]>>;

function client(socket: string, load: VhostLoad): Promise<{ readonly stdout: string }> {
  const [program, ...args] = onProcessor(0, [process.execPath, CLIENT, socket, JSON.stringify(load)]);
  return run(program!, args, { timeout: 60_000 });
}

async function sample(pid: number, socket: string, load: VhostLoad): Promise<Sample> {
  const before = cpuSeconds(pid);
  const result = JSON.parse((await client(socket, load)).stdout) as VhostResult;
  // The client has a quarter of its time to warm up.
  return { ...result, perCpuSecond: (result.operations * 1.25) / Math.max(0.01, cpuSeconds(pid) - before) };
}

/** Processor time per second and queue while a client has its queues, and asks nothing. */
async function idleShare(pid: number, socket: string, milliseconds: number): Promise<number> {
  const idle = { write: false, depth: 0, blockBytes: 4096, bytes: 4096, spinUs: 0, packed: false };
  const held = client(socket, { ...idle, queues: IDLE_QUEUES, seconds: (milliseconds + 1500) / 1000 });
  await new Promise((resolve) => setTimeout(resolve, 1000));
  const before = cpuSeconds(pid);
  await new Promise((resolve) => setTimeout(resolve, milliseconds));
  const spent = cpuSeconds(pid) - before;
  await held;
  return spent / (milliseconds / 1000) / IDLE_QUEUES;
}

function loads(bytes: number, seconds: number, packed: boolean): Map<string, VhostLoad> {
  const all = new Map<string, VhostLoad>();
  const common = { blockBytes: 4096, bytes, seconds, packed, queues: 1 };
  for (const [front, spinUs] of [
    ['wait', 0],
    ['spin', 50],
  ] as const) {
    for (const depth of [1, 4, 32]) {
      all.set(`randread-4k-qd${depth}-${front}`, { ...common, write: false, depth, spinUs });
    }
    all.set(`randwrite-4k-qd32-${front}`, { ...common, write: true, depth: 32, spinUs });
  }
  return all;
}

interface Plan {
  readonly found: readonly BackEnd[];
  readonly chosen: readonly (readonly [string, VhostLoad])[];
  readonly rounds: number;
  readonly bytes: number;
  readonly idleMs: number;
}

/** One image for all of them, whose clusters are all there: how quickly the page cache can be copied from depends on
 *  where in memory it lies. */
async function makeImage(format: string, folder: string, bytes: number): Promise<string> {
  const raw = join(folder, 'raw');
  fillImage(raw, bytes);
  if (format === 'raw') return raw;
  const image = join(folder, format);
  await run('qemu-img', ['convert', '-O', format, raw, image]);
  rmSync(raw);
  return image;
}

async function start(one: BackEnd, format: string, folder: string, image: string): Promise<Running> {
  const socket = join(folder, `${one.name}.${format}.sock`);
  const [program, ...args] = onProcessor(1, one.command(image, format, socket));
  const child = track(spawn(program!, args, { stdio: ['ignore', 'ignore', 'inherit'] }));
  await until(`${one.name} to listen`, 20_000, () => existsSync(socket));
  return { name: one.name, child, socket };
}

/** All loads on images of one format. */
async function measure(format: string, folder: string, plan: Plan, samples: Samples): Promise<string[]> {
  const running: Running[] = [];
  const image = await makeImage(format, folder, plan.bytes);
  for (const one of plan.found) running.push(await start(one, format, folder, image));
  for (let round = 0; round < plan.rounds; round++) {
    for (const [name, load] of plan.chosen) {
      process.stderr.write(`\rround ${round + 1} of ${plan.rounds}: ${format} ${name}`.padEnd(60));
      const key = `${format} ${name}`;
      if (!samples.has(key)) samples.set(key, new Map(running.map((one) => [one.name, []])));
      for (let turn = 0; turn < running.length; turn++) {
        const { name: who, child, socket } = running[(turn + round) % running.length]!;
        samples
          .get(key)!
          .get(who)!
          .push(await sample(child.pid!, socket, load));
      }
    }
  }
  process.stderr.write('\n');
  const idle: string[] = [];
  for (const { name, child, socket } of running) {
    const share = await idleShare(child.pid!, socket, plan.idleMs);
    const verdict = name.startsWith('ours') ? `: bar 0.5%: ${share < 0.005 ? 'held' : 'missed'}` : '';
    idle.push(`${format} ${name}: ${(share * 100).toFixed(2)}% of a processor a queue when idle${verdict}`);
    child.kill();
  }
  rmSync(image);
  return idle;
}

async function main(): Promise<number> {
  const given = options('vhost-user-blk exports side by side', {
    rounds: { type: 'string', default: '5', help: 'rounds; the figures are medians over them' },
    seconds: { type: 'string', default: '1', help: 'seconds for each load, back-end and round' },
    only: { type: 'string', default: '', help: 'loads whose name matches this regular expression' },
    with: { type: 'string', default: 'ours,qsd,ours-quiet,qsd-quiet', help: 'back-ends' },
    formats: { type: 'string', default: 'raw,qcow2', help: 'formats of the images' },
    size: { type: 'string', default: '256', help: 'size of each image in MiB' },
    dir: { type: 'string', default: tmpdir(), help: 'folder for the images' },
    packed: { type: 'boolean', help: 'packed rings, where the back-end has them' },
    smoke: { type: 'boolean', help: 'one short round on small images: does it still work' },
  });
  if (!hasProgram('qemu-storage-daemon')) {
    console.log('skipped: qemu-storage-daemon is not installed');
    return SKIPPED;
  }
  const small = given.get('smoke') === true;
  const number = (name: string, smoke: number): number => (small ? smoke : Number(given.get(name)));
  console.log(machineLine(['qemu-storage-daemon']));
  const bytes = number('size', 16) * 2 ** 20;
  const names = String(given.get('with')).split(',');
  const only = new RegExp(String(given.get('only')));
  const all = loads(bytes, number('seconds', 0.2), given.get('packed') === true);
  const plan: Plan = {
    found: BACK_ENDS.filter((one) => names.includes(one.name)),
    chosen: [...all].filter(([name]) => only.test(name)),
    rounds: number('rounds', 1),
    bytes,
    idleMs: small ? 200 : IDLE_MS,
  };
  const folder = workFolder(String(given.get('dir')));
  const samples: Samples = new Map();
  const idle: string[] = [];
  for (const format of String(given.get('formats')).split(',')) {
    idle.push(...(await measure(format, folder, plan, samples)));
  }
  report(samples);
  for (const line of [...verdicts(samples), ...idle]) console.log(line);
  return 0;
}

function ioOf(byName: ReadonlyMap<string, readonly Sample[]>, field: keyof Sample, who: string): number {
  return median((byName.get(who) ?? []).map((one) => one[field]));
}

function report(samples: Samples): void {
  const rows: string[][] = [];
  for (const [load, byName] of samples) {
    for (const name of byName.keys()) {
      const rival = name.replace('ours', 'qsd');
      const ratio = (field: keyof Sample): string =>
        rival === name || !byName.has(rival) ? '' : (ioOf(byName, field, name) / ioOf(byName, field, rival)).toFixed(2);
      const figures = [figure(ioOf(byName, 'iops', name)), ratio('iops')];
      rows.push([load, name, ...figures, figure(ioOf(byName, 'perCpuSecond', name)), ratio('perCpuSecond')]);
    }
  }
  const head = ['load', 'back-end', 'IOPS', 'by qsd', 'IO per CPU s', 'by qsd'];
  console.log(`\n${markdownTable(head, rows)}\n`);
}

/** One line for each bar that was measured. Figures of a busy or small machine vary: never a failure. */
function verdicts(samples: Samples): string[] {
  const lines: string[] = [];
  for (const [load, byName] of samples) {
    for (const quiet of ['', '-quiet']) {
      const [own, rival] = [`ours${quiet}`, `qsd${quiet}`];
      if (!byName.has(own) || !byName.has(rival)) continue;
      const write = load.includes('randwrite');
      if (write && quiet !== '') continue;
      const bar = write ? 1.2 : quiet === '' ? 1.3 : 0.9;
      const got = ioOf(byName, 'iops', own) / ioOf(byName, 'iops', rival);
      lines.push(
        `bar: ${load}: ${own} by ${rival} at least ${bar}: ${got.toFixed(2)}: ${got >= bar ? 'held' : 'missed'}`,
      );
    }
  }
  return lines;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
