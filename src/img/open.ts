/**
 * Images as the command lines of image tools name them: by a file name or URL, of a format that is given or found, or
 * by a tree of options. What an image names is followed wherever the user may read it, since that is what these tools
 * are for; lib/references.ts says what is not followed even so.
 */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { BlockBackend } from '../block/backend.ts';
import { PERM_ALL } from '../block/driver.ts';
import { ownOptions } from '../block/options.ts';
import { driverByName } from '../block/registry.ts';
import { needDrivers } from '../lib/needed-drivers.ts';
import { NodeHead } from '../lib/node-head.ts';
import type { ObjectStore } from '../lib/objects/store.ts';
import { openTree } from '../lib/open-tree.ts';
import {
  type BlockdevOptions,
  blockdevOf,
  type CacheMode,
  type Discard,
  isWritethrough,
  nameOf,
} from '../lib/options.ts';
import type { ReferencePolicy } from '../lib/reference-policy.ts';
import { locationOf } from './location.ts';
import { type FoundTree, isJsonName, treeOfJson, treeOfText } from './tree.ts';

/** What an image is called. */
export interface ImageSpec {
  /** A file name, a URL or, with `imageOpts`, the text of a tree: `driver=qcow2,file.filename=x`. */
  readonly name: string;
  readonly imageOpts?: boolean | undefined;
  /** Default: what its first bytes say; raw where they say nothing. */
  readonly format?: string | undefined;
}

export interface OpenHow {
  /** Default: for reading. */
  readonly write?: boolean | undefined;
  /** Called when the image is to be written, and it was its content alone that spoke for raw: no write may make it look
   *  like another format then. */
  readonly onProbedRaw?: ((name: string) => void) | undefined;
  readonly cache?: CacheMode | undefined;
  readonly discard?: Discard | undefined;
  /** Whatever locks others hold; for reading only. */
  readonly forceShare?: boolean | undefined;
  /** Objects that options name by their ids. */
  readonly objects?: ObjectStore | undefined;
  /** Name or id of the internal snapshot to show; for reading only. */
  readonly snapshot?: string | undefined;
  /** Without the images below it. */
  readonly alone?: boolean | undefined;
  /** Others may write to a raw image meanwhile: for looking at it only. */
  readonly shareWrites?: boolean | undefined;
}

/** A tree that can be opened, with the format that it was found to have where nobody said it. */
export interface FoundImage {
  readonly tree: BlockdevOptions;
  /** The format is a guess from the content. */
  readonly probed: boolean;
}

/** Formats whose driver is there; others are known by their first bytes only. */
const FORMATS: ReadonlySet<string> = new Set(['raw', 'qcow2']);
const FOLLOWED: ReferencePolicy = { references: 'all', allowDirectories: [] };

/** Opens an image and what it names. The message of what is thrown begins "Could not open 'NAME'". Home thread. */
export async function openImage(context: AioContext, spec: ImageSpec, how: OpenHow = {}): Promise<BlockBackend> {
  const { tree } = await findImage(context, spec, how);
  return openFound(context, spec, tree, how);
}

/** {@link openImage} of a tree that was found for it, or made of that. */
export async function openFound(
  context: AioContext,
  spec: ImageSpec,
  tree: BlockdevOptions,
  how: OpenHow = {},
): Promise<BlockBackend> {
  const policy = FOLLOWED;
  const message = { options: tree, name: spec.name, writethrough: isWritethrough(how.cache), probed: false, policy };
  try {
    return await openTree(context, message, how.shareWrites ? { shared: PERM_ALL } : {});
  } catch (error) {
    throw openFailure(spec, error);
  }
}

/** Opens an image for the time of `body`. */
export async function withImage<T>(
  context: AioContext,
  spec: ImageSpec,
  how: OpenHow,
  body: (blk: BlockBackend) => T | Promise<T>,
): Promise<T> {
  const blk = await openImage(context, spec, how);
  let result: T;
  try {
    result = await body(blk);
  } catch (error) {
    await blk.close().catch(() => undefined);
    throw error;
  }
  await blk.close();
  return result;
}

/** The tree for an image; its first bytes are looked at where the format is not given. */
export async function findImage(context: AioContext, spec: ImageSpec, how: OpenHow = {}): Promise<FoundImage> {
  try {
    if (how.write && how.forceShare) throw new BlockError(Errno.EINVAL, "'force-share' needs 'read-only'");
    const named = await treeOf(spec, how);
    const given = await withSecrets(spec, isTree(spec) ? named : await withTested(context, named, how), how.objects);
    const probed = given.driver === undefined;
    const driver = given.driver ?? (await probe(context, given));
    const tree = { ...given, driver } as Record<string, unknown>;
    if (isTree(spec)) await checkOptions(driver, tree);
    if (probed && how.write && driver === 'raw') {
      how.onProbedRaw?.(isTree(spec) ? nameOf(tree as unknown as BlockdevOptions) : spec.name);
      // Nobody who writes to it may make it another format by that.
      tree.guessed = true;
    }
    if (how.snapshot !== undefined) tree.snapshot = how.snapshot;
    if (how.alone && driver === 'qcow2' && tree.backing === undefined) tree.backing = null;
    return { tree: tree as unknown as BlockdevOptions, probed };
  } catch (error) {
    throw openFailure(spec, error);
  }
}

/** What an open failed with, said of the image that was to be opened; the error below is its cause. */
export function openFailure(spec: ImageSpec, error: unknown): unknown {
  if (!(error instanceof BlockError)) return error;
  const why = error.message.replace(/^Could not open (?:'.*?'|[^:']*|a '.*?' node): /s, '');
  const where = { op: 'open', path: spec.name };
  return new BlockError(error.errno, `Could not open '${spec.name}': ${why}`, { where, cause: error });
}

/** Only a tree of the user's own can name objects. */
async function withSecrets(spec: ImageSpec, tree: FoundTree, objects: ObjectStore | undefined): Promise<FoundTree> {
  if (!isTree(spec)) return tree;
  const { withObjects } = await import('../lib/objects/resolve.ts');
  return withObjects(tree, objects);
}

function isTree({ name, imageOpts }: ImageSpec): boolean {
  return imageOpts === true || isJsonName(name);
}

/** Whoever gives a tree may be wrong in all of it, and not every verb opens all of it. */
async function checkOptions(driver: string, tree: Readonly<Record<string, unknown>>): Promise<void> {
  await needDrivers(tree, driver);
  ownOptions(driverByName(driver), tree);
}

/** Without a driver where that has to be found out. */
async function treeOf({ name, imageOpts, format }: ImageSpec, how: OpenHow): Promise<FoundTree> {
  const { cache, discard, forceShare } = how;
  const settings = {
    ...{ readOnly: !how.write, ...(forceShare ? { forceShare } : {}) },
    ...(cache ? { cache } : {}),
    ...(discard ? { discard } : {}),
  };
  if (format !== undefined && !FORMATS.has(format)) throw new BlockError(Errno.EINVAL, `Unknown driver '${format}'`);
  if (imageOpts) return withSettings(await treeOfText(name), settings);
  if (isJsonName(name)) {
    const tree = withSettings(await treeOfJson(name), settings);
    return format === undefined ? tree : { ...tree, driver: format };
  }
  const found = withSettings(locationOf(name), { ...settings, format: format ?? 'raw' });
  // A format is above whatever holds the bytes.
  const tree = found.file === undefined ? withSettings({ driver: 'raw', file: found }, settings) : found;
  if (format !== undefined) return { ...tree, driver: format };
  if (found.file === undefined) return tree;
  const { driver: _, ...rest } = tree;
  return rest;
}

function withSettings(target: FoundTree | string, settings: object): FoundTree {
  return blockdevOf(target as string | BlockdevOptions, settings) as unknown as FoundTree;
}

/** In an older name of blkverify the image that is tried has the format that it looks like. */
async function withTested(context: AioContext, tree: FoundTree, how: OpenHow): Promise<FoundTree> {
  const file = tree.file as FoundTree | undefined;
  if (file?.driver !== 'blkverify') return tree;
  const bytes = { file: file.test };
  const driver = await probe(context, bytes);
  const guessed = how.write === true && driver === 'raw';
  if (guessed) how.onProbedRaw?.(nameOf(file.test as BlockdevOptions));
  const test = { driver, ...bytes, ...(guessed ? { guessed } : {}) };
  return { ...tree, file: { ...file, test } };
}

/** The format that the first bytes are of. */
async function probe(context: AioContext, tree: FoundTree): Promise<string> {
  await using head = await NodeHead.open(context, { ...tree, driver: 'raw' } as unknown as BlockdevOptions, {
    // Who writes meanwhile is a matter for whoever opens it then.
    shared: PERM_ALL,
  });
  const format = (await head.magic()) ?? 'raw';
  if (!FORMATS.has(format)) throw new BlockError(Errno.ENOTSUP, `Unknown driver '${format}'`);
  return format;
}
