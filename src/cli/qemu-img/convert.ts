/** `qemu-img convert`. */
import { BlockError, errnoText } from '../../base/errors.ts';
import { type Bytes, KiB, MiB, SECTOR } from '../../base/units.ts';
import { splitOptions } from '../../block/text-options.ts';
import { type ConvertOptions, convert as convertImages } from '../../img/convert.ts';
import { CreationOptions, creationOptionsOf } from '../../img/creation-options.ts';
import { CreationFailure } from '../../img/new-file.ts';
import type { ImageSpec } from '../../img/open.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { assertCreatable, settingsOf } from './create.ts';
import { creationReason } from './creation-messages.ts';
import { creationHelp } from './help.ts';
import { interruptible } from './interrupt.ts';
import { Progress } from './progress.ts';
import { sizeOf } from './sizes.ts';
import { cacheMode, imageSpec, warnProbedRaw } from './targets.ts';
import { Failure, Option, type Terminal, type Verb, type VerbLine } from './verb.ts';

const own = {
  targetFormat: { short: 'O', argument: 'required' },
  compress: { short: 'c' },
  offload: { short: 'C' },
  backing: { short: 'B', argument: 'required' },
  backingFormat: { short: 'F', argument: 'required' },
  snapshot: { short: 'l', argument: 'required' },
  sparse: { short: 'S', argument: 'required' },
  requests: { short: 'm', argument: 'required' },
  unordered: { short: 'W' },
  speed: { short: 'r', argument: 'required' },
  keep: { short: 'n' },
  targetImageOpts: { long: 'target-image-opts' },
  targetIsZero: { long: 'target-is-zero' },
  salvage: { long: 'salvage' },
  bitmaps: { long: 'bitmaps' },
  skipBroken: { long: 'skip-broken-bitmaps' },
} as const;

const { object, imageOpts, plainFormat, forceShare, quiet, progress, progressForm, cache, sourceCache, settings } =
  Option;

const SPARSE_MAX = 16 * MiB;

export const convert: Verb = {
  options: [
    ...[object, imageOpts, plainFormat, forceShare, quiet, progress, progressForm, cache, sourceCache, settings],
    ...Object.values(own),
  ],
  async run(line, terminal) {
    const given = readNumbers(line);
    const format = line.value(own.targetFormat) ?? formatOfNew(line, terminal);
    assertTogether(line, given.sparse !== undefined);
    if (settingsOf(line).some((text) => /(^|,)(help|\?)(,|$)/.test(text))) {
      terminal.out(creationHelp(format ?? 'raw', line.operands.length > 0));
      return 0;
    }
    if (line.operands.length < 2) throw new Failure('Must specify image file name');
    const options = optionsOf(line, terminal, { ...given, format });
    using shown = Progress.of(line, terminal);
    try {
      await withLocalContext((context) =>
        interruptible((signal) => convertImages(context, { ...options, signal, onProgress: shown.at })),
      );
    } catch (error) {
      throw inWords(error, options, format);
    }
    shown.end();
    return 0;
  },
};

/** Of a target of which nobody said it; undefined where its tree does. */
function formatOfNew(line: VerbLine, terminal: Terminal): string | undefined {
  return line.has(own.targetImageOpts) ? undefined : (terminal.formatOfNew?.(line.operands.at(-1) ?? '') ?? 'raw');
}

interface Numbers {
  readonly sparse: Bytes | undefined;
  readonly requests: number | undefined;
  readonly speed: Bytes | undefined;
}

/** In the order of the command line: the first that is wrong is told of. */
function readNumbers(line: VerbLine): Numbers {
  let [sparse, requests, speed]: (number | undefined)[] = [];
  for (const { def, value = '' } of line.options) {
    if (def === own.sparse) sparse = readSparse(value);
    else if (def === own.speed) speed = sizeOf(value, 'rate limit');
    else if (def === own.requests) {
      requests = /^\s*\+?\d+$/.test(value) ? Number(value) : 0;
      if (requests < 1 || requests > 16) {
        throw new Failure('Invalid number of coroutines. Allowed number of coroutines is between 1 and 16');
      }
    }
  }
  return { sparse, requests, speed };
}

function readSparse(text: string): Bytes {
  const bytes = sizeOf(text, 'buffer size for sparse output');
  if (bytes % SECTOR === 0 && bytes <= SPARSE_MAX) return bytes;
  throw new Failure(
    'Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to 16777216. ' +
      'Select 0 to disable sparse detection (fully allocates output).',
  );
}

/** Options that exclude or need each other. */
function assertTogether(line: VerbLine, sparse: boolean): void {
  const has = (def: (typeof own)[keyof typeof own]): boolean => line.has(def);
  const rules: readonly (readonly [wrong: boolean, message: string])[] = [
    [has(own.offload) && sparse, 'Cannot enable copy offloading when -S is used'],
    [has(own.offload) && has(own.compress), 'Cannot enable copy offloading when -c is used'],
    [has(own.offload) && has(own.salvage), 'Cannot use copy offloading in salvaging mode'],
    [has(own.skipBroken) && !has(own.bitmaps), 'Use of --skip-broken-bitmaps requires --bitmaps'],
    [has(own.targetImageOpts) && !has(own.keep), '--target-image-opts requires use of -n flag'],
    [has(own.targetIsZero) && !has(own.keep), '--target-is-zero requires use of -n flag'],
    [has(own.keep) && line.has(settings), '-o has no effect when skipping image creation'],
  ];
  for (const [wrong, message] of rules) if (wrong) throw new Failure(message);
}

type Given = Numbers & { readonly format: string | undefined };

function optionsOf(line: VerbLine, terminal: Terminal, given: Given): ConvertOptions {
  const names = line.operands.slice(0, -1);
  const name = line.operands.at(-1)!;
  const snapshot = snapshotOf(line, terminal);
  const sourceHow = {
    cache: cacheMode(line, sourceCache),
    ...{ forceShare: line.has(forceShare), objects: line.objects, snapshot },
  };
  const targetHow = {
    ...{ cache: cacheMode(line, cache) ?? ('unsafe' as const), objects: line.objects },
    onProbedRaw: warnProbedRaw(terminal),
  };
  const sources = names.map((source) => imageSpec(line, source));
  if (snapshot !== undefined && sources.length > 1) {
    throw new Failure('No support for concatenating multiple snapshot');
  }
  const backing = line.value(own.backing);
  return {
    ...{ sources, sourceHow, targetHow },
    target: targetSpec(line, name, given.format),
    ...(line.has(own.keep) ? {} : { create: (size) => creationOf(line, size, given.format!) }),
    overBacking: backing !== undefined || /(^|,)backing_file=/.test(settingsOf(line).join(',')),
    targetIsZero: line.has(own.targetIsZero),
    compress: line.has(own.compress),
    sparse: given.sparse === undefined ? undefined : unitOf(given.sparse),
    ...{ requests: given.requests, speed: given.speed },
    unordered: line.has(own.unordered),
    offload: line.has(own.offload),
    ...(line.has(own.salvage) ? { salvage: salvaging(terminal, line.has(quiet)) } : {}),
    ...(line.has(own.bitmaps) ? { bitmaps: bitmapsOf(line, terminal) } : {}),
  };
}

/** Zeroes are looked for in powers of two. */
function unitOf(bytes: Bytes): Bytes {
  return bytes === 0 ? 0 : Math.min(256 * KiB, 2 ** Math.floor(Math.log2(bytes)));
}

function targetSpec(line: VerbLine, name: string, format: string | undefined): ImageSpec {
  if (line.has(own.targetImageOpts)) {
    if (format !== undefined) throw new Failure('--image-opts and --format are mutually exclusive');
    return { name, imageOpts: true };
  }
  return { name, format };
}

/** The snapshot that -l names: `snapshot.id=..,snapshot.name=..`, or an id or name. */
function snapshotOf(line: VerbLine, terminal: Terminal): string | undefined {
  const text = line.value(own.snapshot);
  if (text === undefined || !text.startsWith('snapshot.')) return text;
  const parts = new Map(splitOptions(text).map((part) => part.split('=', 2) as [string, string]));
  for (const name of parts.keys()) {
    if (name === 'snapshot.id' || name === 'snapshot.name') continue;
    terminal.err(`qemu-img: Invalid parameter '${name}'\n`);
    throw new Failure(`Failed in parsing snapshot param '${text}'`);
  }
  return parts.get('snapshot.id') ?? parts.get('snapshot.name');
}

function salvaging(terminal: Terminal, silent: boolean): NonNullable<ConvertOptions['salvage']> {
  return (at, error) => {
    if (!silent) terminal.err(`qemu-img: warning: error while reading offset ${at}: ${errnoText(error.errno)}\n`);
  };
}

const BROKEN_HINT = "\nTry --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it\n";

function bitmapsOf(line: VerbLine, terminal: Terminal): NonNullable<ConvertOptions['bitmaps']> {
  if (line.has(own.skipBroken)) {
    return { onBroken: (name) => terminal.err(`qemu-img: warning: Skipping inconsistent bitmap '${name}'\n`) };
  }
  return {
    onBroken(name) {
      throw new Failure(`Cannot copy inconsistent bitmap '${name}'`, 1, BROKEN_HINT);
    },
  };
}

/** What -o, -B and -F say of the new image; the sources are open. */
function creationOf(line: VerbLine, size: Bytes, format: string): CreationOptions {
  assertCreatable(format);
  const options = new CreationOptions(format);
  const set = (name: string, value: string | undefined, what: string): void => {
    if (value === undefined) return;
    if (!options.has(name)) throw new Failure(`${what} not supported for file format '${format}'`);
    options.set(name, value);
  };
  options.read(settingsOf(line));
  // Whatever -o says.
  options.set('size', String(size));
  set('backing_file', line.value(own.backing), 'Backing file');
  set('backing_fmt', line.value(own.backingFormat), 'Backing file format');
  assertPossible(line, options);
  const below = options.get('backing_fmt');
  if (below !== undefined && creationOptionsOf(below) === undefined) {
    const why = `Parameter 'backing-fmt' does not accept value '${below}'`;
    throw new Failure(`${line.operands.at(-1)}: error while converting ${format}: ${why}`);
  }
  return options;
}

function assertPossible(line: VerbLine, options: CreationOptions): void {
  const backing = options.get('backing_file');
  if (backing !== undefined && line.operands.length > 2) {
    const why = 'makes no sense when concatenating multiple input images';
    throw new Failure(`Having a backing file for the target ${why}`);
  }
  if (backing !== undefined && options.get('backing_fmt') === undefined) {
    throw new Failure('Use of backing file requires explicit backing format');
  }
  if (line.has(own.compress)) {
    // A format that stores compressed clusters is one that can say how.
    if (!options.has('compression_type')) throw new Failure('Compression not supported for this file format');
    const encrypted = options.get('encryption') === 'on' || options.get('encrypt.format') !== undefined;
    if (encrypted) throw new Failure('Compression and encryption not supported at the same time');
    if ((options.get('preallocation') ?? 'off') !== 'off') {
      throw new Failure('Compression and preallocation not supported at the same time');
    }
  }
  if (line.has(own.bitmaps) && !options.has('lazy_refcounts')) {
    throw new Failure(`Format driver '${options.format}' does not support bitmaps`);
  }
}

/** What a conversion failed with, in the words of qemu-img. */
function inWords(error: unknown, { target }: ConvertOptions, format: string | undefined): unknown {
  if (!(error instanceof BlockError)) return error;
  const { op, at } = error.where;
  if (error instanceof CreationFailure) {
    return new Failure(`${target.name}: error while converting ${format}: ${creationReason(error.cause)}`);
  }
  if (/has no snapshot/.test(error.message)) return new Failure("Failed to load snapshot: Can't find snapshot");
  if ((op === 'read' || op === 'write') && at !== undefined) {
    const verb = op === 'read' ? 'reading' : 'writing';
    return new Failure(`error while ${verb} at byte ${at}: ${errnoText(error.errno)}`);
  }
  return error;
}
