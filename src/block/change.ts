/** What can be changed of an open node: whether it is read-only, what is below it, how it takes requests. */
import { BlockError, Errno } from '../base/errors.ts';
import { everyStep } from '../base/every-step.ts';
import { assertUnclaimed } from './claims.ts';
import { layerOf } from './copy-up.ts';
import { drain } from './drain.ts';
import type { CommonOptions } from './driver.ts';
import { followChange, type NodeOptions, releaseNode, removeBacking, replaceChild } from './graph.ts';
import type { BlockNode } from './node.ts';
import { COMMON_OPTIONS, ownOptions } from './options.ts';
import { giveBacking } from './overlay.ts';
import { nodeByName } from './registry.ts';
import { setOwnOptions, setReadOnly } from './reopen.ts';

/** Common options that take effect at once; what is not given goes back to its default. */
type Manner = Pick<CommonOptions, 'discard' | 'detect-zeroes' | 'cache'>;

/** What takes back what has been done, in its order. */
type Undo = (() => Promise<void>)[];

/** How a node is to be. */
export interface NodeChange {
  readonly node: BlockNode;
  readonly options: NodeOptions;
}

/**
 * Makes every node what its options say, or, where one of them cannot be, leaves all as they were. `backing` and
 * `file` are names of nodes; a child that is not named stays. EINVAL for an option that cannot change.
 */
export async function changeNodes(changes: readonly NodeChange[]): Promise<void> {
  for (const change of changes) assertChangeable(change);
  const undo: Undo = [];
  // From the first change to the last: no request comes upon one that is taken back.
  using _drained = await drain(...changes.flatMap(({ node }) => [node, ...heirs(node)]));
  // What is taken away may have to come back, and nobody else may have it.
  const before = changes.flatMap(({ node }) => node.children.map((child) => child.node));
  for (const node of before) node.refs++;
  await everyStep(
    async () => {
      try {
        for (const { node, options } of changes) await change(node, options, undo);
      } catch (error) {
        await everyStep(() => Promise.reject(error), ...undo.reverse());
      }
    },
    ...before.map((node) => () => releaseNode(node)),
  );
}

function refuse(node: BlockNode, why: string): BlockError {
  return new BlockError(Errno.EINVAL, `Could not change node '${node.name}': ${why}`);
}

function assertChangeable({ node, options }: NodeChange): void {
  assertUnclaimed(node);
  const { driver, common } = node;
  if (options.driver !== common.driver) throw refuse(node, `its driver is '${common.driver}', not '${options.driver}'`);
  ownOptions(driver, options);
  const before = common as unknown as Readonly<Record<string, unknown>>;
  for (const name of new Set([...Object.keys(before), ...Object.keys(options)])) {
    const given = (options as Readonly<Record<string, unknown>>)[name];
    const common = Object.hasOwn(COMMON_OPTIONS, name) || name === 'cache';
    const child = Object.hasOwn(driver.children ?? {}, name);
    // What the file driver was given to find the same file again is nobody else's to say.
    if (common || child || name === 'identity' || name === 'fd' || driver.reopenOptions?.includes(name)) continue;
    if (JSON.stringify(given) !== JSON.stringify(before[name])) throw refuse(node, `option '${name}' cannot change`);
  }
}

async function change(node: BlockNode, options: NodeOptions, undo: Undo): Promise<void> {
  for (const name of ['file', 'backing']) {
    const wanted = (options as Readonly<Record<string, unknown>>)[name];
    if (typeof wanted === 'string' || wanted === null) await setChild(node, name, wanted, undo);
  }
  const readOnly = options['read-only'] ?? false;
  if (readOnly !== node.readOnly) {
    await setReadOnly(node, readOnly);
    undo.push(() => setReadOnly(node, !readOnly));
  }
  await setOwn(node, options, undo);
  await changeManner(node, options, undo);
  const { cache } = options;
  if (cache === undefined) return;
  const { heirOf } = node;
  node.heirOf = null;
  undo.push(async () => {
    node.heirOf = heirOf;
  });
  for (const heir of heirs(node)) {
    await changeManner(heir, { ...heir.common, cache: { ...heir.common.cache, ...cache } }, undo);
  }
}

/** Those below that have their `cache` from the node. */
function heirs(node: BlockNode): BlockNode[] {
  const next = node.children.map((child) => child.node).filter((below) => below.heirOf === node.name);
  return next.flatMap((below) => [below, ...heirs(below)]);
}

async function changeManner(node: BlockNode, manner: Manner, undo: Undo): Promise<void> {
  const before: Manner = node.common;
  const { length } = node;
  await setManner(node, manner);
  undo.push(async () => {
    await setManner(node, before);
    // Direct I/O had made the file end with a block.
    if (!node.impl.setDirect || node.length === length) return;
    await node.impl.truncate?.(length, 'off', async () => undefined);
    node.resized();
  });
}

/** Options of the driver's own that may change. */
async function setOwn(node: BlockNode, options: NodeOptions, undo: Undo): Promise<void> {
  const { reopenOptions = [] } = node.driver;
  const optionOf = (given: object, name: string): unknown => (given as Readonly<Record<string, unknown>>)[name];
  const before = node.common;
  const same = (name: string): boolean =>
    JSON.stringify(optionOf(before, name)) === JSON.stringify(optionOf(options, name));
  if (reopenOptions.every(same)) return;
  const kept = Object.entries(before).filter(([name]) => !reopenOptions.includes(name));
  const given = reopenOptions.map((name) => [name, optionOf(options, name)] as const);
  const wanted = given.filter(([, value]) => value !== undefined);
  await setOwnOptions(node, Object.fromEntries([...kept, ...wanted]) as unknown as CommonOptions);
  undo.push(() => setOwnOptions(node, before));
}

async function setManner(node: BlockNode, { discard, 'detect-zeroes': detectZeroes, cache }: Manner): Promise<void> {
  using _drained = await drain(node);
  await setDirect(node, cache?.direct ?? false);
  const { discard: _d, 'detect-zeroes': _z, cache: _c, ...rest } = node.common;
  node.common = {
    ...rest,
    ...(discard ? { discard } : {}),
    ...(detectZeroes ? { 'detect-zeroes': detectZeroes } : {}),
    ...(cache ? { cache } : {}),
  };
  node.takeManner();
}

async function setDirect(node: BlockNode, direct: boolean): Promise<void> {
  if (direct === (node.common.cache?.direct ?? false) || !node.impl.setDirect) return;
  const { length } = node;
  await node.impl.setDirect(direct);
  followChange(node);
  if (node.length !== length) node.resized();
}

/** Has the node of that name below `node`, or none; `undo` puts back what was there. */
async function setChild(node: BlockNode, name: string, wanted: string | null, undo: Undo) {
  const child = node.children.find((one) => one.name === name);
  const to = wanted === null ? undefined : nodeByName(wanted);
  const before = child?.node;
  if (to === before) return;
  if (child && before && to) {
    assertUnclaimed(layerOf(before));
    await replaceChild(child, to);
    undo.push(() => replaceChild(child, before));
  } else if (child && before) {
    await removeBacking(child);
    undo.push(async () => void (await giveBacking(node, before)));
  } else if (to && name === 'backing' && node.impl.takeBacking) {
    const given = await giveBacking(node, to);
    undo.push(() => removeBacking(given));
  } else throw refuse(node, `it cannot have a '${name}'`);
}
