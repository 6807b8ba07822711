/**
 * A client of a monitor, ours or QEMU's, over whatever carries bytes. Commands and events have the types of the schema;
 * replies are matched by their ids.
 *
 * ```ts
 * await using qmp = await QmpClient.connect({ path: '/run/qmp.sock' });
 * for (const node of await qmp.execute('query-named-block-nodes', { flat: true })) console.log(node['node-name']);
 * for await (const { event, data } of qmp.events()) console.log(event, data);
 * ```
 */
import { connect as connectSocket, type Socket } from 'node:net';
import { Gate } from '../aio/op.ts';
import { QmpError, type QmpErrorClass } from './errors.ts';
import { EventStream, type QmpEvent } from './event-stream.ts';
import { isObject, type Json, type JsonObject, writeJson } from './json.ts';
import { JsonReader } from './json-reader.ts';
import type { CommandName, Given, Qapi, Result } from './schema/schema.ts';

export type QmpAddress = { readonly path: string } | { readonly host: string; readonly port: number };

export class QmpClient {
  readonly #socket: Socket;
  readonly #pending = new Map<number, Gate<Json>>();
  readonly #listeners = new Set<EventStream>();
  readonly #greeted = new Gate<JsonObject>();
  #ids = 0;
  #closed: QmpError | undefined;
  #version: Qapi<'VersionInfo'> | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    const reader = new JsonReader(
      (message) => this.#took(message),
      (error) => this.#end(new QmpError(`The monitor has sent what is no JSON: ${error.message}`)),
    );
    socket.on('data', (bytes: Uint8Array) => reader.push(bytes));
    socket.on('error', (error) => this.#end(new QmpError(error.message, 'GenericError', error)));
    socket.on('close', () => this.#end(new QmpError('The monitor has closed the connection')));
  }

  /** Connects, and agrees on capabilities. Rejects with QmpError. */
  static async connect(address: QmpAddress): Promise<QmpClient> {
    const client = new QmpClient(connectSocket(address));
    try {
      const { version } = (await client.#greeted.promise) as unknown as { readonly version: Qapi<'VersionInfo'> };
      client.#version = version;
      await client.execute('qmp_capabilities', {});
      return client;
    } catch (error) {
      client.close();
      throw error;
    }
  }

  /** As the monitor has greeted. */
  get version(): Qapi<'VersionInfo'> {
    return this.#version!;
  }

  /** Rejects with QmpError where the monitor refuses, or is gone. */
  async execute<N extends CommandName>(command: N, ...[args]: Given<N>): Promise<Result<N>> {
    if (this.#closed) throw this.#closed;
    const id = ++this.#ids;
    const reply = new Gate<Json>();
    this.#pending.set(id, reply);
    this.#socket.write(`${writeJson({ execute: command, arguments: (args ?? {}) as JsonObject, id })}\n`);
    return (await reply.promise) as Result<N>;
  }

  /** Those that come from now on, until the loop is left or the connection ends. */
  events(): AsyncIterableIterator<QmpEvent> {
    const listener = new EventStream((one) => this.#listeners.delete(one));
    if (this.#closed) listener.end();
    else this.#listeners.add(listener);
    return listener;
  }

  /** Commands under way are rejected. */
  close(): void {
    this.#end(new QmpError('The connection was closed'));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  #took(message: Json): void {
    if (!isObject(message)) return;
    if (message.QMP !== undefined) this.#greeted.open(message.QMP as JsonObject);
    else if (message.event !== undefined) for (const one of this.#listeners) one.push(message as unknown as QmpEvent);
    else this.#replied(message);
  }

  #replied({ id, return: value, error }: JsonObject): void {
    const reply = typeof id === 'number' ? this.#pending.get(id) : undefined;
    if (!reply) return;
    this.#pending.delete(id as number);
    if (!isObject(error)) reply.open(value ?? null);
    else reply.fail(new QmpError(String(error.desc), error.class as QmpErrorClass));
  }

  #end(why: QmpError): void {
    if (this.#closed) return;
    this.#closed = why;
    this.#socket.destroy();
    this.#greeted.promise.catch(() => undefined);
    this.#greeted.fail(why);
    for (const reply of this.#pending.values()) reply.fail(why);
    this.#pending.clear();
    for (const listener of this.#listeners) listener.end();
  }
}
