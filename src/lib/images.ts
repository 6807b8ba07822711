/** Making, checking and changing images in files: what runs in an IOThread, or in whatever engine there is. */
import { open, unlink } from 'node:fs/promises';
import { dirname, isAbsolute, resolve } from 'node:path';
import { BlockError, Errno, errnoOf, errnoText } from '../base/errors.ts';
import type { CheckResult } from '../block/driver.ts';
import { isRemoteUrl, shownUrl } from '../drivers/http/location.ts';
import { type CheckOptions, driverOptions, fixOf, type ImageOptions } from './image-options.ts';
import { inspect } from './inspect.ts';
import { type IOThread, useThread } from './iothread.ts';
import type { CreateMessage, ImageMethod, Method, MethodArgs, MethodResult, OpenMessage } from './messages.ts';
import { openMessage } from './open-message.ts';
import { type Format, formatByName, formatToMake, type HttpSettings } from './options.ts';

/** Whatever takes the calls of messages.ts. */
export interface Engine {
  call<M extends Method>(method: M, args: MethodArgs<M>): Promise<MethodResult<M>>;
}

/** The part of it that is done in one thread: by an IOThread, or by a loop in this one. */
export interface ImageEngine {
  call<M extends ImageMethod>(method: M, args: MethodArgs<M>): Promise<MethodResult<M>>;
}

export interface EngineOptions {
  /** The thread that does it. Default: the one that disks without a thread of their own share. */
  readonly iothread?: IOThread | undefined;
  readonly aio?: 'ring' | 'pool' | undefined;
}

export interface CreateOptions extends ImageOptions, EngineOptions {
  /** Default: qcow2 for a name that ends with .qcow2, else raw. */
  readonly format?: Format | undefined;
  /** What is there already is overwritten, and must not be in use. Default: EEXIST. */
  readonly overwrite?: boolean | undefined;
}

export interface CheckImageOptions extends CheckOptions, EngineOptions {
  readonly format?: Format | undefined;
  /** For an image at a URL. */
  readonly http?: HttpSettings | undefined;
}

/**
 * Makes an image. Files that were not there are taken away again when it fails; of one that is overwritten nothing is
 * left then, but no half image. A backing file is looked at for its size and nothing else.
 *
 * ```ts
 * await create('disk.qcow2', { size: 10 * 2 ** 30 });
 * await create('overlay.qcow2', { backingFile: 'disk.qcow2' });
 * ```
 */
export async function create(path: string, options: CreateOptions = {}): Promise<void> {
  const { format, overwrite, iothread, aio, ...image } = options;
  const use = await useThread(iothread, aio);
  try {
    await createIn(use.thread, path, driverOptions({ ...image }), { format, overwrite });
  } finally {
    await use.release();
  }
}

/** The part of an engine that makes images. */
export interface ImageMaker {
  call(method: 'create', args: CreateMessage): Promise<void>;
}

/** `options` by the names of the driver's creation options. `knowsBacking`: they say all of the backing file, which is
 *  not looked at. */
export async function createIn(
  engine: ImageMaker,
  path: string,
  options: Readonly<Record<string, unknown>>,
  how: Pick<CreateOptions, 'format' | 'overwrite'> & { readonly knowsBacking?: boolean },
): Promise<void> {
  assertLocal(path);
  const format = how.format ?? formatToMake(path);
  const whole = format === 'qcow2' && !how.knowsBacking ? await withBacking(path, options) : options;
  const made: string[] = [];
  try {
    const file = await fileFor(path, how.overwrite ?? false, made);
    const name = whole['data-file'];
    const hasData = typeof name === 'string' && name !== '';
    const dataFile = hasData ? { dataFile: await fileFor(name, how.overwrite ?? false, made) } : {};
    await engine.call('create', { format, file, ...dataFile, options: whole });
  } catch (error) {
    for (const one of made) await unlink(one).catch(() => undefined);
    throw error;
  }
}

/**
 * Looks for damage in an image that nobody has open, and repairs it where asked to. No other file is opened. ENOTSUP
 * for a format without checks.
 */
export async function check(path: string, options: CheckImageOptions = {}): Promise<CheckResult> {
  const use = await useThread(options.iothread, options.aio);
  try {
    return await checkIn(use.thread, path, options);
  } finally {
    await use.release();
  }
}

export function checkIn(engine: ImageEngine, path: string, options: CheckImageOptions): Promise<CheckResult> {
  const fix = fixOf(options);
  const { format, http } = options;
  const { options: node, name, probed } = openMessage(path, { format, http, readOnly: fix === 'none' });
  return engine.call('check-image', { options: node, name, probed, fix });
}

/** Opens an image for the time of `body`, which gets the disk's number. */
export async function withDisk<T>(
  engine: ImageEngine,
  message: OpenMessage,
  body: (disk: number) => Promise<T>,
): Promise<T> {
  const { disk } = await engine.call('open', message);
  let result: T;
  try {
    result = await body(disk);
  } catch (error) {
    await engine.call('close', { disk }).catch(() => undefined);
    throw error;
  }
  await engine.call('close', { disk });
  return result;
}

/** Files are made here, and lead to files here. */
function assertLocal(path: string): void {
  if (!isRemoteUrl(path)) return;
  throw new BlockError(Errno.ENOTSUP, `Could not create an image with '${shownUrl(path)}': it is not a file here`);
}

/** Where a name that is given with an image is. */
function besides(path: string, name: string): string {
  assertLocal(name);
  return isAbsolute(name) ? name : resolve(dirname(path), name);
}

/** The format and, where it is not given, the size of a backing file. */
async function withBacking(
  path: string,
  options: Readonly<Record<string, unknown>>,
): Promise<Readonly<Record<string, unknown>>> {
  const name = options['backing-file'];
  if (typeof name !== 'string' || name === '') return options;
  assertLocal(name);
  const format = (options['backing-fmt'] as Format | undefined) ?? formatByName(name);
  if (format === undefined) {
    throw new BlockError(
      Errno.EINVAL,
      `Could not create '${path}': the format of the backing file '${name}' is missing`,
    );
  }
  const { virtualSize } = await inspect(besides(path, name), { format });
  return { size: virtualSize, ...options, 'backing-fmt': format };
}

/** The node for a file that is there now; `made` gets to know when it was not before. */
async function fileFor(
  path: string,
  overwrite: boolean,
  made: string[],
): Promise<{ readonly driver: 'file'; readonly filename: string }> {
  try {
    const handle = await open(path, 'wx', 0o644);
    made.push(path);
    await handle.close();
  } catch (error) {
    const errno = errnoOf(error);
    if (errno !== Errno.EEXIST || !overwrite) {
      throw new BlockError(errno, `Could not create '${path}': ${errnoText(errno)}`, { where: { path }, cause: error });
    }
  }
  return { driver: 'file', filename: path };
}
