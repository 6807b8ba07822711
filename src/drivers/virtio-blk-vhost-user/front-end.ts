/**
 * The messages of one connection: each with its answer, in order, in bounded time. Whatever the back-end sends that
 * was not asked for, and its leaving, ends the connection. [Vhost-user Protocol]
 */
import type { AioSocket } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import { FdStream } from '../../aio/fd-stream.ts';
import { Gate } from '../../aio/op.ts';
import type { Timer } from '../../aio/timers.ts';
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import type { Nanoseconds } from '../../base/units.ts';
import { close } from '../../native/file.ts';
import { BackRequest, FrontRequest, HEADER_BYTES, HeaderFlag } from '../../proto/vhost-user/constants.ts';
import {
  decodeHeader,
  decodeU64,
  encodeMessage,
  encodeU64,
  type Header,
  headerFault,
} from '../../proto/vhost-user/message.ts';

/** Names of requests, for messages. */
const NAMES = new Map<number, string>(Object.entries(FrontRequest).map(([name, value]) => [value, name]));

interface Asked {
  readonly request: number;
  readonly answer: Gate<Uint8Array>;
}

/** Somebody who is told of what the back-end does by itself. It may be told within a call of its own. */
export interface FrontEndOwner {
  /** The connection is of no more use; `broken`: the back-end has done what it may not. */
  ended(broken: boolean): void;
  /** The configuration space has changed. */
  changed(): void;
}

export class FrontEnd {
  /** The back-end answers every message that is told to. */
  acknowledges = false;
  readonly #socket: AioSocket;
  readonly #stream: FdStream;
  readonly #owner: FrontEndOwner;
  readonly #answerNs: Nanoseconds;
  readonly #patience: Timer;
  #asked: Asked | undefined;
  #channel: AioSocket | undefined;
  /** Why it has ended. */
  #why: string | undefined;
  readonly #readers: Promise<void>[] = [];

  /** Takes over the socket. A back-end that takes longer than `answerNs` for an answer is given up. */
  constructor(aio: AioContext, socket: AioSocket, answerNs: Nanoseconds, owner: FrontEndOwner) {
    this.#socket = socket;
    this.#stream = new FdStream(aio, socket);
    this.#owner = owner;
    this.#answerNs = answerNs;
    this.#patience = aio.timer(() => {
      const { request } = this.#asked!;
      this.end(`it has not answered ${NAMES.get(request)} in ${answerNs / 1e9} seconds`, true);
    }, 'vhost-user answer');
    this.#readers.push(this.#read(this.#stream, true));
  }

  /** Throws once the connection has ended. */
  #assertOpen(): void {
    if (this.#why !== undefined) throw new BlockError(Errno.EIO, this.#why);
  }

  /** The payload of the answer. One at a time. Throws BlockError. */
  async ask(request: number, payload?: Uint8Array): Promise<Uint8Array> {
    return this.#exchange(request, payload, [], 0);
  }

  /** A message without an answer of its own; where the back-end acknowledges, its refusal is thrown. */
  async tell(request: number, payload?: Uint8Array, fds: readonly number[] = []): Promise<void> {
    if (!this.acknowledges) return this.#send(encodeMessage(request, payload), fds);
    const answer = await this.#exchange(request, payload, fds, HeaderFlag.NEED_REPLY);
    const refusal = decodeU64(answer);
    if (refusal !== 0) throw new BlockError(Errno.EIO, `it has refused ${NAMES.get(request)} (${refusal})`);
  }

  async #exchange(
    request: number,
    payload: Uint8Array | undefined,
    fds: readonly number[],
    flags: number,
  ): Promise<Uint8Array> {
    this.#assertOpen();
    const asked: Asked = { request, answer: new Gate() };
    this.#asked = asked;
    // The end of the connection may come before anybody waits.
    asked.answer.promise.catch(() => undefined);
    this.#patience.armIn(this.#answerNs);
    await this.#send(encodeMessage(request, payload, flags), fds);
    return asked.answer.promise;
  }

  async #send(message: Uint8Array, fds: readonly number[]): Promise<void> {
    this.#assertOpen();
    const result = await this.#stream.send(message, fds);
    if (result < 0) this.end(`it cannot be sent a message: ${errnoText(result)}`, false);
    this.#assertOpen();
  }

  /** Listens to what the back-end has to say by itself; takes over the socket. */
  listen(aio: AioContext, channel: AioSocket): void {
    this.#channel = channel;
    this.#readers.push(this.#read(new FdStream(aio, channel), false));
  }

  async #read(stream: FdStream, answers: boolean): Promise<void> {
    try {
      for (;;) {
        const fds: number[] = [];
        try {
          const head = await stream.read(HEADER_BYTES, fds, 1);
          if (!head) break;
          const header = decodeHeader(head);
          const fault = headerFault(header, answers);
          if (fault !== undefined) throw new BlockError(Errno.EPROTO, fault);
          const payload = await stream.read(header.length, [], 0);
          if (!payload) break;
          if (answers) this.#answered(header, payload);
          else await this.#asks(stream, header);
        } finally {
          for (const fd of fds) close(fd);
        }
      }
      this.end('it has ended the connection', false);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.end(error.message, true);
    }
  }

  #answered({ request }: Header, payload: Uint8Array): void {
    const asked = this.#asked;
    if (asked?.request !== request) {
      throw new BlockError(Errno.EPROTO, `it answers message ${request}, which nobody has asked`);
    }
    this.#asked = undefined;
    this.#patience.cancel();
    asked.answer.open(payload);
  }

  async #asks(stream: FdStream, { request, flags }: Header): Promise<void> {
    if (request === BackRequest.CONFIG_CHANGE) this.#owner.changed();
    if ((flags & HeaderFlag.NEED_REPLY) === 0) return;
    const refused = request === BackRequest.CONFIG_CHANGE ? 0 : 1;
    await stream.send(encodeMessage(request, encodeU64(refused), HeaderFlag.REPLY));
  }

  /** The first reason counts. */
  end(why: string, broken: boolean): void {
    if (this.#why !== undefined) return;
    this.#why = why;
    this.#patience.cancel();
    this.#socket.shutdown();
    this.#channel?.shutdown();
    this.#asked?.answer.fail(new BlockError(Errno.EIO, why));
    this.#asked = undefined;
    this.#owner.ended(broken);
  }

  /** Ends it, if it has not ended, and waits until nothing of it is left. */
  async close(): Promise<void> {
    this.end('it was closed', false);
    await Promise.all(this.#readers);
    await this.#socket.close();
    await this.#channel?.close();
  }
}
