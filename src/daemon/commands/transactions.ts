import type { Daemon } from '../daemon.ts';
import type { Handlers } from './table.ts';

/** Most of what a transaction is made of is a command by itself, too. */
export function transactionCommands({ transactions }: Daemon): Handlers {
  return {
    transaction: ({ actions, properties = {} }) =>
      transactions.run(actions, properties['completion-mode'] === 'grouped'),
    'blockdev-snapshot': (data) => transactions.run([{ type: 'blockdev-snapshot', data }]),
    'blockdev-snapshot-sync': (data) => transactions.run([{ type: 'blockdev-snapshot-sync', data }]),
    'blockdev-snapshot-internal-sync': (data) => transactions.run([{ type: 'blockdev-snapshot-internal-sync', data }]),
    'blockdev-backup': (data) => transactions.run([{ type: 'blockdev-backup', data }]),
    'drive-backup': (data) => transactions.run([{ type: 'drive-backup', data }]),
  };
}
