/**
 * One client of a monitor: the greeting, what it has agreed on, its commands in their order, and what it is sent. How
 * bytes come and go is its link's affair. Bounds: commands that wait, and bytes that it has not read.
 */
import { Gate } from '../aio/op.ts';
import { MiB } from '../base/units.ts';
import { QmpError, qmpError } from './errors.ts';
import { isObject, type Json, type JsonObject, writeJson } from './json.ts';
import { JsonError, JsonReader } from './json-reader.ts';

/** Where the bytes of a session go. */
export interface SessionLink {
  send(text: string): void;
  /** Bytes that were sent and not taken yet. */
  readonly unsent: number;
  /** Nothing is read until resume. */
  pause(): void;
  resume(): void;
  /** Ends the connection. */
  cut(): void;
}

/** Who carries out commands. */
export interface Dispatcher {
  readonly greeting: JsonObject;
  has(command: string): boolean;
  execute(command: string, args: JsonObject, session: Session): Promise<unknown>;
}

/** Commands that wait before the client is not listened to any more. */
const QUEUE_MAX = 8;
/** Bytes that a client leaves unread before nothing more is done for it. */
const UNSENT_MAX = MiB;
/** Bytes of events that a client leaves unread before it is cut off. */
const EVENTS_MAX = 32 * MiB;

interface Waiting {
  /** A command, or what was wrong with what came in its place. */
  readonly message: Json | JsonError;
}

export class Session {
  readonly #dispatcher: Dispatcher;
  readonly #link: SessionLink;
  readonly #pretty: boolean;
  readonly #reader: JsonReader;
  readonly #queue: Waiting[] = [];
  #negotiated = false;
  #oob = false;
  #running = false;
  #paused = false;
  #closed = false;
  /** Bytes of events since it had last read all. */
  #told = 0;
  /** Waits for it to read. */
  #unread: Gate | undefined;

  constructor(dispatcher: Dispatcher, link: SessionLink, pretty = false) {
    this.#dispatcher = dispatcher;
    this.#link = link;
    this.#pretty = pretty;
    this.#reader = new JsonReader(
      (message) => this.#take({ message }),
      (message) => this.#take({ message }),
    );
    this.#send({ QMP: dispatcher.greeting });
  }

  /** It has agreed on capabilities: it gets events. */
  get negotiated(): boolean {
    return this.#negotiated;
  }

  /** Bytes from the client. */
  push(bytes: Uint8Array): void {
    if (!this.#closed) this.#reader.push(bytes);
  }

  /** The client takes its answers again. */
  drained(): void {
    this.#told = 0;
    this.#unread?.open();
    this.#regulate();
  }

  /** The client has gone: commands that wait are not begun. */
  close(): void {
    this.#closed = true;
    this.#queue.length = 0;
    this.#unread?.open();
  }

  event(event: JsonObject): void {
    if (!this.#negotiated || this.#closed) return;
    this.#told += this.#send(event);
    if (Math.min(this.#told, this.#link.unsent) <= EVENTS_MAX) return;
    this.close();
    this.#link.cut();
  }

  /** What `qmp_capabilities` does. */
  negotiate(enable: readonly string[]): void {
    if (this.#negotiated) {
      throw new QmpError('Capabilities negotiation is already complete, command ignored', 'CommandNotFound');
    }
    this.#oob = enable.includes('oob');
    this.#negotiated = true;
  }

  #take(waiting: Waiting): void {
    this.#queue.push(waiting);
    this.#regulate();
    if (!this.#running) void this.#run();
  }

  async #run(): Promise<void> {
    this.#running = true;
    for (let next = this.#queue.shift(); next; next = this.#queue.shift()) {
      await this.#read();
      if (this.#closed) break;
      const answer = await this.#answer(next.message);
      if (this.#closed) break;
      this.#send(answer);
      this.#regulate();
    }
    this.#running = false;
  }

  async #answer(message: Json | JsonError): Promise<JsonObject> {
    if (message instanceof JsonError) return errorReply(new QmpError(message.message), undefined);
    const id = isObject(message) ? message.id : undefined;
    try {
      const { command, args } = this.#request(message);
      const result = await this.#dispatcher.execute(command, args, this);
      return { return: (result ?? {}) as Json, ...(id === undefined ? {} : { id }) };
    } catch (error) {
      const told = qmpError(error);
      if (!told) throw error;
      return errorReply(told, id);
    }
  }

  /** Throws for what is no request that can be carried out now. */
  #request(message: Json): { readonly command: string; readonly args: JsonObject } {
    if (!isObject(message)) throw new QmpError('QMP input must be a JSON object');
    const { command, outOfBand, args } = membersOf(message, this.#oob);
    const known = this.#dispatcher.has(command);
    if (!this.#negotiated && (!known || command !== 'qmp_capabilities')) {
      throw new QmpError("Expecting capabilities negotiation with 'qmp_capabilities'", 'CommandNotFound');
    }
    if (!known) throw new QmpError(`The command ${command} has not been found`, 'CommandNotFound');
    if (outOfBand) throw new QmpError(`The command ${command} does not support OOB`);
    return { command, args };
  }

  /** Resolves once it has read most of what it was sent. */
  async #read(): Promise<void> {
    while (!this.#closed && this.#link.unsent > UNSENT_MAX) {
      this.#unread = new Gate();
      await this.#unread.promise;
    }
  }

  /** Answers the length of what was sent. */
  #send(message: JsonObject): number {
    const json = writeJson(message, this.#pretty);
    const text = `${this.#pretty ? json.replaceAll('\n', '\r\n') : json}\r\n`;
    this.#link.send(text);
    return text.length;
  }

  /** Listens to the client only while it is good for it. */
  #regulate(): void {
    const full = this.#queue.length >= QUEUE_MAX || this.#link.unsent > UNSENT_MAX;
    if (full === this.#paused) return;
    this.#paused = full;
    if (full) this.#link.pause();
    else this.#link.resume();
  }
}

function errorReply(error: QmpError, id: Json | undefined): JsonObject {
  const reply = { error: { class: error.errorClass, desc: error.message } };
  return id === undefined ? reply : { id, ...reply };
}

function membersOf(message: JsonObject, oob: boolean): { command: string; outOfBand: boolean; args: JsonObject } {
  let command: string | undefined;
  let outOfBand = false;
  let args: JsonObject = {};
  for (const [name, value] of Object.entries(message)) {
    switch (name) {
      case 'execute':
      case 'exec-oob': {
        const other = name === 'execute' ? 'exec-oob' : 'execute';
        if (name === 'exec-oob' && !oob) throw new QmpError("QMP input member 'exec-oob' is unexpected");
        if (typeof value !== 'string') throw new QmpError(`QMP input member '${name}' must be a string`);
        if (command !== undefined) throw new QmpError(`QMP input member '${name}' clashes with '${other}'`);
        command = value;
        outOfBand = name === 'exec-oob';
        break;
      }
      case 'arguments':
        if (!isObject(value)) throw new QmpError("QMP input member 'arguments' must be an object");
        args = value;
        break;
      case 'id':
        break;
      default:
        throw new QmpError(`QMP input member '${name}' is unexpected`);
    }
  }
  if (command === undefined) throw new QmpError("QMP input lacks member 'execute'");
  return { command, outOfBand, args };
}
