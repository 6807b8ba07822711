/**
 * The nodes of a daemon. A node lives in one IOThread, with all that is below it: in that of the nodes it names as
 * children, else in the home thread. Names are unique in the whole daemon, whichever thread a node is in.
 */

import { CoRwLock } from '../aio/co-rwlock.ts';
import { Disk } from '../lib/disk.ts';
import type { IOThread } from '../lib/iothread.ts';
import { move } from '../lib/move.ts';
import type { NodeInfo, NodeNames } from '../lib/node-messages.ts';
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
  /** It does not go to another thread. Default false. */
  readonly fixed?: boolean;
  /** See BlockBackendOptions. */
  readonly owner?: string;
  readonly allowInactive?: boolean;
}

/** Somebody who shows disks that move. */
export interface MoveAttendant {
  /** Before they move to `to`, and may yet stay. */
  prepare(disks: readonly Disk[], to: IOThread): Promise<void>;
  /** After it, wherever they are then. */
  settle(disks: readonly Disk[]): Promise<void>;
}

export type NodeEvents = (name: string, payload: unknown) => void;

type Tree = Readonly<Record<string, unknown>>;

export class Nodes {
  readonly home: IOThread;
  readonly #policy: ReferencePolicy;
  /** Names of nodes, by the thread they are in. */
  readonly #names = new Map<IOThread, ReadonlySet<string>>();
  /** Disks on nodes, by their numbers. */
  readonly #disks = new Map<number, Disk>();
  /** Written to while nodes are in two threads: who asks for all of them waits. */
  readonly #places = new CoRwLock('places of nodes');
  /** Told of moves. */
  attendant: MoveAttendant | undefined;
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
    const thread = (await this.#threadFor(tree)) ?? where;
    await this.#open(thread, withObjects(options, this.#objects()));
  }

  /** Opens a tree for somebody who will use it, and keeps it until {@link letGo}. Answers the name of its root. */
  async hold(options: BlockdevOptions, thread: IOThread): Promise<string> {
    this.#assertNames(options as unknown as Tree);
    return this.#open(thread, options);
  }

  /** What was held goes with its last user. */
  async letGo(name: string): Promise<void> {
    const thread = this.find(name);
    if (thread) await this.#named(thread, thread.call('node-let-go', { node: name }));
  }

  async delete(name: string): Promise<void> {
    const thread = this.node(name);
    await this.#named(thread, thread.call('node-del', { node: name }));
  }

  /**
   * Takes a node to another thread while it is used, with all nodes that it hangs together with. Where it rejects with
   * who stands against it, or with what failed, they are where they were.
   */
  async move(name: string, to: IOThread): Promise<void> {
    const from = this.lookup(name);
    if (from === to) return;
    const ids = await from.call('move-ask', { subject: { node: name }, to: to.name });
    const disks = ids.map((id) => this.#disks.get(id)!);
    try {
      await this.attendant?.prepare(disks, to);
      await this.#carry(name, disks, from, to);
    } finally {
      for (const thread of [from, to]) await this.#nameAgain(thread);
      await this.attendant?.settle(disks);
    }
  }

  /** The thread of `node`. The others come there, if they are elsewhere, and whoever uses them. */
  async together(node: string, ...others: readonly string[]): Promise<IOThread> {
    const thread = this.lookup(undefined, node);
    for (const other of others) if (this.lookup(undefined, other) !== thread) await this.move(other, thread);
    return thread;
  }

  async #carry(name: string, disks: readonly Disk[], from: IOThread, to: IOThread): Promise<void> {
    using _placing = await this.#places.writeLock();
    const rests = await Promise.all(disks.map(({ home }) => home.rest()));
    try {
      await move({ node: name }, from, to, (moved) => {
        for (const { id, home } of disks) home.moved(to, moved.get(id)!);
      });
    } finally {
      for (const rest of rests) rest[Symbol.dispose]();
    }
  }

  /** Knows the names in `thread` after a change there, also after one that has failed: it may have been done. */
  async #named<R extends NodeNames>(thread: IOThread, change: Promise<R>): Promise<R> {
    try {
      const reply = await change;
      this.#names.set(thread, new Set(reply.names));
      return reply;
    } catch (error) {
      await this.#nameAgain(thread);
      throw error;
    }
  }

  /** One that has died has none. */
  async #nameAgain(thread: IOThread): Promise<void> {
    const { names } = await thread.call('node-names', undefined).catch(() => ({ names: [] }));
    // May interleave: by now it may be none of the daemon's.
    if (this.#names.has(thread)) this.#names.set(thread, new Set(names));
  }

  async #open(thread: IOThread, options: BlockdevOptions): Promise<string> {
    const { node } = await this.#named(thread, thread.call('node-add', { options, policy: this.#policy }));
    return node;
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
      await this.#named(thread, thread.call('node-reopen', { changes: resolved }));
    }
  }

  /** All that is known of every node. */
  async list(): Promise<NodeInfo[]> {
    using _stay = await this.#places.readLock();
    const lists = await Promise.all(this.threads.map((thread) => thread.call('node-list', undefined)));
    return lists.flat();
  }

  /** A disk on a node, for an export or a job. */
  async disk(node: string, settings: DiskSettings): Promise<Disk> {
    const thread = this.lookup(node);
    const reply = await thread.call('node-disk', { node, ...settings });
    const release = async (): Promise<void> => {
      this.#disks.delete(reply.disk);
      // Its nodes may have gone with it: it can have been their last user.
      await this.#nameAgain(disk.iothread);
    };
    const disk = new Disk({ thread, release }, reply, settings.name);
    this.#disks.set(disk.id, disk);
    return disk;
  }

  /** The nodes of a new tree have names that no other node has. */
  #assertNames(tree: Tree): void {
    const name = tree['node-name'];
    if (typeof name === 'string') this.assertFree(name);
    for (const child of subtrees(tree)) this.#assertNames(child);
  }

  /** The same name, where one is given, which nobody has; `failed`: what its refusal begins with. */
  checkedName(name: string | undefined, failed = ''): string | undefined {
    if (name !== undefined) this.assertFree(name, failed);
    return name;
  }

  /** A node may be called so. */
  assertFree(name: string, failed = ''): void {
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(name)) throw new QmpError(`${failed}Invalid node-name: '${name}'`);
    if (name.length > 31) throw new QmpError(`${failed}Node name too long`);
    if (this.find(name)) throw new QmpError(`${failed}Duplicate nodes with node-name='${name}'`);
  }

  /** Where the nodes are that it refers to. */
  async #threadFor(tree: Tree): Promise<IOThread | undefined> {
    const [first, ...others] = references(tree);
    return first === undefined ? undefined : this.together(first, ...others);
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
