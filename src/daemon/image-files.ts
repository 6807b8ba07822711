/** Image files that commands make, or open, of their own accord: targets of jobs, and overlays. */
import { dirname, resolve } from 'node:path';
import { driverTable } from '../block/registry.ts';
import { create } from '../lib/images.ts';
import type { NodeInfo } from '../lib/node-messages.ts';
import { openMessage } from '../lib/open-message.ts';
import { type BlockdevOptions, type DetectZeroes, FORMATS, type Format } from '../lib/options.ts';
import { isNbdUri, nbdUri, type OlderNbdName, olderNbdName } from '../lib/uri.ts';
import { QmpError } from '../qmp/errors.ts';
import type { Qapi } from '../qmp/schema/schema.ts';
import type { Nodes } from './nodes.ts';

export interface ImageFile {
  /** File name or URL. */
  readonly path: string;
  /** Default: that of the source for a new image; for one that is there, what its name says. */
  readonly format?: string | undefined;
  /** Default: a new one is made, over whatever is there. */
  readonly mode?: Qapi<'NewImageMode'> | undefined;
  readonly nodeName?: string | undefined;
  /** Default: ignore. */
  readonly unmap?: boolean | undefined;
  readonly detectZeroes?: DetectZeroes | undefined;
  /** Whatever it names: what is below it comes later. */
  readonly withoutBacking?: boolean | undefined;
}

/** The node that a new image is made for: what is below it is that node, what it falls back on, or nothing. */
export type Below = 'itself' | 'its-backing' | 'nothing';

/**
 * Opens an image in the thread of `source`, to whose layout a new one is made. Answers the name of its node, which the
 * caller holds until `nodes.letGo`.
 */
export async function openImageFile(nodes: Nodes, file: ImageFile, source: string, on: Below): Promise<string> {
  const { nodeName, detectZeroes } = file;
  if (nodeName !== undefined) nodes.assertFree(nodeName);
  const thread = nodes.lookup(source, source);
  const older = olderNbdName(file.path);
  const path = older === undefined ? file.path : uriOf(older);
  const there = file.mode === 'existing' || isNbdUri(path);
  const made = there ? undefined : await makeImage(nodes, file, source, on);
  const format = made?.format ?? knownFormat(file.format, 'driver');
  const message = openMessage(path, {
    format,
    detectZeroes,
    discard: file.unmap ? 'unmap' : 'ignore',
  });
  const tree = message.probed ? await thread.call('probe', message) : message.options;
  const below = file.withoutBacking ? null : made ? (made.backing ?? null) : undefined;
  const backing = below !== undefined && format !== 'raw' ? { backing: below } : {};
  const name = nodeName === undefined ? {} : { 'node-name': nodeName };
  return nodes.hold({ ...tree, ...name, ...backing } as BlockdevOptions, thread);
}

function uriOf({ server, export: name = '' }: OlderNbdName): string {
  if (server.type === 'unix') return nbdUri({ kind: 'unix', path: server.path }, name);
  return nbdUri({ kind: 'inet', host: server.host, port: Number(server.port) }, name);
}

interface MadeImage {
  readonly format: Format;
  /** The node that is below it. */
  readonly backing: string | undefined;
}

async function makeImage(nodes: Nodes, file: ImageFile, source: string, on: Below): Promise<MadeImage> {
  const list = await nodes.list();
  const find = (name: string | undefined): NodeInfo | undefined => list.find((node) => node.name === name);
  // What a filter shows is what is below it.
  const shown = (node: NodeInfo): NodeInfo => {
    const below = node.layer === node.name || node.driver === 'raw' ? undefined : find(onlyChild(node));
    return below ? shown(below) : node;
  };
  const { length } = find(source)!;
  const top = shown(find(source)!);
  const under = top.children.find(({ name }) => name === 'backing')?.node;
  const backing = on === 'itself' ? source : on === 'its-backing' ? under : undefined;
  const format = knownFormat(file.format ?? (FILES.has(top.driver) ? 'raw' : top.driver), 'format')!;
  const below = find(backing);
  const named = below && shown(below);
  if (named && format === 'raw') throw new QmpError(`Backing file not supported for file format '${format}'`);
  await create(file.path, {
    ...{ format, overwrite: true, size: length, iothread: nodes.lookup(source, source) },
    ...(named ? { backingFile: nameFor(file.path, named.filename), backingFormat: formatOf(named.driver) } : {}),
  });
  return { format, backing };
}

/** What a new image at `path` calls the file that was opened as `below`: so, where that leads to it from there, too. */
function nameFor(path: string, below: string): string {
  const whole = resolve(below);
  return resolve(dirname(path), below) === whole ? below : whole;
}

/** As they are they are raw images. */
const FILES: ReadonlySet<string> = new Set(['file', 'host_device']);

function onlyChild({ children }: NodeInfo): string | undefined {
  return children.find(({ name }) => name === 'file')?.node;
}

function formatOf(driver: string): Format {
  return driver === 'qcow2' ? 'qcow2' : 'raw';
}

/** `what` it is called where there is none of the name. */
function knownFormat(name: string | undefined, what: 'driver' | 'format'): Format | undefined {
  const known = FORMATS.find((format) => format === name);
  if (known !== undefined || name === undefined) return known;
  if (!driverTable().has(name)) {
    throw new QmpError(what === 'driver' ? `Unknown driver '${name}'` : `Unknown file format '${name}'`);
  }
  throw new QmpError(
    what === 'driver'
      ? `Could not open a file as '${name}': add the node with 'blockdev-add'`
      : `Format driver '${name}' does not support image creation`,
  );
}
