/** Nodes that a daemon has added to an IOThread by name, without a disk on them. */

import type { CoMutex } from '../aio/co-mutex.ts';
import type { SetupThread } from '../aio/iothread-worker.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { BlockBackend } from '../block/backend.ts';
import { changeNodes } from '../block/change.ts';
import { BlockChild } from '../block/child.ts';
import { PERM_ALL, Perm } from '../block/driver.ts';
import { type NodeOptions, openNode, releaseNode } from '../block/graph.ts';
import { assertActive, setActive } from '../block/inactive.ts';
import { truncateNode } from '../block/io.ts';
import type { BlockNode } from '../block/node.ts';
import { allNodes, nodeByName } from '../block/registry.ts';
import { alone, amendAlone } from './alone.ts';
import type { HeldNodes } from './held-nodes.ts';
import { ofImage } from './image-head.ts';
import type { OpenReply } from './messages.ts';
import { nodeInfo } from './node-info.ts';
import type {
  NodeActiveMessage,
  NodeAdded,
  NodeAddMessage,
  NodeDiskMessage,
  NodeMethods,
  NodeNames,
  NodeReopenMessage,
  NodeResizeMessage,
} from './node-messages.ts';
import { nameOf } from './options.ts';
import { assertUnchanged, resolveReferences } from './references.ts';
import type { WorkerDisks } from './worker-disks.ts';

type NodeHandlers = {
  readonly [M in keyof NodeMethods]: (args: Parameters<NodeMethods[M]>[0]) => Promise<ReturnType<NodeMethods[M]>>;
};

export class WorkerNodes {
  readonly handlers: NodeHandlers;
  readonly #thread: SetupThread;
  readonly #disks: WorkerDisks;
  readonly #control: CoMutex;
  readonly #owned: HeldNodes;

  /** `control`: held by whoever changes an image as a whole. */
  constructor(thread: SetupThread, disks: WorkerDisks, owned: HeldNodes, control: CoMutex) {
    this.#thread = thread;
    this.#owned = owned;
    this.#control = control;
    this.#disks = disks;
    this.handlers = {
      'node-add': (args) => this.#add(args),
      'node-let-go': async ({ node: name }) => {
        const node = this.#owned.take(name);
        if (node) await releaseNode(node);
        return this.#names();
      },
      'node-names': async () => this.#names(),
      'node-del': ({ node }) => this.#delete(node),
      'node-reopen': (args) => this.#reopen(args),
      'node-list': async () => Promise.all(allNodes().map((node) => nodeInfo(node, this.#owned.has(node.name)))),
      'node-resize': (args) => this.#resize(args),
      'node-threshold': async ({ node, bytes }) => this.#owned.setThreshold(nodeByName(node), bytes),
      'node-snapshot-delete': ({ node, which }) =>
        alone(this.#control, node, ({ impl, driver, name }) => {
          if (impl.snapshots) return impl.snapshots.delete(which);
          const why = `the format '${driver.name}' does not support it`;
          throw new BlockError(Errno.ENOTSUP, `Could not use snapshots of node '${name}': ${why}`);
        }),
      'node-amend': ({ node, changes }) => amendAlone(this.#control, node, changes),
      'node-set-active': (args) => this.#setActive(args),
      'node-disk': (args) => this.#disk(args),
    };
  }

  async #add({ options, policy }: NodeAddMessage): Promise<NodeAdded> {
    const name = nameOf(options);
    let node: BlockNode | undefined;
    try {
      const resolved = await resolveReferences(options, policy);
      node = await openNode(this.#thread.context, resolved as unknown as NodeOptions);
      await assertUnchanged(options, resolved, policy, name);
    } catch (error) {
      if (node) await releaseNode(node).catch(() => undefined);
      throw ofImage(error, name);
    }
    this.#owned.add(node);
    return { node: node.name, ...this.#names() };
  }

  async #delete(name: string): Promise<NodeNames> {
    const { parents } = nodeByName(name);
    if (!parents.every((parent) => parent instanceof BlockChild)) {
      throw new BlockError(Errno.EBUSY, `Node ${name} is in use`);
    }
    if (!this.#owned.has(name)) throw new BlockError(Errno.EPERM, `Node ${name} is not owned by the monitor`);
    if (parents.length > 0) throw new BlockError(Errno.EBUSY, `Block device ${name} is in use`);
    await releaseNode(this.#owned.take(name)!);
    return this.#names();
  }

  async #reopen({ changes }: NodeReopenMessage): Promise<NodeNames> {
    using _turn = await this.#control.lock();
    for (const options of changes) assertActive(nodeByName(options['node-name']!));
    await changeNodes(
      changes.map((options) => ({
        node: nodeByName(options['node-name']!),
        options: options as unknown as NodeOptions,
      })),
    );
    return this.#names();
  }

  async #setActive({ node, active }: NodeActiveMessage): Promise<void> {
    using _turn = await this.#control.lock();
    const nodes = node === undefined ? roots(this.#owned.all) : [nodeByName(node)];
    for (const one of nodes) await setActive(one, active);
  }

  #names(): NodeNames {
    return { names: allNodes().map(({ name }) => name) };
  }

  async #resize({ node: name, size }: NodeResizeMessage): Promise<void> {
    using _turn = await this.#control.lock();
    const { context } = this.#thread;
    const perm = Perm.RESIZE | Perm.CONSISTENT_READ;
    const blk = await BlockBackend.open(context, name, { name: '', perm, shared: PERM_ALL, readOnly: false });
    try {
      using _drained = await blk.drain();
      await truncateNode(blk.root!, size, 'off');
    } finally {
      await blk.close();
    }
  }

  async #disk({ node, name, writable, fixed, ...how }: NodeDiskMessage): Promise<OpenReply> {
    this.#disks.assertRoom(name);
    const perm = Perm.CONSISTENT_READ | (writable ? Perm.WRITE : 0);
    const shared = Perm.CONSISTENT_READ | Perm.WRITE | Perm.WRITE_UNCHANGED;
    const { context } = this.#thread;
    const { writethrough, owner, allowInactive } = how;
    const options = { name, perm, shared, readOnly: !writable, writethrough, owner, allowInactive };
    const blk = await BlockBackend.open(context, node, options);
    if (fixed) blk.users.add({ cannotMove: () => `an export of '${name}' wants to stay in its thread` });
    return this.#disks.adopt(blk);
  }
}

/** Those that no other node is above of: what is below goes along. */
function roots(owned: readonly BlockNode[]): BlockNode[] {
  return owned.filter(({ parents }) => !parents.some((parent) => parent instanceof BlockChild));
}
