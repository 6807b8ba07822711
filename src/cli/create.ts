/** `blockplane create`. */
import { existsSync, rmSync } from 'node:fs';
import { createOptionSpecs, textOptions } from '../lib/image-options.ts';
import { createIn } from '../lib/images.ts';
import { withLocalEngine } from '../lib/local-engine.ts';
import { formatToMake } from '../lib/options.ts';
import { driverHelp, formatOption, readKey } from './image-args.ts';
import { parseSize } from './report.ts';
import type { RawCreateOptions } from './verbs.ts';

export async function create(path: string, size: string | undefined, raw: RawCreateOptions): Promise<void> {
  const format = formatOption(raw.format) ?? formatToMake(path);
  const specs = createOptionSpecs(format);
  const given = raw.options ?? [];
  if (given.some((word) => word === 'help' || word === '?')) {
    process.stdout.write(`Options of ${format}:\n${driverHelp(specs)}\n`);
    return;
  }
  const key = readKey(raw.keyFile);
  const backingFormat = formatOption(raw.backingFormat, '--backing-format');
  const options = {
    ...textOptions(format, given),
    ...(size === undefined ? {} : { size: parseSize(size, 'SIZE') }),
    ...(raw.backing === undefined ? {} : { 'backing-file': raw.backing }),
    ...(backingFormat === undefined ? {} : { 'backing-fmt': backingFormat }),
    ...(key === undefined ? {} : { 'encrypt.key': key }),
  };
  using _half = existsSync(path) ? undefined : removedOnSignal(path);
  await withLocalEngine((engine) => createIn(engine, path, options, { format, overwrite: raw.overwrite }));
}

/** Half an image is not left behind by Ctrl-C. */
function removedOnSignal(path: string): Disposable {
  const end = (): void => {
    rmSync(path, { force: true });
    process.exit(1);
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const signal of signals) process.on(signal, end);
  return {
    [Symbol.dispose]() {
      for (const signal of signals) process.off(signal, end);
    },
  };
}
