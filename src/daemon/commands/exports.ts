import { everyStep } from '../../base/every-step.ts';
import { QmpError } from '../../qmp/errors.ts';
import { flatAddress } from '../chardev/address.ts';
import type { Daemon } from '../daemon.ts';
import type { Handlers } from './table.ts';

export function exportCommands({ exports, nbd, nodes }: Daemon): Handlers {
  return {
    'nbd-server-start': ({ addr, ...options }) => nbd.start({ addr: flatAddress(addr), ...options }),
    'nbd-server-stop': async () => {
      nbd.assertRunning();
      await everyStep(
        () => exports.deleteAll('nbd'),
        () => nbd.stop(),
      );
    },
    'nbd-server-add': ({ device, name = device, bitmap, ...options }) => {
      nodes.lookup(undefined, device);
      return exports.add({
        type: 'nbd',
        id: name,
        'node-name': device,
        name,
        ...options,
        ...(bitmap === undefined ? {} : { bitmaps: [bitmap] }),
      });
    },
    'nbd-server-remove': ({ name, mode = 'safe' }) => {
      const id = exports.nbdId(name);
      if (id === undefined) throw new QmpError(`Export '${name}' is not found`);
      return exports.delete(id, mode);
    },
    'block-export-add': (options) => exports.add(options),
    'block-export-del': ({ id, mode = 'safe' }) => exports.delete(id, mode),
    'query-block-exports': () => exports.list(),
  };
}
