/** An image over another one, for what is written to it until both are closed. */
import { join } from 'node:path';
import type { AioContext } from '../aio/context.ts';
import { alignUp, SECTOR } from '../base/units.ts';
import { openTree } from '../lib/open-tree.ts';
import { type BlockdevOptions, blockdevOf } from '../lib/options.ts';
import { PrivateDirectory } from '../lib/private-directory.ts';
import { createImage } from './create.ts';
import { CreationOptions } from './creation-options.ts';

/** Its file has a name until this is disposed, and room until the image is closed. */
export class TemporaryOverlay implements Disposable {
  readonly tree: BlockdevOptions;
  readonly #directory: PrivateDirectory;

  private constructor(tree: BlockdevOptions, directory: PrivateDirectory) {
    this.tree = tree;
    this.#directory = directory;
  }

  /** `below`: a tree that is opened for reading. */
  static async over(context: AioContext, below: BlockdevOptions): Promise<TemporaryOverlay> {
    const policy = { references: 'all', allowDirectories: [] } as const;
    const message = { options: below, name: 'the image', writethrough: false, probed: false, policy };
    const blk = await openTree(context, message);
    const size = alignUp(blk.length, SECTOR);
    await blk.close();
    // It may become large: not where temporary files are often kept in memory.
    const directory = new PrivateDirectory(process.env.TMPDIR || '/var/tmp');
    try {
      const path = join(directory.path, 'overlay.qcow2');
      const options = new CreationOptions('qcow2');
      options.set('size', String(size));
      await createImage(context, path, options);
      const layer = blockdevOf(path, { format: 'qcow2', cache: 'unsafe' });
      return new TemporaryOverlay({ ...layer, backing: below } as BlockdevOptions, directory);
    } catch (error) {
      directory.remove();
      throw error;
    }
  }

  [Symbol.dispose](): void {
    this.#directory.remove();
  }
}
