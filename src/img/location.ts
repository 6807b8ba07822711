/** Names of images, in their older forms too, as what can be opened. */
import { BlockError, Errno } from '../base/errors.ts';
import { isRemoteUrl } from '../drivers/http/location.ts';
import { blockdevOf } from '../lib/options.ts';
import { isNbdUri, olderNbdName } from '../lib/uri.ts';
import type { FoundTree } from './tree.ts';

/** Names in names in names. */
const DEPTH_MAX = 32;

/** A name as it is for the library: `file:x` is x, and what is no protocol of ours is refused (EINVAL). */
export function locationOf(name: string): FoundTree | string {
  const [, protocol] = /^([^/:]+):/.exec(name) ?? [];
  if (protocol === undefined || isNbdUri(name) || isRemoteUrl(name) || /^null-(co|aio):\/\/$/.test(name)) return name;
  if (protocol === 'file') return fileName(name.slice('file:'.length));
  const node = olderNode(protocol, name, 1);
  if (node) return { driver: 'raw', file: node };
  throw new BlockError(Errno.EINVAL, `Unknown protocol '${protocol}'`);
}

/** A name that is a path, whatever it looks like. */
function fileName(path: string): string {
  return /^[^/:]+:/.test(path) ? `./${path}` : path;
}

function olderNode(protocol: string, name: string, depth: number): FoundTree | undefined {
  if (protocol === 'nbd') return nbdNode(name);
  if (protocol === 'blkdebug') {
    const [config, image] = twoNames(name, 'blkdebug requires both config file and image path');
    return { driver: 'blkdebug', ...(config === '' ? {} : { config }), image: byteNode(image, depth) };
  }
  if (protocol === 'blkverify') {
    const [raw, test] = twoNames(name, 'blkverify requires raw copy and original image path');
    return { driver: 'blkverify', raw: byteNode(raw, depth), test: byteNode(test, depth) };
  }
  return undefined;
}

/** `PROTOCOL:FIRST:SECOND`, where the first has no colon. */
function twoNames(name: string, missing: string): readonly [string, string] {
  const [, first, second] = /^[^:]*:([^:]*):(.*)$/s.exec(name) ?? [];
  if (second === undefined) throw new BlockError(Errno.EINVAL, missing);
  return [first!, second];
}

/** The node of what holds an image's bytes. */
function byteNode(name: string, depth: number): FoundTree {
  if (depth > DEPTH_MAX) throw new BlockError(Errno.ELOOP, `more than ${DEPTH_MAX} names in one`);
  const [, protocol] = /^([^/:]+):/.exec(name) ?? [];
  const older = protocol === undefined ? undefined : olderNode(protocol, name, depth + 1);
  if (older) return older;
  const tree = blockdevOf(locationOf(name) as string, { format: 'raw' }) as unknown as FoundTree;
  return (tree.file as FoundTree | undefined) ?? tree;
}

function nbdNode(name: string): FoundTree {
  const location = olderNbdName(name);
  if (!location) throw new BlockError(Errno.EINVAL, `No valid URL specified`);
  return { driver: 'nbd', ...location };
}
