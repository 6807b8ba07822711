import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { type Head, ImageHead } from './image-head.ts';
import { NodeHead } from './node-head.ts';
import { type BlockdevOptions, nameOf } from './options.ts';
import { referencesOf } from './references.ts';

/**
 * The tree for a file of which nobody said what format it is. It is raw, unless its content says otherwise, and content
 * can be a guest's, who wrote it into a raw image: then it is refused (EINVAL), but for a qcow2 image that is opened
 * read-only and names no other file. As such it shows nothing that was not in the file.
 */
export async function probe(context: AioContext, raw: BlockdevOptions, name: string): Promise<BlockdevOptions> {
  // What cannot be opened is the driver's to say.
  const opened = await openHead(context, raw).catch(() => undefined);
  if (!opened) return raw;
  await using head = opened;
  const format = await head.magic();
  if (format === undefined) return raw;
  const what = `Could not open '${name}': it looks like a ${format} image`;
  const asRaw = 'the format raw to use its bytes as they are';
  if (format !== 'qcow2') throw new BlockError(Errno.EINVAL, `${what}, which is not supported yet; give ${asRaw}`);
  const give = `give the format qcow2 if it is one, or ${asRaw}`;
  if (raw['read-only'] !== true) throw new BlockError(Errno.EINVAL, `${what}, and its name does not say so; ${give}`);
  if (referencesOf(await head.qcow2Header()).length > 0) {
    throw new BlockError(Errno.EINVAL, `${what} that names other files, and its name does not say so; ${give}`);
  }
  return { ...raw, driver: 'qcow2' } as unknown as BlockdevOptions;
}

/** Undefined for what is no image: nothing of it is read. */
async function openHead(context: AioContext, raw: BlockdevOptions): Promise<Head | undefined> {
  const { file } = raw as { readonly file?: { readonly url?: unknown } };
  if (typeof file?.url === 'string') return NodeHead.open(context, raw);
  const head = await ImageHead.open(nameOf(raw));
  if (head.kind !== 'other') return head;
  await head[Symbol.asyncDispose]();
  return undefined;
}
