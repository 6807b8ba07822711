/** The image of a command line, as a tree of nodes. */
import { imageFormat } from '../../lib/inspect.ts';
import { type BlockdevOptions, blockdevOf, FORMATS, nameOf, type TargetOptions } from '../../lib/options.ts';
import { Failure, type NbdOptions } from './options.ts';

export interface FoundImage {
  readonly tree: BlockdevOptions;
  /** It is taken for raw because nothing says that it is another format. */
  readonly guessedRaw: boolean;
}

type Untyped = Readonly<Record<string, unknown>> & { readonly driver?: string };

/** How the nodes are opened, but for what a tree says itself. */
export function howOf({ cache, discard = 'ignore', detectZeroes, readOnly, temporary }: NbdOptions): TargetOptions {
  return { cache, discard, detectZeroes, readOnly: readOnly && !temporary };
}

/** Throws Failure, and BlockError for what cannot be looked at. */
export async function findImage(name: string, options: NbdOptions): Promise<FoundImage> {
  const { format, imageOpts, offset } = options;
  if (imageOpts && format !== undefined) throw new Failure('--image-opts and -f are mutually exclusive');
  const given = await givenTree(name, options);
  const found = given.driver ?? (await formatOf(given));
  // Every layer that the offset adds passes on what the image below it may do.
  const guessedRaw = given.driver === undefined && found === 'raw';
  const tree = { ...given, driver: found, ...(guessedRaw ? { guessed: true } : {}) } as Untyped;
  const whole = offset === 0 ? tree : { driver: 'raw', offset, discard: options.discard ?? 'ignore', file: tree };
  return { tree: whole as unknown as BlockdevOptions, guessedRaw };
}

/** Without a driver where that has to be found out. */
async function givenTree(name: string, options: NbdOptions): Promise<Untyped> {
  const { format, imageOpts } = options;
  const how = howOf(options);
  if (imageOpts) {
    const { probedImageOpts } = await import('../../lib/image-opts.ts');
    const { tree, probed } = probedImageOpts(name);
    return blockdev(probed ? { ...tree, driver: undefined } : tree, how);
  }
  const json = /^json:(.*)$/s.exec(name)?.[1];
  if (json !== undefined) return blockdev(fromJson(json), how);
  const target = olderName(name);
  if (typeof target !== 'string') return blockdev(target, how);
  if (format !== undefined && !FORMATS.some((one) => one === format)) {
    // A driver that only a tree can name, or none.
    const { file } = blockdevOf(target, { ...how, format: 'raw' }) as unknown as Untyped;
    return blockdev({ driver: format, file }, how);
  }
  const tree = blockdevOf(target, { ...how, format: (format ?? 'raw') as 'raw' }) as unknown as Untyped;
  return format === undefined && tree.file !== undefined ? { ...tree, driver: undefined as never } : tree;
}

function blockdev(tree: object, how: TargetOptions): Untyped {
  return blockdevOf(tree as BlockdevOptions, how) as unknown as Untyped;
}

function fromJson(text: string): object {
  try {
    return JSON.parse(text) as object;
  } catch {
    throw new Failure(`Could not parse the JSON options`);
  }
}

/** `file:NAME`, `nbd:HOST:PORT:exportname=X`, `nbd:unix:PATH:exportname=X`. */
function olderName(name: string): string | object {
  const [, file] = /^file:(?!\/\/)(.*)$/s.exec(name) ?? [];
  if (file !== undefined) return file;
  const [, place, exportName = ''] = /^nbd:(?!\/\/)(.*?)(?::exportname=(.*))?$/s.exec(name) ?? [];
  if (place === undefined) return name;
  const [, path] = /^unix:(.*)$/s.exec(place) ?? [];
  if (path !== undefined) return { driver: 'nbd', server: { type: 'unix', path }, export: exportName };
  const [, ipv6, host, port = ''] = /^(?:\[([^\]]*)\]|([^:]*)):(\d+)$/.exec(place) ?? [];
  return { driver: 'nbd', server: { type: 'inet', host: ipv6 ?? host ?? '', port }, export: exportName };
}

async function formatOf(tree: Untyped): Promise<string> {
  const { url } = tree.file as { readonly url?: string };
  return imageFormat(url ?? nameOf(tree.file as BlockdevOptions));
}
