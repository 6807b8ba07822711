/**
 * What a request leaves behind: bytes of JavaScript heap allocated for each request, and how the heap and the process
 * grow over a million of them. The server runs as users run it, with V8's --trace-gc: a collection says the heap's size
 * before and after, so what was allocated is the sum of what it grew between collections. fio sends the requests.
 */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { whyNoRing } from '../src/aio/select.ts';
import {
  figure,
  fillImage,
  hasProgram,
  MAIN,
  machineLine,
  markdownTable,
  options,
  residentMib,
  SKIPPED,
  track,
  until,
  workFolder,
} from './common.ts';
import { fio, type Load } from './fio.ts';

/** Turns V8's tracing on from inside: it is of the whole process, and a worker refuses it among its own arguments. */
const TRACE_GC = 'data:text/javascript,import v8 from "node:v8"; v8.setFlagsFromString("--trace-gc");';
const JOBS = 4;
const IMAGE_BYTES = 64 * 2 ** 20;
/**
 * Heap for one request, at most, on ring, in bytes: a few numbers that V8 keeps on the heap, and its own records. An
 * object or a closure a request would be more.
 */
const RING_BYTES_MAX = { randread: 64, randwrite: 160 } as const;
/** Enough that one collection more or less is not taken for a request's own. */
const SMOKE_OPERATIONS: Readonly<Record<string, number>> = { ring: 300_000, pool: 20_000 };

/** Follows the heaps of a process, one an isolate (the main thread's and each IOThread's). */
class HeapTrace {
  /** Isolate -> MiB after its last collection. */
  readonly after = new Map<string, number>();
  collections = 0;
  allocatedMib = 0;

  /** A line of --trace-gc: `[pid:0xisolate:thread] 12 ms: Scavenge 5.2 (6.0) -> 4.9 (7.0) MB, ...`. */
  line(text: string): void {
    const found = /^\[\d+:(0x[0-9a-f]+)[^\]]*\].*?: [A-Z][\w -]*.*? ([\d.]+) \([\d.]+\) -> ([\d.]+) \(/.exec(text);
    if (!found) return;
    const [, isolate, before, after] = found as unknown as [string, string, string, string];
    this.collections += 1;
    this.allocatedMib += Math.max(Number(before) - (this.after.get(isolate) ?? Number(before)), 0);
    this.after.set(isolate, Number(after));
  }

  get liveMib(): number {
    return [...this.after.values()].reduce((sum, value) => sum + value, 0);
  }
}

type Workload = keyof typeof RING_BYTES_MAX;

interface Measured {
  readonly rows: string[][];
  /** Heap for one request, in bytes. */
  readonly bytes: ReadonlyMap<Workload, number>;
}

async function measure(aio: string, operations: number, folder: string): Promise<Measured> {
  const image = join(folder, `${aio}.raw`);
  const socket = join(folder, `${aio}.sock`);
  fillImage(image, IMAGE_BYTES);
  const args = ['--import', TRACE_GC, MAIN, 'serve', image, '--format', 'raw', '--socket', socket, '--aio', aio];
  const child = track(spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] }));
  const trace = new HeapTrace();
  let ready = false;
  let rest = '';
  child.stdout.setEncoding('utf8').on('data', (data: string) => {
    const lines = (rest + data).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) {
      if (line.startsWith('nbd')) ready = true;
      else trace.line(line);
    }
  });
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  try {
    await until('the URI of blockplane serve', 20_000, () => {
      if (child.exitCode !== null) throw new Error(`Could not start the server: exit code ${child.exitCode}`);
      return ready;
    });
    const rows: string[][] = [];
    const perRequest = new Map<Workload, number>();
    for (const rw of ['randread', 'randwrite'] as const) {
      const load: Load = { name: rw, rw, blockBytes: 4096, depth: 32, jobs: JOBS };
      const bound = (total: number) => ({ operations: Math.ceil(total / JOBS) });
      // The compilers' own garbage, and the first growth of the pools, come before what is counted.
      await fio(`nbd+unix:///?socket=${socket}`, load, bound(operations / 5));
      const before = {
        mib: trace.allocatedMib,
        count: trace.collections,
        live: trace.liveMib,
        rss: residentMib(child.pid!),
      };
      const { operations: done } = await fio(`nbd+unix:///?socket=${socket}`, load, bound(operations));
      const bytes = ((trace.allocatedMib - before.mib) * 2 ** 20) / done;
      perRequest.set(rw, bytes);
      rows.push([
        `${aio} ${rw}`,
        figure(done),
        figure(bytes),
        String(trace.collections - before.count),
        (trace.liveMib - before.live).toFixed(1),
        figure(before.rss),
        (residentMib(child.pid!) - before.rss).toFixed(1),
      ]);
    }
    return { rows, bytes: perRequest };
  } finally {
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), 5000);
    await exited;
    clearTimeout(timer);
  }
}

async function main(): Promise<number> {
  const given = options('Heap and memory over many requests', {
    operations: { type: 'string', default: '1000000', help: 'requests for each load' },
    aio: { type: 'string', default: 'ring,pool', help: 'backends' },
    smoke: { type: 'boolean', help: 'fewer requests: does it still work, and allocate next to nothing on ring' },
  });
  if (!hasProgram('fio')) {
    console.log('skipped: fio is not installed');
    return SKIPPED;
  }
  const small = given.get('smoke') === true;
  console.log(machineLine(['fio']));
  const folder = workFolder();
  const rows: string[][] = [];
  let held = true;
  const bars: string[] = [];
  for (const aio of String(given.get('aio')).split(',')) {
    const noRing = aio === 'ring' ? await whyNoRing() : undefined;
    if (noRing !== undefined) {
      bars.push(`skipped: ring: ${noRing}`);
      continue;
    }
    const operations = small ? (SMOKE_OPERATIONS[aio] ?? 20_000) : Number(given.get('operations'));
    const measured = await measure(aio, operations, folder);
    rows.push(...measured.rows);
    if (aio !== 'ring') continue;
    for (const [load, bytes] of measured.bytes) {
      const most = RING_BYTES_MAX[load];
      if (bytes >= most) held = false;
      const verdict = bytes < most ? 'held' : 'missed';
      bars.push(`bar: ring ${load}: below ${most} bytes of heap a request: ${figure(bytes)}: ${verdict}`);
    }
  }
  const head = [
    'load',
    'requests',
    'heap bytes a request',
    'collections',
    'live growth MiB',
    'RSS MiB',
    'RSS growth MiB',
  ];
  console.log(`\n${markdownTable(head, rows)}`);
  for (const bar of bars) console.log(bar);
  return small && !held ? 1 : 0;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
