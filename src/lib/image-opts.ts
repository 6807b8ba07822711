/** Options of a tree of nodes as one text, for command lines. */
import { parseTextOptions, typedOptions } from '../block/text-options.ts';
import { builtinDrivers } from './builtin-drivers.ts';
import type { BlockdevOptions } from './options.ts';

/** `driver=qcow2,file.driver=file,file.filename=disk.qcow2,l2-cache-size=1M` of drivers that come along. EINVAL. */
export function imageOpts(text: string): BlockdevOptions {
  builtinDrivers();
  return typedOptions(parseTextOptions(text)) as unknown as BlockdevOptions;
}
