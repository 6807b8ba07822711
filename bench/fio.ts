/** One run of fio's nbd engine against a server, and what it says. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { track } from './common.ts';

export interface Load {
  readonly name: string;
  readonly rw: 'randread' | 'randwrite' | 'read' | 'write';
  readonly blockBytes: number;
  readonly depth: number;
  /** Connections, one for each of fio's jobs. */
  readonly jobs: number;
}

export interface FioResult {
  readonly operations: number;
  readonly iops: number;
  readonly mibPerSecond: number;
  readonly p50Us: number;
  readonly p99Us: number;
}

interface FioSide {
  total_ios: number;
  iops: number;
  bw_bytes: number;
  clat_ns: { percentile?: Record<string, number> };
}

const EXTRA_MS = 30_000;
/** What a sample of a steady load is the mean of. */
const LOG_MS = 100;

function output(args: readonly string[], timeoutMs: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = track(spawn('fio', args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: timeoutMs }));
    let text = '';
    let words = '';
    child.stdout.setEncoding('utf8').on('data', (data: string) => {
      text += data;
    });
    child.stderr.setEncoding('utf8').on('data', (data: string) => {
      words = (words + data).slice(-2000);
    });
    child.on('error', reject);
    child.on('close', (code) => {
      if (code === 0) resolve(text);
      else reject(new Error(`Could not run fio: exit code ${code}: ${words.trim() || text.slice(-500)}`));
    });
  });
}

function shapeOf(uri: string, load: Load): string[] {
  return [
    '--name=load',
    '--ioengine=nbd',
    `--uri=${uri}`,
    '--thread',
    '--group_reporting',
    '--randrepeat=0',
    '--norandommap',
    `--rw=${load.rw}`,
    `--bs=${load.blockBytes}`,
    `--iodepth=${load.depth}`,
    `--numjobs=${load.jobs}`,
  ];
}

/** Runs the load for `seconds`, or until each job has done `operations` requests. */
export async function fio(
  uri: string,
  load: Load,
  bound: { readonly seconds: number } | { readonly operations: number },
): Promise<FioResult> {
  // Jobs of a sequential load walk parts of their own through the image.
  const apart = load.rw === 'read' || load.rw === 'write' ? [`--offset_increment=${Math.floor(100 / load.jobs)}%`] : [];
  const end =
    'seconds' in bound
      ? ['--time_based', `--runtime=${Math.round(bound.seconds * 1000)}ms`]
      : [`--io_size=${bound.operations * load.blockBytes}`];
  const timeoutMs = ('seconds' in bound ? bound.seconds * 1000 : 600_000) + EXTRA_MS;
  const text = await output([...shapeOf(uri, load), ...apart, ...end, '--output-format=json'], timeoutMs);
  // fio prints its notes before the JSON.
  const parsed = JSON.parse(text.slice(text.indexOf('{'))) as {
    jobs: [{ read: FioSide; write: FioSide; error: number }];
  };
  const job = parsed.jobs[0];
  if (job.error !== 0) throw new Error(`Could not run fio: load '${load.name}' ended with errno ${job.error}`);
  const side = load.rw.endsWith('read') ? job.read : job.write;
  return {
    operations: side.total_ios,
    iops: side.iops,
    mibPerSecond: side.bw_bytes / 2 ** 20,
    p50Us: (side.clat_ns.percentile?.['50.000000'] ?? Number.NaN) / 1000,
    p99Us: (side.clat_ns.percentile?.['99.000000'] ?? Number.NaN) / 1000,
  };
}

/** One connection's load that goes on until it is told to end, and what it did when. */
export class SteadyLoad {
  readonly #log: string;
  readonly #child: ReturnType<typeof spawn>;
  readonly #ended: Promise<unknown>;

  /** `folder` takes its log. */
  constructor(uri: string, load: Load, folder: string) {
    this.#log = join(folder, `fio-${Date.now()}`);
    const log = [`--write_iops_log=${this.#log}`, `--log_avg_msec=${LOG_MS}`, '--log_unix_epoch=1'];
    const args = [...shapeOf(uri, load), '--time_based', '--runtime=1h', ...log];
    this.#child = track(spawn('fio', args, { stdio: 'ignore' }));
    this.#ended = once(this.#child, 'exit');
  }

  /** Ends it. Answers its requests a second between two moments (Date.now()). */
  async stop(): Promise<(from: number, to: number) => number> {
    // At this it writes its log.
    this.#child.kill('SIGINT');
    await this.#ended;
    const samples = readFileSync(`${this.#log}_iops.1.log`, 'latin1')
      .trim()
      .split('\n')
      .map((line) => line.split(',').map(Number) as [number, number]);
    return (from, to) => {
      // A sample is of the time before it. One that is missing was a time without an answer.
      const inside = samples.filter(([at]) => at > from + LOG_MS / 2 && at <= to + LOG_MS / 2);
      return inside.reduce((sum, [, iops]) => sum + iops, 0) / Math.max(inside.length, (to - from) / LOG_MS);
    };
  }
}
