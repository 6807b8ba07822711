/**
 * Images as the command lines of image tools name them: by a file name or URL, of a format that is given or found, or
 * by a tree of options. What an image names is followed wherever the user may read it, since that is what these tools
 * are for; lib/references.ts says what is not followed even so.
 */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { BlockBackend } from '../block/backend.ts';
import { builtinDrivers } from '../lib/builtin-drivers.ts';
import { imageOpts } from '../lib/image-opts.ts';
import { NodeHead } from '../lib/node-head.ts';
import { openTree } from '../lib/open-tree.ts';
import { type BlockdevOptions, blockdevOf, type CacheMode, isWritethrough } from '../lib/options.ts';
import type { ReferencePolicy } from '../lib/reference-policy.ts';

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
  readonly cache?: CacheMode | undefined;
  /** Whatever locks others hold; for reading only. */
  readonly forceShare?: boolean | undefined;
  /** Without the images below it. */
  readonly alone?: boolean | undefined;
  /** What it needs and lets others do; see BlockBackendOptions. */
  readonly perm?: number | undefined;
  readonly shared?: number | undefined;
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
  const { perm, shared } = how;
  const policy = FOLLOWED;
  const message = { options: tree, name: spec.name, writethrough: isWritethrough(how.cache), probed: false, policy };
  try {
    return await openTree(context, message, {
      ...(perm === undefined ? {} : { perm }),
      ...(shared === undefined ? {} : { shared }),
    });
  } catch (error) {
    throw openFailure(spec, error);
  }
}

/** The tree for an image; its first bytes are looked at where the format is not given. */
export async function findImage(context: AioContext, spec: ImageSpec, how: OpenHow = {}): Promise<FoundImage> {
  builtinDrivers();
  try {
    const given = treeOf(spec, how);
    const probed = spec.format === undefined && (spec.imageOpts !== true || given.driver === undefined);
    const driver = given.driver ?? (await probe(context, given));
    const tree = { ...given, driver } as Record<string, unknown>;
    if (how.alone && driver === 'qcow2' && tree.backing === undefined) tree.backing = null;
    return { tree: tree as unknown as BlockdevOptions, probed };
  } catch (error) {
    throw openFailure(spec, error);
  }
}

/** What an open failed with, said of the image that was to be opened; the error below is its cause. */
export function openFailure(spec: ImageSpec, error: unknown): unknown {
  if (!(error instanceof BlockError)) return error;
  const why = error.message.replace(/^Could not open [^:]*: /, '');
  const where = { op: 'open', path: spec.name };
  return new BlockError(error.errno, `Could not open '${spec.name}': ${why}`, { where, cause: error });
}

type Untyped = Readonly<Record<string, unknown>> & { readonly driver?: string };

/** Without a driver where that has to be found out. */
function treeOf({ name, imageOpts: asTree, format }: ImageSpec, how: OpenHow): Untyped {
  const { cache, forceShare } = how;
  const settings = { readOnly: !how.write, ...(forceShare ? { forceShare } : {}), ...(cache ? { cache } : {}) };
  if (asTree) return blockdevOf(imageOpts(name), settings) as unknown as Untyped;
  if (format !== undefined && !FORMATS.has(format)) throw new BlockError(Errno.EINVAL, `Unknown driver '${format}'`);
  const tree = blockdevOf(name, { ...settings, format: (format ?? 'raw') as 'raw' }) as unknown as Untyped;
  return format === undefined && tree.file !== undefined ? { ...tree, driver: undefined as never } : tree;
}

/** The format that the first bytes are of. */
async function probe(context: AioContext, tree: Untyped): Promise<string> {
  const { file } = tree;
  await using head = await NodeHead.open(context, { ...tree, driver: 'raw', file } as unknown as BlockdevOptions);
  const format = (await head.magic()) ?? 'raw';
  if (!FORMATS.has(format)) throw new BlockError(Errno.ENOTSUP, `Unknown driver '${format}'`);
  return format;
}
