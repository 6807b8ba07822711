/** `qemu-img rebase`. */
import { BlockError, errnoText } from '../../base/errors.ts';
import { driverByName } from '../../block/registry.ts';
import { NewBackingFailure, type RebaseOptions, rebase as rebaseImage } from '../../img/rebase.ts';
import { builtinDrivers } from '../../lib/builtin-drivers.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { interruptible } from './interrupt.ts';
import { failureText } from './messages.ts';
import { Progress } from './progress.ts';
import { cacheMode, imageSpec, warnProbedRaw } from './targets.ts';
import { Failure, Misuse, Option, type Terminal, type Verb, type VerbLine } from './verb.ts';

const BACKING = { short: 'b', argument: 'required' } as const;
const BACKING_FORMAT = { short: 'F', argument: 'required' } as const;
const UNSAFE = { short: 'u' } as const;

const { object, imageOpts, plainFormat, forceShare, quiet, progress, progressForm, cache, sourceCache } = Option;

export const rebase: Verb = {
  options: [
    ...[object, imageOpts, plainFormat, forceShare, quiet, progress, progressForm, cache, sourceCache],
    ...[BACKING, BACKING_FORMAT, UNSAFE],
  ],
  async run(line, terminal) {
    const options = optionsOf(line, terminal);
    using shown = Progress.of(line, terminal);
    try {
      await withLocalContext((context) =>
        interruptible((signal) => rebaseImage(context, { ...options, signal, onProgress: shown.at })),
      );
    } catch (error) {
      throw inWords(error);
    }
    shown.end();
    return 0;
  },
};

function optionsOf(line: VerbLine, terminal: Terminal): RebaseOptions {
  const { image: name } = line;
  const backing = line.value(BACKING);
  const unsafe = line.has(UNSAFE);
  if (backing === undefined && !unsafe) throw new Misuse('Must specify backing file (-b) or use unsafe mode (-u)');
  const format = line.value(BACKING_FORMAT);
  const [mode, backingCache] = [cacheMode(line, cache), cacheMode(line, sourceCache)];
  const image = imageSpec(line, name);
  if (format !== undefined) assertFormat(format);
  return {
    ...{ image, unsafe, backingCache },
    how: {
      ...{ cache: mode, objects: line.objects, onProbedRaw: warnProbedRaw(terminal) },
    },
    backing: { name: backing ?? '', format },
  };
}

function assertFormat(format: string): void {
  builtinDrivers();
  try {
    driverByName(format);
  } catch {
    throw new Failure(`Invalid format name: '${format}'`);
  }
}

function inWords(error: unknown): unknown {
  if (error instanceof NewBackingFailure) {
    const { cause } = error;
    const why = failureText(cause).replace(/^Could not open '[^']*': /, '');
    return new Failure(`${error.message.slice(0, error.message.indexOf("': ") + 1)}: ${why}`);
  }
  if (!(error instanceof BlockError) || error.where.op !== 'rebase') return error;
  if (!(error.cause instanceof BlockError)) return error;
  return new Failure(`${error.message}: ${errnoText(error.errno)}`);
}
