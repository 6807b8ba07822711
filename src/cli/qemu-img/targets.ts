/** The images that a command line is about. */

import type { ImageSpec } from '../../img/open.ts';
import { CACHE_MODES, type CacheMode } from '../../lib/options.ts';
import { Failure, Option, type Terminal, type VerbLine } from './verb.ts';

/** `name` as --image-opts and -f say it is meant. */
export function imageSpec(line: VerbLine, name: string): ImageSpec {
  const format = line.value(Option.format) ?? line.value(Option.plainFormat);
  const imageOpts = line.has(Option.imageOpts);
  if (imageOpts && format !== undefined) throw new Failure('--image-opts and --format are mutually exclusive');
  return { name, imageOpts, format };
}

/** Says that a format was guessed. */
export function warnProbedRaw(terminal: Terminal): (name: string) => void {
  return (name) =>
    terminal.err(
      `WARNING: Image format was not specified for '${name}' and probing guessed raw.\n` +
        '         Automatically detecting the format is dangerous for raw images, ' +
        'write operations on block 0 will be restricted.\n' +
        "         Specify the 'raw' format explicitly to remove the restrictions.\n",
    );
}

/** The cache mode of an option. */
export function cacheMode(line: VerbLine, def: typeof Option.cache | typeof Option.sourceCache): CacheMode | undefined {
  const given = line.value(def);
  const found = given === undefined ? undefined : cacheModeOf(given);
  if (given !== undefined && found === undefined) {
    throw new Failure(
      def === Option.cache ? `Invalid cache option: ${given}` : `Invalid source cache option: ${given}`,
    );
  }
  return found;
}

/** Undefined for what is none. */
export function cacheModeOf(text: string): CacheMode | undefined {
  // 'off' is an older name of none.
  const mode = text === 'off' ? 'none' : text;
  return CACHE_MODES.find((one) => one === mode);
}

/** `-l NAME`, `-l snapshot.id=ID`, `-l snapshot.name=NAME`. */
export function snapshotName(text: string | undefined): string | undefined {
  return text === undefined ? undefined : (/^snapshot\.(?:id|name)=([^,]*)/.exec(text)?.[1] ?? text);
}
