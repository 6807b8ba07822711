/** New images, as the command lines of image tools ask for them. */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { createIn } from '../lib/images.ts';
import { needDrivers } from '../lib/needed-drivers.ts';
import { withObjects } from '../lib/objects/resolve.ts';
import type { ObjectStore } from '../lib/objects/store.ts';
import type { Format } from '../lib/options.ts';
import { makeImage } from '../lib/worker-images.ts';
import { backingPath, hasProtocol } from './backing.ts';
import type { CreationOptions } from './creation-options.ts';
import { locationOf } from './location.ts';
import { withImage } from './open.ts';

/** `unsafe`: the backing file is not opened. */
export interface CreateHow {
  readonly unsafe?: boolean | undefined;
  readonly objects?: ObjectStore | undefined;
}

/**
 * Makes sure that the backing file which the options name is there and of a format that is given, and takes its size
 * where they have none. EINVAL says what is missing.
 */
export async function settleSize(
  context: AioContext,
  path: string,
  options: CreationOptions,
  { unsafe, objects }: CreateHow = {},
): Promise<void> {
  const backing = options.get('backing_file');
  const format = options.get('backing_fmt');
  if (backing !== undefined) {
    if (backing === '') throw refusal('Expected backing file name, got empty string');
    if (backing === path) throw refusal('Error: Trying to create an image with the same filename as the backing file');
    const found = unsafe ? undefined : await lookBelow(context, backingPath(path, backing), { format, objects });
    if (format === undefined) {
      throw new BackingFormatMissing(found?.format);
    }
    if (options.size === undefined && found !== undefined) options.set('size', String(found.size));
  }
  if (options.size === undefined) throw refusal('Image creation needs a size parameter');
}

/** Nobody has said what format the backing file is of; the content is not enough to rely on. */
export class BackingFormatMissing extends BlockError {
  /** What it looks like. */
  readonly detected: string | undefined;

  constructor(detected: string | undefined) {
    super(Errno.EINVAL, 'Backing file specified without backing format');
    this.detected = detected;
  }
}

/** Only its size is wanted: who writes to it does not matter. */
async function lookBelow(
  context: AioContext,
  name: string,
  { format, objects }: { readonly format: string | undefined; readonly objects: ObjectStore | undefined },
): Promise<{ readonly size: number; readonly format: string }> {
  return await withImage(context, { name, format }, { objects, forceShare: true }, (blk) => ({
    size: blk.length,
    format: blk.root?.driver.name ?? 'raw',
  }));
}

/** Makes the image; a file that is there is overwritten. Its size is known. */
export async function createImage(
  context: AioContext,
  path: string,
  options: CreationOptions,
  { objects }: Pick<CreateHow, 'objects'> = {},
): Promise<void> {
  const given = { ...options.driverOptions };
  const format = (options.format === 'file' ? 'raw' : options.format) as Format;
  await needDrivers({}, format, 'file');
  const maker = { call: (_: 'create', message: Parameters<typeof makeImage>[1]) => makeImage(context, message) };
  await createIn(maker, localPath(path), withObjects(given, objects), {
    ...{ format, overwrite: true, knowsBacking: true },
  });
}

/** The path that a name is. EINVAL for a protocol that is not known, ENOTSUP for one without files. */
export function localPath(name: string): string {
  const location = locationOf(name);
  if (typeof location === 'string' && !(hasProtocol(location) && location === name)) return location;
  throw new BlockError(Errno.ENOTSUP, `Could not create '${name}': images are made in files only`);
}

function refusal(why: string): BlockError {
  return new BlockError(Errno.EINVAL, why);
}
