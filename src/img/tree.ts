/** Trees of options as image tools take them: as text, as JSON, and with what they may leave out. */
import { BlockError, Errno } from '../base/errors.ts';
import { parseTextOptions, type TextTree, typedOptions } from '../block/text-options.ts';
import { needDrivers } from '../lib/needed-drivers.ts';

/** Options of a node. Without a driver where the first bytes are to say which it is. */
export type FoundTree = Readonly<Record<string, unknown>> & { readonly driver?: string };

const JSON_PREFIX = 'json:';
/** Names of children, of whatever driver. */
const CHILDREN = ['file', 'backing', 'data-file', 'image', 'test', 'raw'];
/** Nodes deeper than this are for the graph to refuse. */
const DEPTH_MAX = 64;

export function isJsonName(name: string): boolean {
  return name.startsWith(JSON_PREFIX);
}

/** `driver=qcow2,file.filename=x`. EINVAL. */
export async function treeOfText(text: string): Promise<FoundTree> {
  const [first = ''] = text.split(',', 1);
  if (first !== '' && !first.includes('=')) throw noNode(first);
  return await completed(parseTextOptions(text));
}

/** `json:{"driver": "qcow2", "file": {...}}`, also with dots in the names. EINVAL. */
export async function treeOfJson(name: string): Promise<FoundTree> {
  let value: unknown;
  try {
    value = JSON.parse(name.slice(JSON_PREFIX.length));
  } catch (error) {
    throw refusal(`Could not parse the JSON options: JSON parse error, ${(error as Error).message}`);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw refusal('Invalid JSON object given');
  return await completed(parseTextOptions(textOf(value, '', 0).join(',')));
}

/** As parseTextOptions reads it. */
function textOf(value: object, prefix: string, depth: number): string[] {
  if (depth > DEPTH_MAX) throw new BlockError(Errno.ELOOP, 'Could not use the options: they are nested too deeply');
  return Object.entries(value).flatMap(([name, member]: [string, unknown]) => {
    if (typeof member === 'object' && member !== null) return textOf(member, `${prefix}${name}.`, depth + 1);
    const text = typeof member === 'boolean' ? (member ? 'on' : 'off') : String(member ?? '');
    return [`${prefix}${name}=${text}`.replaceAll(',', ',,')];
  });
}

async function completed(tree: TextTree): Promise<FoundTree> {
  if (tree.driver === undefined && tree.file === undefined) throw refusal('Must specify either driver or file');
  for (const name of CHILDREN) {
    const child = tree[name];
    if (typeof child === 'string' && child !== '') throw noNode(child);
    if (typeof child === 'object') complete(child);
  }
  await needDrivers(tree, 'raw');
  if (tree.driver !== undefined) return typedOptions(tree);
  const { driver: _, ...rest } = typedOptions({ ...tree, driver: 'raw' });
  return rest;
}

/** Puts the drivers in that children leave out: a node with a file name is a file. */
function complete(tree: TextTree): void {
  if (tree.driver === undefined && typeof tree.filename === 'string') tree.driver = 'file';
  for (const name of CHILDREN) {
    const child = tree[name];
    if (typeof child === 'object') complete(child);
  }
}

function noNode(name: string): BlockError {
  return refusal(`Cannot find device='${name}' nor node-name='${name}'`);
}

function refusal(why: string): BlockError {
  return new BlockError(Errno.EINVAL, why);
}
