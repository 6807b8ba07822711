/**
 * The nodes of a daemon. A node lives in one IOThread, with all that is below it: in that of the nodes it names as
 * children, else in the home thread. Names are unique in the whole daemon, whichever thread a node is in.
 */

import { Disk } from '../lib/disk.ts';
import type { IOThread } from '../lib/iothread.ts';
import type { NodeInfo } from '../lib/node-messages.ts';
import { withObjects } from '../lib/objects/resolve.ts';
import type { ObjectStore } from '../lib/objects/store.ts';
import type { BlockdevOptions } from '../lib/options.ts';
import type { ReferencePolicy } from '../lib/reference-policy.ts';
import { QmpError } from '../qmp/errors.ts';

export interface DiskSettings {
  /** What the user is called. */
  readonly name: string;
  readonly writable: boolean;
  readonly writethrough: boolean;
}

export type NodeEvents = (name: string, payload: unknown) => void;

type Tree = Readonly<Record<string, unknown>>;

export class Nodes {
  readonly home: IOThread;
  readonly #policy: ReferencePolicy;
  /** Names of nodes, by the thread they are in. */
  readonly #names = new Map<IOThread, ReadonlySet<string>>();

  /** What the nodes that were added were made of. */
  readonly #options = new Map<string, BlockdevOptions>();
  readonly #onEvent: NodeEvents;
  readonly #objects: () => ObjectStore;

  /** `objects`: where those are that options name; `onEvent`: told what threads tell of their nodes. */
  constructor(home: IOThread, policy: ReferencePolicy, objects: () => ObjectStore, onEvent: NodeEvents) {
    this.home = home;
    this.#policy = policy;
    this.#objects = objects;
    this.#onEvent = onEvent;
    this.addThread(home);
  }

  /** One more thread that nodes may be in. */
  addThread(thread: IOThread): void {
    this.#names.set(thread, new Set());
    thread.listen(0, (name, payload) => {
      // A job has changed the graph.
      const { names } = payload as { readonly names?: readonly string[] };
      if (names) this.#names.set(thread, new Set(names));
      this.#onEvent(name, payload);
    });
  }

  removeThread(thread: IOThread): void {
    this.#names.delete(thread);
    thread.listen(0, undefined);
  }

  /** Nodes are in it. */
  isUsed(thread: IOThread): boolean {
    return (this.#names.get(thread)?.size ?? 0) > 0;
  }

  /** The thread that a node is in; undefined where there is none of that name. */
  find(name: string): IOThread | undefined {
    return this.threads.find((thread) => this.#names.get(thread)!.has(name));
  }

  /** As {@link find}; refused in the words for a device or node. */
  lookup(name: string | undefined, device = ''): IOThread {
    const thread = this.find(name ?? device);
    if (thread) return thread;
    throw new QmpError(`Cannot find device='${device}' nor node-name='${name ?? device}'`);
  }

  /** As {@link find}; refused in the words for a node. */
  node(name: string): IOThread {
    const thread = this.find(name);
    if (thread) return thread;
    throw new QmpError(`Failed to find node with node-name='${name}'`);
  }

  /** Those that have nodes. */
  get threads(): IOThread[] {
    return [...this.#names.keys()];
  }

  /** `where`: the thread, where nothing that it refers to says it. */
  async add(options: BlockdevOptions, where = this.home): Promise<void> {
    const tree = options as unknown as Tree;
    const name = tree['node-name'];
    if (name === undefined) throw new QmpError("'node-name' must be specified for the root node");
    this.#assertNames(tree);
    const thread = this.#threadFor(tree) ?? where;
    const resolved = withObjects(options, this.#objects());
    await this.#open(thread, resolved);
    this.#options.set(String(name), resolved);
  }

  /** Opens a tree for somebody who will use it, and keeps it until {@link letGo}. Answers the name of its root. */
  async hold(options: BlockdevOptions, thread: IOThread): Promise<string> {
    this.#assertNames(options as unknown as Tree);
    return this.#open(thread, options);
  }

  /** What was held goes with its last user. */
  async letGo(name: string): Promise<void> {
    const thread = this.find(name);
    if (!thread) return;
    const { names } = await thread.call('node-let-go', { node: name });
    this.#names.set(thread, new Set(names));
  }

  async delete(name: string): Promise<void> {
    await this.#close(this.node(name), name);
    this.#options.delete(name);
  }

  /**
   * Takes a node that nobody uses to another thread, with the nodes that it refers to: they are closed there and opened
   * here. Where they cannot be opened they are put back.
   */
  async move(name: string, to: IOThread): Promise<void> {
    const from = this.lookup(name);
    if (from === to) return;
    const moved = this.#withReferences(name);
    await this.#assertMovable(name, moved);
    for (const one of moved) await this.#close(from, one);
    const opened: string[] = [];
    try {
      for (const one of [...moved].reverse()) {
        await this.#open(to, this.#options.get(one)!);
        opened.push(one);
      }
    } catch (error) {
      for (const one of opened.reverse()) await this.#close(to, one);
      for (const one of [...moved].reverse()) await this.#open(from, this.#options.get(one)!);
      throw error;
    }
  }

  /** The node and those it refers to, each before what it refers to. */
  #withReferences(name: string): string[] {
    const options = this.#options.get(name);
    if (!options) throw new QmpError(`Node ${name} is not owned by the monitor`);
    const below = references(options as unknown as Tree).flatMap((child) => this.#withReferences(child));
    return [...new Set([name, ...below])];
  }

  async #assertMovable(name: string, moved: readonly string[]): Promise<void> {
    const list = await this.list();
    const parents = list.filter((node) => node.children.some((child) => moved.includes(child.node)));
    const used = list.some((node) => moved.includes(node.name) && node.backends.length > 0);
    const above = parents.some((parent) => !moved.includes(parent.name));
    if (used || above) throw new QmpError(`Cannot change iothread of active block backend: node '${name}' is in use`);
    const lost = list.find((node) => moved.includes(node.name) && node.bitmaps.some(({ persistent }) => !persistent));
    if (lost) throw new QmpError(`Node '${lost.name}' has bitmaps that are kept nowhere`);
  }

  async #open(thread: IOThread, options: BlockdevOptions): Promise<string> {
    const { node, names } = await thread.call('node-add', { options, policy: this.#policy });
    this.#names.set(thread, new Set(names));
    return node;
  }

  async #close(thread: IOThread, name: string): Promise<void> {
    const { names } = await thread.call('node-del', { node: name });
    this.#names.set(thread, new Set(names));
  }

  /** Makes nodes what their options say: all of them, or none. */
  async reopen(changes: readonly BlockdevOptions[]): Promise<void> {
    const threads = new Set<IOThread>();
    for (const options of changes) {
      const name = options['node-name'];
      if (name === undefined) throw new QmpError('node-name not specified');
      threads.add(this.node(name));
    }
    if (threads.size > 1) throw new QmpError('The nodes are in different IOThreads');
    for (const thread of threads) {
      const resolved = withObjects(changes, this.#objects());
      const { names } = await thread.call('node-reopen', { changes: resolved });
      this.#names.set(thread, new Set(names));
    }
  }

  /** All that is known of every node. */
  async list(): Promise<NodeInfo[]> {
    const lists = await Promise.all(this.threads.map((thread) => thread.call('node-list', undefined)));
    return lists.flat();
  }

  /** A disk on a node, for an export or a job. */
  async disk(node: string, settings: DiskSettings): Promise<Disk> {
    const thread = this.lookup(node);
    const reply = await thread.call('node-disk', { node, ...settings });
    return new Disk({ thread, release: () => Promise.resolve() }, reply, settings.name);
  }

  /** The nodes of a new tree have names that no other node has. */
  #assertNames(tree: Tree): void {
    const name = tree['node-name'];
    if (typeof name === 'string') this.assertFree(name);
    for (const child of subtrees(tree)) this.#assertNames(child);
  }

  /** A node may be called so. */
  assertFree(name: string): void {
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(name)) throw new QmpError(`Invalid node-name: '${name}'`);
    if (name.length > 31) throw new QmpError('Node name too long');
    if (this.find(name)) throw new QmpError(`Duplicate nodes with node-name='${name}'`);
  }

  /** Where the nodes are that it refers to. */
  #threadFor(tree: Tree): IOThread | undefined {
    const threads = new Set(references(tree).map((name) => this.lookup(name, name)));
    if (threads.size > 1) throw new QmpError('The nodes that are referred to are in different IOThreads');
    return [...threads][0];
  }
}

function subtrees(tree: Tree): Tree[] {
  return Object.values(tree).filter(
    (value): value is Tree => typeof value === 'object' && value !== null && 'driver' in value,
  );
}

/** Names of children in the places where a node may be. */
const CHILDREN = ['file', 'backing', 'data-file', 'target', 'image', 'test', 'raw', 'log'];

function references(tree: Tree): string[] {
  const own = CHILDREN.map((child) => tree[child]).filter((value) => typeof value === 'string');
  return [...own, ...subtrees(tree).flatMap(references)];
}
