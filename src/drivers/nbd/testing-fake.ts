/** For tests: an NBD server that says what a script has it say, apart from the engine's code for sockets. */
import { mkdtempSync, rmSync } from 'node:fs';
import * as net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { NodeOptions } from '../../block/graph.ts';
import { RawSocket } from '../../exports/nbd/raw-client.ts';
import {
  Command,
  EXTENDED_REQUEST_SIZE,
  HandshakeFlag,
  OPTION_HEADER_SIZE,
  Option,
  OptionReply,
  REQUEST_SIZE,
  TransmissionFlag,
} from '../../proto/nbd/constants.ts';
import {
  decodeOptionHeader,
  encodeGreeting,
  encodeInfoBlockSize,
  encodeInfoExport,
  encodeMetaContext,
  encodeOptionReply,
} from '../../proto/nbd/option.ts';
import { encodeChunk, encodeExtendedChunk, encodeSimpleReply } from '../../proto/nbd/reply.ts';
import { decodeExtendedRequest, decodeRequest, RequestHeader } from '../../proto/nbd/request.ts';

const ALL_FLAGS =
  TransmissionFlag.HAS_FLAGS |
  TransmissionFlag.SEND_FLUSH |
  TransmissionFlag.SEND_FUA |
  TransmissionFlag.SEND_TRIM |
  TransmissionFlag.SEND_WRITE_ZEROES;

export interface FakeOffer {
  readonly size?: number;
  readonly flags?: number;
  /** Structured replies. */
  readonly structured?: boolean;
  readonly extended?: boolean;
  /** The number of base:allocation. */
  readonly context?: number;
  /** Minimum, preferred and maximum. */
  readonly blocks?: readonly [number, number, number];
}

export interface FakeRequest {
  readonly type: number;
  readonly flags: number;
  readonly cookieHi: number;
  readonly cookieLo: number;
  readonly offset: number;
  readonly length: number;
  readonly payload: Uint8Array;
}

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);

/** One connection, from the server's side. */
export class FakePeer extends RawSocket {
  #extended = false;

  async greet(flags: number = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES): Promise<void> {
    this.write(encodeGreeting(flags));
    await this.read(4);
  }

  /** The client's next option; undefined when it has left. */
  async option(): Promise<{ readonly option: number; readonly payload: Uint8Array } | undefined> {
    const head = await this.read(OPTION_HEADER_SIZE);
    const header = head.length < OPTION_HEADER_SIZE ? undefined : decodeOptionHeader(viewOf(head), 0);
    if (!header) return undefined;
    return { option: header.option, payload: await this.read(header.length) };
  }

  reply(option: number, type: number, payload?: Uint8Array): void {
    this.write(encodeOptionReply(option, type, payload));
  }

  /** A whole handshake as an honest server has it. */
  async handshake(offer: FakeOffer = {}): Promise<void> {
    const { size = 1 << 20, flags = ALL_FLAGS, structured = false, extended = false, context, blocks } = offer;
    await this.greet();
    this.#extended = extended;
    for (;;) {
      const next = await this.option();
      if (!next) return;
      const { option } = next;
      const agreed =
        (option === Option.EXTENDED_HEADERS && extended) || (option === Option.STRUCTURED_REPLY && structured);
      if (agreed) this.reply(option, OptionReply.ACK);
      else if (option === Option.SET_META_CONTEXT) {
        if (context !== undefined)
          this.reply(option, OptionReply.META_CONTEXT, encodeMetaContext(context, 'base:allocation'));
        this.reply(option, OptionReply.ACK);
      } else if (option === Option.GO) {
        this.reply(option, OptionReply.INFO, encodeInfoExport(size, flags));
        if (blocks) this.reply(option, OptionReply.INFO, encodeInfoBlockSize(...blocks));
        this.reply(option, OptionReply.ACK);
        return;
      } else this.reply(option, OptionReply.ERR_UNSUP);
    }
  }

  /** The client's next request; undefined when it has left. */
  async request(): Promise<FakeRequest | undefined> {
    const size = this.#extended ? EXTENDED_REQUEST_SIZE : REQUEST_SIZE;
    const bytes = await this.read(size);
    if (bytes.length < size) return undefined;
    const header = new RequestHeader();
    const decode = this.#extended ? decodeExtendedRequest : decodeRequest;
    if (!decode(viewOf(bytes), 0, header)) throw new Error('the client sent no request');
    const payload = header.type === Command.WRITE ? await this.read(header.length) : new Uint8Array(0);
    return { ...header, payload };
  }

  simple({ cookieHi, cookieLo }: FakeRequest, error = 0, ...data: readonly Uint8Array[]): void {
    const bytes = new Uint8Array(16);
    encodeSimpleReply(viewOf(bytes), 0, error, cookieHi, cookieLo);
    this.write(bytes, ...data);
  }

  /** A chunk whose header says `length`, by default what the payload has. */
  chunk(
    request: FakeRequest,
    flags: number,
    type: number,
    payload: Uint8Array = new Uint8Array(0),
    length = payload.length,
  ): void {
    const bytes = new Uint8Array(32);
    const { cookieHi, cookieLo, offset } = request;
    const size = this.#extended
      ? encodeExtendedChunk(viewOf(bytes), 0, flags, type, cookieHi, cookieLo, offset, length)
      : encodeChunk(viewOf(bytes), 0, flags, type, cookieHi, cookieLo, length);
    this.write(bytes.subarray(0, size), payload);
  }
}

/** Listens on a unix socket; `script` is what happens on the n-th connection, which ends with it. */
export class FakeServer {
  readonly path: string;
  readonly #server: net.Server;
  readonly #peers = new Set<FakePeer>();
  /** What a script has thrown. */
  failure: unknown;
  connections = 0;

  private constructor(path: string, script: (peer: FakePeer, index: number) => Promise<void>) {
    this.path = path;
    this.#server = net.createServer((socket) => {
      const peer = new FakePeer(socket);
      this.#peers.add(peer);
      script(peer, this.connections++)
        .catch((error: unknown) => {
          this.failure ??= error;
        })
        .finally(async () => {
          await peer.destroy();
          this.#peers.delete(peer);
        });
    });
  }

  static async listen(path: string, script: (peer: FakePeer, index: number) => Promise<void>): Promise<FakeServer> {
    const fake = new FakeServer(path, script);
    await new Promise<void>((resolve) => fake.#server.listen(path, resolve));
    return fake;
  }

  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const peer of this.#peers) await peer.destroy();
    await closed;
    rmSync(this.path, { force: true });
    if (this.failure !== undefined) throw this.failure;
  }
}

/** What happens on the n-th connection. */
export type Script = (peer: FakePeer, index: number) => Promise<void>;

/** A scripted server, and the options of a node on it. */
export async function withFake(
  script: Script,
  body: (options: NodeOptions, fake: FakeServer) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'nbd-hostile-'));
  const fake = await FakeServer.listen(join(folder, 'socket'), script);
  const server = { type: 'unix', path: fake.path };
  const base = { driver: 'nbd', server, connections: 1, discard: 'unmap' } as NodeOptions;
  try {
    await body(base, fake);
  } finally {
    await fake.close();
    rmSync(folder, { recursive: true });
  }
}

/** Numbers that stand in the place of their bytes on the wire. */
export function bytes(...parts: readonly (readonly [size: 2 | 4 | 8, value: number] | number)[]): Uint8Array {
  const out: number[] = [];
  for (const part of parts) {
    const [size, value] = typeof part === 'number' ? [1, part] : part;
    for (let i = size - 1; i >= 0; i--) out.push(Math.floor(value / 256 ** i) % 256);
  }
  return new Uint8Array(out);
}
