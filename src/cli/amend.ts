/** `blockplane amend`. */
import { textOptions } from '../lib/image-options.ts';
import { withDisk } from '../lib/images.ts';
import { withLocalEngine } from '../lib/local-engine.ts';
import { toChange } from './image-args.ts';
import type { RawAmendOptions } from './verbs.ts';

export async function amend(path: string, raw: RawAmendOptions): Promise<void> {
  const changes = textOptions('qcow2', raw.options);
  const message = toChange(path, raw);
  // Only another version looks at what is below; a name that leads nowhere can be mended.
  const alone = message.options.driver === 'qcow2' && !('compat' in changes);
  const target = alone ? { ...message, options: { ...message.options, backing: null } } : message;
  await withLocalEngine((engine) => withDisk(engine, target, (disk) => engine.call('amend', { disk, changes })));
}
