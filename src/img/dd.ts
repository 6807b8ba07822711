/** Copying a part of an image into a new one. */
import type { AioContext } from '../aio/context.ts';
import { alignUp, type Bytes, type Offset, SECTOR } from '../base/units.ts';
import { CopyJob } from '../jobs/copy-job.ts';
import type { Abortable } from '../lib/abort.ts';
import type { CreationOptions } from './creation-options.ts';
import { NewFile } from './new-file.ts';
import type { ImageSpec, OpenHow } from './open.ts';
import { OpenImages } from './open-set.ts';
import { runJob } from './run-job.ts';

export interface CopyPartOptions extends Abortable {
  readonly source: ImageSpec;
  readonly sourceHow?: OpenHow | undefined;
  readonly target: { readonly name: string; readonly format: string };
  /** The part, both counted from the beginning of the source: what that has of it. */
  readonly skip: Offset;
  readonly end: Offset;
  /** Told when nothing begins where the part does; the target is empty then. */
  readonly onBeyond?: (() => void) | undefined;
  readonly onProgress?: ((current: Bytes, total: Bytes) => void) | undefined;
}

/** What is made is as long as the part, rounded up to whole sectors. It is taken away again when that fails. */
export async function copyPart(
  context: AioContext,
  options: CopyPartOptions,
  creation: (size: Bytes) => CreationOptions,
): Promise<void> {
  await using images = new OpenImages(context);
  const blk = await images.open(options.source, options.sourceHow);
  const { skip, target } = options;
  const end = Math.min(options.end, alignUp(blk.length, SECTOR));
  if (skip > end) options.onBeyond?.();
  const length: Bytes = Math.max(0, end - skip);
  const file = await NewFile.create(context, target.name, creation(alignUp(length, SECTOR)), undefined);
  try {
    const into = await images.open(target, { write: true });
    file.filling();
    const source = { blk, from: skip, length: Math.min(length, blk.length - skip), at: 0 };
    const how = { id: 'dd', sparse: 4096, targetIsZero: file.isFile, onProgress: options.onProgress };
    if (source.length > 0) await runJob(new CopyJob([source], into, how), options);
    await images.close();
    file.filled();
  } catch (error) {
    await images.close().catch(() => undefined);
    await file.giveUp();
    throw error;
  }
}
