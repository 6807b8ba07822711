import { BlockError, Errno } from '../base/errors.ts';
import { type Abortable, abortable } from './abort.ts';
import { Disk } from './disk.ts';
import { type IOThread, useThread } from './iothread.ts';
import { type BlockdevOptions, blockdevOf, isProbed, isWritethrough, nameOf, type TargetOptions } from './options.ts';

export interface OpenOptions extends TargetOptions, Abortable {
  /** The thread that does its I/O. Default: one that all disks without a thread of their own share. */
  readonly iothread?: IOThread | undefined;
  /** Which backend the default thread shall have. With `iothread`: must be what that thread runs on. */
  readonly aio?: 'ring' | 'pool' | undefined;
}

/**
 * Opens a disk: a file name, or a tree of nodes by QAPI names. It belongs to one IOThread; several disks in one thread
 * share its loop, disks in threads of their own share nothing.
 *
 * A file whose format is not given is opened as raw, unless it begins like an image of another format (EINVAL): then
 * say `format: 'raw'` to use its bytes as they are. Writable images are locked against other programs (EAGAIN).
 *
 * ```ts
 * const disk = await open('disk.img', { cache: 'none' });
 * const part = await open({ driver: 'raw', offset: 512, size: 4096, file: { driver: 'file', filename: 'disk.img' } });
 * ```
 */
export async function open(target: string | BlockdevOptions, options: OpenOptions = {}): Promise<Disk> {
  if (typeof target !== 'string' && (typeof target !== 'object' || target === null)) {
    throw new BlockError(Errno.EINVAL, `target: expected a file name or an options object, not ${typeof target}`);
  }
  options.signal?.throwIfAborted();
  const tree = blockdevOf(target, options);
  const opening = openIn(tree, isProbed(target, options.format), options);
  try {
    return await abortable(opening, options.signal);
  } catch (error) {
    if (options.signal?.aborted) opening.then((disk) => disk.close()).catch(() => undefined);
    throw error;
  }
}

async function openIn(tree: BlockdevOptions, probed: boolean, options: OpenOptions): Promise<Disk> {
  const use = await useThread(options.iothread, options.aio);
  const name = nameOf(tree);
  try {
    const writethrough = isWritethrough(options.cache);
    const reply = await use.thread.call('open', { options: tree, name, writethrough, probed });
    return new Disk(use, reply, name);
  } catch (error) {
    await use.release();
    throw error;
  }
}
