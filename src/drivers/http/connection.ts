/**
 * One connection to a server: a request and its response at a time, in callbacks. Body chunks are handed on where the
 * socket has received them, in a buffer that is used again: a chunk of its own for each, as streams have it, costs more
 * than all the rest of a request.
 *
 * Whatever is not the response to the request (bytes before it was made or after its end, a head that is none) ends the
 * connection, and it is never used again.
 */
import type { Socket } from 'node:net';
import { Errno } from '../../base/errors.ts';
import type { Bytes } from '../../base/units.ts';
import { type Asking, type Exchange, Refusal } from './exchange.ts';
import { BodyReader, type Head, HeadReader } from './head.ts';

/** What a read of the socket brings at most. */
const RECEIVE_BYTES: Bytes = 128 * 1024;
/** A server closes an idle connection after some seconds, and a request that crosses the news is lost. */
const IDLE_MS = 4000;

export interface ConnectionOwner {
  /** It may be used for another request. */
  idle(connection: Connection): void;
  gone(connection: Connection): void;
}

/** The part of net.connect's and tls.connect's options that gives what is received to a callback. */
export interface OnRead {
  readonly onread: { readonly buffer: Uint8Array; readonly callback: (bytes: number) => boolean };
}

export class Connection implements Asking {
  readonly #owner: ConnectionOwner;
  readonly #buffer = new Uint8Array(RECEIVE_BYTES);
  #socket: Socket | undefined;
  /** The socket leads to the server, and not only to a proxy. */
  #ready = false;
  #exchange: Exchange | undefined;
  /** The request, as long as it cannot be sent. */
  #request = '';
  readonly #reader = new HeadReader();
  #head: Head | undefined;
  #body: BodyReader | undefined;
  #over = false;

  constructor(owner: ConnectionOwner) {
    this.#owner = owner;
  }

  get over(): boolean {
    return this.#over;
  }

  /** For the socket that it will work on. */
  get onRead(): OnRead {
    const callback = (bytes: number): boolean => {
      this.received(this.#buffer.subarray(0, bytes));
      return true;
    };
    return { onread: { buffer: this.#buffer, callback } };
  }

  /** Works on `socket` from here on. */
  attach(socket: Socket): void {
    this.through(socket);
    this.#ready = true;
    if (this.#request !== '' && !this.#over) socket.write(this.#request, 'latin1');
    this.#request = '';
  }

  /** On the way to the server there is `socket`: its end is the connection's. */
  through(socket: Socket): void {
    this.#socket = socket;
    socket.on('error', (error) => this.fail(error));
    socket.on('close', () => this.#closed());
    socket.on('timeout', () => this.#exchange === undefined && this.cut());
    socket.setNoDelay();
    if (this.#over) socket.destroy();
  }

  /** Not while another is under way. `request`: the whole head. */
  send(request: string, exchange: Exchange): void {
    this.#exchange = exchange;
    this.#reader.begin();
    this.#head = undefined;
    this.#body = undefined;
    if (this.#ready) {
      this.#socket!.setTimeout(0);
      this.#socket!.write(request, 'latin1');
    } else this.#request = request;
  }

  /** Ends it, without a word. */
  cut(): void {
    this.#exchange = undefined;
    this.#over = true;
    this.#socket?.destroy();
    this.#owner.gone(this);
  }

  /** Ends it. */
  fail(error: Error): void {
    const exchange = this.#exchange;
    this.cut();
    exchange?.failed(error);
  }

  /** Bytes of the socket, which are the callee's until it returns. */
  received(bytes: Uint8Array): void {
    let rest = bytes;
    while (rest.length > 0 && !this.#over) {
      if (this.#exchange === undefined) this.cut();
      else rest = this.#body === undefined ? this.#takeHead(rest) : this.#takeBody(rest, this.#body);
    }
  }

  #takeHead(bytes: Uint8Array): Uint8Array {
    const reader = this.#reader;
    const rest = bytes.subarray(reader.feed(bytes));
    const { head } = reader;
    if (head === undefined) return rest;
    if (typeof head === 'string') this.fail(new Refusal(Errno.EIO, head));
    // Another one follows.
    else if (head.status < 200) reader.begin(true);
    else this.#begin(head);
    return rest;
  }

  #begin(head: Head): void {
    const body = new BodyReader(head.headers);
    this.#head = head;
    this.#body = body;
    this.#exchange!.head(head.status, head.headers);
    if (this.#over) return;
    if (body.wrong !== undefined) this.fail(new Refusal(Errno.EIO, body.wrong));
    else if (body.ended) this.#end(0);
  }

  #takeBody(bytes: Uint8Array, body: BodyReader): Uint8Array {
    const content = body.next(bytes);
    const rest = bytes.subarray(body.taken);
    if (content.length > 0) this.#exchange!.data(content);
    if (this.#over) return rest;
    if (body.wrong !== undefined) this.fail(new Refusal(Errno.EIO, body.wrong));
    else if (body.ended) this.#end(rest.length);
    return rest;
  }

  /** `more`: bytes that came behind the response. */
  #end(more: Bytes): void {
    const exchange = this.#exchange!;
    this.#exchange = undefined;
    if (more > 0 || !this.#head!.persistent || this.#body!.untilClose) this.cut();
    else {
      this.#socket!.setTimeout(IDLE_MS);
      this.#owner.idle(this);
    }
    exchange.end();
  }

  #closed(): void {
    if (this.#over) return;
    if (this.#exchange !== undefined && this.#body?.untilClose) this.#end(0);
    else this.fail(Object.assign(new Error('the connection was closed'), { code: 'ECONNRESET' }));
  }
}
