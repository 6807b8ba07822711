/** `qemu-img bitmap`. */
import { BlockError } from '../../base/errors.ts';
import { type BitmapAction, BitmapActionError, changeBitmap } from '../../img/bitmap.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { failureText } from './messages.ts';
import { sizeOf } from './sizes.ts';
import { imageSpec, warnProbedRaw } from './targets.ts';
import { Failure, Option, type Verb, type VerbLine } from './verb.ts';

const SOURCE = { short: 'b', long: 'source-file', argument: 'required' } as const;
const SOURCE_FORMAT = { short: 'F', long: 'source-format', argument: 'required' } as const;
const GRANULARITY = { short: 'g', long: 'granularity', argument: 'required' } as const;
const MERGE = { long: 'merge', argument: 'required' } as const;
const PLAIN = (['add', 'remove', 'clear', 'enable', 'disable'] as const).map((long) => ({ long }));

export const bitmap: Verb = {
  options: [
    ...[SOURCE, SOURCE_FORMAT, GRANULARITY, MERGE, ...PLAIN],
    ...[Option.plainFormat, Option.object, Option.imageOpts],
  ],
  async run(line, terminal) {
    const text = line.value(GRANULARITY);
    const granularity = text === undefined ? undefined : sizeOf(text, 'granularity') || undefined;
    const actions = actionsOf(line);
    if (actions.length === 0) {
      throw new Failure('Need at least one of --add, --remove, --clear, --enable, --disable, or --merge');
    }
    const has = (action: BitmapAction['action']): boolean => actions.some((one) => one.action === action);
    if (text !== undefined && !has('add')) throw new Failure('granularity only supported with --add');
    const source = line.value(SOURCE);
    const format = line.value(SOURCE_FORMAT);
    if (source === undefined && format !== undefined) throw new Failure('-F only supported with -b');
    if (source !== undefined && !has('merge')) {
      throw new Failure('Merge bitmap source file only supported with --merge');
    }
    const [file, name, ...more] = line.operands;
    if (file === undefined || name === undefined || more.length > 0) {
      throw new Failure('Expecting filename and bitmap name');
    }
    const how = { actions, granularity, objects: line.objects, onProbedRaw: warnProbedRaw(terminal) };
    const from = source === undefined ? undefined : { name: source, format };
    await withLocalContext((context) =>
      changeBitmap(context, imageSpec(line, file), name, { ...how, from }).catch((error: unknown) => {
        if (!(error instanceof BitmapActionError)) throw error;
        throw new Failure(`Operation ${error.action} on bitmap ${name} failed: ${reason(error.cause)}`);
      }),
    );
    return 0;
  },
};

/** Adding one disabled is adding and disabling. */
function actionsOf(line: VerbLine): readonly BitmapAction[] {
  return line.options.flatMap(({ def, value }): BitmapAction[] => {
    if (def === MERGE) return [{ action: 'merge', source: value! }];
    const plain = PLAIN.find((one) => one === def);
    return plain ? [{ action: plain.long }] : [];
  });
}

function reason(error: unknown): string {
  const text = failureText(error);
  if (!(error instanceof BlockError)) return text;
  for (const [pattern, words] of REASONS) {
    const match = pattern.exec(text);
    if (match) return words(match);
  }
  return text;
}

const REASONS: readonly (readonly [pattern: RegExp, words: (match: RegExpExecArray) => string])[] = [
  [/^Could not find bitmap '(.*)' of node/s, ([, name]) => `Dirty bitmap '${name}' not found`],
  [/^Could not add bitmap '(.*)': there is one of this name$/s, ([, name]) => `Bitmap already exists: ${name}`],
  [/its granularity is/, () => 'Granularity must be power of 2 and at least 512'],
  [/its name is empty/, () => 'Bitmap name cannot be empty'],
  [
    /: it is of (\d+) bytes, and bitmap '.*' of (\d+)$/s,
    ([, into, from]) =>
      `Bitmaps are of different sizes (destination size is ${into}, source size is ${from}) and can't be merged`,
  ],
];
