/** Messages with descriptors, over the front-end's socket. Control path: one at a time, with promises. */
import type { AioSocket } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import { WaitOp } from '../../aio/op.ts';
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import { close } from '../../native/file.ts';
import { recvFds, sendFds } from '../../native/socket.ts';
import { HEADER_BYTES, HeaderFlag, MAX_MESSAGE_FDS, MAX_PAYLOAD_BYTES } from '../../proto/vhost-user/constants.ts';
import { decodeHeader } from '../../proto/vhost-user/message.ts';

const POLLIN = 1;
const POLLOUT = 4;

/** A message of the front-end. What {@link take} does not take of its descriptors is closed with {@link drop}. */
export class FrontMessage {
  readonly request: number;
  readonly wantsAnswer: boolean;
  readonly payload: Uint8Array;
  readonly #fds: number[];

  constructor(request: number, flags: number, payload: Uint8Array, fds: readonly number[]) {
    this.request = request;
    this.wantsAnswer = (flags & HeaderFlag.NEED_REPLY) !== 0;
    this.payload = payload;
    this.#fds = [...fds];
  }

  /** Descriptors that nobody has taken. */
  get fds(): readonly number[] {
    return this.#fds;
  }

  /** The first descriptor; the caller's from here on. */
  take(): number {
    const fd = this.#fds.shift();
    if (fd === undefined) throw new BlockError(Errno.EPROTO, 'its descriptor is missing');
    return fd;
  }

  drop(): void {
    for (const fd of this.#fds.splice(0)) close(fd);
  }
}

export class MessageStream {
  readonly #context: AioContext;
  readonly #fd: number;
  readonly #ready = new WaitOp();

  /** The socket stays the caller's; its shutdown ends what waits here. */
  constructor(context: AioContext, socket: AioSocket) {
    this.#context = context;
    if (socket.fd === undefined) throw new BlockError(Errno.ENOTSUP, 'this backend passes no descriptors');
    this.#fd = socket.fd;
  }

  /** The next message; undefined at the end of the stream. Throws EPROTO for what is none. */
  async receive(): Promise<FrontMessage | undefined> {
    const fds: number[] = [];
    try {
      const head = await this.#read(HEADER_BYTES, fds);
      if (!head) return undefined;
      const { request, flags, length } = decodeHeader(head);
      if ((flags & HeaderFlag.VERSION_MASK) !== HeaderFlag.VERSION || (flags & HeaderFlag.REPLY) !== 0) {
        throw new BlockError(Errno.EPROTO, `Could not read a message: its flags are ${flags}`);
      }
      if (length > MAX_PAYLOAD_BYTES) {
        throw new BlockError(Errno.EPROTO, `Could not read message ${request}: its payload has ${length} bytes`);
      }
      const payload = length === 0 ? new Uint8Array(0) : await this.#read(length);
      if (!payload) return undefined;
      return new FrontMessage(request, flags, payload, fds.splice(0));
    } finally {
      for (const fd of fds) close(fd);
    }
  }

  /** Exactly `length` bytes; undefined when the stream ends before. Descriptors are added to `fds`; without, there may
   *  be none. */
  async #read(length: number, fds?: number[]): Promise<Uint8Array | undefined> {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const received = recvFds(this.#fd, length - done, fds ? MAX_MESSAGE_FDS - fds.length : 0);
      if (received === -Errno.EAGAIN || received === -Errno.EINTR) {
        if ((await this.#poll(POLLIN)) < 0) return undefined;
        continue;
      }
      if (typeof received === 'number') return undefined;
      fds?.push(...received.fds);
      if (received.truncated)
        throw new BlockError(Errno.EPROTO, 'Could not read a message: it has too many descriptors');
      if (received.bytes.length === 0) return undefined;
      bytes.set(received.bytes, done);
      done += received.bytes.length;
    }
    return bytes;
  }

  #poll(events: number): Promise<number> {
    const result = this.#ready.wait();
    this.#context.backend.pollFd(this.#ready, this.#fd, events);
    return result;
  }

  /** Sends all of it; the descriptors stay the caller's. */
  async send(bytes: Uint8Array, fds: readonly number[] = []): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      const sent = sendFds(this.#fd, bytes.subarray(done), done === 0 ? fds : []);
      if (sent >= 0) done += sent;
      else if (sent !== -Errno.EAGAIN && sent !== -Errno.EINTR) {
        throw new BlockError(sent, `Could not answer the front-end: ${errnoText(sent)}`);
      } else if ((await this.#poll(POLLOUT)) < 0) return;
    }
  }
}
