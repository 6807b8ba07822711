/** `blockplane amend`. */
import { textOptions } from '../lib/image-options.ts';
import { withDisk } from '../lib/images.ts';
import { withLocalEngine } from '../lib/local-engine.ts';
import { openOptions } from './image-args.ts';
import type { RawAmendOptions } from './verbs.ts';

export async function amend(path: string, raw: RawAmendOptions): Promise<void> {
  const changes = textOptions('qcow2', raw.options);
  await withLocalEngine((engine) =>
    withDisk(engine, path, openOptions(raw), (disk) => engine.call('amend', { disk, changes })),
  );
}
