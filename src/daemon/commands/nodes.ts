import type { BlockdevOptions } from '../../lib/options.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Daemon } from '../daemon.ts';
import type { Handlers } from './table.ts';

const SECTOR = 512;

export function nodeCommands({ nodes }: Daemon): Handlers {
  return {
    'blockdev-add': (options) => nodes.add(options as unknown as BlockdevOptions),
    'blockdev-del': ({ 'node-name': name }) => nodes.delete(name),
    block_resize: async ({ device, 'node-name': name, size }) => {
      const thread = nodes.lookup(name, device);
      if (size < 0) throw new QmpError("Parameter 'size' expects a >0 size");
      if (size % SECTOR !== 0) throw new QmpError(`The new size must be a multiple of ${SECTOR}`);
      await thread.call('node-resize', { node: name ?? device!, size });
    },
    'block-set-write-threshold': async ({ 'node-name': node, 'write-threshold': bytes }) => {
      const thread = nodes.find(node);
      if (!thread) throw new QmpError(`Device '${node}' not found`);
      await thread.call('node-threshold', { node, bytes });
    },
  };
}
