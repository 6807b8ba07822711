/**
 * `npm run bench -- drain`: how long it takes to drain 8 disks, each with a job and two clients that write 4 KiB at
 * random places through NBD, in milliseconds of a transaction that adds a bitmap to each of them; beside the same
 * conversation with qemu-storage-daemon. `--flush N`: each client flushes after N writes, and a drain waits for that.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, ftruncateSync, openSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { QmpClient } from '../src/daemon/index.ts';
import {
  figure,
  hasProgram,
  MAIN,
  machineLine,
  markdownTable,
  options,
  SKIPPED,
  track,
  until,
  workFolder,
} from './common.ts';

const MIB = 2 ** 20;
const DISK_BYTES = 64 * MIB;
const DISKS = 8;
const CLIENTS = 16;
/** Bytes a second: the jobs last as long as the round, and those that end are begun again. */
const SPEED = 4 * MIB;
const START_MS = 10_000;
const BAR_MS = 50;

interface Subject {
  readonly name: string;
  readonly command: readonly string[];
}

const SUBJECTS: readonly Subject[] = [
  { name: 'ours', command: [process.execPath, MAIN, 'daemon'] },
  { name: 'qemu-storage-daemon', command: ['qemu-storage-daemon'] },
];

function disks(folder: string): string[] {
  return Array.from({ length: DISKS }, (_, n) => ['disk', 'target'].map((kind) => `${kind}${n}`))
    .flat()
    .map((name) => {
      const path = join(folder, name);
      const file = openSync(path, 'w');
      ftruncateSync(file, DISK_BYTES);
      closeSync(file);
      return name;
    });
}

/** The clients, until they are killed. */
function load(socket: string, flush: number): ChildProcess {
  const shape = ['--ioengine=nbd', '--thread', '--rw=randwrite', '--bs=4k', '--iodepth=1', '--norandommap'];
  const end = ['--time_based', '--runtime=1h', ...(flush > 0 ? [`--fsync=${flush}`] : [])];
  const clients = Array.from({ length: CLIENTS }, (_, n) => [
    `--name=c${n}`,
    ...shape,
    `--uri=nbd+unix:///disk${n % DISKS}?socket=${socket}`,
    ...end,
  ]);
  return track(spawn('fio', clients.flat(), { stdio: 'ignore' }));
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exit = once(child, 'exit');
  child.kill('SIGKILL');
  await exit;
}

async function begin(qmp: QmpClient, n: number): Promise<void> {
  const job = { 'job-id': `j${n}`, device: `disk${n}`, target: `target${n}`, sync: 'full', speed: SPEED } as const;
  if (n % 2 === 0) await qmp.execute('blockdev-backup', job);
  else await qmp.execute('blockdev-mirror', { ...job, 'copy-mode': n % 4 === 1 ? 'write-blocking' : 'background' });
}

/** Mirrors that are ready end, and what has ended is begun again. */
async function goOn(qmp: QmpClient): Promise<void> {
  for (const { id, status } of await qmp.execute('query-jobs', {})) {
    // It may have ended since.
    if (status === 'ready') await qmp.execute('block-job-cancel', { device: id }).catch(() => undefined);
  }
  const running = new Set((await qmp.execute('query-jobs', {})).map(({ id }) => id));
  for (let n = 0; n < DISKS; n++) if (!running.has(`j${n}`)) await begin(qmp, n);
}

/** Milliseconds of one drained section of all disks. */
async function drained(qmp: QmpClient): Promise<number> {
  const each = Array.from({ length: DISKS }, (_, n) => ({ node: `disk${n}`, name: 'b' }));
  const began = performance.now();
  await qmp.execute('transaction', { actions: each.map((data) => ({ type: 'block-dirty-bitmap-add', data })) });
  const took = performance.now() - began;
  for (const data of each) await qmp.execute('block-dirty-bitmap-remove', data);
  return took;
}

/** A daemon of its own with jobs and clients, drained `count` times. */
async function round({ command }: Subject, count: number, flush: number): Promise<number[]> {
  const folder = workFolder();
  const [nbd, monitor] = [join(folder, 'nbd'), join(folder, 'qmp')];
  const names = disks(folder);
  const args = [
    ...names.flatMap((name) => ['--blockdev', `driver=file,node-name=${name}-file,filename=${join(folder, name)}`]),
    ...names.flatMap((name) => ['--blockdev', `driver=raw,node-name=${name},file=${name}-file`]),
    ...['--nbd-server', `addr.type=unix,addr.path=${nbd},max-connections=100`],
    ...names
      .filter((name) => name.startsWith('disk'))
      .flatMap((name) => ['--export', `type=nbd,id=${name},node-name=${name},name=${name},writable=on`]),
    ...['--chardev', `socket,id=c,path=${monitor},server=on,wait=off`, '--monitor', 'chardev=c'],
  ];
  const daemon = track(spawn(command[0]!, [...command.slice(1), ...args], { stdio: ['ignore', 'ignore', 'inherit'] }));
  await until('the daemon', START_MS, () => existsSync(monitor));
  const qmp = await QmpClient.connect({ path: monitor });
  const clients = load(nbd, flush);
  const took: number[] = [];
  try {
    await until('the clients', START_MS, () => {
      return names.every((name) => !name.startsWith('disk') || statSync(join(folder, name)).blocks > 0);
    });
    for (let n = 0; n < count; n++) {
      await goOn(qmp);
      took.push(await drained(qmp));
    }
  } finally {
    // The daemon first: it need not tell of clients that went.
    qmp.close();
    await ended(daemon);
    await ended(clients);
  }
  return took;
}

async function main(): Promise<number> {
  const given = options('how long a drain takes while 8 jobs and 16 clients run', {
    drains: { type: 'string', default: '1000', help: 'drains of each daemon' },
    rounds: { type: 'string', default: '4', help: 'rounds that they are divided into, in turns' },
    flush: { type: 'string', default: '0', help: 'writes of a client after which it flushes; 0 for never' },
    only: { type: 'string', default: '', help: "'ours' or 'qemu-storage-daemon': no other" },
    smoke: { type: 'boolean', help: 'one short round: does it still work' },
  });
  if (!hasProgram('fio')) {
    console.log('skipped: fio not installed');
    return SKIPPED;
  }
  const small = given.get('smoke') === true;
  const rounds = small ? 1 : Number(given.get('rounds'));
  const count = small ? 3 : Math.ceil(Number(given.get('drains')) / rounds);
  const only = given.get('only');
  const subjects = SUBJECTS.filter(({ name }) => (name === 'ours' || hasProgram(name)) && (!only || name === only));
  console.log(machineLine(['qemu-storage-daemon', 'fio']));
  const times = new Map<string, number[]>(subjects.map(({ name }) => [name, []]));
  for (let n = 0; n < rounds; n++) {
    for (const subject of subjects) {
      times.get(subject.name)!.push(...(await round(subject, count, Number(given.get('flush')))));
    }
  }
  const rows = [...times].map(([name, took]) => {
    took.sort((a, b) => a - b);
    const at = [0.5, 0.99, 1].map((part) => figure(took[Math.floor((took.length - 1) * part)]!));
    return [name, String(took.length), ...at];
  });
  console.log(`\n${markdownTable(['daemon', 'drains', 'median, ms', 'p99, ms', 'longest, ms'], rows)}\n`);
  const longest = times.get('ours')?.at(-1);
  if (longest !== undefined) {
    const verdict = longest <= BAR_MS ? 'held' : 'missed';
    console.log(`bar: a drain takes at most ${BAR_MS} ms: ${figure(longest)}: ${verdict}`);
  }
  return 0;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
