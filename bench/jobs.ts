/**
 * `npm run bench -- jobs`: mirror and backup of a disk that is a quarter data, raw file to raw file: beside
 * qemu-storage-daemon with nobody else there, and what a guest that writes 4 KiB at random places through NBD keeps of
 * its requests while the job runs (ours; that daemon's as well, for comparison).
 */
import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, ftruncateSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type Disk, open, serveNbd } from '../src/index.ts';
import {
  figure,
  hasProgram,
  machineLine,
  markdownTable,
  median,
  options,
  SKIPPED,
  track,
  workFolder,
} from './common.ts';
import { fio, type Load } from './fio.ts';

const MIB = 2 ** 20;
const STRIPE = 64 * MIB;
const DATA = 16 * MIB;
const LOAD: Load = { name: '4k randwrite', rw: 'randwrite', blockBytes: 4096, depth: 16, jobs: 1 };
/** A job that takes longer under load has not converged. */
const LIMIT_MS = 120_000;
const KINDS = ['mirror', 'backup'] as const;
type Kind = (typeof KINDS)[number];

/** A sparse file; the data has no zeroes. */
function image(path: string, bytes: number): string {
  const file = openSync(path, 'w');
  ftruncateSync(file, bytes);
  const data = new Uint8Array(DATA).map((_, i) => 1 + (i % 251));
  for (let at = 0; at < bytes; at += STRIPE) writeSync(file, data, 0, Math.min(DATA, bytes - at), at);
  closeSync(file);
  return path;
}

function empty(path: string, bytes: number): string {
  rmSync(path, { force: true });
  const file = openSync(path, 'w');
  ftruncateSync(file, bytes);
  closeSync(file);
  return path;
}

/** What is measured: a daemon with the disk open and shown, and one job at a time. */
interface Subject {
  readonly name: string;
  readonly uri: string;
  /** Runs one, up to its end; what the disk is stays. */
  job(kind: Kind, target: string, signal?: AbortSignal): Promise<void>;
  stop(): Promise<void>;
}

async function ours(path: string): Promise<Subject> {
  const disk: Disk = await open(path, { format: 'raw' });
  const server = await serveNbd(disk);
  return {
    name: 'ours',
    uri: server.uri,
    job: (kind, target, signal) =>
      kind === 'mirror'
        ? disk.mirror(target, { format: 'raw', signal, onReady: () => 'cancel' })
        : disk.backup(target, { format: 'raw', signal }),
    async stop() {
      await server.stop();
      await disk.close();
    },
  };
}

/** One conversation with qemu-storage-daemon over its standard input and output. */
class Qmp {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;
  readonly #events: { readonly event: string; readonly data: Record<string, unknown> }[] = [];

  constructor(args: readonly string[]) {
    const qmp = ['--chardev', 'stdio,id=qmp', '--monitor', 'chardev=qmp'];
    this.#child = track(spawn('qemu-storage-daemon', [...args, ...qmp]));
    this.#lines = createInterface(this.#child.stdout)[Symbol.asyncIterator]();
  }

  async #next(): Promise<Record<string, unknown>> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error('Could not talk to qemu-storage-daemon: it has ended');
    const message = JSON.parse(value) as Record<string, unknown>;
    if (message.error) throw new Error(`Could not ask qemu-storage-daemon: ${JSON.stringify(message.error)}`);
    if (message.event) this.#events.push(message as never);
    return message;
  }

  async ask(execute: string, args: object = {}): Promise<void> {
    this.#child.stdin.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    while (!('return' in (await this.#next())));
  }

  async event(name: string, status?: string): Promise<void> {
    for (;;) {
      const index = this.#events.findIndex(({ event, data }) => event === name && (!status || data.status === status));
      if (index >= 0) {
        this.#events.splice(0, index + 1);
        return;
      }
      await this.#next();
    }
  }

  async start(): Promise<void> {
    await this.#next();
    await this.ask('qmp_capabilities');
  }

  async stop(): Promise<void> {
    const ended = once(this.#child, 'exit');
    this.#child.kill();
    await ended;
  }
}

async function theirs(path: string, folder: string): Promise<Subject> {
  const socket = join(folder, 'theirs.sock');
  const qmp = new Qmp([
    ...['--blockdev', `driver=file,node-name=file,filename=${path},aio=io_uring`],
    ...['--blockdev', 'driver=raw,node-name=disk,file=file'],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', 'type=nbd,id=disk,node-name=disk,writable=on,name='],
  ]);
  await qmp.start();
  return {
    name: 'qemu-storage-daemon',
    uri: `nbd+unix:///?socket=${socket}`,
    async job(kind, target) {
      const file = { driver: 'file', filename: target, aio: 'io_uring' };
      await qmp.ask('blockdev-add', { driver: 'raw', 'node-name': 'target', file, discard: 'unmap' });
      await qmp.ask(`blockdev-${kind}`, { 'job-id': 'job', device: 'disk', target: 'target', sync: 'full' });
      if (kind === 'mirror') {
        await qmp.event('BLOCK_JOB_READY');
        await qmp.ask('block-job-cancel', { device: 'job' });
      }
      await qmp.event('JOB_STATUS_CHANGE', 'null');
      await qmp.ask('blockdev-del', { 'node-name': 'target' });
    },
    stop: () => qmp.stop(),
  };
}

const seconds = async (work: () => Promise<void>): Promise<number> => {
  const began = performance.now();
  await work();
  return (performance.now() - began) / 1000;
};

/** Requests a second in slices as long as the job runs, and how long it took; undefined where it did not end. */
async function underLoad(subject: Subject, kind: Kind, target: string, slice: number) {
  const stop = AbortSignal.timeout(LIMIT_MS);
  const slices: number[] = [];
  let over = false;
  const began = performance.now();
  const job = subject.job(kind, target, stop).then(
    () => (performance.now() - began) / 1000,
    () => undefined,
  );
  void job.then(() => {
    over = true;
  });
  while (!over && !stop.aborted) slices.push((await fio(subject.uri, LOAD, { seconds: slice })).iops);
  return { iops: median(slices), took: await Promise.race([job, stop.aborted ? undefined : job]) };
}

async function main(): Promise<number> {
  const given = options('mirror and backup, beside qemu-storage-daemon, and what they leave to a guest', {
    size: { type: 'string', default: '4096', help: 'size of the disk in MiB; a quarter of it is data' },
    rounds: { type: 'string', default: '3', help: 'rounds; the figures are medians over them' },
    seconds: { type: 'string', default: '2', help: 'seconds of a slice of the load' },
    smoke: { type: 'boolean', help: 'one short round: does it still work' },
  });
  const missing = ['qemu-storage-daemon', 'fio'].filter((program) => !hasProgram(program));
  if (missing.length > 0) {
    console.log(`skipped: ${missing.join(', ')} not installed`);
    return SKIPPED;
  }
  const small = given.get('smoke') === true;
  const rounds = small ? 1 : Number(given.get('rounds'));
  const bytes = (small ? 128 : Number(given.get('size'))) * MIB;
  const slice = small ? 1 : Number(given.get('seconds'));
  console.log(machineLine(['qemu-storage-daemon', 'fio']));
  const folder = workFolder();
  const subjects = [
    await ours(image(join(folder, 'ours.raw'), bytes)),
    await theirs(image(join(folder, 'theirs.raw'), bytes), folder),
  ];
  const figures = new Map<string, number[]>();
  const note = (key: string, value: number): void => void figures.set(key, [...(figures.get(key) ?? []), value]);
  const of = (key: string): number => median(figures.get(key) ?? [Number.NaN]);
  try {
    for (let round = 0; round < rounds; round++) {
      for (const kind of KINDS) {
        for (const subject of subjects) {
          const target = (): string => empty(join(folder, `${subject.name}-target.raw`), bytes);
          const to = target();
          // What others have written is not to be waited for by a job's flush.
          spawnSync('sync');
          note(`${kind} ${subject.name} idle`, await seconds(() => subject.job(kind, to)));
          note(`${kind} ${subject.name} alone`, (await fio(subject.uri, LOAD, { seconds: slice })).iops);
          // The peer's job cannot be given up when it does not end, so it is only measured alone.
          if (subject.name !== 'ours') continue;
          const { iops, took } = await underLoad(subject, kind, target(), slice);
          note(`${kind} ${subject.name} kept`, iops);
          note(`${kind} ${subject.name} took`, took ?? Number.POSITIVE_INFINITY);
        }
      }
    }
  } finally {
    for (const subject of subjects) await subject.stop();
  }
  const rows = KINDS.map((kind) => {
    const cells = ['ours idle', 'qemu-storage-daemon idle', 'ours alone', 'ours kept', 'ours took'];
    return [kind, ...cells.map((cell) => figure(of(`${kind} ${cell}`)))];
  });
  const head = ['job', 'ours, s', 'daemon, s', 'guest alone, IOPS', 'guest and job, IOPS', 'job under load, s'];
  console.log(`\n${markdownTable(head, rows)}\n`);
  for (const kind of KINDS) {
    const speed = of(`${kind} qemu-storage-daemon idle`) / of(`${kind} ours idle`);
    const kept = of(`${kind} ours kept`) / of(`${kind} ours alone`);
    const ended = of(`${kind} ours took`) < Number.POSITIVE_INFINITY;
    console.log(
      `bar: ${kind}: idle, ours by the daemon at least 1.00: ${speed.toFixed(2)}: ${speed >= 1 ? 'held' : 'missed'}`,
    );
    console.log(
      `bar: ${kind}: the guest keeps at least 0.70: ${kept.toFixed(2)}, ${ended ? 'it ended' : 'it did not end'}: ` +
        `${kept >= 0.7 && ended ? 'held' : 'missed'}`,
    );
  }
  return 0;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
