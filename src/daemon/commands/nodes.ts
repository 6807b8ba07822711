import type { ObjectStore } from '../../lib/objects/store.ts';
import type { BlockdevOptions } from '../../lib/options.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Arguments } from '../../qmp/schema/schema.ts';
import type { Daemon } from '../daemon.ts';
import type { Nodes } from '../nodes.ts';
import { iothreadOf } from '../objects/iothread.ts';
import { snapshotInfo } from './query.ts';
import type { Handlers } from './table.ts';

const SECTOR = 512;
const CONFLICT = 'The parameters child and node are in conflict';

export function nodeCommands({ nodes, objects }: Daemon): Handlers {
  return {
    'blockdev-add': (options) => nodes.add(options as unknown as BlockdevOptions),
    'blockdev-reopen': ({ options }) => nodes.reopen(options as unknown as readonly BlockdevOptions[]),
    'x-blockdev-set-iothread': (args) => setIothread(nodes, objects, args),
    'blockdev-del': ({ 'node-name': name }) => nodes.delete(name),
    block_resize: async ({ device, 'node-name': name, size }) => {
      const thread = nodes.lookup(name, device);
      if (size < 0) throw new QmpError("Parameter 'size' expects a >0 size");
      if (size % SECTOR !== 0) throw new QmpError(`The new size must be a multiple of ${SECTOR}`);
      await thread.call('node-resize', { node: name ?? device!, size });
    },
    'change-backing-file': async ({ device, 'image-node-name': image, 'backing-file': name }) => {
      nodes.lookup(undefined, device);
      const thread = nodes.lookup(image);
      const info = await nodes.list();
      const below = info.find((node) => node.name === image)?.children.find((child) => child.name === 'backing')?.node;
      const format = name === '' ? undefined : info.find((node) => node.name === below)?.driver;
      const changes = { 'backing-file': name === '' ? null : name, ...(format ? { 'backing-fmt': format } : {}) };
      await thread.call('node-amend', { node: image, changes });
    },
    'blockdev-snapshot-delete-internal-sync': async ({ device, id, name }) => {
      const thread = nodes.lookup(undefined, device);
      if (id === undefined && name === undefined) throw new QmpError('Name or id must be provided');
      const info = (await nodes.list()).find((node) => node.name === device);
      const found = info?.snapshots.find(
        (snapshot) => (id === undefined || snapshot.id === id) && (name === undefined || snapshot.name === name),
      );
      if (!found) {
        const [shownId, shownName] = [id ?? 'null', name ?? 'null'];
        throw new QmpError(
          `Snapshot with id '${shownId}' and name '${shownName}' does not exist on device '${device}'`,
        );
      }
      return snapshotInfo(await thread.call('node-snapshot-delete', { node: device, which: found.id }));
    },
    'blockdev-set-active': async ({ 'node-name': node, active }) => {
      const threads = node === undefined ? nodes.threads : [nodes.lookup(node)];
      for (const thread of threads) await thread.call('node-set-active', { node, active });
    },
    'x-blockdev-change': async ({ parent, child, node }) => {
      nodes.lookup(undefined, parent);
      if ((child === undefined) === (node === undefined)) {
        const why = child === undefined ? 'Either child or node must be specified' : CONFLICT;
        throw new QmpError(why);
      }
      const { children } = (await nodes.list()).find(({ name }) => name === parent)!;
      if (child !== undefined && !children.some(({ name }) => name === child)) {
        throw new QmpError(`Node '${parent}' does not have child '${child}'`);
      }
      if (node !== undefined && !nodes.find(node)) throw new QmpError(`Node '${node}' not found`);
      // No driver has children that come and go.
      throw new QmpError(`The node ${parent} does not support ${child === undefined ? 'adding' : 'removing'} a child`);
    },
    'block-set-write-threshold': async ({ 'node-name': node, 'write-threshold': bytes }) => {
      const thread = nodes.find(node);
      if (!thread) throw new QmpError(`Device '${node}' not found`);
      await thread.call('node-threshold', { node, bytes });
    },
  };
}

/** A node with a user on itself moves only when that is meant; what is above it does not count, as in QEMU. */
async function setIothread(
  nodes: Nodes,
  objects: ObjectStore,
  { 'node-name': name, iothread, force = false }: Arguments<'x-blockdev-set-iothread'>,
): Promise<void> {
  const node = (await nodes.list()).find((one) => one.name === name);
  if (!node) throw new QmpError(`Failed to find node with node-name='${name}'`);
  if (!force && node.backends.length > 0) {
    const why = 'is associated with a BlockBackend and could be in use (use force=true to override this check)';
    throw new QmpError(`Node ${name} ${why}`);
  }
  const to = iothread === null ? nodes.home : iothreadOf(objects, iothread);
  if (!to) throw new QmpError(`Cannot find iothread ${iothread}`);
  await nodes.move(name, to);
}
