/**
 * Images in the hands of `blockplane qemu-img` and of qemu-img, in turns: copies (raw to qcow2 and back, compressing,
 * decompressing, and of an image with nothing in it), and `check` and `map` of an image whose clusters are all there.
 * Wall-clock time, CPU time and the largest resident size of each.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, rmSync, writeSync } from 'node:fs';
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

const MIB = 2 ** 20;
const RSS_MIB_MAX = 200;

interface Case {
  readonly name: string;
  readonly source: string;
  readonly words: readonly string[];
  /** The source's name is followed by that of a target. */
  readonly copies?: boolean;
  /** Their time by ours, at least. */
  readonly bar?: number;
}

const CASES: readonly Case[] = [
  { name: 'raw to qcow2', source: 'data.raw', words: ['convert', '-f', 'raw', '-O', 'qcow2'], copies: true, bar: 1 },
  { name: 'qcow2 to raw', source: 'data.qcow2', words: ['convert', '-f', 'qcow2', '-O', 'raw'], copies: true, bar: 1 },
  { name: 'compressing', source: 'data.raw', words: ['convert', '-c', '-O', 'qcow2'], copies: true, bar: 1.5 },
  { name: 'decompressing', source: 'packed.qcow2', words: ['convert', '-O', 'raw'], copies: true, bar: 1.3 },
  { name: 'empty', source: 'empty.raw', words: ['convert', '-f', 'raw', '-O', 'qcow2'], copies: true },
  { name: 'check', source: 'full.qcow2', words: ['check'], bar: 0.5 },
  { name: 'map', source: 'full.qcow2', words: ['map'], bar: 0.5 },
  { name: 'map as JSON', source: 'full.qcow2', words: ['map', '--output=json'], bar: 0.5 },
];

interface Figures {
  readonly seconds: number;
  readonly cpuSeconds: number;
  readonly mib: number;
}

/** GNU time prints what the system says of the process. */
function timed(words: readonly string[]): Figures {
  const began = performance.now();
  const { status, stderr } = spawnSync('/usr/bin/time', ['-f', '%U %S %M', ...words], {
    encoding: 'utf8',
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const seconds = (performance.now() - began) / 1000;
  if (status !== 0) throw new Error(`${words.join(' ')}: ${stderr}`);
  const [user = 0, system = 0, kib = 0] = stderr.trim().split('\n').at(-1)!.split(' ').map(Number);
  return { seconds, cpuSeconds: user + system, mib: kib / 1024 };
}

/** Each program once. What is copied to is made anew. */
function turn({ source, words, copies }: Case, folder: string): { readonly ours: Figures; readonly theirs: Figures } {
  const target = join(folder, 'target');
  const images = [join(folder, source), ...(copies ? [target] : [])];
  const run = (program: readonly string[]): Figures => {
    rmSync(target, { force: true });
    return timed([...program, ...words, ...images]);
  };
  return { theirs: run(['qemu-img']), ours: run([process.execPath, MAIN, 'qemu-img']) };
}

/** Runs of 4 MiB, a quarter of it noise, spread over the disk. */
function makeSource(path: string, bytes: number, data: number): void {
  const fd = openSync(path, 'w');
  ftruncateSync(fd, bytes);
  const runs = Math.max(1, Math.floor(data / (4 * MIB)));
  const block = new Uint8Array(MIB);
  let word = 1;
  for (let run = 0; run < runs; run += 1) {
    for (let part = 0; part < 4; part += 1) {
      for (let i = 0; i < MIB; i += 1) {
        word = (Math.imul(word, 1664525) + 1013904223) >>> 0;
        block[i] = i < MIB / 4 ? word >>> 24 : 65 + (((word >>> 29) + (i >>> 4)) % 26);
      }
      writeSync(fd, block, 0, MIB, Math.floor((run * bytes) / runs / MIB) * MIB + part * MIB);
    }
  }
  closeSync(fd);
}

function report(
  results: ReadonlyMap<Case, { readonly ours: readonly Figures[]; readonly theirs: readonly Figures[] }>,
): void {
  const of = (list: readonly Figures[], field: keyof Figures): number => median(list.map((one) => one[field]));
  const rows = [...results].map(([{ name }, { ours, theirs }]) => [
    name,
    ...[theirs, ours].flatMap((list) =>
      (['seconds', 'cpuSeconds', 'mib'] as const).map((field) => figure(of(list, field))),
    ),
    (of(theirs, 'seconds') / of(ours, 'seconds')).toFixed(2),
  ]);
  const columns = ['theirs s', 'CPU s', 'MiB', 'ours s', 'CPU s', 'MiB', 'theirs by ours'];
  console.log(`\n${markdownTable(['what', ...columns], rows)}\n`);
  for (const [{ name, bar }, { ours, theirs }] of results) {
    if (bar === undefined) continue;
    const got = of(theirs, 'seconds') / of(ours, 'seconds');
    console.log(`bar: ${name}: at least ${bar.toFixed(1)}: ${got.toFixed(2)}: ${got >= bar ? 'held' : 'missed'}`);
  }
  const mib = Math.max(...[...results.values()].flatMap(({ ours }) => ours.map((one) => one.mib)));
  console.log(`bar: resident at most ${RSS_MIB_MAX} MiB: ${figure(mib)}: ${mib <= RSS_MIB_MAX ? 'held' : 'missed'}`);
}

function main(): number {
  const given = options('Images in the hands of the command line', {
    rounds: { type: 'string', default: '5', help: 'rounds; the figures are medians over them' },
    size: { type: 'string', default: '10240', help: 'MiB of the disk' },
    data: { type: 'string', default: '1024', help: 'MiB of it that hold data' },
    full: { type: 'string', default: '1024', help: 'GiB of the disk that is checked and mapped' },
    only: { type: 'string', help: 'one of the rows, by its name' },
    smoke: { type: 'boolean', help: 'one round of a small image: does it still work' },
  });
  if (!hasProgram('qemu-img') || !hasProgram('time')) {
    console.log('skipped: it takes qemu-img and time');
    return SKIPPED;
  }
  const small = given.get('smoke') === true;
  const rounds = small ? 1 : Number(given.get('rounds'));
  const [size = 0, data = 0, full = 0] = small
    ? [256, 32, 4]
    : ['size', 'data', 'full'].map((name) => Number(given.get(name)));
  console.log(machineLine(['qemu-img']));
  const folder = workFolder();
  const at = (name: string): string => join(folder, name);
  makeSource(at('data.raw'), size * MIB, data * MIB);
  execFileSync('truncate', ['-s', `${size}M`, at('empty.raw')]);
  execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', at('data.raw'), at('data.qcow2')]);
  execFileSync('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', at('data.raw'), at('packed.qcow2')]);
  // All tables are there, and every cluster has its place.
  const places = ['-o', 'preallocation=metadata', at('full.qcow2'), `${full}G`];
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', ...places]);
  const only = given.get('only');
  const cases = CASES.filter(({ name }) => only === undefined || name === only);
  const results = new Map(cases.map((one) => [one, { ours: [] as Figures[], theirs: [] as Figures[] }]));
  const node: number[] = [];
  for (let round = 0; round < rounds; round += 1) {
    const began = performance.now();
    spawnSync(process.execPath, ['-e', '0']);
    node.push(performance.now() - began);
    for (const [one, { ours, theirs }] of results) {
      const figures = turn(one, folder);
      theirs.push(figures.theirs);
      ours.push(figures.ours);
    }
  }
  report(results);
  console.log(`node, empty program: ${figure(median(node))} ms`);
  return 0;
}

process.exitCode = main();
