/** Writing what an image, and images below it, hold into one further below. */
import { resolve } from 'node:path';
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import { emptyImage } from '../block/control.ts';
import type { NodeOptions } from '../block/graph.ts';
import { CopyJob, wholeOf } from '../jobs/copy-job.ts';
import type { Abortable } from '../lib/abort.ts';
import { needDrivers } from '../lib/needed-drivers.ts';
import { type BlockdevOptions, nameOf } from '../lib/options.ts';
import { resolveReferences } from '../lib/references.ts';
import { backingPath } from './backing.ts';
import { findImage, type ImageSpec, type OpenHow, openFailure } from './open.ts';
import { OpenImages } from './open-set.ts';
import { runJob } from './run-job.ts';

export interface CommitOptions extends Abortable {
  readonly image: ImageSpec;
  readonly how?: OpenHow | undefined;
  /** The image to write into, as the chain names it. Default: the backing file; the image is emptied then. */
  readonly base?: string | undefined;
  /** Do not empty the image. */
  readonly keep?: boolean | undefined;
  /** Bytes a second at most; 0 (default) for as fast as it goes. */
  readonly speed?: Bytes | undefined;
  readonly onProgress?: ((current: Bytes, total: Bytes) => void) | undefined;
}

type Tree = Readonly<Record<string, unknown>>;

/**
 * Writes what the image and those between it and the base hold into the base, which grows where it is shorter. ENOENT
 * where the base is not in the chain, ENOTSUP where nothing is below. An image that is interrupted reads as it did.
 */
export async function commit(context: AioContext, options: CommitOptions): Promise<void> {
  const { image, how, base: wanted } = options;
  const { tree } = await findImage(context, image, { ...how, write: true });
  const layers = await chainOf(image, tree);
  const depth = wanted === undefined ? 1 : layers.findIndex((layer, i) => i > 0 && isNamed(layer, wanted, image.name));
  if (depth < 0) {
    throw new BlockError(Errno.ENOENT, `Did not find '${wanted}' in the backing chain of '${image.name}'`);
  }
  if (layers[depth] === undefined) throw new BlockError(Errno.ENOTSUP, 'Image does not have a backing file');
  await using images = new OpenImages(context);
  const open = async (node: Tree, spec: ImageSpec): Promise<BlockBackend> => {
    try {
      return images.add(await BlockBackend.open(context, node as NodeOptions, { name: spec.name }));
    } catch (error) {
      throw openFailure(spec, error);
    }
  };
  const base = await open(writable(layers[depth]!, tree), { name: layerName(layers[depth]!) });
  // Without what is below: it is not read, and is open to be written.
  const top = await open(cutAbove(layers.slice(0, depth)), image);
  if (top.length > base.length) await base.truncate(top.length);
  const all = { layers: Number.POSITIVE_INFINITY, below: Number.POSITIVE_INFINITY };
  const tuning = { sparse: 0, targetIsZero: false, requests: 8, ...all };
  const { speed = 0, onProgress } = options;
  await runJob(new CopyJob([wholeOf(top)], base, { id: 'commit', ...tuning, speed, onProgress }), options);
  if (!options.keep && wanted === undefined) await emptyImage(top);
  await images.close();
}

/** The trees of all images of a chain, from the top. */
async function chainOf(image: ImageSpec, tree: BlockdevOptions): Promise<Tree[]> {
  let layer: Tree | undefined;
  try {
    const whole = await resolveReferences(tree, { references: 'all', allowDirectories: [] });
    await needDrivers(whole);
    layer = whole as unknown as Tree;
  } catch (error) {
    throw openFailure(image, error);
  }
  const layers: Tree[] = [];
  for (; layer; layer = layer.backing as Tree | undefined) layers.push(layer);
  return layers;
}

function layerName(layer: Tree): string {
  return nameOf(layer as unknown as BlockdevOptions);
}

function isNamed(layer: Tree, name: string, top: string): boolean {
  const path = resolve(layerName(layer));
  return [name, backingPath(top, name)].some((one) => resolve(one) === path);
}

/** To be written, with the cache mode of the top. */
function writable(layer: Tree, { cache }: { readonly cache?: unknown }): Tree {
  return { ...layer, 'read-only': false, ...(cache === undefined ? {} : { cache }) };
}

function cutAbove([layer, ...below]: readonly Tree[]): Tree {
  return { ...layer, backing: below.length === 0 ? null : cutAbove(below) };
}
