/** Options of a tree of nodes as one text, for command lines. */
import { parseTextOptions, type TextTree, typedOptions } from '../block/text-options.ts';
import { isRemoteUrl } from '../drivers/http/location.ts';
import { builtinDrivers } from './builtin-drivers.ts';
import type { BlockdevOptions } from './options.ts';
import { isNbdUri, parseNbdUri } from './uri.ts';

/**
 * `driver=qcow2,file.driver=file,file.filename=disk.qcow2,l2-cache-size=1M` of drivers that come along. A child without
 * a driver is of the one that its `filename` is for. EINVAL.
 */
export function imageOpts(text: string): BlockdevOptions {
  return typedTree(parseTextOptions(text));
}

/** The same, where the driver of the root may be left out: `probed` says that it was, and it is raw until its content
 *  says otherwise. */
export function probedImageOpts(text: string): { readonly tree: BlockdevOptions; readonly probed: boolean } {
  const tree = parseTextOptions(text);
  const probed = tree.driver === undefined && tree.file !== undefined;
  if (probed) tree.driver = 'raw';
  return { tree: typedTree(tree), probed };
}

function typedTree(tree: TextTree): BlockdevOptions {
  builtinDrivers();
  nameDrivers(tree);
  return typedOptions(tree) as unknown as BlockdevOptions;
}

function nameDrivers(tree: TextTree): void {
  for (const [name, child] of Object.entries(tree)) {
    if (typeof child === 'string') continue;
    if (child.driver === undefined && typeof child.filename === 'string') {
      const { filename, ...others } = child;
      tree[name] = { ...others, ...protocolOf(filename) };
    }
    nameDrivers(tree[name] as TextTree);
  }
}

/** A file's, or a URL's. */
function protocolOf(filename: string): TextTree {
  if (isNbdUri(filename)) {
    const { server, export: name } = parseNbdUri(filename);
    const { type, ...place } = server;
    const flat = Object.fromEntries(Object.entries(place).map(([key, value]) => [key, String(value)]));
    return { driver: 'nbd', server: { type, ...flat }, export: name };
  }
  if (isRemoteUrl(filename)) return { driver: filename.slice(0, filename.indexOf(':')).toLowerCase(), url: filename };
  return { driver: 'file', filename };
}
