/** `qemu-img bench`. */
import { bench as benchImage } from '../../img/bench.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import type { CacheMode } from '../../lib/options.ts';
import { interruptible } from './interrupt.ts';
import { sizeOf } from './sizes.ts';
import { cacheMode, imageSpec, warnProbedRaw } from './targets.ts';
import { Failure, Misuse, Option, type Verb, type VerbLine } from './verb.ts';

const own = {
  aio: { short: 'i', argument: 'required' },
  native: { short: 'n' },
  count: { short: 'c', argument: 'required' },
  depth: { short: 'd', argument: 'required' },
  bytes: { short: 's', argument: 'required' },
  step: { short: 'S', argument: 'required' },
  offset: { short: 'o', argument: 'required' },
  write: { short: 'w' },
  pattern: { long: 'pattern', argument: 'required' },
  flushInterval: { long: 'flush-interval', argument: 'required' },
  noDrain: { long: 'no-drain' },
} as const;

const { object, imageOpts, plainFormat, forceShare, quiet, cache } = Option;

const INT_MAX = 2 ** 31 - 1;
const AIO = ['threads', 'native', 'io_uring'];

export const bench: Verb = {
  options: [object, imageOpts, plainFormat, forceShare, quiet, cache, ...Object.values(own)],
  async run(line, terminal) {
    const load = loadOf(line);
    if (line.operands.length !== 1) throw new Misuse('Expecting one image file name');
    if (!load.write && load.flushInterval > 0) throw new Failure('--flush-interval is only available in write tests');
    if (load.flushInterval > 0 && load.flushInterval < load.depth) {
      throw new Failure("Flush interval can't be smaller than depth");
    }
    const name = line.operands[0]!;
    const mode = cacheOf(line);
    assertAio(line, name, mode);
    const how = {
      ...{ cache: mode, forceShare: line.has(forceShare), objects: line.objects },
      onProbedRaw: warnProbedRaw(terminal),
    };
    const { bytes, step, count, depth, offset, flushInterval } = load;
    const onStart = (): void => {
      const what = `${count} ${load.write ? 'write' : 'read'} requests, ${bytes} bytes each, ${depth} in parallel`;
      terminal.out(`Sending ${what} (starting at offset ${offset}, step size ${step})\n`);
      if (flushInterval > 0) terminal.out(`Sending flush every ${flushInterval} requests\n`);
    };
    const ms = await withLocalContext((context) =>
      interruptible((signal) => benchImage(context, { image: imageSpec(line, name), how, onStart, ...load, signal })),
    );
    terminal.out(`Run completed in ${(ms / 1000).toFixed(3)} seconds.\n`);
    return 0;
  },
};

interface Load {
  readonly write: boolean;
  readonly count: number;
  readonly depth: number;
  readonly bytes: number;
  readonly step: number;
  readonly offset: number;
  readonly pattern: number;
  readonly flushInterval: number;
  readonly undrained: boolean;
}

/** In the order of the command line: the first that is wrong is told of. */
function loadOf(line: VerbLine): Load {
  const load = { count: 75_000, depth: 64, bytes: 4096, step: 0, offset: 0, pattern: 0, flushInterval: 0 };
  const readers: readonly (readonly [def: object, read: (text: string) => void])[] = [
    [own.count, (text) => (load.count = wholeOf(text, 'request count', 2 ** 32 - 1))],
    [own.depth, (text) => (load.depth = wholeOf(text, 'queue depth', 2 ** 32 - 1, 1))],
    [own.bytes, (text) => (load.bytes = sizeOf(text, 'buffer size', 0, INT_MAX))],
    [own.step, (text) => (load.step = sizeOf(text, 'step_size', 0, INT_MAX))],
    [own.offset, (text) => (load.offset = sizeOf(text, 'offset'))],
    [own.pattern, (text) => (load.pattern = wholeOf(text, 'pattern byte', 255))],
    [own.flushInterval, (text) => (load.flushInterval = wholeOf(text, 'flush interval', 2 ** 32 - 1))],
  ];
  for (const { def, value = '' } of line.options) readers.find(([one]) => one === def)?.[1](value);
  return {
    ...load,
    step: load.step || load.bytes,
    write: line.has(own.write),
    undrained: line.has(own.noDrain),
  };
}

function wholeOf(text: string, what: string, most: number, least = 0): number {
  const value = /^\s*\+?(0[xX][0-9a-fA-F]+|\d+)$/.test(text) ? Number(text) : Number.NaN;
  if (value >= least && value <= most) return value;
  throw new Failure(`Invalid ${what} specified`);
}

function cacheOf(line: VerbLine): CacheMode | undefined {
  try {
    return cacheMode(line, cache);
  } catch {
    throw new Failure('Invalid cache mode');
  }
}

/** Which way of doing I/O it is, is ours to say. */
function assertAio(line: VerbLine, name: string, mode: CacheMode | undefined): void {
  const aio = line.has(own.native) ? 'native' : line.value(own.aio);
  if (aio !== undefined && !AIO.includes(aio)) throw new Failure(`Invalid aio option: ${aio}`);
  if (aio !== 'native' || mode === 'none' || mode === 'directsync') return;
  const why = 'aio=native was specified, but it requires cache.direct=on, which was not specified.';
  throw new Failure(`Could not open '${name}': ${why}`);
}
