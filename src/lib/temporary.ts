import { join } from 'node:path';
import { alignUp, SECTOR } from '../base/units.ts';
import { createIn, type Engine, withDisk } from './images.ts';
import type { OpenMessage, OpenReply } from './messages.ts';
import { type BlockdevOptions, blockdevOf, type TargetOptions } from './options.ts';
import { PrivateDirectory } from './private-directory.ts';

/**
 * Opens `below`, which is opened read-only, with a new image over it: what is written goes there, and is gone with the
 * disk, or with the process. The file has no name any more once it is open, so the disk cannot move to another thread.
 */
export async function openTemporary(
  engine: Engine,
  below: OpenMessage,
  { detectZeroes }: TargetOptions,
): Promise<OpenReply> {
  const { size } = await withDisk(engine, below, (disk) => engine.call('stat', { disk }));
  const image = below.probed ? await engine.call('probe', below) : below.options;
  // It may become large: not where temporary files are often kept in memory.
  const directory = new PrivateDirectory(process.env.TMPDIR || '/var/tmp');
  try {
    const path = join(directory.path, 'overlay.qcow2');
    await createIn(engine, path, { size: alignUp(size, SECTOR) }, { format: 'qcow2' });
    const layer = blockdevOf(path, { format: 'qcow2', cache: 'unsafe', detectZeroes });
    const options = { ...layer, backing: { ...image, 'read-only': true } } as BlockdevOptions;
    return await engine.call('open', { ...below, options, probed: false, writethrough: false });
  } finally {
    directory.remove();
  }
}
