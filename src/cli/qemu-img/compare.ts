/** `qemu-img compare`. Exit codes: 0 the same, 1 different, 2 not opened, 3 and 4 not read. */
import { BlockError, errnoText } from '../../base/errors.ts';
import { type CompareOptions, compare as compareImages } from '../../img/compare.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { interruptible } from './interrupt.ts';
import { failureText } from './messages.ts';
import { Progress } from './progress.ts';
import { cacheMode } from './targets.ts';
import { Failure, Misuse, Option, type Verb, type VerbLine } from './verb.ts';

const SECOND_FORMAT = { short: 'F', argument: 'required' } as const;
const STRICT = { short: 's' } as const;

const EXIT = { different: 1, open: 2, status: 3, read: 4 } as const;

const { object, imageOpts, plainFormat, forceShare, quiet, progress, progressForm, sourceCache } = Option;

export const compare: Verb = {
  options: [
    object,
    imageOpts,
    plainFormat,
    forceShare,
    quiet,
    progress,
    progressForm,
    sourceCache,
    SECOND_FORMAT,
    STRICT,
  ],
  objectExit: EXIT.open,
  async run(line, terminal) {
    const silent = line.has(quiet);
    const say = (text: string): void => {
      if (!silent) terminal.out(text);
    };
    const options = optionsOf(line, say);
    using shown = Progress.of(line, terminal, EXIT.open);
    try {
      const { at, kind } = await withLocalContext((context) =>
        interruptible(async (signal) => {
          const found = await compareImages(context, { ...options, signal, onProgress: shown.at });
          return { at: 0, ...found };
        }),
      );
      if (kind === 'same') shown.end();
      say(
        {
          same: 'Images are identical.\n',
          size: 'Strict mode: Image size mismatch!\n',
          status: `Strict mode: Offset ${at} block status mismatch!\n`,
          content: `Content mismatch at offset ${at}!\n`,
        }[kind],
      );
      return kind === 'same' ? 0 : EXIT.different;
    } catch (error) {
      throw inWords(error);
    }
  },
};

function optionsOf(line: VerbLine, say: (text: string) => void): CompareOptions {
  const [first, second, ...more] = line.operands;
  if (first === undefined || second === undefined || more.length > 0)
    throw new Misuse('Expecting two image file names');
  const asTrees = line.has(imageOpts);
  const [format, otherFormat] = [line.value(plainFormat), line.value(SECOND_FORMAT)];
  if (asTrees && (format ?? otherFormat) !== undefined) {
    throw new Failure('--image-opts and --format are mutually exclusive', EXIT.open);
  }
  return {
    images: [
      { name: first, imageOpts: asTrees, format },
      { name: second, imageOpts: asTrees, format: otherFormat },
    ],
    how: { cache: sourceCacheOf(line), forceShare: line.has(forceShare), objects: line.objects },
    strict: line.has(STRICT),
    onOtherSize: () => say('Warning: Image size mismatch!\n'),
  };
}

function sourceCacheOf(line: VerbLine): ReturnType<typeof cacheMode> {
  try {
    return cacheMode(line, sourceCache);
  } catch (error) {
    throw error instanceof Failure ? new Failure(error.message, EXIT.open) : error;
  }
}

function inWords(error: unknown): unknown {
  if (!(error instanceof BlockError)) return error;
  const { op, at, path } = error.where;
  const why = errnoText(error.errno);
  if (op === 'read') return new Failure(`Error while reading offset ${at} of ${path}: ${why}`, EXIT.read);
  if (op === 'status') return new Failure(`Sector allocation test failed for ${path}`, EXIT.status);
  return new Failure(failureText(error), EXIT.open);
}
