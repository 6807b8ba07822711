/**
 * `npm run bench -- copy`: our copy beside nbdcopy and `qemu-img convert`, from one nbdkit to another over unix
 * sockets:
 * a disk that is a quarter data. Then the same with 20 ms before each read and write is done (nbdkit's delay filter),
 * where one request at a time is measured as well, on less. Everybody makes sure that it is stored (a flush) and knows
 * nothing of the target. Whole runs of programs, from start to end; each has a new, empty target.
 */
import { spawnSync } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import {
  figure,
  hasProgram,
  MAIN,
  machineLine,
  markdownTable,
  median,
  options,
  SKIPPED,
  workFolder,
} from './common.ts';
import { type Contestant, serve } from './peers.ts';

const MIB = 2 ** 20;
/** Of each 64 MiB of the disk the first 16 are data. */
const STRIPE = 64 * MIB;
const DATA = 16 * MIB;
/** Bars of the issue: our speed by theirs. */
const BARS: readonly { readonly line: string; readonly against: string; readonly ratio: number }[] = [
  { line: 'no delay', against: 'nbdcopy', ratio: 1 },
  { line: 'no delay', against: 'qemu-img convert', ratio: 1.5 },
  { line: '20 ms', against: 'qemu-img convert', ratio: 2 },
  { line: '20 ms', against: 'one at a time', ratio: 4 },
];

const RAW = ['-f', 'raw', '-O', 'raw'];
type Uris = readonly [source: string, target: string];
const COPIERS: Readonly<Record<string, (uris: Uris) => readonly string[]>> = {
  ours: (uris) => [process.execPath, MAIN, 'copy', ...RAW, ...uris],
  nbdcopy: (uris) => ['nbdcopy', '--flush', ...uris],
  'qemu-img convert': (uris) => ['qemu-img', 'convert', '-n', '-t', 'writeback', ...RAW, ...uris],
  'one at a time': (uris) => ['qemu-img', 'convert', '-m', '1', '-n', '-t', 'writeback', ...RAW, ...uris],
};

/** A sparse file; the data has no zeroes. */
function image(path: string, bytes: number): void {
  const file = openSync(path, 'wx');
  ftruncateSync(file, bytes);
  const data = new Uint8Array(DATA).map((_, i) => 1 + (i % 251));
  for (let at = 0; at < bytes; at += STRIPE) writeSync(file, data, 0, Math.min(DATA, bytes - at), at);
  closeSync(file);
}

function nbdkit(name: string, delays: readonly string[], plugin: (bytes: number) => readonly string[]): Contestant {
  const filter = delays.length > 0 ? ['--filter=delay'] : [];
  return {
    ...{ name, program: 'nbdkit', exportName: '' },
    command: (_image, socket, bytes) => ['nbdkit', '-f', '-U', socket, ...filter, ...plugin(bytes), ...delays],
  };
}

/** Seconds of one run. */
async function run(name: string, path: string, bytes: number, delay: boolean): Promise<number> {
  const folder = workFolder();
  const source = await serve(
    nbdkit('source', delay ? ['rdelay=20ms'] : [], () => ['file', path]),
    folder,
    '',
    bytes,
  );
  const target = await serve(
    nbdkit('target', delay ? ['wdelay=20ms'] : [], () => ['memory', `size=${bytes}`]),
    folder,
    '',
    bytes,
  );
  try {
    const [program, ...args] = COPIERS[name]!([source.uri, target.uri]);
    const began = performance.now();
    const { status, stderr } = spawnSync(program!, args, { encoding: 'utf8' });
    if (status !== 0) throw new Error(`Could not measure ${name}: ${stderr.trim()}`);
    return (performance.now() - began) / 1000;
  } finally {
    await source.stop();
    await target.stop();
  }
}

async function main(): Promise<number> {
  const given = options('copying between NBD servers, beside nbdcopy and qemu-img convert', {
    size: { type: 'string', default: '4096', help: 'size of the disk in MiB; a quarter of it is data' },
    rounds: { type: 'string', default: '3', help: 'rounds; the figures are medians over them' },
    smoke: { type: 'boolean', help: 'one short round: does it still work' },
  });
  const missing = ['nbdkit', 'nbdcopy', 'qemu-img'].filter((program) => !hasProgram(program));
  if (missing.length > 0) {
    console.log(`skipped: ${missing.join(', ')} not installed`);
    return SKIPPED;
  }
  const small = given.get('smoke') === true;
  const rounds = small ? 1 : Number(given.get('rounds'));
  const bytes = (small ? 64 : Number(given.get('size'))) * MIB;
  // One at a time takes long, and as long for each byte.
  const fewBytes = Math.min(bytes, 512 * MIB);
  console.log(machineLine(['nbdcopy', 'qemu-img', 'nbdkit']));
  const folder = workFolder();
  const [path, fewPath] = [join(folder, 'disk.raw'), join(folder, 'few.raw')];
  image(path, bytes);
  image(fewPath, fewBytes);
  const rates = new Map<string, number[]>();
  for (let round = 0; round < rounds; round++) {
    for (const line of ['no delay', '20 ms']) {
      for (const name of Object.keys(COPIERS)) {
        const few = name === 'one at a time';
        if (few && (line === 'no delay' || round > 0)) continue;
        const seconds = await run(name, few ? fewPath : path, few ? fewBytes : bytes, line === '20 ms');
        const key = `${line}, ${name}`;
        rates.set(key, [...(rates.get(key) ?? []), (few ? fewBytes : bytes) / MIB / seconds]);
      }
    }
  }
  const ratio = (line: string, name: string) =>
    median(rates.get(`${line}, ours`)!) / median(rates.get(`${line}, ${name}`)!);
  const rows = [...rates].map(([key, list]) => {
    const [line = '', name = ''] = key.split(', ');
    return [line, name, figure(median(list)), name === 'ours' ? '' : ratio(line, name).toFixed(2)];
  });
  console.log(`\n${markdownTable(['line', 'copier', 'MiB/s of the disk', 'ours by it'], rows)}\n`);
  for (const { line, against, ratio: bar } of BARS) {
    const got = ratio(line, against);
    console.log(
      `bar: ${line}: ours by ${against} at least ${bar}: ${got.toFixed(2)}: ${got >= bar ? 'held' : 'missed'}`,
    );
  }
  return 0;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
