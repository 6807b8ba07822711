/**
 * An open image that becomes writable, or read-only, while it stays where it is in the graph (commit writes to what was
 * opened as a backing file). The drivers of the node, and of what holds its bytes, are opened anew in their nodes; what
 * is below as a backing file stays as it is.
 *
 * Invariants: nothing is in flight on any of them meanwhile; the file is never without its locks; whatever fails, all
 * is as it was.
 */
import { BlockError, Errno } from '../base/errors.ts';
import { drain } from './drain.ts';
import { type CommonOptions, type DriverNode, PERM_ALL } from './driver.ts';
import { openContext } from './graph.ts';
import { activate, inactivate } from './move.ts';
import type { BlockNode } from './node.ts';
import { ownOptions } from './options.ts';
import { graphSection, PermChange, permissionsOf } from './permissions.ts';

/** EACCES, EPERM, EROFS where the file cannot be written, ENOTSUP where a driver cannot do this. Control function. */
export async function setReadOnly(root: BlockNode, readOnly: boolean): Promise<void> {
  const nodes = bytesOf(root);
  if (nodes.every((node) => node.readOnly === readOnly)) return;
  for (const node of nodes) {
    if (node.impl.inactivate) continue;
    const what = readOnly ? 'read-only' : 'writable';
    throw new BlockError(
      Errno.ENOTSUP,
      `Could not make node '${node.name}' ${what}: driver '${node.driver.name}' cannot`,
    );
  }
  using _drained = await drain(...nodes);
  using _section = await graphSection();
  await new Reopening(root, nodes, readOnly).run();
}

/** The driver of an open node takes other options of its own. ENOTSUP, and whatever opening it throws: then it is as it
 *  was. Control function. */
export async function setOwnOptions(node: BlockNode, options: CommonOptions): Promise<void> {
  if (!node.impl.inactivate) {
    const why = `driver '${node.driver.name}' cannot be opened anew`;
    throw new BlockError(Errno.ENOTSUP, `Could not change node '${node.name}': ${why}`);
  }
  const { length } = node;
  using _drained = await drain(node);
  using _section = await graphSection();
  await new Reopening(node, [node], node.readOnly, options).run();
  if (node.length !== length) node.resized();
}

/** The node and what holds its bytes and metadata, parents first. */
function bytesOf(node: BlockNode): BlockNode[] {
  const below = node.children.filter(({ role }) => role !== 'cow' && role !== 'target');
  return [node, ...below.flatMap((child) => bytesOf(child.node))];
}

interface Before {
  readonly impl: DriverNode;
  readonly common: CommonOptions;
  readonly readOnly: boolean;
}

class Reopening {
  readonly #root: BlockNode;
  readonly #nodes: readonly BlockNode[];
  readonly #readOnly: boolean;
  readonly #options: CommonOptions | undefined;
  readonly #before = new Map<BlockNode, Before>();

  /** `options`: of all the nodes. Default: each has its own. */
  constructor(root: BlockNode, nodes: readonly BlockNode[], readOnly: boolean, options?: CommonOptions) {
    this.#root = root;
    this.#options = options;
    this.#nodes = nodes;
    this.#readOnly = readOnly;
    for (const node of nodes) {
      const { impl, common, readOnly: was } = node;
      this.#before.set(node, { impl, common, readOnly: was });
    }
  }

  async run(): Promise<void> {
    const formats = this.#nodes.filter(({ children }) => children.length > 0);
    const leaves = this.#nodes.filter(({ children }) => children.length === 0);
    await inactivate([this.#root], formats);
    try {
      // What is not needed is given up before the files change, what is needed is taken after.
      for (const node of this.#readOnly ? this.#nodes : formats) node.readOnly = this.#readOnly;
      if (this.#readOnly) await this.#refresh();
      for (const leaf of leaves) await this.#open(leaf);
      if (!this.#readOnly) await this.#refresh();
      for (const node of [...formats].reverse()) await this.#open(node);
    } catch (error) {
      await this.#back(formats);
      throw error;
    }
    for (const [node, { impl }] of this.#before) {
      if (impl !== node.impl) await impl.close?.();
    }
    for (const node of formats) await node.bitmaps.use();
  }

  #refresh(): Promise<void> {
    return new PermChange().refresh(this.#root).apply();
  }

  async #open(node: BlockNode): Promise<void> {
    const { perm, shared } = permissionsOf(node);
    const { impl: old } = node;
    node.readOnly = this.#readOnly;
    node.common = { ...(this.#options ?? node.common), 'read-only': this.#readOnly };
    // The same file is open twice for a moment.
    await old.permissions?.(perm, PERM_ALL);
    const children = async (name: string) => node.children.find((child) => child.name === name);
    const impl = await node.driver.open(openContext(node, children), ownOptions(node.driver, node.common as never));
    node.opened(impl);
    await impl.permissions?.(perm, shared);
    if (node.readOnly === this.#readOnly) return;
    throw new BlockError(Errno.EACCES, `Could not make node '${node.name}' writable: it can only be read`);
  }

  /** What matters is why it failed. */
  async #back(formats: readonly BlockNode[]): Promise<void> {
    const opened: DriverNode[] = [];
    for (const [node, { impl, common, readOnly }] of this.#before) {
      if (impl !== node.impl) opened.push(node.impl);
      node.readOnly = readOnly;
      node.common = common;
      node.impl = impl;
      node.refreshLimits();
    }
    const steps = [
      ...opened.map((impl) => () => impl.close?.()),
      () => this.#refresh(),
      ...this.#nodes.map((node) => () => {
        const { perm, shared } = permissionsOf(node);
        return node.impl.permissions?.(perm, shared);
      }),
      () => activate(formats),
    ];
    for (const step of steps) {
      try {
        await step();
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
      }
    }
  }
}
