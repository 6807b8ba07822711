/** For tests: an NBD client that may say anything, on node:net, apart from all the engine's own code for sockets; and
 *  what it has in common with a server that may say anything. */
import * as net from 'node:net';
import {
  Command,
  GREETING_SIZE,
  OPTION_REPLY_HEADER_SIZE,
  Option,
  OptionReply,
  SIMPLE_REPLY_SIZE,
} from '../../proto/nbd/constants.ts';
import {
  decodeOptionReplyHeader,
  encodeClientFlags,
  encodeInfoRequest,
  encodeOption,
  type OptionReplyHeader,
} from '../../proto/nbd/option.ts';
import { encodeRequest, RequestHeader } from '../../proto/nbd/request.ts';

export interface RawReply extends OptionReplyHeader {
  readonly payload: Uint8Array;
}

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);

export class RawSocket {
  readonly socket: net.Socket;
  /** Resolves when the connection has ended, however it did. */
  readonly closed: Promise<void>;
  #chunks: Buffer[] = [];
  #have = 0;
  #waiting: (() => void) | undefined;
  #over = false;

  constructor(socket: net.Socket) {
    this.socket = socket;
    this.closed = new Promise((resolve) => {
      socket.once('close', () => resolve());
    });
    // A reset by the server is an end like any other.
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      this.#chunks.push(chunk);
      this.#have += chunk.length;
      this.#waiting?.();
    });
    for (const event of ['end', 'close']) {
      socket.on(event, () => {
        this.#over = true;
        this.#waiting?.();
      });
    }
  }

  /** Bytes that are there and not read. */
  get available(): number {
    return this.#have;
  }

  /** The next `length` bytes; fewer when the other side ends the connection before. */
  async read(length: number): Promise<Buffer> {
    while (this.#have < length && !this.#over) {
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
      });
      this.#waiting = undefined;
    }
    const all = Buffer.concat(this.#chunks);
    const taken = all.subarray(0, length);
    const rest = all.subarray(taken.length);
    this.#chunks = rest.length > 0 ? [rest] : [];
    this.#have = rest.length;
    return taken;
  }

  write(...parts: readonly Uint8Array[]): void {
    if (!this.socket.destroyed) this.socket.write(Buffer.concat(parts));
  }

  /** Leaves with a TCP reset. Node never ends a socket that is reset while it is ending already. */
  async reset(): Promise<void> {
    if (this.#over || !this.socket.writable) this.socket.destroy();
    else this.socket.resetAndDestroy();
    await this.closed;
  }

  /** Leaves without a word. */
  async destroy(): Promise<void> {
    this.socket.destroy();
    await this.closed;
  }
}

export class RawClient extends RawSocket {
  static async connect(address: string | number): Promise<RawClient> {
    const socket = typeof address === 'string' ? net.connect(address) : net.connect(address, '127.0.0.1');
    const client = new RawClient(socket);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', reject);
    });
    return client;
  }

  /** Greeting and client flags. */
  async greet(flags = 3): Promise<void> {
    const greeting = await this.read(GREETING_SIZE);
    if (greeting.length < GREETING_SIZE) throw new Error('the server closed the connection before its greeting');
    this.write(encodeClientFlags(flags));
  }

  /** Sends an option and reads its replies up to the last. */
  async option(option: number, payload?: Uint8Array): Promise<RawReply[]> {
    this.write(encodeOption(option, payload));
    const replies: RawReply[] = [];
    for (;;) {
      const head = await this.read(OPTION_REPLY_HEADER_SIZE);
      if (head.length < OPTION_REPLY_HEADER_SIZE) return replies;
      const header = decodeOptionReplyHeader(viewOf(head), 0);
      if (!header) throw new Error('not an option reply');
      replies.push({ ...header, payload: await this.read(header.length) });
      if (header.type === OptionReply.ACK || header.type >= 0x80000000) return replies;
    }
  }

  /** The whole handshake; throws when the server refuses. */
  async go(name: string, ...before: readonly number[]): Promise<void> {
    await this.greet();
    for (const option of before) await this.option(option);
    const replies = await this.option(Option.GO, encodeInfoRequest(name, []));
    const last = replies.at(-1);
    if (last?.type !== OptionReply.ACK)
      throw new Error(`GO ended with ${last?.type.toString(16) ?? 'a closed socket'}`);
  }

  /** Sends a compact request; its cookie is (0, `cookie`). */
  request(type: number, offset: number, length: number, cookie = 1, flags = 0): void {
    this.write(requestBytes(type, offset, length, cookie, flags));
  }

  /** Reads a simple reply; its error, or undefined when the connection has ended. */
  async simpleReply(): Promise<{ readonly error: number; readonly cookie: number } | undefined> {
    const bytes = await this.read(SIMPLE_REPLY_SIZE);
    if (bytes.length < SIMPLE_REPLY_SIZE) return undefined;
    return { error: bytes.readUInt32BE(4), cookie: bytes.readUInt32BE(12) };
  }

  /** A whole session that reads: for asking whether the server still serves others. */
  static async readOnce(address: string | number, name: string, offset: number, length: number): Promise<Buffer> {
    const client = await RawClient.connect(address);
    await client.go(name);
    client.request(Command.READ, offset, length);
    const reply = await client.simpleReply();
    if (reply?.error !== 0) throw new Error(`the read ended with ${reply?.error ?? 'a closed socket'}`);
    const data = await client.read(length);
    client.request(Command.DISC, 0, 0);
    await client.closed;
    return data;
  }
}

/** A compact request, as it travels. */
export function requestBytes(type: number, offset: number, length: number, cookie = 1, flags = 0): Buffer {
  const header = Object.assign(new RequestHeader(), { flags, type, cookieLo: cookie, offset, length });
  const bytes = Buffer.alloc(28);
  encodeRequest(viewOf(bytes), 0, header);
  return bytes;
}
