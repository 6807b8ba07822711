/** What images say of the files below them. */
import { dirname, isAbsolute, relative, resolve, sep } from 'node:path';
import { BlockError, Errno } from '../base/errors.ts';
import type { BlockBackend } from '../block/backend.ts';
import { layerOf } from '../block/copy-up.ts';
import type { BlockNode } from '../block/node.ts';
import type { NewBacking } from '../block/rebase.ts';
import { type BlockdevOptions, type Format, nameOf } from './options.ts';

/** True for what is no path: a URL, or a driver without a name. */
export function isUrl(name: string): boolean {
  return /^[a-z0-9+-]+:\/\//i.test(name);
}

/** The format that an image has to give for a tree of nodes below it. */
export function backingFormatOf({ driver }: Pick<BlockdevOptions, 'driver'>): Format {
  return driver === 'qcow2' ? 'qcow2' : 'raw';
}

/** The layer of that node-name or file name, the active one included. ENOENT. */
export function layerByName(root: BlockNode, wanted: string): BlockNode {
  for (let node: BlockNode | undefined = root; node !== undefined; node = layerOf(node).cow?.node) {
    if (isNamed(node, wanted) || isNamed(layerOf(node), wanted)) return layerOf(node);
  }
  throw new BlockError(Errno.ENOENT, `Could not find '${wanted}' in the chain of node '${root.name}'`);
}

/** The layer that nothing is below. EINVAL where there is but one. */
export function lowestLayer(root: BlockNode): BlockNode {
  let lowest: BlockNode | undefined;
  for (let node = layerOf(root).cow?.node; node !== undefined; node = layerOf(node).cow?.node) lowest = node;
  if (lowest !== undefined) return lowest;
  throw new BlockError(Errno.EINVAL, `Could not find a layer below node '${root.name}': there is none`);
}

/** The layer of a disk with that node-name or file name, and what its image is to call it. ENOENT. */
export function baseOf(blk: BlockBackend, wanted: string, given: string | undefined): NewBacking {
  const { root } = blk;
  const top = root ? layerOf(root) : undefined;
  for (let node = top?.cow?.node; node !== undefined; node = layerOf(node).cow?.node) {
    if (!isNamed(node, wanted)) continue;
    const name = given ?? nameFrom(treeName(top!), treeName(node));
    return {
      node,
      name,
      format: backingFormatOf(node.driver.name === 'qcow2' ? { driver: 'qcow2' } : { driver: 'raw' }),
    };
  }
  throw new BlockError(Errno.ENOENT, `Could not find '${wanted}' below '${blk.name}'`);
}

function isNamed(node: BlockNode, wanted: string): boolean {
  const path = treeName(node);
  return node.name === wanted || path === wanted || (!isUrl(path) && resolve(path) === resolve(wanted));
}

function treeName({ common }: BlockNode): string {
  return nameOf(common as unknown as BlockdevOptions);
}

/** Relative where it is in the image's directory or below: they can be moved together, and names in there are followed
 *  by everybody. */
function nameFrom(image: string, path: string): string {
  if (isUrl(path) || isUrl(image)) return path;
  const near = relative(resolve(dirname(image)), resolve(path));
  return near === '..' || near.startsWith(`..${sep}`) || isAbsolute(near) ? resolve(path) : near;
}
