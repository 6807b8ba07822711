/** What an image says of itself, and what those below it say. */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { alignDown, alignUp, SECTOR } from '../base/units.ts';
import { PERM_ALL, Perm } from '../block/driver.ts';
import { type ImageInfo, inspectHead } from '../lib/inspect.ts';
import { NodeHead } from '../lib/node-head.ts';
import { backingPath } from './backing.ts';
import { findImage, type ImageSpec, type OpenHow, openFailure } from './open.ts';

/** Images in a chain. */
const CHAIN_MAX = 256;

/**
 * What the image says of itself. Only its own file is opened, for reading and with the lock of a reader; no name in it
 * is followed.
 */
export async function imageInfo(
  context: AioContext,
  spec: ImageSpec,
  how: Pick<OpenHow, 'forceShare' | 'objects'> = {},
): Promise<ImageInfo> {
  const { tree } = await findImage(context, spec, how);
  // Whoever writes to a raw image changes nothing of what is said here; metadata must stand still.
  const shared = tree.driver === 'raw' ? PERM_ALL : Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED;
  try {
    await using head = await NodeHead.open(context, tree, { shared });
    const info = await inspectHead(head, tree.driver);
    // A disk has whole sectors: of a file the last is filled up, of a format cut off.
    const whole = info.qcow2 ? alignDown : alignUp;
    return { ...info, virtualSize: whole(info.virtualSize ?? head.length, SECTOR) };
  } catch (error) {
    throw openFailure(spec, error);
  }
}

/** The same of the image and all that are below it, from the top. ELOOP for a chain that comes back to itself. */
export async function chainInfo(
  context: AioContext,
  spec: ImageSpec,
  how: Pick<OpenHow, 'forceShare' | 'objects'> = {},
): Promise<ImageInfo[]> {
  const chain: ImageInfo[] = [];
  const seen = new Set<string>();
  for (let next: ImageSpec | undefined = spec; next !== undefined; ) {
    if (seen.has(next.name) || chain.length >= CHAIN_MAX) {
      throw new BlockError(Errno.ELOOP, `Backing file '${next.name}' creates an infinite loop.`);
    }
    seen.add(next.name);
    const image: ImageInfo = await imageInfo(context, next, how);
    chain.push(image);
    const { backingFile: name, backingFormat: format } = image.qcow2 ?? {};
    next =
      name === undefined || name === null
        ? undefined
        : { name: backingPath(image.filename, name), format: format ?? undefined };
  }
  return chain;
}
