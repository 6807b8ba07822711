/** `qemu-img measure`. */
import { BlockError } from '../../base/errors.ts';
import { CreationOptions, creationOptionsOf } from '../../img/creation-options.ts';
import { type Measurement, measureEmpty, measureImage } from '../../img/measure.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { assertCreatable, settingsOf } from './create.ts';
import { creationReason } from './creation-messages.ts';
import { creationHelp } from './help.ts';
import { jsonText } from './json.ts';
import { sizeOf } from './sizes.ts';
import { imageSpec, snapshotName } from './targets.ts';
import { Failure, Option, type Verb, type VerbLine } from './verb.ts';

const TARGET = { short: 'O', argument: 'required' } as const;
const SNAPSHOT = { short: 'l', argument: 'required' } as const;
const SIZE = { long: 'size', argument: 'required' } as const;

export const measure: Verb = {
  options: [
    ...[Option.plainFormat, SNAPSHOT, Option.settings, TARGET, Option.forceShare, Option.output, SIZE],
    ...[Option.object, Option.imageOpts],
  ],
  async run(line, terminal) {
    const { json } = line;
    const texts = settingsOf(line);
    const text = line.value(SIZE);
    const size = text === undefined ? undefined : sizeOf(text, 'image size');
    const file = fileOf(line, size);
    const format = line.value(TARGET) ?? 'raw';
    if (texts.some((one) => /(^|,)(help|\?)(,|$)/.test(one))) {
      terminal.out(creationHelp(format, true));
      return 0;
    }
    const options = optionsOf(format, texts);
    if (size !== undefined) options.set('size', String(size));
    const found = file === undefined ? empty(options, line) : await ofImage(options, line, file);
    terminal.out(json ? jsonText(resultJson(found)) : resultText(found));
    return 0;
  },
};

/** Undefined where a size is given instead. */
function fileOf(line: VerbLine, size: number | undefined): string | undefined {
  const [file, ...more] = line.operands;
  if (more.length > 0) throw new Failure('At most one filename argument is allowed.');
  const aboutFile = line.has(Option.imageOpts) || line.has(Option.plainFormat) || line.has(SNAPSHOT);
  if (file === undefined && aboutFile) throw new Failure('--image-opts, -f, and -l require a filename argument.');
  if (file === undefined && size === undefined) throw new Failure('Either --size N or one filename must be specified.');
  if (file !== undefined && size !== undefined) {
    throw new Failure('--size N cannot be used together with a filename.');
  }
  return file;
}

function optionsOf(format: string, texts: readonly string[]): CreationOptions {
  if (creationOptionsOf(format) === undefined) assertCreatable(format);
  if (format === 'file') throw new Failure("Block driver 'file' does not support size measurement");
  const options = new CreationOptions(format);
  try {
    options.read(texts);
  } catch (error) {
    throw new Failure(`${creationReason(error)}\nqemu-img: Invalid options for file format '${format}'`);
  }
  return options;
}

function empty(options: CreationOptions, line: VerbLine): Measurement {
  try {
    return measureEmpty(options, line.objects);
  } catch (error) {
    throw new Failure(creationReason(error));
  }
}

async function ofImage(options: CreationOptions, line: VerbLine, file: string): Promise<Measurement> {
  const snapshot = snapshotName(line.value(SNAPSHOT));
  const how = { forceShare: line.has(Option.forceShare), shareWrites: true, objects: line.objects, snapshot };
  return await withLocalContext((context) =>
    measureImage(context, imageSpec(line, file), options, how).catch((error: unknown) => {
      if (!(error instanceof BlockError)) throw error;
      if (snapshot !== undefined && /has no snapshot '/.test(error.message)) {
        throw new Failure("Failed to load snapshot: Can't find snapshot");
      }
      if (error.where.op === 'open') throw error;
      throw new Failure(creationReason(error));
    }),
  );
}

function resultJson({ required, fullyAllocated, bitmaps }: Measurement): object {
  return { bitmaps, required, 'fully-allocated': fullyAllocated };
}

function resultText({ required, fullyAllocated, bitmaps }: Measurement): string {
  const last = bitmaps === undefined ? '' : `bitmaps size: ${bitmaps}\n`;
  return `required size: ${required}\nfully allocated size: ${fullyAllocated}\n${last}`;
}
