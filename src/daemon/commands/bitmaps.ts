import type { Daemon } from '../daemon.ts';
import type { Handlers } from './table.ts';

export function bitmapCommands({ bitmaps }: Daemon): Handlers {
  return {
    'block-dirty-bitmap-add': (args) => bitmaps.add(args),
    'block-dirty-bitmap-remove': (args) => bitmaps.change(args, 'remove'),
    'block-dirty-bitmap-clear': (args) => bitmaps.change(args, 'clear'),
    'block-dirty-bitmap-enable': (args) => bitmaps.change(args, 'enable'),
    'block-dirty-bitmap-disable': (args) => bitmaps.change(args, 'disable'),
    'block-dirty-bitmap-merge': (args) => bitmaps.merge(args),
    'x-debug-block-dirty-bitmap-sha256': async (args) => ({ sha256: await bitmaps.hash(args) }),
  };
}
