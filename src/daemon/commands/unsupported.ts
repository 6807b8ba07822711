import { QmpError } from '../../qmp/errors.ts';
import type { Handlers } from './table.ts';

/** Commands that clients may know of, and that cannot be done here. */
export function unsupportedCommands(): Handlers {
  const refuse =
    (what: string, instead: string) =>
    (_args: object): never => {
      throw new QmpError(`'${what}' is not supported: ${instead}`);
    };
  return {
    'x-blockdev-amend': refuse('x-blockdev-amend', 'amend the image while it is not open'),
    'x-blockdev-change': refuse('x-blockdev-change', 'no driver has children that come and go'),
    'blockdev-set-active': ({ active }) => {
      if (!active)
        throw new QmpError("'blockdev-set-active' is not supported: nodes are active as long as they are there");
    },
  };
}
