/** `qemu-img amend`. */
import { BlockError } from '../../base/errors.ts';
import { amendImage } from '../../img/amend.ts';
import { CreationOptions, creationOptionsOf } from '../../img/creation-options.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { Incompatible } from '../../proto/qcow2/constants.ts';
import { settingsOf } from './create.ts';
import { creationHelp } from './help.ts';
import { failureText } from './messages.ts';
import { Progress } from './progress.ts';
import { cacheMode, imageSpec, warnProbedRaw } from './targets.ts';
import { Failure, Misuse, Option, type Verb } from './verb.ts';

const FORCE = { long: 'force' } as const;
/** What is not for new images only. */
const AMENDABLE = ['backing_file', 'backing_fmt', 'compat', 'data_file', 'data_file_raw', 'lazy_refcounts'];
const AMENDED: ReadonlySet<string> = new Set([...AMENDABLE, 'refcount_bits', 'size', 'encrypt.iter-time']);

export const amend: Verb = {
  options: [
    ...[Option.object, Option.imageOpts, Option.plainFormat, Option.quiet, Option.cache],
    ...[Option.progress, Option.progressForm, Option.settings, FORCE],
  ],
  async run(line, terminal) {
    const texts = settingsOf(line);
    if (texts.length === 0) throw new Misuse('Must specify options (-o)');
    const [file, ...more] = line.operands;
    const format = line.value(Option.plainFormat);
    if (format !== undefined && texts.some((text) => /(^|,)(help|\?)(,|$)/.test(text))) {
      assertFormat(format);
      terminal.out(`Amend options for '${format}':\n${creationHelp(format, true, AMENDED)}`);
      return 0;
    }
    if (file === undefined || more.length > 0) throw new Failure('Expecting one image file name');
    const cache = cacheMode(line, Option.cache);
    const spec = imageSpec(line, file);
    const how = { cache, objects: line.objects, onProbedRaw: warnProbedRaw(terminal) };
    using shown = Progress.of(line, terminal);
    await withLocalContext((context) =>
      amendImage(context, spec, (blk) => changesOf(blk.root!.driver.name, texts), how).catch(explained),
    );
    shown.end();
    return 0;
  },
};

function assertFormat(format: string): void {
  if (format === 'qcow2') return;
  if (creationOptionsOf(format) === undefined) throw new Failure(`Unknown file format '${format}'`);
  throw new Failure(`Format driver '${format}' does not support option amendment`);
}

function changesOf(format: string, texts: readonly string[]): Record<string, unknown> {
  const options = new CreationOptions(format, true);
  options.read(texts);
  const wrong = options.given.find((name) => !AMENDED.has(name));
  if (wrong !== undefined) {
    throw new Failure(`Invalid parameter '${wrong}'\nThis option is only supported for image creation`);
  }
  if (options.given.some((name) => name.startsWith('backing_'))) {
    throw new Failure("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.");
  }
  if (options.get('data_file') !== undefined) {
    throw new Failure('data-file can only be set for images that use an external data file');
  }
  if (options.get('data_file_raw') === 'on') throw new Failure('data-file-raw cannot be set on existing images');
  return options.driverOptions;
}

function explained(error: unknown): never {
  if (!(error instanceof BlockError) || error.where.op === 'open') throw error;
  for (const [pattern, text] of REASONS) {
    const match = pattern.exec(error.message);
    if (match) throw new Failure(text(match));
  }
  throw new Failure(failureText(error));
}

const NEWER = 'require compatibility level 1.1 or above (use compat=1.1 or greater)';

const REASONS: readonly (readonly [pattern: RegExp, text: (match: RegExpExecArray) => string])[] = [
  [/driver '(.*)' does not support it/, ([, driver]) => `Format driver '${driver}' does not support option amendment`],
  [/compat is '(.*)', not/, ([, value]) => `Unknown compatibility level ${value}`],
  [/refcount-bits is .*, not a power/, () => 'Refcount width must be a power of two and may not exceed 64 bits'],
  [/compat 0.10 has refcounts of 16 bits/, () => `Refcount widths other than 16 bits ${NEWER}`],
  [
    /lazy refcounts need compat 1.1/,
    () => 'Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)',
  ],
  [
    /\(incompatible_features is 0x([0-9a-f]+)\)/,
    ([, hex]) => {
      const bits = Number.parseInt(hex!, 16);
      if ((bits & Incompatible.DATA_FILE) !== 0) return 'Cannot downgrade an image with a data file';
      const others = bits & ~Incompatible.COMPRESSION;
      return `Cannot downgrade an image with incompatible features 0x${(others || bits).toString(16)} set`;
    },
  ],
  [/it has snapshots, which may use zero clusters/, () => 'Internal snapshots prevent downgrade of image'],
];
