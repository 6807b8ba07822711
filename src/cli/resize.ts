/** `blockplane resize`. */
import { withDisk } from '../lib/images.ts';
import { withLocalEngine } from '../lib/local-engine.ts';
import { oneOf, toChange } from './image-args.ts';
import { parseSize, UsageError } from './report.ts';
import type { RawResizeOptions } from './verbs.ts';

export async function resize(path: string, text: string, raw: RawResizeOptions): Promise<void> {
  const preallocation = oneOf(raw.preallocation, ['off', 'falloc', 'full'] as const, '--preallocation') ?? 'off';
  const sign = /^[+-]/.exec(text)?.[0];
  const bytes = parseSize(sign === undefined ? text : text.slice(1), 'SIZE');
  await withLocalEngine((engine) =>
    withDisk(engine, toChange(path, raw), async (disk) => {
      const { size: old } = await engine.call('stat', { disk });
      const size = sign === undefined ? bytes : sign === '+' ? old + bytes : old - bytes;
      if (size < 0) throw new UsageError(`SIZE: the disk has ${old} bytes, ${bytes} cannot be taken away`);
      if (size < old && !raw.shrink) {
        throw new UsageError(`SIZE: ${size} is less than the ${old} bytes of the disk; --shrink says that it is meant`);
      }
      await engine.call('truncate', { disk, size, preallocation });
    }),
  );
}
