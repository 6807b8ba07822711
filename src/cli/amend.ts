/** `blockplane amend`. */
import { createOptionSpecs } from '../lib/image-options.ts';
import { withDisk } from '../lib/images.ts';
import { withLocalEngine } from '../lib/local-engine.ts';
import { driverPairs, openOptions } from './image-args.ts';
import type { RawAmendOptions } from './verbs.ts';

export async function amend(path: string, raw: RawAmendOptions): Promise<void> {
  const changes = driverPairs(raw.options, createOptionSpecs('qcow2'));
  await withLocalEngine((engine) =>
    withDisk(engine, path, openOptions(raw), (disk) => engine.call('amend', { disk, changes })),
  );
}
