/**
 * vhost-user-blk exports side by side, under the same front-end (vhost-user-client.ts): ours and qemu-storage-daemon's,
 * each polling as it does by itself, and not at all. Figures are medians over rounds in turning order; requests per CPU
 * second count the back-end's processor time with all its threads.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
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

interface BackEnd {
  readonly name: string;
  readonly command: (image: string, format: string, socket: string) => readonly string[];
}

const ours = (name: string, more: readonly string[]): BackEnd => ({
  name,
  command: (image, format, socket) => [
    process.execPath,
    ...[MAIN, 'serve', '--format', format, '--vhost-user', socket, ...more, image],
  ],
});

const daemon = (name: string, pollMaxNs: string): BackEnd => ({
  name,
  command: (image, format, socket) => [
    'qemu-storage-daemon',
    ...['--object', `iothread,id=io0${pollMaxNs}`],
    ...['--blockdev', `driver=file,node-name=file,filename=${image},aio=io_uring,discard=unmap`],
    ...['--blockdev', `driver=${format},node-name=disk,file=file`],
    ...[
      '--export',
      `type=vhost-user-blk,id=e,node-name=disk,writable=on,iothread=io0,addr.type=unix,addr.path=${socket}`,
    ],
  ],
});

const BACK_ENDS: readonly BackEnd[] = [
  ours('ours', []),
  daemon('qsd', ''),
  ours('ours-quiet', ['--poll-max-ns', '0']),
  daemon('qsd-quiet', ',poll-max-ns=0'),
];

interface Sample extends VhostResult {
  readonly perCpuSecond: number;
}

async function sample(pid: number, socket: string, load: VhostLoad): Promise<Sample> {
  const before = cpuSeconds(pid);
  const { stdout } = await run(process.execPath, [CLIENT, socket, JSON.stringify(load)], { timeout: 60_000 });
  const result = JSON.parse(stdout) as VhostResult;
  // The client has a quarter of its time to warm up.
  return { ...result, perCpuSecond: (result.operations * 1.25) / Math.max(0.01, cpuSeconds(pid) - before) };
}

/** Processor time per second while nobody asks anything, with a front-end that has left. */
async function idleShare(pid: number): Promise<number> {
  const before = cpuSeconds(pid);
  await new Promise((resolve) => setTimeout(resolve, 2000));
  return (cpuSeconds(pid) - before) / 2;
}

function loads(bytes: number, seconds: number, packed: boolean): Map<string, VhostLoad> {
  const all = new Map<string, VhostLoad>();
  for (const [front, spinUs] of [
    ['wait', 0],
    ['spin', 50],
  ] as const) {
    for (const depth of [1, 4, 32]) {
      all.set(`randread-4k-qd${depth}-${front}`, {
        write: false,
        depth,
        blockBytes: 4096,
        bytes,
        seconds,
        spinUs,
        packed,
      });
    }
    all.set(`randwrite-4k-qd32-${front}`, { write: true, depth: 32, blockBytes: 4096, bytes, seconds, spinUs, packed });
  }
  return all;
}

async function main(): Promise<number> {
  const given = options('vhost-user-blk exports side by side', {
    rounds: { type: 'string', default: '5', help: 'rounds; the figures are medians over them' },
    seconds: { type: 'string', default: '1', help: 'seconds for each load, back-end and round' },
    only: { type: 'string', default: '', help: 'loads whose name matches this regular expression' },
    with: { type: 'string', default: 'ours,qsd,ours-quiet,qsd-quiet', help: 'back-ends' },
    format: { type: 'string', default: 'raw', help: 'raw or qcow2' },
    size: { type: 'string', default: '512', help: 'size of each image in MiB' },
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
  const folder = workFolder(String(given.get('dir')));
  const format = String(given.get('format'));
  const names = String(given.get('with')).split(',');
  const found = BACK_ENDS.filter((one) => names.includes(one.name));
  const running: { readonly name: string; readonly child: ChildProcess; readonly socket: string }[] = [];
  for (const one of found) {
    const raw = join(folder, `${one.name}.raw`);
    fillImage(raw, bytes);
    const image = format === 'raw' ? raw : join(folder, `${one.name}.${format}`);
    if (format !== 'raw') await run('qemu-img', ['convert', '-O', format, raw, image]);
    const socket = join(folder, `${one.name}.sock`);
    const [program, ...args] = one.command(image, format, socket);
    const child = track(spawn(program!, args, { stdio: ['ignore', 'ignore', 'inherit'] }));
    await until(`${one.name} to listen`, 20_000, () => existsSync(socket));
    running.push({ name: one.name, child, socket });
  }
  const only = new RegExp(String(given.get('only')));
  const chosen = [...loads(bytes, number('seconds', 0.2), given.get('packed') === true)].filter(([name]) =>
    only.test(name),
  );
  const samples = new Map(chosen.map(([name]) => [name, new Map(found.map((one) => [one.name, [] as Sample[]]))]));
  for (let round = 0; round < number('rounds', 1); round++) {
    for (const [name, load] of chosen) {
      for (let turn = 0; turn < running.length; turn++) {
        const { name: who, child, socket } = running[(turn + round) % running.length]!;
        samples
          .get(name)!
          .get(who)!
          .push(await sample(child.pid!, socket, load));
      }
    }
  }
  report(samples);
  for (const { name, child } of running) {
    console.log(`${name}: ${((await idleShare(child.pid!)) * 100).toFixed(2)}% of a processor when idle`);
    child.kill();
  }
  return 0;
}

function report(samples: ReadonlyMap<string, ReadonlyMap<string, readonly Sample[]>>): void {
  const rows: string[][] = [];
  for (const [load, byName] of samples) {
    for (const [name, list] of byName) {
      const of = (field: keyof Sample, who: string): number => median((byName.get(who) ?? []).map((one) => one[field]));
      const rival = name.replace('ours', 'qsd');
      const ratio = rival === name || !byName.has(rival) ? '' : (of('iops', name) / of('iops', rival)).toFixed(2);
      rows.push([load, name, figure(median(list.map((one) => one.iops))), ratio, figure(of('perCpuSecond', name))]);
    }
  }
  console.log(`\n${markdownTable(['load', 'back-end', 'IOPS', 'by qsd', 'IO per CPU s'], rows)}\n`);
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
