/**
 * A storage daemon: nodes by name, exports, character devices and monitors, in one process. Everything here is the
 * control plane and runs in the program's thread; I/O is done in IOThreads (docs/DAEMON.md).
 */

import { CoMutex } from '../aio/co-mutex.ts';
import { Gate } from '../aio/op.ts';
import { everyOne, everyStep } from '../base/every-step.ts';
import type { Abortable } from '../lib/abort.ts';
import { IOThread } from '../lib/iothread.ts';
import type { NodeJobErrorEvent, NodeJobEvent } from '../lib/node-job-messages.ts';
import type { DamageEvent, ThresholdEvent } from '../lib/node-messages.ts';
import type { ObjectType } from '../lib/objects/object-type.ts';
import { ObjectStore } from '../lib/objects/store.ts';
import { OBJECT_TYPES } from '../lib/objects/types.ts';
import { policyOf, type ReferenceOptions } from '../lib/reference-policy.ts';
import type { JobGroupEvent } from '../lib/transaction-messages.ts';
import { Checker } from '../qmp/check.ts';
import { qmpError } from '../qmp/errors.ts';
import { EventStream, type QmpEvent } from '../qmp/event-stream.ts';
import type { JsonObject } from '../qmp/json.ts';
import type { CommandName, Result } from '../qmp/schema/schema.ts';
import type { Schema } from '../qmp/schema/types.ts';
import type { Dispatcher, Session } from '../qmp/session.ts';
import { Bitmaps } from './bitmaps.ts';
import { Chardevs } from './chardev/chardevs.ts';
import { type AnyHandler, commandTable } from './commands/table.ts';
import { Events } from './events.ts';
import { Exports } from './exports.ts';
import { Graph } from './graph.ts';
import { JobGroups } from './job-groups.ts';
import {
  type JobArguments,
  type JobCommand,
  JobHandle,
  type TransactionOptions,
  type TransactionStep,
} from './job-handle.ts';
import { Jobs } from './jobs.ts';
import { Monitor } from './monitor.ts';
import { NbdListeners } from './nbd-listeners.ts';
import type { GivenHere } from './node-options.ts';
import { Nodes } from './nodes.ts';
import { iothreadOf, iothreadType, mainLoopType } from './objects/iothread.ts';
import { builtinSchema } from './schema.ts';
import { Transactions } from './transactions.ts';
import { versionInfo } from './version.ts';

export interface DaemonOptions extends ReferenceOptions {
  /** As of IOThread. */
  readonly aio?: 'ring' | 'pool' | undefined;
  /** What clients of monitors are told it is. Default: blockplane. */
  readonly package?: string | undefined;
}

export class Daemon implements Dispatcher {
  readonly greeting: JsonObject;
  readonly schema: Schema;
  readonly chardevs = new Chardevs({ objects: () => this.objects, onEnd: () => this.onQuit?.() });
  readonly events = new Events();
  readonly nodes: Nodes;
  /** What programs do with nodes. */
  readonly graph = new Graph(this);
  readonly objects: ObjectStore;
  readonly nbd: NbdListeners;
  readonly exports: Exports;
  readonly bitmaps: Bitmaps;
  readonly transactions: Transactions;
  readonly jobs = new Jobs(this.events);
  readonly #commands: ReadonlyMap<string, AnyHandler>;
  readonly #checker: Checker;
  /** Commands that change something, one after the other. */
  readonly #changes = new CoMutex('commands');
  readonly #groups = new JobGroups();
  /** Readers of events, and what ends each one's listening. */
  readonly #watched = new Map<EventStream, () => void>();
  #closing: Promise<void> | undefined;
  /** Opens once clients of monitors may be answered. */
  #held: Gate | undefined;
  /** Told when a client wants it to end. */
  onQuit: (() => void) | undefined;

  private constructor(home: IOThread, options: DaemonOptions) {
    this.greeting = { version: versionInfo(options.package), capabilities: ['oob'] } as unknown as JsonObject;
    this.nodes = new Nodes(
      home,
      policyOf(options),
      () => this.objects,
      (name, payload) => this.#told(name, payload),
    );
    this.objects = new ObjectStore([
      ...OBJECT_TYPES,
      iothreadType(this.nodes, options.aio),
      mainLoopType as ObjectType,
    ] as readonly ObjectType[]);
    this.schema = builtinSchema(this.objects.types);
    this.nbd = new NbdListeners(home, this.objects);
    this.nodes.attendant = this.nbd;
    this.bitmaps = new Bitmaps(this.nodes);
    this.exports = new Exports(
      this.nodes,
      this.bitmaps,
      this.nbd,
      (id) => iothreadOf(this.objects, id),
      (id) => this.events.emit('BLOCK_EXPORT_DELETED', { id }),
    );
    this.transactions = new Transactions(this.nodes, this.bitmaps, this.jobs, this.#groups);
    this.#commands = commandTable(this);
    this.#checker = new Checker(this.schema);
  }

  static async start(options: DaemonOptions = {}): Promise<Daemon> {
    const home = await IOThread.start({ name: 'main-loop', aio: options.aio });
    return new Daemon(home, options);
  }

  /** Names of all commands. */
  get commandNames(): string[] {
    return Object.keys(this.schema.commands).filter((name) => this.#commands.has(name));
  }

  has(command: string): boolean {
    return this.#commands.has(command);
  }

  /** Carries out a command that a client has sent: its arguments are checked. Rejects with QmpError. */
  async execute(command: string, args: JsonObject, session?: Session): Promise<unknown> {
    if (session && this.#held) await this.#held.promise;
    const checked = this.#checker.arguments(this.schema.commands[command]!.data, args);
    try {
      return await this.#carryOut(command, checked, session);
    } catch (error) {
      throw qmpError(error) ?? error;
    }
  }

  /** Begins a job, and stays with it to its end; `signal` gives it up. Rejects with QmpError. */
  begin<N extends JobCommand>(command: N, args: JobArguments<N>, options: Abortable = {}): Promise<JobHandle> {
    return JobHandle.begin(this, command, args, options);
  }

  /** Carries out all of the actions, as of one moment, or none; answers the jobs that it began, in their order.
   *  `signal` gives them up. Rejects with QmpError. */
  transaction(actions: readonly TransactionStep[], options: TransactionOptions = {}): Promise<readonly JobHandle[]> {
    return JobHandle.transaction(this, actions, options);
  }

  /** Carries out a command as a program says it. Rejects with QmpError. */
  async run<N extends CommandName>(command: N, ...[args]: GivenHere<N>): Promise<Result<N>> {
    return (await this.execute(command, (args ?? {}) as unknown as JsonObject)) as Result<N>;
  }

  async #carryOut(command: string, args: object, session: Session | undefined): Promise<unknown> {
    const handler = this.#commands.get(command)!;
    if (isQuery(command)) return handler(args as never, session);
    using _turn = await this.#changes.lock();
    return await handler(args as never, session);
  }

  /** @internal What clients of monitors ask for waits until the answer is called: they find all that is to come. */
  hold(): () => void {
    const held = new Gate();
    this.#held = held;
    return () => held.open();
  }

  /** A monitor over a character device. */
  addMonitor(chardev: string, pretty = false): void {
    const monitor = new Monitor(this, pretty);
    this.events.listen((event) => monitor.event(event as unknown as JsonObject));
    this.chardevs.attach(chardev, monitor);
  }

  /** Events from now on, until the loop is left or the daemon ends. */
  watch(): AsyncIterableIterator<QmpEvent> {
    const stream = new EventStream((one) => this.#unwatch(one));
    this.#watched.set(
      stream,
      this.events.listen((event) => stream.push(event)),
    );
    return stream;
  }

  /** Exports end, nodes are flushed and closed, threads end. All of it, whatever fails; then rejects with that. Again:
   *  the same end. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    using _turn = await this.#changes.lock();
    await everyStep(
      () => this.exports.deleteAll(),
      () => this.nbd.stop(),
      () => everyOne(this.nodes.threads.map((thread) => thread.stop())),
      () => this.chardevs.closeAll(),
    ).finally(() => {
      for (const stream of [...this.#watched.keys()]) {
        this.#unwatch(stream);
        stream.end();
      }
    });
  }

  #unwatch(stream: EventStream): void {
    this.#watched.get(stream)?.();
    this.#watched.delete(stream);
  }

  #told(name: string, payload: unknown): void {
    if (name === 'job') this.jobs.told(payload as NodeJobEvent);
    else if (name === 'job-error') this.jobs.failed(payload as NodeJobErrorEvent);
    else if (name === 'job-group') void this.#groups.told(payload as JobGroupEvent);
    else if (name === 'threshold') this.#crossed(payload as ThresholdEvent);
    else if (name === 'damage') this.#damaged(payload as DamageEvent);
  }

  #damaged({ node, what, fatal }: DamageEvent): void {
    this.events.emit('BLOCK_IMAGE_CORRUPTED', { device: '', 'node-name': node, msg: what, fatal });
  }

  #crossed({ node, threshold, end }: ThresholdEvent): void {
    this.events.emit('BLOCK_WRITE_THRESHOLD', {
      'node-name': node,
      'amount-exceeded': end - threshold,
      'write-threshold': threshold,
    });
  }
}

/** What changes nothing does not wait for what does; neither does agreeing on capabilities, nor the end. */
function isQuery(command: string): boolean {
  return command.startsWith('query-') || command === 'qmp_capabilities' || command === 'quit';
}
