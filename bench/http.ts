/**
 * Images on a web server over a line with latency: sequential reading beside curl's, random reading with readahead off,
 * and what the first sector costs. The line is made by the server (http-server.ts): netem needs a kernel module.
 */
import { type ChildProcess, execFileSync, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { type Disk, type HttpSettings, IOThread, open } from '../src/index.ts';
import { figure, hasProgram, machineLine, markdownTable, median, options, track } from './common.ts';

const MIB = 2 ** 20;
/** By the issue: our rate by curl's. */
const SEQUENTIAL_BAR = 0.9;

interface Line {
  readonly url: string;
  counts(): Promise<{ readonly requests: number; readonly mostOpen: number }>;
  end(): void;
}

async function line(bytes: number, latencyMs: number, mibPerSecond: number): Promise<Line> {
  const script = fileURLToPath(new URL('./http-server.js', import.meta.url));
  const child: ChildProcess = track(
    fork(script, [bytes, latencyMs, mibPerSecond].map(String), { stdio: ['ignore', 'pipe', 'inherit', 'ipc'] }),
  );
  const [port] = (await once(child.stdout!, 'data')) as [Uint8Array];
  return {
    url: `http://127.0.0.1:${Number(new TextDecoder().decode(port))}/disk.img`,
    async counts() {
      child.send('?');
      const [counts] = (await once(child, 'message')) as [{ requests: number; mostOpen: number }];
      return counts;
    },
    end: () => child.kill(),
  };
}

/** Bytes a second, from the beginning of the connection to the last byte. */
function curl(url: string): number {
  const args = ['-s', '-o', '/dev/null', '-w', '%{size_download} %{time_total}', url];
  const [size, seconds] = execFileSync('curl', args, { encoding: 'utf8' }).split(' ').map(Number) as [number, number];
  return size / seconds;
}

async function withDisk<T>(
  thread: IOThread,
  url: string,
  http: HttpSettings,
  body: (disk: Disk) => Promise<T>,
): Promise<T> {
  const disk = await open(url, { format: 'raw', http, iothread: thread });
  try {
    return await body(disk);
  } finally {
    await disk.close();
  }
}

/** One read after the other, from opening to the last byte, in bytes a second. */
async function sequential(thread: IOThread, url: string, piece: number, http: HttpSettings): Promise<number> {
  const begun = performance.now();
  const size = await withDisk(thread, url, http, async (disk) => {
    const buffer = new Uint8Array(piece);
    for (let at = 0; at < disk.size; at += piece) await disk.read(buffer, 0, Math.min(piece, disk.size - at), at);
    return disk.size;
  });
  return (size / (performance.now() - begun)) * 1000;
}

interface Sizes {
  readonly bytes: number;
  readonly latencyMs: number;
  readonly rounds: number;
  readonly seconds: number;
}

async function sequentials(thread: IOThread, { bytes, latencyMs, rounds }: Sizes, rates: readonly number[]) {
  const ours: readonly (readonly [string, number, HttpSettings])[] = [
    ['ours, 64 KiB reads', 64 * 1024, {}],
    ['ours, 1 MiB reads', MIB, {}],
    ['ours, 64 KiB reads, readahead off', 64 * 1024, { readahead: 0 }],
  ];
  const rows: string[][] = [];
  const bars: string[] = [];
  for (const rate of rates) {
    const server = await line(bytes, latencyMs, rate);
    const name = rate === 0 ? 'no limit' : `${rate} MiB/s`;
    const samples = new Map<string, number[]>();
    const add = (who: string, value: number) => samples.set(who, [...(samples.get(who) ?? []), value / MIB]);
    for (let round = 0; round < rounds; round++) {
      if (hasProgram('curl')) add('curl', curl(server.url));
      for (const [who, piece, http] of ours) {
        // One request at a time takes its time: measured on less.
        if (http.readahead !== 0) add(who, await sequential(thread, server.url, piece, http));
      }
    }
    const short = await line(Math.min(bytes, 8 * MIB), latencyMs, rate);
    for (const [who, piece, http] of ours) {
      if (http.readahead === 0) add(who, await sequential(thread, short.url, piece, http));
    }
    short.end();
    server.end();
    const peer = median(samples.get('curl') ?? []);
    for (const [who, values] of samples) {
      const ratio = median(values) / peer;
      rows.push([name, who, figure(median(values)), figure(ratio)]);
      if (who !== 'ours, 64 KiB reads' || !Number.isFinite(ratio)) continue;
      const verdict = `${ratio.toFixed(2)}: ${ratio >= SEQUENTIAL_BAR ? 'held' : 'missed'}`;
      bars.push(`bar: sequential, ${name}: ours by curl at least ${SEQUENTIAL_BAR}: ${verdict}`);
    }
  }
  console.log(`\nSequential reads of ${bytes / MIB} MiB, ${latencyMs} ms a round trip\n`);
  console.log(`${markdownTable(['line', 'reader', 'MiB/s', 'by curl'], rows)}\n\n${bars.join('\n')}`);
}

/** 4 KiB reads at random places, `depth` at a time. */
async function random(thread: IOThread, url: string, connections: number, depth: number, seconds: number) {
  return await withDisk(thread, url, { readahead: 0, connections }, async (disk) => {
    const end = performance.now() + seconds * 1000;
    let done = 0;
    let state = 1;
    const reader = async (): Promise<void> => {
      const buffer = new Uint8Array(4096);
      while (performance.now() < end) {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        const at = Math.floor((state / 2 ** 32) * (disk.size / 4096 - 64)) * 4096 + 64 * 4096;
        await disk.read(buffer, 0, 4096, at);
        done++;
      }
    };
    const begun = performance.now();
    await Promise.all(Array.from({ length: depth }, reader));
    return (done / (performance.now() - begun)) * 1000;
  });
}

async function randoms(thread: IOThread, { bytes, latencyMs, seconds }: Sizes): Promise<void> {
  const rows: string[][] = [];
  for (const [connections, depth] of [
    [1, 1],
    [8, 8],
    [8, 32],
    [32, 32],
    [64, 64],
  ] as const) {
    const server = await line(bytes, latencyMs, 0);
    const perSecond = await random(thread, server.url, connections, depth, seconds);
    const { mostOpen } = await server.counts();
    server.end();
    const bound = (Math.min(connections, depth) * 1000) / latencyMs;
    const cells = [perSecond, bound, perSecond / bound].map(figure);
    rows.push([`${connections} connections, depth ${depth}`, ...cells, String(mostOpen)]);
  }
  console.log(`\nRandom 4 KiB reads, readahead off, ${latencyMs} ms a round trip\n`);
  console.log(markdownTable(['asked', 'IOPS', 'bound by latency', 'of it', 'most at the server'], rows));
}

async function firstSector(thread: IOThread, { latencyMs, rounds }: Sizes): Promise<void> {
  const server = await line(10 * 2 ** 30, latencyMs, 0);
  const times: number[] = [];
  const before = await server.counts();
  for (let round = 0; round < rounds; round++) {
    const begun = performance.now();
    await withDisk(thread, server.url, {}, (disk) => disk.read(new Uint8Array(512), 0, 512, 0));
    times.push(performance.now() - begun);
  }
  const { requests } = await server.counts();
  server.end();
  const each = figure((requests - before.requests) / rounds);
  console.log(`\nOpen, first sector and close of 10 GiB raw: ${figure(median(times))} ms, requests: ${each}`);
}

async function main(): Promise<number> {
  const given = options('images on a web server over a line with latency, beside curl', {
    size: { type: 'string', default: '512', help: 'size of the image in MiB' },
    latency: { type: 'string', default: '20', help: 'milliseconds of a round trip' },
    rates: { type: 'string', default: '119,0', help: 'rates of the line in MiB/s; 0 for no limit' },
    rounds: { type: 'string', default: '3', help: 'rounds; the figures are medians over them' },
    seconds: { type: 'string', default: '2', help: 'seconds for each random load' },
    smoke: { type: 'boolean', help: 'one short round on a small image: does it still work' },
  });
  const small = given.get('smoke') === true;
  const sizes: Sizes = {
    bytes: (small ? 16 : Number(given.get('size'))) * MIB,
    latencyMs: Number(given.get('latency')),
    rounds: small ? 1 : Number(given.get('rounds')),
    seconds: small ? 0.3 : Number(given.get('seconds')),
  };
  console.log(machineLine(['curl']));
  const thread = await IOThread.start({ name: 'http' });
  try {
    await sequentials(thread, sizes, String(given.get('rates')).split(',').map(Number));
    await randoms(thread, sizes);
    await firstSector(thread, sizes);
  } finally {
    await thread.stop();
  }
  return 0;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
