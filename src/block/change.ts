/** What can be changed of an open node: whether it is read-only, what is below it, how it takes requests. */
import { BlockError, Errno } from '../base/errors.ts';
import { everyStep } from '../base/every-step.ts';
import { type NodeChange, type PlannedChange, planOf } from './change-plan.ts';
import { assertUnclaimed } from './claims.ts';
import { layerOf } from './copy-up.ts';
import { drain } from './drain.ts';
import type { CommonOptions } from './driver.ts';
import { followChange, type NodeOptions, releaseNode, removeBacking, replaceChild } from './graph.ts';
import type { BlockNode } from './node.ts';
import { giveBacking } from './overlay.ts';
import { nodeByName } from './registry.ts';
import { setOwnOptions, setReadOnly } from './reopen.ts';

/** Common options that are as given from then on; what is not given goes back to its default. */
const MANNER = ['discard', 'detect-zeroes', 'cache', 'auto-read-only'] as const;
type Manner = Pick<CommonOptions, (typeof MANNER)[number]>;

/** What takes back what has been done, in its order. */
type Undo = (() => Promise<void>)[];

/**
 * Makes every node what its options say, or, where one of them cannot be, leaves all as they were. A child is named, to
 * be there from now on, or given options for itself (see {@link planOf}); one that is not mentioned stays as it is.
 * EINVAL for an option that cannot change.
 */
export async function changeNodes(changes: readonly NodeChange[]): Promise<void> {
  const planned = changes.flatMap(planOf);
  const undo: Undo = [];
  // From the first change to the last: no request comes upon one that is taken back.
  using _drained = await drain(...planned.flatMap(({ node }) => [node, ...heirs(node)]));
  // What is taken away may have to come back, and nobody else may have it.
  const before = planned.flatMap(({ node }) => node.children.map((child) => child.node));
  for (const node of before) node.refs++;
  await everyStep(
    async () => {
      try {
        for (const one of planned) await change(one, undo);
      } catch (error) {
        await everyStep(() => Promise.reject(error), ...undo.reverse());
      }
    },
    ...before.map((node) => () => releaseNode(node)),
  );
}

async function change({ node, options, inheritsCache }: PlannedChange, undo: Undo): Promise<void> {
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
  const before = node.inheritsCache;
  node.inheritsCache = inheritsCache ?? (before && cache === undefined);
  undo.push(async () => {
    node.inheritsCache = before;
  });
  if (cache === undefined) return;
  for (const heir of heirs(node)) {
    await changeManner(heir, { ...heir.common, cache: { ...heir.common.cache, ...cache } }, undo);
  }
}

/** Those below that have their `cache` from the node. */
function heirs(node: BlockNode): BlockNode[] {
  const next = node.children
    .map((child) => child.node)
    .filter((below) => below.inheritsCache && below.openedWith === node.name);
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

async function setManner(node: BlockNode, manner: Manner): Promise<void> {
  using _drained = await drain(node);
  await setDirect(node, manner.cache?.direct ?? false);
  const { common } = node;
  const given = MANNER.filter((name) => manner[name] !== undefined).map((name) => [name, manner[name]]);
  const rest = Object.entries(common).filter(([name]) => !(MANNER as readonly string[]).includes(name));
  node.common = Object.fromEntries([...rest, ...given]) as unknown as CommonOptions;
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
  } else throw new BlockError(Errno.EINVAL, `Could not change node '${node.name}': it cannot have a '${name}'`);
}
