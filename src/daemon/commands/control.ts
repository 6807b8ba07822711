import { introspect } from '../../qmp/introspect.ts';
import type { Daemon } from '../daemon.ts';
import type { Handlers } from './table.ts';

export function controlCommands(daemon: Daemon): Handlers {
  return {
    qmp_capabilities: ({ enable = [] }, session) => session?.negotiate(enable),
    'query-version': () => daemon.greeting.version as never,
    'query-commands': () => daemon.commandNames.map((name) => ({ name })),
    'query-qmp-schema': () => introspect(daemon.schema),
    quit: () => daemon.onQuit?.(),
  };
}
