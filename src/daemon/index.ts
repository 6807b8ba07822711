/**
 * A storage daemon inside a program, by typed calls, and a client for the monitor of any other.
 *
 * ```ts
 * import { Daemon } from 'blockplane/daemon';
 *
 * await using daemon = await Daemon.start();
 * await daemon.graph.add({ driver: 'null-co', 'node-name': 'n0', size: 2 ** 30 });
 * for await (const { event, data } of daemon.watch()) console.log(event, data);
 * ```
 */
export { type QmpAddress, QmpClient } from '../qmp/client.ts';
export { QmpError, type QmpErrorClass } from '../qmp/errors.ts';
export type { QmpEvent } from '../qmp/event-stream.ts';
export type { Arguments, CommandName, EventData, EventName, Qapi, Result } from '../qmp/schema/schema.ts';
export { Daemon, type DaemonOptions } from './daemon.ts';
export type { Graph } from './graph.ts';
export type {
  JobArguments,
  JobCommand,
  JobHandle,
  JobProgress,
  TransactionOptions,
  TransactionStep,
} from './job-handle.ts';
export type { NamedNode } from './node-options.ts';
