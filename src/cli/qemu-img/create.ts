/** `qemu-img create`. */
import { BackingFormatMissing, createImage, localPath, settleSize } from '../../img/create.ts';
import { CreationOptions, creationOptionsOf } from '../../img/creation-options.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { creationReason } from './creation-messages.ts';
import { creationHelp } from './help.ts';
import { sizeOf } from './sizes.ts';
import { Failure, Misuse, Option, type Verb, type VerbLine } from './verb.ts';

const BACKING = { short: 'b', argument: 'required' } as const;
const BACKING_FORMAT = { short: 'F', argument: 'required' } as const;
const UNSAFE = { short: 'u' } as const;

export const create: Verb = {
  options: [...[Option.object, Option.plainFormat, BACKING, BACKING_FORMAT, Option.settings, Option.quiet, UNSAFE]],
  async run(line, terminal) {
    const texts = settingsOf(line);
    const format = line.value(Option.plainFormat) ?? 'raw';
    const [path, size, ...more] = line.operands;
    if (texts.some((text) => /(^|,)(help|\?)(,|$)/.test(text))) {
      terminal.out(creationHelp(format, path !== undefined));
      return 0;
    }
    if (path === undefined) throw new Misuse('Expecting image file name');
    const bytes = size === undefined ? undefined : sizeOf(size, 'image size');
    if (more.length > 0) throw new Misuse(`Unexpected argument: ${more[0]}`);
    try {
      assertCreatable(format);
      localPath(path);
      const options = optionsOf(line, { format, texts, bytes });
      const how = { unsafe: line.has(UNSAFE), objects: line.objects };
      await withLocalContext(async (context) => {
        await settleSize(context, path, options, how);
        if (!line.has(Option.quiet)) terminal.out(`Formatting '${path}', fmt=${format} ${options.text}\n`);
        await createImage(context, path, options, how);
      });
    } catch (error) {
      const detected = error instanceof BackingFormatMissing ? error.detected : undefined;
      if (detected === undefined) throw new Failure(`${path}: ${creationReason(error)}`);
      // The hint has no line end.
      throw new Failure(`${path}: ${creationReason(error)}\nDetected format of ${detected}.`, 1, '');
    }
    return 0;
  },
};

/** All texts behind -o. */
export function settingsOf(line: VerbLine): readonly string[] {
  const texts = line.values(Option.settings);
  const wrong = texts.find((text) => text === '' || text.startsWith(',') || /(^|[^,])(,,)*,$/.test(text));
  if (wrong !== undefined) throw new Failure(`Invalid option list: ${wrong}`);
  return texts;
}

/** Drivers that are there and make nothing. */
const OTHERS = ['nbd', 'http', 'https', 'ftp', 'ftps', 'null-co', 'null-aio', 'copy-on-read'];

export function assertCreatable(format: string): void {
  if (creationOptionsOf(format) !== undefined) return;
  if (OTHERS.includes(format)) throw new Failure(`Format driver '${format}' does not support image creation`);
  throw new Failure(`Unknown file format '${format}'`);
}

function optionsOf(
  line: VerbLine,
  {
    format,
    texts,
    bytes,
  }: { readonly format: string; readonly texts: readonly string[]; readonly bytes: number | undefined },
): CreationOptions {
  const options = new CreationOptions(format);
  options.read(texts);
  if (bytes !== undefined) {
    if (options.size !== undefined) throw new Failure('The image size must be specified only once');
    options.set('size', String(bytes));
  }
  for (const [def, name, what] of [
    [BACKING, 'backing_file', 'Backing file'],
    [BACKING_FORMAT, 'backing_fmt', 'Backing file format'],
  ] as const) {
    const value = line.value(def);
    if (value === undefined) continue;
    if (!options.has(name)) throw new Failure(`${what} not supported for file format '${format}'`);
    options.set(name, value);
  }
  return options;
}
