/** One run of fio's nbd engine against a server, and what it says. */
import { spawn } from 'node:child_process';
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

/** Runs the load for `seconds`, or until each job has done `operations` requests. */
export async function fio(
  uri: string,
  load: Load,
  bound: { readonly seconds: number } | { readonly operations: number },
): Promise<FioResult> {
  const base = [
    '--name=load',
    '--ioengine=nbd',
    `--uri=${uri}`,
    '--thread',
    '--group_reporting',
    '--randrepeat=0',
    '--norandommap',
  ];
  const shape = [`--rw=${load.rw}`, `--bs=${load.blockBytes}`, `--iodepth=${load.depth}`, `--numjobs=${load.jobs}`];
  // Jobs of a sequential load walk parts of their own through the image.
  const apart = load.rw === 'read' || load.rw === 'write' ? [`--offset_increment=${Math.floor(100 / load.jobs)}%`] : [];
  const end =
    'seconds' in bound
      ? ['--time_based', `--runtime=${Math.round(bound.seconds * 1000)}ms`]
      : [`--io_size=${bound.operations * load.blockBytes}`];
  const timeoutMs = ('seconds' in bound ? bound.seconds * 1000 : 600_000) + EXTRA_MS;
  const text = await output([...base, ...shape, ...apart, ...end, '--output-format=json'], timeoutMs);
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
