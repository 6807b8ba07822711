import { BlockError, Errno } from '../base/errors.ts';
import { type Abortable, abortable } from './abort.ts';
import { Disk } from './disk.ts';
import { type IOThread, useThread } from './iothread.ts';
import { openMessage } from './open-message.ts';
import type { BlockdevOptions, TargetOptions } from './options.ts';
import { overlayMessage } from './overlay.ts';
import type { ReferenceOptions } from './reference-policy.ts';
import { openTemporary } from './temporary.ts';

export interface OpenOptions extends TargetOptions, ReferenceOptions, Abortable {
  /** The thread that does its I/O. Default: one that all disks without a thread of their own share. */
  readonly iothread?: IOThread | undefined;
  /** Which backend the default thread shall have. With `iothread`: must be what that thread runs on. */
  readonly aio?: 'ring' | 'pool' | undefined;
  /**
   * A qcow2 image over the target, which then stays as it is: all that is read of the target is kept in the overlay,
   * all that is written goes there. Made where it is not there; EINVAL where it is one of another target.
   */
  readonly overlay?: string | undefined;
  /** The target stays as it is: what is written goes to a temporary file in $TMPDIR or /var/tmp, and is gone when the
   *  disk is closed. Such a disk stays in its IOThread. EINVAL with `overlay` and with `readOnly`. */
  readonly temporary?: boolean | undefined;
}

/**
 * Opens a disk: a file name, or a tree of nodes by QAPI names. It belongs to one IOThread; several disks in one thread
 * share its loop, disks in threads of their own share nothing.
 *
 * A file whose name ends with .qcow2 is a qcow2 image, any other is raw, unless `format` says what it is. What begins
 * like an image of another format than that is refused (EINVAL), since a guest can write such a beginning into a raw
 * image; but opened read-only, a qcow2 image that names no other file is shown as what it is. Backing files are
 * followed inside the image's directory, unless `references` says more or less. Writable images are locked against
 * other programs (EBUSY).
 *
 * ```ts
 * const disk = await open('disk.img', { cache: 'none' });
 * const overlay = await open('overlay.qcow2', { allowDirectories: ['/var/lib/bases'] });
 * const part = await open({ driver: 'raw', offset: 512, size: 4096, file: { driver: 'file', filename: 'disk.img' } });
 * ```
 */
export async function open(target: string | BlockdevOptions, options: OpenOptions = {}): Promise<Disk> {
  if (typeof target !== 'string' && (typeof target !== 'object' || target === null)) {
    throw new BlockError(Errno.EINVAL, `target: expected a file name or an options object, not ${typeof target}`);
  }
  options.signal?.throwIfAborted();
  const opening = openIn(target, options);
  try {
    return await abortable(opening, options.signal);
  } catch (error) {
    if (options.signal?.aborted) opening.then((disk) => disk.close()).catch(() => undefined);
    throw error;
  }
}

async function openIn(target: string | BlockdevOptions, options: OpenOptions): Promise<Disk> {
  const { overlay, temporary = false } = options;
  if (temporary && (overlay !== undefined || options.readOnly)) {
    throw new BlockError(Errno.EINVAL, 'temporary: not together with overlay or readOnly');
  }
  const plain = overlay === undefined ? openMessage(target, { ...options, ...belowTemporary(temporary) }) : undefined;
  const use = await useThread(options.iothread, options.aio);
  try {
    const message = plain ?? (await overlayMessage(use.thread, overlay!, target, options));
    const opened = temporary ? openTemporary(use.thread, message, options) : use.thread.call('open', message);
    return new Disk(use, await opened, message.name);
  } catch (error) {
    await use.release();
    throw error;
  }
}

function belowTemporary(temporary: boolean): TargetOptions {
  return temporary ? { readOnly: true, discard: undefined, detectZeroes: undefined } : {};
}
