/**
 * What can be done to an image as a whole: make, check, amend it, its internal snapshots. On an open image each runs
 * with no request in flight. ENOTSUP where the driver cannot.
 */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { BlockBackend } from './backend.ts';
import { layerOf } from './copy-up.ts';
import type { CheckFix, CheckResult, Driver, DriverNode, SnapshotControl } from './driver.ts';
import { type ImageFiles, withFiles } from './graph.ts';
import type { BlockNode } from './node.ts';
import { creationOptions } from './options.ts';
import { driverByName } from './registry.ts';

function unsupported(what: string, driver: Driver): BlockError {
  return new BlockError(Errno.ENOTSUP, `Could not ${what}: the format '${driver.name}' does not support it`);
}

/** Makes an image in files that are there, and flushes them. Nothing is written when an option is wrong (EINVAL). */
export async function createImage(
  aio: AioContext,
  driverName: string,
  files: ImageFiles,
  options: Readonly<Record<string, unknown>>,
): Promise<void> {
  const driver = driverByName(driverName);
  if (!driver.create) throw unsupported('create an image', driver);
  const checked = creationOptions(driver, options);
  await withFiles(aio, driver, files, false, async (file, dataFile) => {
    await driver.create!({ aio, file, ...(dataFile ? { dataFile } : {}) }, checked);
  });
}

/** Checks an image that is not open. Written only where `fix` says so. */
export async function checkImage(
  aio: AioContext,
  driverName: string,
  files: Pick<ImageFiles, 'file'>,
  fix: CheckFix,
): Promise<CheckResult> {
  const driver = driverByName(driverName);
  if (!driver.check) throw unsupported('check the image', driver);
  return withFiles(aio, driver, files, fix === 'none', (file) => driver.check!({ aio, file }, fix));
}

/** Checks an open image. */
export function checkOpen(blk: BlockBackend, fix: CheckFix): Promise<CheckResult> {
  return onImage(blk, ({ impl, driver }) => {
    if (!impl.check) throw unsupported('check the image', driver);
    return impl.check(fix);
  });
}

/** Changes an open image; `changes` by the names of the driver's creation options. */
export async function amend(blk: BlockBackend, changes: Readonly<Record<string, unknown>>): Promise<void> {
  await onImage(blk, ({ impl, driver }) => {
    if (!impl.amend) throw unsupported('amend the image', driver);
    return impl.amend(changes);
  });
}

/** Takes away all that an open image holds itself: what is below it is seen everywhere. */
export async function emptyImage(blk: BlockBackend): Promise<void> {
  await onImage(blk, ({ impl, driver }) => {
    if (!impl.empty) throw unsupported('empty the image', driver);
    return impl.empty();
  });
  await blk.flush();
}

/** Runs `body` with the internal snapshots of an open image. */
export function withSnapshots<T>(blk: BlockBackend, body: (snapshots: SnapshotControl) => T | Promise<T>): Promise<T> {
  return onImage(blk, ({ impl, driver }) => {
    if (!impl.snapshots) throw unsupported('use snapshots', driver);
    return body(impl.snapshots);
  });
}

/** What filters show is the image below them. */
async function onImage<T>(
  blk: BlockBackend,
  body: (image: { readonly impl: DriverNode; readonly driver: Driver }) => T | Promise<T>,
): Promise<T> {
  using _drained = await blk.drain();
  // Looked up inside: it may have been taken out meanwhile.
  const root: BlockNode | null = blk.root;
  if (!root) throw new BlockError(Errno.ENOMEDIUM, `Could not use ${blk.describe}: it has no medium`);
  const image = layerOf(root);
  const { length } = image;
  try {
    return await body(image);
  } finally {
    if (image.live && image.length !== length) image.resized();
  }
}
