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
import { type Load, SteadyLoad } from './fio.ts';

const MIB = 2 ** 20;
const STRIPE = 64 * MIB;
const LOAD: Load = { name: '4k randwrite', rw: 'randwrite', blockBytes: 4096, depth: 16, jobs: 1 };
/** A job that takes longer under load has not converged. */
const LIMIT_MS = 120_000;
/** Until fio has begun, and until what a job has left behind is no matter any more. */
const START_MS = 1000;
const SETTLE_MS = 500;
const KINDS = ['mirror', 'backup'] as const;
type Kind = (typeof KINDS)[number];
const PARTS = ['idle', 'guest'] as const;
type Part = (typeof PARTS)[number];
const OURS = 'ours';
const THEIRS = 'qemu-storage-daemon';

/** A sparse file with `length` bytes of data, which has no zeroes, at the beginning of each stripe. */
function image(path: string, bytes: number, length: number): string {
  const file = openSync(path, 'w');
  ftruncateSync(file, bytes);
  const data = new Uint8Array(Math.min(length, STRIPE)).map((_, i) => 1 + (i % 251));
  for (let at = 0; at < bytes; at += STRIPE) writeSync(file, data, 0, Math.min(data.length, bytes - at), at);
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

/** A daemon with the disk open and shown, and one job at a time. */
interface Subject {
  readonly uri: string;
  /** Runs one, up to its end; what the disk is stays. */
  job(kind: Kind, target: string, signal?: AbortSignal): Promise<void>;
  stop(): Promise<void>;
}

type Work = (subject: Subject, target: string) => Promise<void>;

async function ours(path: string): Promise<Subject> {
  const disk: Disk = await open(path, { format: 'raw' });
  const server = await serveNbd(disk);
  return {
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

interface UnderLoad {
  /** Requests a second of the guest: alone (the mean of before and after), and while the job ran. */
  readonly alone: number;
  readonly kept: number;
  /** Seconds of the job; undefined where it did not end. */
  readonly took: number | undefined;
}

/** One load that never pauses, and the job in the middle of it: what the disk is worth to the guest changes while it
 *  writes, so it is compared with itself before and after. */
async function underLoad(subject: Subject, kind: Kind, target: string, folder: string, aloneMs: number) {
  const load = new SteadyLoad(subject.uri, LOAD, folder);
  const rest = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
  await rest(START_MS + aloneMs);
  const began = Date.now();
  const took = await seconds(() => subject.job(kind, target, AbortSignal.timeout(LIMIT_MS))).catch(() => undefined);
  const ended = Date.now();
  await rest(SETTLE_MS + aloneMs);
  const iops = await load.stop();
  const before = iops(began - aloneMs, began);
  const after = iops(ended + SETTLE_MS, ended + SETTLE_MS + aloneMs);
  return { alone: (before + after) / 2, kept: iops(began, ended), took } satisfies UnderLoad;
}

/** What is measured, by name. */
class Figures {
  readonly #values = new Map<string, number[]>();

  note(key: string, value: number): void {
    this.#values.set(key, [...(this.#values.get(key) ?? []), value]);
  }

  of(key: string): number {
    return median(this.#values.get(key) ?? [Number.NaN]);
  }
}

/** A disk and a target that nobody has used yet, for one measurement: a guest leaves a disk of another shape behind. */
async function withFresh(name: string, folder: string, bytes: number, data: number, work: Work): Promise<void> {
  const path = image(join(folder, 'disk.raw'), bytes, data);
  const target = empty(join(folder, 'target.raw'), bytes);
  // What others have written is not to be waited for by a job's flush.
  spawnSync('sync');
  const subject = name === OURS ? await ours(path) : await theirs(path, folder);
  try {
    await work(subject, target);
  } finally {
    await subject.stop();
    for (const file of [path, target]) rmSync(file);
  }
}

function report(kinds: readonly Kind[], parts: readonly Part[], figures: Figures): void {
  const rows = kinds.map((kind) => {
    const cells = [`${OURS} idle`, `${THEIRS} idle`, 'alone', 'kept', 'took'];
    return [kind, ...cells.map((cell) => figure(figures.of(`${kind} ${cell}`)))];
  });
  const head = ['job', 'ours, s', 'daemon, s', 'guest alone, IOPS', 'guest and job, IOPS', 'job under load, s'];
  console.log(`\n${markdownTable(head, rows)}\n`);
  for (const kind of kinds) {
    const speed = figures.of(`${kind} ratio`);
    const kept = figures.of(`${kind} share`);
    const ended = figures.of(`${kind} took`) < Number.POSITIVE_INFINITY;
    if (parts.includes('idle')) {
      console.log(
        `bar: ${kind}: idle, ours by the daemon at least 1.00: ${speed.toFixed(2)}: ${speed >= 1 ? 'held' : 'missed'}`,
      );
    }
    if (parts.includes('guest')) {
      console.log(
        `bar: ${kind}: the guest keeps at least 0.70: ${kept.toFixed(2)}, ${ended ? 'it ended' : 'it did not end'}: ` +
          `${kept >= 0.7 && ended ? 'held' : 'missed'}`,
      );
    }
  }
}

/** One of `all`, or all of them. */
function chosen<T extends string>(name: string, all: readonly T[], value: unknown): readonly T[] {
  if (value === undefined) return all;
  const one = all.find((each) => each === value);
  if (one !== undefined) return [one];
  throw new Error(`Could not measure: '--${name}' is '${value}', not one of ${all.join(', ')}`);
}

async function main(): Promise<number> {
  const given = options('mirror and backup, beside qemu-storage-daemon, and what they leave to a guest', {
    size: { type: 'string', default: '4096', help: 'size of the disk in MiB' },
    data: { type: 'string', default: '16', help: 'MiB of data in each 64 MiB of it' },
    rounds: { type: 'string', default: '3', help: 'rounds; the figures are medians over them' },
    seconds: { type: 'string', default: '4', help: 'seconds of the guest alone, before the job and after' },
    only: { type: 'string', help: `one job: ${KINDS.join(', ')}` },
    part: { type: 'string', help: `one part: ${PARTS.join(', ')}` },
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
  const data = Number(given.get('data')) * MIB;
  const aloneMs = small ? 500 : Number(given.get('seconds')) * 1000;
  const kinds = chosen('only', KINDS, given.get('only'));
  const parts = chosen('part', PARTS, given.get('part'));
  console.log(machineLine(['qemu-storage-daemon', 'fio']));
  const folder = workFolder();
  const figures = new Figures();
  const idle = async (kind: Kind, name: string): Promise<number> => {
    let took = Number.NaN;
    await withFresh(name, folder, bytes, data, async (subject, target) => {
      took = await seconds(() => subject.job(kind, target));
    });
    figures.note(`${kind} ${name} idle`, took);
    return took;
  };
  for (let round = 0; round < rounds; round++) {
    for (const kind of kinds) {
      if (parts.includes('idle')) {
        const mine = await idle(kind, OURS);
        figures.note(`${kind} ratio`, (await idle(kind, THEIRS)) / mine);
      }
      if (!parts.includes('guest')) continue;
      // The peer's job cannot be given up when it does not end, so it is only measured idle.
      await withFresh(OURS, folder, bytes, data, async (subject, target) => {
        const { alone, kept, took } = await underLoad(subject, kind, target, folder, aloneMs);
        figures.note(`${kind} alone`, alone);
        figures.note(`${kind} kept`, kept);
        figures.note(`${kind} share`, kept / alone);
        figures.note(`${kind} took`, took ?? Number.POSITIVE_INFINITY);
      });
    }
  }
  report(kinds, parts, figures);
  return 0;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
