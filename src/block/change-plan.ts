/** What a change of open nodes comes to: which nodes it is about, and whether each can become what its options say. */
import { BlockError, Errno } from '../base/errors.ts';
import { assertUnclaimed } from './claims.ts';
import { inherited, type NodeOptions } from './graph.ts';
import type { BlockNode } from './node.ts';
import { COMMON_OPTIONS, ownOptions } from './options.ts';

/** How a node is to be: all of its options, as they would be given to open it. */
export interface NodeChange {
  readonly node: BlockNode;
  /** A child is the name of a node, or the options of the one that is there. */
  readonly options: NodeOptions;
}

export interface PlannedChange extends NodeChange {
  /** Of a node whose options are inside others: none of them is a `cache`, and it has its parent's. */
  readonly inheritsCache?: boolean;
}

/** Children that may get another node; drivers keep the others for as long as they are open. */
const REPLACEABLE: ReadonlySet<string> = new Set(['file', 'backing']);

/**
 * The changes that `change` is made of, those of nodes above others first. Options in the place of a child are for the
 * node that is there, if it was opened with its parent; one that was opened by itself has its own. EINVAL for what
 * cannot change.
 */
export function planOf(change: PlannedChange): PlannedChange[] {
  const { node, options } = change;
  assertChangeable(change);
  const below = Object.entries(node.driver.children ?? {}).flatMap(([name, role]) => {
    const given = options[name];
    if (typeof given !== 'object' || given === null) return [];
    const there = node.children.find((child) => child.name === name)?.node;
    if (there?.openedWith !== node.name) throw cannotChange(`${name}.driver`);
    const own = given as NodeOptions;
    const whole = { ...inherited(options, role), ...own };
    return planOf({ node: there, options: whole, inheritsCache: own.cache === undefined });
  });
  return [change, ...below];
}

function cannotChange(option: string): BlockError {
  return new BlockError(Errno.EINVAL, `Cannot change the option '${option}'`);
}

function assertChangeable({ node, options }: NodeChange): void {
  assertUnclaimed(node);
  const { driver, common } = node;
  if ((options['node-name'] ?? node.name) !== node.name) throw cannotChange('node-name');
  if (options.driver !== common.driver) throw cannotChange('driver');
  if ((options.active ?? !node.inactive) === node.inactive) throw cannotChange('active');
  const before = common as unknown as Readonly<Record<string, unknown>>;
  for (const name of new Set([...Object.keys(before), ...Object.keys(options)])) {
    const given = options[name];
    if (Object.hasOwn(driver.children ?? {}, name)) assertSameChild(node, name, given);
    else if (mayChange(node, name) || JSON.stringify(given) === JSON.stringify(before[name])) continue;
    else if (given !== undefined) throw cannotChange(name);
    else throw new BlockError(Errno.EINVAL, `Option '${name}' cannot be reset to its default value`);
  }
  ownOptions(driver, options);
}

function mayChange({ driver }: BlockNode, name: string): boolean {
  if (name === 'force-share') return false;
  // What the file driver was given to find the same file again is nobody else's to say.
  if (name === 'cache' || name === 'identity' || name === 'fd') return true;
  return Object.hasOwn(COMMON_OPTIONS, name) || driver.reopenOptions?.includes(name) === true;
}

function assertSameChild(node: BlockNode, name: string, given: unknown): void {
  if (typeof given !== 'string' || REPLACEABLE.has(name)) return;
  if (node.children.find((child) => child.name === name)?.node.name !== given) throw cannotChange(name);
}
