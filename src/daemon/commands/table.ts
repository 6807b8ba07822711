/** Every command and who carries it out. */
import type { Arguments, CommandName, Result } from '../../qmp/schema/schema.ts';
import type { Session } from '../../qmp/session.ts';
import type { Daemon } from '../daemon.ts';
import { bitmapCommands } from './bitmaps.ts';
import { chardevCommands } from './chardev.ts';
import { controlCommands } from './control.ts';
import { exportCommands } from './exports.ts';
import { jobCommands } from './jobs.ts';
import { mirrorCommands } from './mirror.ts';
import { nodeCommands } from './nodes.ts';
import { objectCommands } from './objects.ts';
import { queryCommands } from './query.ts';
import { transactionCommands } from './transactions.ts';

/** What a command does. `session`: of the client that asks, where it came over a monitor. */
export type Handler<N extends CommandName> = (
  args: Arguments<N>,
  session: Session | undefined,
) => Result<N> | Promise<Result<N>>;

/** A part of the table. */
export type Handlers = { readonly [N in CommandName]?: Handler<N> };

export type AnyHandler = (args: never, session: Session | undefined) => unknown;

export function commandTable(daemon: Daemon): ReadonlyMap<string, AnyHandler> {
  const parts: readonly Handlers[] = [
    controlCommands(daemon),
    chardevCommands(daemon),
    nodeCommands(daemon),
    queryCommands(daemon),
    exportCommands(daemon),
    bitmapCommands(daemon),
    jobCommands(daemon),
    mirrorCommands(daemon),
    transactionCommands(daemon),
    objectCommands(daemon),
  ];
  return new Map(parts.flatMap((part) => Object.entries(part) as [string, AnyHandler][]));
}
