/**
 * The names of files that are inside an image, made into options, or refused: the one place where an image can lead to
 * another file. An image is not trusted. What must hold:
 *
 * - Nothing but a plain file is opened, and none before its real path was found to be where the policy allows it. Names
 *   of protocols and json: are refused whatever the policy is.
 * - The file that was checked is the file that is opened: its device and inode go into the options of its node, and the
 *   file driver opens no other.
 * - A format that only the content speaks for leads nowhere: a guest can write any content into a raw image.
 * - Time and memory have a bound: so many images in a chain, each file once, of each its first cluster.
 */
import { dirname, isAbsolute, sep } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { BlockError, Errno, errnoOf, errnoText } from '../base/errors.ts';
import { MAX_DEPTH } from '../block/depth.ts';
import { identityOf } from '../drivers/file/driver.ts';
import { Incompatible } from '../proto/qcow2/constants.ts';
import type { Qcow2Header } from '../proto/qcow2/header.ts';
import { backingFormat, dataFileName } from '../proto/qcow2/header-extensions.ts';
import { lstat, readlink, realpath } from './file-calls.ts';
import { ImageHead, kindOf } from './image-head.ts';
import { type BlockdevOptions, formatByName } from './options.ts';
import type { ReferencePolicy } from './reference-policy.ts';

/** Images in a chain, from the one that was named to its last backing file. */
export const CHAIN_MAX = 256;

type Tree = Readonly<Record<string, unknown>>;
type What = 'backing file' | 'data file';
type FileNode = Tree & { readonly filename: string; readonly identity: string };

/** An image whose names are being followed. */
interface Link {
  /** The way to it, from which relative names go on. */
  readonly path: string;
  readonly header: Qcow2Header;
  /** Real directories that names may lead into: relative names, and all names. */
  readonly relative: readonly string[];
  readonly allowed: readonly string[];
  /** Files on the way here. */
  readonly seen: ReadonlySet<string>;
}

/** Puts the files in that images of `tree` name, where the tree does not say itself what is there. */
export async function resolveReferences(tree: BlockdevOptions, policy: ReferencePolicy): Promise<BlockdevOptions> {
  return (await new Resolver(policy).node(tree as unknown as Tree)) as unknown as BlockdevOptions;
}

/** For after the tree was opened, and its files locked: EAGAIN when an image names other files by now. */
export async function assertUnchanged(
  tree: BlockdevOptions,
  resolved: BlockdevOptions,
  policy: ReferencePolicy,
  name: string,
): Promise<void> {
  // Whatever its images say, no file was opened for them.
  if (isDeepStrictEqual(tree, resolved)) return;
  if (isDeepStrictEqual(await resolveReferences(tree, policy), resolved)) return;
  throw new BlockError(Errno.EAGAIN, `Could not open '${name}': it was changed while it was being opened`);
}

/** The names of other files in an image. */
export function referencesOf(header: Qcow2Header): readonly string[] {
  const external = (header.incompatible & Incompatible.DATA_FILE) !== 0;
  return [header.backingFile, external ? (dataFileName(header) ?? '') : undefined].filter((name) => name !== undefined);
}

class Resolver {
  readonly #policy: ReferencePolicy;

  constructor(policy: ReferencePolicy) {
    this.#policy = policy;
  }

  async node(tree: Tree, depth = 1): Promise<Tree> {
    // The graph refuses what is deeper, and what goes round in a circle.
    if (depth > MAX_DEPTH) return tree;
    const entries = Object.entries(tree).map(async ([name, value]) => [
      name,
      isNode(value) ? await this.node(value, depth + 1) : value,
    ]);
    const node = Object.fromEntries(await Promise.all(entries)) as Record<string, unknown>;
    const path = pathOf(node.file);
    const top = node.driver === 'qcow2' && path !== undefined ? await lookAtTop(path) : undefined;
    if (path === undefined || top === undefined || referencesOf(top.header).length === 0) return node;
    const { references, allowDirectories } = this.#policy;
    const allowed = await Promise.all(allowDirectories.map(realDirectory));
    const relative = references === 'directory' ? [await realDirectory(dirname(path)), ...allowed] : allowed;
    const { header, identity } = top;
    const found = await this.#children({ path, header, relative, allowed, seen: new Set([identity]) }, node);
    return { ...node, ...found, file: identified(node.file as Tree, identity) };
  }

  /** The children that `link` names and `given` says nothing of. */
  async #children(link: Link, given: Tree): Promise<Record<string, Tree>> {
    const children: Record<string, Tree> = {};
    const { header } = link;
    if ((header.incompatible & Incompatible.DATA_FILE) !== 0 && given['data-file'] === undefined) {
      const name = dataFileName(header);
      if (name !== undefined) children['data-file'] = await this.#dataFile(link, name);
    }
    if (header.backingFile !== undefined && given.backing === undefined) {
      children.backing = await this.#backing(link, header.backingFile);
    }
    return children;
  }

  async #dataFile(link: Link, name: string): Promise<Tree> {
    await using head = await this.#follow(link, 'data file', name);
    return fileNode(head);
  }

  async #backing(link: Link, name: string): Promise<Tree> {
    if (link.seen.size >= CHAIN_MAX) {
      throw refusal(link, 'backing file', name, `the chain has more than ${CHAIN_MAX} images`, Errno.ELOOP);
    }
    const { file, header } = await this.#look(link, name);
    if (header === undefined) return { driver: 'raw', file };
    const seen = new Set([...link.seen, file.identity]);
    const children = await this.#children({ ...link, path: pathFrom(link, name), header, seen }, {});
    return { driver: 'qcow2', file, ...children };
  }

  /** The backing file and, where it is a qcow2 image, its header. */
  async #look(link: Link, name: string): Promise<{ readonly file: FileNode; readonly header?: Qcow2Header }> {
    const refuse = (why: string, errno?: number): BlockError => refusal(link, 'backing file', name, why, errno);
    await using head = await this.#follow(link, 'backing file', name);
    const file = fileNode(head);
    const said = backingFormat(link.header) ?? formatByName(name);
    if (said === 'raw') return { file };
    if (said === 'qcow2') return { file, header: await head.qcow2Header() };
    if (said !== undefined) throw refuse(`its format '${shown(said)}' is not supported`, Errno.ENOTSUP);
    const magic = await head.magic();
    if (magic === undefined) return { file };
    if (magic !== 'qcow2') throw refuse(`it looks like a ${magic} image, and no format is given`);
    const header = await head.qcow2Header();
    if (referencesOf(header).length === 0) return { file, header };
    const why = 'no format is given, it looks like a qcow2 image, and it names further files';
    throw refuse(`${why}: amend backing-fmt, or give the tree of nodes`);
  }

  /** Opens the file that `name` leads to, if that is allowed. */
  async #follow(link: Link, what: What, name: string): Promise<ImageHead> {
    const refuse = (why: string, errno?: number): BlockError => refusal(link, what, name, why, errno);
    const failed = (error: unknown): never => {
      throw refuse(errnoText(errnoOf(error)), errnoOf(error));
    };
    const why = this.#wrongName(name);
    if (why !== undefined) throw refuse(why);
    const directories = isAbsolute(name) ? link.allowed : link.relative;
    // A data file is looked for from the current directory, as QEMU does, which also makes it there.
    const path = what === 'data file' ? name : pathFrom(link, name);
    const real = await realpath(path).catch(failed);
    this.#assertAllowed(directories, real, refuse);
    // To open something else than a file can have effects by itself.
    const kind = kindOf(await lstat(real).catch(failed));
    if (kind !== 'file' && (kind !== 'block' || this.#policy.references !== 'all')) throw refuse('it is not a file');
    // Not through a link that has come there since.
    const head = await ImageHead.open(real, false).catch(failed);
    try {
      this.#assertAllowed(directories, await placeOf(head), refuse);
      if (head.kind !== kind) throw refuse('it is another file than it was a moment ago', Errno.EAGAIN);
      if (link.seen.has(identityOf(head))) throw refuse('the chain comes back to it', Errno.ELOOP);
      return head;
    } catch (error) {
      await head[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Why the text of a name is refused, before anything is looked up. */
  #wrongName(name: string): string | undefined {
    const { references, allowDirectories } = this.#policy;
    if (name === '' || name.includes('\0')) return 'it is no file name';
    if (/[\ud800-\udfff]/u.test(name)) return 'it is not UTF-8';
    const [, protocol] = /^([^/:]*):/.exec(name) ?? [];
    if (protocol !== undefined) return `'${shown(protocol)}:' is not followed, only files are`;
    if (references === 'none' && allowDirectories.length === 0) return "references is 'none'";
    if (isAbsolute(name) && references !== 'all' && allowDirectories.length === 0) {
      return "it is an absolute name (allowed with allowDirectories, or references 'all')";
    }
    return undefined;
  }

  #assertAllowed(directories: readonly string[], real: string, refuse: (why: string) => BlockError): void {
    const { references } = this.#policy;
    if (references === 'all' || directories.some((directory) => isInside(directory, real))) return;
    const outside = references === 'none' ? 'the allowed directories' : "the image's directory";
    throw refuse(`it is outside ${outside} (allowed with allowDirectories, or references 'all')`);
  }
}

/** The image that the caller named; undefined for what cannot be opened, which is the driver's to say. */
async function lookAtTop(
  path: string,
): Promise<{ readonly header: Qcow2Header; readonly identity: string } | undefined> {
  const opened = await ImageHead.open(path).catch(() => undefined);
  if (!opened) return undefined;
  await using head = opened;
  return head.kind === 'other' ? undefined : { header: await head.qcow2Header(), identity: identityOf(head) };
}

/** Where a name in an image leads. Not normalised: what '..' means behind a symbolic link is the system's to say. */
function pathFrom({ path }: Link, name: string): string {
  return isAbsolute(name) ? name : `${dirname(path)}${sep}${name}`;
}

/** Where an open file really is. Without /proc, where its name leads to now. */
async function placeOf(head: ImageHead): Promise<string> {
  try {
    return await readlink(`/proc/self/fd/${head.fd}`);
  } catch {
    return await realpath(head.path).catch(() => '');
  }
}

async function realDirectory(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    const errno = errnoOf(error);
    throw new BlockError(errno, `Could not allow files in '${path}': ${errnoText(errno)}`, { cause: error });
  }
}

function isInside(directory: string, real: string): boolean {
  return real.startsWith(directory.endsWith(sep) ? directory : `${directory}${sep}`);
}

function fileNode(head: ImageHead): FileNode {
  return { driver: head.kind === 'block' ? 'host_device' : 'file', filename: head.path, identity: identityOf(head) };
}

function isNode(value: unknown): value is Tree {
  return typeof value === 'object' && value !== null && typeof (value as Tree).driver === 'string';
}

/** What filters show, by their drivers' names: files are looked for behind them. */
const SHOWN: Readonly<Record<string, string>> = { blkdebug: 'image', throttle: 'file' };

function shownBy(node: Tree): string | undefined {
  return Object.hasOwn(SHOWN, String(node.driver)) ? SHOWN[String(node.driver)] : undefined;
}

/** The file of {@link pathOf} is to be this one and no other. */
function identified(node: Tree, identity: string): Tree {
  const name = shownBy(node);
  if (name === undefined) return { ...node, identity };
  return { ...node, [name]: identified(node[name] as Tree, identity) };
}

/** The path of a node that is a file as it is. */
function pathOf(node: unknown, depth = 1): string | undefined {
  if (!isNode(node) || depth > MAX_DEPTH) return undefined;
  const name = shownBy(node);
  if (name !== undefined) return pathOf(node[name], depth + 1);
  if (node.driver !== 'file' && node.driver !== 'host_device') return undefined;
  const path = node.filename;
  return typeof path === 'string' && !path.includes('\0') ? path : undefined;
}

/** A name in a message: it goes onto terminals. */
function shown(name: string): string {
  return name.replace(/\p{C}/gu, '?');
}

function refusal(link: Link, what: What, name: string, why: string, errno: number = Errno.EACCES): BlockError {
  const message = `Could not open the ${what} '${shown(name)}' that '${link.path}' names: ${why}`;
  return new BlockError(errno, message, { where: { path: link.path, op: 'open' } });
}
