/** `qemu-img resize`. */
import { BlockError } from '../../base/errors.ts';
import { resizeImage } from '../../img/resize.ts';
import { readSize } from '../../img/sizes.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { failureText, sizeParameter } from './messages.ts';
import { imageSpec, warnProbedRaw } from './targets.ts';
import { Failure, Misuse, Option, type Verb } from './verb.ts';

const SHRINK = { long: 'shrink' } as const;
const NOT_POSITIVE = 'New image size must be positive';
const MODES = ['off', 'metadata', 'falloc', 'full'] as const;

export const resize: Verb = {
  options: [Option.format, Option.object, Option.quiet, Option.imageOpts, Option.preallocation, SHRINK],
  /** The size is the last word, whatever it looks like: it may begin with a minus. */
  lastWord: 'Not enough arguments',
  async run(line, terminal) {
    const { lastWord: text = '' } = line;
    const given = line.value(Option.preallocation) ?? 'off';
    const preallocation = MODES.find((mode) => mode === given);
    if (preallocation === undefined) throw new Failure(`Invalid preallocation mode '${given}'`);
    const [name, ...more] = line.operands;
    if (name === undefined || more.length > 0) throw new Misuse('Expecting image file name and size');
    const sign = /^[+-]/.exec(text)?.[0] as '+' | '-' | undefined;
    const bytes = readSize(sign === undefined ? text : text.slice(1));
    if (bytes === 'form') throw new Failure(sizeParameter('size'));
    if (bytes === 'range') throw new Failure(NOT_POSITIVE);
    const spec = imageSpec(line, name);
    const how = { objects: line.objects, onProbedRaw: warnProbedRaw(terminal) };
    await withLocalContext((context) =>
      resizeImage(context, spec, { bytes, sign, preallocation, shrink: line.has(SHRINK), ...how }).catch(explained),
    );
    if (!line.has(Option.quiet)) terminal.out('Image resized.\n');
    return 0;
  },
};

function explained(error: unknown): never {
  if (!(error instanceof BlockError) || error.where.op === 'open') throw error;
  throw new Failure(reason(error.message) ?? failureText(error));
}

function reason(message: string): string | undefined {
  if (/--shrink/.test(message)) {
    return (
      'Use the --shrink option to perform a shrink operation.\nqemu-img: warning: Shrinking an image will delete ' +
      "all data beyond the shrunken image's end. Before performing such an operation, make sure there is no " +
      'important data there.'
    );
  }
  if (/must be positive/.test(message)) return NOT_POSITIVE;
  if (/for growing only/.test(message)) return 'Preallocation can only be used for growing images';
  if (/a multiple of 512 bytes/.test(message)) return 'The new size must be a multiple of 512';
  if (/version 2 and has snapshots/.test(message)) return "Can't resize a v2 image which has snapshots";
  const [, mode] = /preallocation '(\w+)' is not supported/.exec(message) ?? [];
  return mode === undefined ? undefined : `Unsupported preallocation mode: ${mode}`;
}
