/** `qemu-img dd`. */
import { BlockError, errnoText } from '../../base/errors.ts';
import { CreationOptions, creationOptionsOf } from '../../img/creation-options.ts';
import { copyPart } from '../../img/dd.ts';
import { CreationFailure } from '../../img/new-file.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { creationReason } from './creation-messages.ts';
import { interruptible } from './interrupt.ts';
import { Progress } from './progress.ts';
import { sizeOf } from './sizes.ts';
import { Failure, Option, type Verb } from './verb.ts';

const TARGET_FORMAT = { short: 'O', argument: 'required' } as const;
const BLOCK_BYTES = 512;
const BLOCK_BYTES_MAX = 2 ** 31 - 1;

const { object, imageOpts, plainFormat, forceShare } = Option;

/** `name=value` operands; what is given last counts. */
interface Operands {
  readonly if?: string;
  readonly of?: string;
  readonly bs?: number;
  readonly count?: number;
  readonly skip?: number;
}

export const dd: Verb = {
  options: [object, imageOpts, plainFormat, forceShare, TARGET_FORMAT],
  async run(line, terminal) {
    const { if: source, of: name, bs = BLOCK_BYTES, count, skip = 0 } = readOperands(line.operands);
    if (source === undefined || name === undefined) throw new Failure('Must specify both input and output files');
    const asTree = line.has(imageOpts);
    const sourceFormat = line.value(plainFormat);
    if (asTree && sourceFormat !== undefined) throw new Failure('--image-opts and --format are mutually exclusive');
    const format = line.value(TARGET_FORMAT) ?? terminal.formatOfNew?.(name) ?? 'raw';
    const target = { name, format };
    const options = {
      source: { name: source, imageOpts: asTree, format: sourceFormat },
      sourceHow: { forceShare: line.has(forceShare), objects: line.objects },
      ...{ target, skip: skip * bs, end: count === undefined ? Number.POSITIVE_INFINITY : count * bs },
      onBeyond: () => terminal.err(`qemu-img: ${source}: cannot skip to specified offset\n`),
    };
    using asked = new Progress(terminal);
    try {
      await withLocalContext((context) =>
        interruptible((signal) =>
          copyPart(context, { ...options, signal, onProgress: asked.at }, (size) => sized(format, size)),
        ),
      );
      return 0;
    } catch (error) {
      throw inWords(error, name);
    }
  },
};

function readOperands(words: readonly string[]): Operands {
  const given: Record<string, string | number> = {};
  for (const word of words) {
    const [, name = '', value] = /^([^=]*)(?:=(.*))?$/s.exec(word) ?? [];
    if (value === undefined || !['if', 'of', 'bs', 'count', 'skip'].includes(name)) {
      throw new Failure(`unrecognized operand ${name}`);
    }
    given[name] = name.length === 2 && name !== 'bs' ? value : numberOf(name, value);
  }
  return given as Operands;
}

function numberOf(name: string, value: string): number {
  return name === 'bs' ? sizeOf(value, name, 1, BLOCK_BYTES_MAX) : sizeOf(value, name);
}

function sized(format: string, size: number): CreationOptions {
  if (creationOptionsOf(format) === undefined) throw new Failure('Unknown file format');
  const options = new CreationOptions(format);
  options.set('size', String(size));
  return options;
}

function inWords(error: unknown, target: string): unknown {
  if (!(error instanceof BlockError)) return error;
  const { op } = error.where;
  if (error instanceof CreationFailure) {
    return new Failure(`${target}: error while creating output image: ${creationReason(error.cause)}`);
  }
  if (op === 'read' || op === 'write') {
    const what = op === 'read' ? 'reading from input' : 'writing to output';
    return new Failure(`error while ${what} image file: ${errnoText(error.errno)}`);
  }
  return error;
}
