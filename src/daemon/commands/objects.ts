import { BlockError, Errno } from '../../base/errors.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Daemon } from '../daemon.ts';
import { Qom } from '../objects/qom.ts';
import type { Handlers } from './table.ts';

export function objectCommands({ chardevs, objects }: Daemon): Handlers {
  const qom = new Qom(objects, chardevs);
  return {
    'object-add': async (options) => {
      try {
        await objects.addTree(options as Readonly<Record<string, unknown>>, false);
      } catch (error) {
        if (!(error instanceof BlockError) || error.errno !== Errno.EEXIST) throw error;
        const { id } = options as { readonly id: string };
        const why = `attempt to add duplicate property '${id}' to object (type 'container')`;
        throw new QmpError(why, 'GenericError', error);
      }
    },
    'object-del': ({ id }) => objects.remove(id),
    'qom-list': ({ path }) => qom.list(path),
    'qom-get': ({ path, property }) => qom.get(path, property),
    'qom-set': ({ path, property, value }) => qom.set(path, property, value),
    'qom-list-get': ({ paths }) => qom.listGet(paths),
    'qom-list-types': ({ implements: implemented, abstract = false }) => qom.types(implemented, abstract),
    'qom-list-properties': ({ typename }) => qom.properties(typename),
  };
}
