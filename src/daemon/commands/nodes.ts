import type { BlockdevOptions } from '../../lib/options.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Daemon } from '../daemon.ts';
import { iothreadOf } from '../objects/iothread.ts';
import { snapshotInfo } from './query.ts';
import type { Handlers } from './table.ts';

const SECTOR = 512;

export function nodeCommands({ nodes, objects }: Daemon): Handlers {
  return {
    'blockdev-add': (options) => nodes.add(options as unknown as BlockdevOptions),
    'blockdev-reopen': ({ options }) => nodes.reopen(options as unknown as readonly BlockdevOptions[]),
    'x-blockdev-set-iothread': ({ 'node-name': name, iothread }) => {
      nodes.lookup(name);
      return nodes.move(name, iothread === null ? nodes.home : iothreadOf(objects, iothread));
    },
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
    'block-set-write-threshold': async ({ 'node-name': node, 'write-threshold': bytes }) => {
      const thread = nodes.find(node);
      if (!thread) throw new QmpError(`Device '${node}' not found`);
      await thread.call('node-threshold', { node, bytes });
    },
  };
}
